"""Mistakes in the heads of rules: keys that the engines read differently, and undefined values.

A body such as ``some x in input.args.items`` holds once for each element, and the head has a value
for each element. Where the head is undefined for one element, the embedded engine drops the values
of the elements before: ``deny_reasons contains x.name if { some x in input.args.items; x.closed }``
denies nothing when the last item has no name. Rego omits only that element. Where the value of a
function is undefined, Rego evaluates the function's ``else``, and the engine does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Names, Reader, name_of, used_variables, variables
from agentguard.policy.rego.undefined import ALWAYS, CLOSED, Presence, below, required_names

_MUST_HOLD: Final = ("approval", "deny_reason", "deny_reasons", "obligations")
"""Outputs that restrict a call: an undefined one restricts nothing."""


def mistakes(readers: list[Reader], presence: Presence) -> Iterator[str]:
    """Yield a sentence for each head that has another value on an OPA server."""
    heads = [(reader, *_head(node)) for reader in readers for node in reader.rules]
    keyed = {
        reader.path_of(head["refr"])
        for reader, _kind, head in heads
        if name_of(head["refr"]).computed
    }
    for reader, form, head in heads:
        yield from _key_problems(reader, form, head)
        yield from _mixed_keys(reader, head, keyed)
    for reader in readers:
        for node in reader.rules:
            if (rule := node.get("Spec")) is not None:
                yield from _value_problems(reader, rule, presence)


def warnings(readers: list[Reader], presence: Presence, query: Names) -> Iterator[str]:
    """Yield a sentence for each output whose value may be undefined though its body holds.

    An undefined output denies, requires and redacts nothing, on both engines.
    """
    for reader in readers:
        for node in reader.rules:
            if (rule := node.get("Spec")) is None:
                continue
            (head,) = rule["head"].values()
            path = reader.path_of(head["refr"])
            if path[: len(query)] != query or path[len(query)] not in _MUST_HOLD:
                continue
            for parts, statements in _parts_by_body(head, rule):
                for name in presence.missing(
                    reader, parts, ALWAYS | required_names(reader, statements)
                ):
                    yield (
                        f"{reader.at(name.span)}: where {name} is missing, {path[-1]} has no "
                        "value, though the conditions of the rule hold; write the value without "
                        f"{name}, or bind it in the body and add a rule for calls without it"
                    )


def _head(rule: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the form of a rule and its head."""
    if (default := rule.get("Default")) is not None:
        return "Func" if default["args"] else "Compr", default
    ((form, head),) = rule["Spec"]["head"].items()
    return form, head


def _key_problems(reader: Reader, form: str, head: Mapping[str, Any]) -> Iterator[str]:
    parts, node = 0, head["refr"]
    while "Var" not in node:
        ((_kind, inner),) = node.items()
        node, parts = inner["refr"], parts + 1
    computed = not name_of(head["refr"]).whole
    if form != "Func" and (parts > 1 or (computed and form == "Set")):
        yield (
            f"{reader.at(head['span'])}: a rule with several keys, and a set with a computed key, "
            "have other values on an OPA server; write one key at most "
            "(`limits[team] := {...}`)"
        )


def _mixed_keys(
    reader: Reader, head: Mapping[str, Any], keyed: AbstractSet[Names]
) -> Iterator[str]:
    name = name_of(head["refr"])
    if name.whole and (above := reader.path_of(head["refr"])[:-1]) in keyed:
        yield (
            f"{reader.at(head['span'])}: {above[-1]} has this key and computed keys, and the "
            f"engine misses the computed ones after it has read {'.'.join(name.path)}; "
            "compute all keys, or none"
        )


def _parts_by_body(
    head: Mapping[str, Any], rule: Mapping[str, Any]
) -> Iterator[tuple[list[Any], Any]]:
    """Yield, for each body of a rule, the expressions of the head, and the body's statements."""
    shared = [*name_of(head["refr"]).computed, head.get("key")]
    for body in rule["bodies"] or [{"assign": None, "query": {"stmts": []}}]:
        assigned = body["assign"] or head.get("assign")
        parts = [*shared, assigned and assigned["value"]]
        yield [part for part in parts if part], body["query"]["stmts"]


def _value_problems(reader: Reader, rule: Mapping[str, Any], presence: Presence) -> Iterator[str]:
    ((form, head),) = rule["head"].items()
    parameters = set(variables(head.get("args")))
    for parts, statements in _parts_by_body(head, rule):
        single = parameters.union(_assigned(statements))
        if any(_iterates(reader, part, single.union(variables(statements))) for part in parts):
            yield (
                f"{reader.at(rule['span'])}: `[_]` in the head of a rule has other values on an "
                "OPA server; iterate over the elements in the body (`some x in ...`)"
            )
            continue
        if form == "Func" and len(rule["bodies"]) > 1:
            effect = ", an OPA server evaluates `else`, and the embedded engine has no value"
        elif any(
            _may_hold_repeatedly(reader, statement["literal"], single) for statement in statements
        ):
            effect = (
                " for one of the elements that the body iterates over, the engine drops the values "
                "of the other elements, and a denial does not fire"
            )
        else:
            continue
        for name in presence.missing(reader, parts, ALWAYS | required_names(reader, statements)):
            yield (
                f"{reader.at(name.span)}: where {name} is missing{effect}; bind it in the body "
                "(`value := ...`), and write `value` in the head"
            )


def _assigned(statements: list[Any]) -> Iterator[str]:
    for statement in statements:
        match statement["literal"]:
            case {"Expr": {"expr": {"AssignExpr": {"lhs": pattern}}}}:
                yield from variables(pattern)


def _may_hold_repeatedly(reader: Reader, literal: Mapping[str, Any], single: set[str]) -> bool:
    """Tell whether a condition may hold more than once; ``single`` variables have one value."""
    match literal:
        case {"SomeIn": _} | {"SomeVars": _}:
            return True
        case {"Expr": {"expr": expression}}:
            return _iterates(reader, expression, single)
    return False


def _iterates(reader: Reader, expression: Any, single: set[str]) -> bool:
    todo = [expression]
    while todo:
        match node := todo.pop():
            case {"RefBrack": {"refr": inner, "index": index}}:
                names = {name for name, _ in used_variables(index)}
                if not names - single <= reader.names:
                    return True
                todo.append(inner)
            case {"RefDot": {"refr": inner}}:
                todo.append(inner)
            case {"Call": {"fcn": function}} if name_of(function).path == ("walk",):
                return True
        if not any(closed in node for closed in CLOSED):
            todo += below(node)
    return False
