"""Mistakes: variables that are unbound in the embedded engine and bound in Rego.

In Rego the order of a body's expressions has no meaning. The embedded engine evaluates the
expressions of ``not data.members[user]; input.users[user]`` in their order: the negation does not
hold for the unbound variable, and a denial by the rule never fires. ``:=`` must come before a use
of its variable in Rego, too.

The engine treats the variables of ``every`` and ``walk`` as unbound in two places: in a pattern,
which then matches any element, and in an index under ``not``, where the ``not`` then never holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentguard.policy.rego.syntax_tree import (
    Reader,
    RuleTree,
    Span,
    name_of,
    objects,
    used_variables,
    variables,
)


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each variable that is bound too late or never."""
    for tree in reader.rules:
        if any(tree.parts("NotExpr")):
            yield from _in_negations(reader, tree)
        yield from _in_loops(reader, tree)


def _in_negations(reader: Reader, tree: RuleTree) -> Iterator[str]:
    parameters = set(variables(tree.head.get("args")))
    for body in tree.parts("stmts"):
        yield from (
            f"{reader.at(span)}: this `not` uses {name} before {name} has a value, and never "
            f"holds in the embedded engine; move the expression that binds {name} before the "
            "`not`"
            for name, span in _variables_bound_late(body["stmts"], parameters)
            if name not in reader.names
        )
    bodies = tree.rule.get("bodies", [])
    bound = parameters | {
        name for body in bodies for name in _bound_variables(body["query"]["stmts"])
    }
    for name, span in (
        *_unbound_in_negations(reader, bodies, parameters),
        *_unbound_in_negations(reader, tree.rule.get("head"), bound),
    ):
        if name not in reader.names:
            yield (
                f"{reader.at(span)}: {name} has no value in this `not`, which an OPA server "
                "refuses as unsafe, and which never holds in the embedded engine; bind "
                f"{name} before the `not` (`some x in ...`), or move the condition into a rule "
                "of its own"
            )


def _in_loops(reader: Reader, tree: RuleTree) -> Iterator[str]:
    for loop in tree.parts("Every", "Call"):
        match loop:
            case {"Every": {"key": key, "value": value, "query": scope}}:
                names = {reader.text_of(span) for span in (key, value) if span}
            case {"Call": {"fcn": function, "params": [_, pattern]}} if _is_walk(function):
                names, scope = set(variables(pattern)), tree.rule
            case _:
                continue
        for name, span in _uses_in_indices(scope, names):
            yield (
                f"{reader.at(span)}: {name} of `every` or `walk` has no value in this place in "
                "the embedded engine; move the condition into a function (`is_member(x) if "
                f"...`), and write `is_member({name})`"
            )


def _unbound_in_negations(
    reader: Reader, tree: Any, visible: set[str]
) -> Iterator[tuple[str, Span]]:
    """Yield the variables in negations that no expression around the negation binds."""
    match tree:
        case {"NotExpr": negated}:
            yield from (
                (name, span) for name, span in used_variables(negated) if name not in visible
            )
            yield from _unbound_in_negations(reader, negated, visible)
        case {"Every": {"key": key, "value": value, "domain": domain, "query": query}}:
            names = {reader.text_of(span) for span in (key, value) if span}
            yield from _unbound_in_negations(reader, domain, visible)
            yield from _unbound_in_negations(reader, {"query": query}, visible | names)
        case {"query": {"stmts": [*statements]}}:
            inner = visible | set(_bound_variables(statements))
            yield from _unbound_in_negations(reader, [*tree.values()], inner)
        case dict():
            yield from _unbound_in_negations(reader, [*tree.values()], visible)
        case list():
            for part in tree:
                yield from _unbound_in_negations(reader, part, visible)


def _bound_variables(statements: list[Any]) -> Iterator[str]:
    """Yield the variables that a body's conditions may bind; a `not` binds none."""
    for statement in statements:
        literal = statement["literal"]
        match literal:
            case {"NotExpr": _}:
                continue
            case {"Every": {"domain": domain}}:
                literal = domain
        yield from (name for name, _ in used_variables(literal) if name != "_")


def _is_walk(function: Any) -> bool:
    return name_of(function).path == ("walk",)


def _uses_in_indices(query: Any, names: set[str]) -> Iterator[tuple[str, Span]]:
    """Yield the uses of ``names`` in an index that is an array, and in an index under ``not``."""
    for node in objects(query):
        match node:
            case {"RefBrack": {"index": {"Array": _} as index}}:
                indices = [index]
            case {"NotExpr": negated}:
                indices = [
                    inner["RefBrack"]["index"] for inner in objects(negated) if "RefBrack" in inner
                ]
            case _:
                continue
        for name, span in used_variables(indices):
            if name in names:
                yield name, span


def _variables_bound_late(
    statements: list[Any], parameters: set[str]
) -> Iterator[tuple[str, Span]]:
    if not any("NotExpr" in statement["literal"] for statement in statements):
        return
    names = [set(variables(statement)) for statement in statements]
    last = {name: place for place, used in enumerate(names) for name in used}
    bound = set(parameters)
    for place, statement in enumerate(statements):
        literal = statement["literal"]
        if "NotExpr" in literal:
            for name, span in used_variables(literal["NotExpr"]["expr"]):
                if last[name] > place and name not in bound:
                    yield name, span
        bound |= names[place]
