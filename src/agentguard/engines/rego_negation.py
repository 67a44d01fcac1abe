"""Negations that hold here and do not on an OPA server: warnings, not errors.

OPA takes what a negated call or comparison is given out of the negation
(open-policy-agent/opa#8387): ``not is_number(input.args.cents)`` is undefined there where the
argument is missing, so that a rule which denies by it does not fire. Here it holds, as its author
meant.
``not`` of a name alone, or of ``==``, is the same on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from agentguard.engines.rego_tree import Name, Names, Reader, name_of, objects

_ALWAYS: Final = frozenset(
    {
        ("input",),
        ("input", "agent"),
        *(("input", "agent", name) for name in ("id", "name", "type", "instance", "roles")),
        *(("input", name) for name in ("action", "resource", "task_id", "args", "delegation")),
        *(("input", "tool", name) for name in ("name", "schema_sha256")),
    }
)
"""What every input has (docs/policy.md, Input)."""

_CLOSED: Final = ("ArrayCompr", "SetCompr", "ObjectCompr")


def warnings(readers: Iterable[Reader]) -> Iterator[str]:
    """Yield a sentence for each negation that a missing value decides otherwise on a server."""
    readers = list(readers)
    lacking = {rule.path for reader in readers for rule in reader.module().rules}
    lacking -= set(_defined(readers))
    for reader in readers:
        for node in reader.rules:
            for negated in _negations(node):
                found = next(_missing(reader, negated, lacking), None)
                if found is not None:
                    named = ".".join(found.path) + ("" if found.whole else "[...]")
                    yield (
                        f"{reader.at(found.span)}: where {named} is missing, this `not` holds here "
                        "and not on an OPA server, where a denial would not fire; give what it "
                        "negates a rule of its own, and write `not` of that rule"
                    )


def _defined(readers: Iterable[Reader]) -> Iterator[Names]:
    """Yield the rules that always have a value: with a default, or sets and objects of parts."""
    for reader in readers:
        for node in reader.rules:
            ((kind, rule),) = node.items()
            if kind == "Default":
                yield reader.path_of(rule["refr"])
                continue
            ((form, head),) = rule["head"].items()
            constant = form == "Compr" and not _conditions(rule)
            if form == "Set" or constant:
                yield reader.path_of(head["refr"])


def _conditions(rule: Mapping[str, Any]) -> bool:
    """Whether a rule has a body, or a value that is no literal."""
    ((_form, head),) = rule["head"].items()
    assigned = head.get("assign")
    names = ("Var", "RefDot", "RefBrack", "Call")
    computed = any(name in node for node in objects(assigned) for name in names)
    return bool(rule["bodies"]) or computed


def _negations(tree: object) -> Iterator[Any]:
    for node in objects(tree):
        match node:
            case {"NotExpr": {"expr": expression}}:
                yield expression


def _missing(reader: Reader, expression: Any, lacking: set[Names]) -> Iterator[Name]:
    """Yield the names within a negated expression that may have no value.

    ``lacking`` are the rules that may have none.
    """
    match expression:
        case {"BoolExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
            todo = [*_below(left), *_below(right)]
        case _:
            todo = _below(expression)
    while todo:
        node = todo.pop(0)
        match node:
            case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                name = name_of(node)
                if name.path and _may_lack(reader, name, lacking):
                    yield name
                todo += name.computed
            case dict():
                if not any(closed in node for closed in _CLOSED):
                    todo += _below(node)


def _below(node: Any) -> list[Any]:
    """What a call, an operator or a literal is made of; of a name what is computed in it."""
    match node:
        case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
            return list(name_of(node).computed)
        case {"Call": {"params": [*parameters]}}:
            return list(parameters)
        case {"Membership": {"key": key, "value": value, "collection": collection}}:
            return [part for part in (key, value, collection) if part]
        case dict():
            ((kind, inner),) = list(node.items())[:1]
            if kind in _CLOSED or not isinstance(inner, dict):
                return []
            return [part for part in _parts(inner) if isinstance(part, dict)]
    return []


def _parts(inner: Mapping[str, Any]) -> Iterator[Any]:
    for value in inner.values():
        todo = list(value) if isinstance(value, list) else [value]
        while todo:
            part = todo.pop(0)
            if isinstance(part, list):
                todo = [*part, *todo]
            elif isinstance(part, dict) and "line" not in part:
                yield part


def _may_lack(reader: Reader, name: Name, lacking: set[Names]) -> bool:
    path = reader.reference(name, call=False).path
    root = name.path[0]
    if root == "input":
        return not (name.whole and path in _ALWAYS)
    if name.whole and (len(name.path) == 1 or root == "data"):
        return path in lacking  # a variable has a value, and so has what data.json holds
    return True
