"""What a missing value decides otherwise on an OPA server: mistakes, found at load.

OPA takes what a negated call or comparison is given out of the negation
(open-policy-agent/opa#8387): ``not is_number(input.args.cents)`` is undefined there where the
argument is missing, so that a rule which denies by it does not fire. Here it holds, as its author
meant. ``not`` of a name alone, or of ``==``, is the same on both; and so is one whose values can't
be missing: every input has them, or another expression of the same body needs them.

And ``x in y`` is false here where one of the two is missing, and undefined there. As a condition by
itself that is the same; as a value, in ``(x in y) == false``, it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
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
"""What every input has (docs/policies.md, Input)."""

_CLOSED: Final = ("ArrayCompr", "SetCompr", "ObjectCompr")


_ADVICE: Final = (
    "give what it negates a rule of its own (`fits if ...`) and write `not fits`, which holds "
    "without the value on both; or bind the value before it (`x := ...`), and the rule does not "
    "apply without it"
)


@dataclass(frozen=True, slots=True)
class _Known:
    """Which names may have no value: ``lacking`` rules, and the results of own ``functions``."""

    lacking: AbstractSet[Names]
    functions: AbstractSet[Names]


def mistakes(readers: Iterable[Reader]) -> Iterator[str]:
    """Yield a sentence for each expression that a missing value decides otherwise on a server."""
    readers = list(readers)
    rules = [rule for reader in readers for rule in reader.module().rules]
    known = _Known(
        {rule.path for rule in rules} - set(_defined(readers)),
        {rule.path for rule in rules if rule.function},
    )
    always = frozenset[Names]() if _replaces_input(readers) else _ALWAYS
    for reader in readers:
        for node in reader.rules:
            for kind, expression, there in _watched(reader, node, always):
                found = next(_missing(reader, expression, known, there), None)
                if found is None:
                    continue
                named = ".".join(found.path) + ("" if found.whole else "[...]")
                where = f"{reader.at(found.span)}: where {named} is missing, this"
                if kind == "NotExpr":
                    yield (
                        f"{where} `not` holds here and not on an OPA server, where a denial would "
                        f"not fire; {_ADVICE}"
                    )
                else:
                    yield (
                        f"{where} `in` is false here and without a value on an OPA server; make it "
                        "a condition by itself, in a rule of its own if need be"
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


def _replaces_input(readers: Iterable[Reader]) -> bool:
    """Whether a ``with`` anywhere gives rules another input than a call's."""
    for reader in readers:
        for node in objects(reader.rules):
            for replaced in node.get("with_mods", ()):
                if reader.reference(name_of(replaced["refr"]), call=False).path[0] == "input":
                    return True
    return False


def _watched(
    reader: Reader, tree: object, known: AbstractSet[Names], *, condition: bool = False
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    """Yield what is negated (``NotExpr``), and each ``Membership`` that is a value.

    With each stand the names that have a value wherever it is evaluated; ``known`` are those of the
    bodies around ``tree``. A ``condition`` is a membership that stands by itself.
    """
    match tree:
        case {"stmts": [*statements]}:
            yield from _in_body(reader, statements, known)
        case {"Membership": inside}:
            if not condition:
                yield "Membership", tree, known
            yield from _watched(reader, inside, known)
        case dict():
            for value in tree.values():
                yield from _watched(reader, value, known)
        case list():
            for value in tree:
                yield from _watched(reader, value, known)


def _in_body(
    reader: Reader, statements: list[Any], known: AbstractSet[Names]
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    # a variable may be another one further in; the input is the same everywhere
    needed = {name for one in statements for name in _needed(reader, one)}
    inner = known | {name for name in needed if name[0] == "input"}
    for statement in statements:
        literal = statement["literal"]
        match literal:
            case {"NotExpr": {"expr": expression}}:
                replaced = bool(statement.get("with_mods"))
                yield "NotExpr", expression, frozenset() if replaced else known | needed
                yield from _watched(reader, expression, inner, condition=True)
            case {"Expr": {"expr": expression}}:
                yield from _watched(reader, expression, inner, condition=True)
            case _:
                yield from _watched(reader, literal, inner)


def _needed(reader: Reader, statement: Mapping[str, Any]) -> Iterator[Names]:
    """Yield the names without which a statement, and so its body, does not hold."""
    if statement.get("with_mods"):
        return
    match statement["literal"]:
        case {"Expr": {"expr": {"Membership": _} as expression}}:
            todo = _below(expression)
        case {"Expr": {"expr": expression}}:
            todo = [expression]
        case {"SomeIn": {"collection": expression}} | {"Every": {"domain": expression}}:
            todo = [expression]
        case _:
            return
    while todo:
        node = todo.pop()
        match node:
            case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                path = reader.reference(name := name_of(node), call=False).path
                if name.path:
                    yield from (path[:length] for length in range(1, len(path) + 1))
            case {"Membership": _}:  # it has a value without what it is made of
                continue
        todo += _below(node)


def _missing(
    reader: Reader, expression: Any, known: _Known, there: AbstractSet[Names]
) -> Iterator[Name]:
    """Yield the names within an expression that may have no value, ``there`` are those that do."""
    match expression:
        case {"BoolExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
            # OPA leaves names in the negation, and takes out what is computed
            todo = [part for side in (left, right) for part in _computed(side)]
        case _:
            todo = _below(expression)
    while todo:
        node = todo.pop(0)
        match node:
            case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                name = name_of(node)
                if name.path and _may_lack(reader, name, known, there):
                    yield name
                todo += name.computed
            case {"Call": {"fcn": function}}:
                name = name_of(function)
                called = reader.reference(name, call=True)
                path = called.path if called.absolute else (*reader.package, *called.path)
                if path in known.functions:
                    yield name
                todo += _below(node)
            case dict():
                if not any(closed in node for closed in _CLOSED):
                    todo += _below(node)


def _computed(node: Any) -> list[Any]:
    return [node] if "Call" in node else _below(node)


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


def _may_lack(reader: Reader, name: Name, known: _Known, there: AbstractSet[Names]) -> bool:
    path = reader.reference(name, call=False).path
    root = name.path[0]
    if name.whole and path in there:
        return False
    if name.whole and root != "input" and (len(name.path) == 1 or root == "data"):
        return path in known.lacking  # a variable has a value, and so has what data.json holds
    return True
