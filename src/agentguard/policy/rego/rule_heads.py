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

from agentguard.policy.rego.syntax_tree import (
    Name,
    Names,
    Reader,
    RuleTree,
    name_of,
    used_variables,
    variables,
)
from agentguard.policy.rego.undefined import ALWAYS, CLOSED, Presence, below, required_names

_MUST_HOLD: Final = ("approval", "deny_reason", "deny_reasons", "obligations")
"""Outputs that restrict a call: an undefined one restricts nothing."""


def mistakes(readers: list[Reader], presence: Presence) -> Iterator[str]:
    """Yield a sentence for each head that has another value on an OPA server."""
    trees = [(reader, tree) for reader in readers for tree in reader.rules]
    keyed = {
        reader.path_of(tree.head["refr"])
        for reader, tree in trees
        if name_of(tree.head["refr"]).computed
    }
    for reader, tree in trees:
        yield from _key_problems(reader, tree)
        yield from _mixed_keys(reader, tree.head, keyed)
    for reader, tree in trees:
        if not tree.is_default:
            yield from _value_problems(reader, tree, presence)


def warnings(readers: list[Reader], presence: Presence, query: Names) -> Iterator[str]:
    """Yield a sentence for each output whose value may be undefined though its body holds.

    An undefined output denies, requires and redacts nothing, on both engines.
    """
    for reader in readers:
        for tree in reader.rules:
            if tree.is_default:
                continue
            path = reader.path_of(tree.head["refr"])
            if path[: len(query)] != query or path[len(query)] not in _MUST_HOLD:
                continue
            for parts, statements in _parts_by_body(tree):
                for name in _missing(reader, presence, parts, statements):
                    yield (
                        f"{reader.at(name.span)}: where {name} is missing, {path[-1]} has no "
                        "value, though the conditions of the rule hold; write the value without "
                        f"{name}, or bind it in the body and add a rule for calls without it"
                    )


def _key_problems(reader: Reader, tree: RuleTree) -> Iterator[str]:
    head = tree.head
    parts, node = 0, head["refr"]
    while "Var" not in node:
        ((_kind, inner),) = node.items()
        node, parts = inner["refr"], parts + 1
    computed = not name_of(head["refr"]).whole
    if tree.form != "Func" and (parts > 1 or (computed and tree.form == "Set")):
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


def _parts_by_body(tree: RuleTree) -> Iterator[tuple[list[Any], Any]]:
    """Yield, for each body of a rule, the expressions of the head, and the body's statements."""
    head = tree.head
    shared = [*name_of(head["refr"]).computed, head.get("key")]
    for body in tree.rule["bodies"] or [{"assign": None, "query": {"stmts": []}}]:
        assigned = body["assign"] or head.get("assign")
        parts = [*shared, assigned and assigned["value"]]
        yield [part for part in parts if part], body["query"]["stmts"]


def _value_problems(reader: Reader, tree: RuleTree, presence: Presence) -> Iterator[str]:
    has_else = tree.form == "Func" and len(tree.rule["bodies"]) > 1
    parameters = set(variables(tree.head.get("args")))
    for parts, statements in _parts_by_body(tree):
        single = parameters.union(_assigned(statements))
        if _head_iterates(reader, parts, statements, single):
            yield (
                f"{reader.at(tree.rule['span'])}: `[_]` in the head of a rule has other values on "
                "an OPA server; iterate over the elements in the body (`some x in ...`)"
            )
            continue
        missing = _missing(reader, presence, parts, statements)
        if not missing:
            continue
        if has_else:
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
        for name in missing:
            yield (
                f"{reader.at(name.span)}: where {name} is missing{effect}; bind it in the body "
                "(`value := ...`), and write `value` in the head"
            )


def _missing(reader: Reader, presence: Presence, parts: list[Any], statements: Any) -> list[Name]:
    """Return the names in a head that may be undefined though the body's statements hold."""
    # Most heads have no such name, and nothing needs to know what their bodies require.
    if not any(presence.missing(reader, parts, ALWAYS)):
        return []
    return [*presence.missing(reader, parts, ALWAYS | required_names(reader, statements))]


def _head_iterates(
    reader: Reader, parts: list[Any], statements: list[Any], single: set[str]
) -> bool:
    """Tell whether an expression of the head iterates by a variable that no statement has."""
    iterating = [part for part in parts if _iterates(reader, part, single)]
    bound = single.union(variables(statements)) if iterating else single
    return any(_iterates(reader, part, bound) for part in iterating)


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
