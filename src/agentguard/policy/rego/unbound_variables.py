"""Variables that the engine takes for unbound where Rego does not: mistakes.

To Rego the order of a body's expressions means nothing. This engine evaluates
``not data.members[user]; input.users[user]`` as it stands: the negation does not hold for the
variable without a value, and a rule that denies by it never fires. ``:=`` can't come later.

The variables of ``every`` and ``walk`` it takes for unbound within a pattern, which then holds for
any element, and in an index under ``not``, which then never holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentguard.policy.rego.syntax_tree import Reader, name_of, objects, used_variables, variables


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each variable that is bound too late, or not at all."""
    for node in reader.rules:
        ((_kind, rule),) = node.items()
        heads = [rule] if rule.get("head") is None else rule["head"].values()
        given = {name for head in heads for name in variables(head.get("args"))}
        for body in (node for node in objects(rule) if "stmts" in node):
            yield from (
                f"{reader.at(span)}: this `not` uses {name} before it has a value, and does not "
                f"hold here; put the expression that gives {name} its value before it"
                for name, span in _late(body["stmts"], given)
                if name not in reader.names
            )
        bodies = rule.get("bodies", [])
        bound = given | {name for body in bodies for name in _bound(body["query"]["stmts"])}
        for name, span in (
            *_unsafe(reader, bodies, given),
            *_unsafe(reader, rule.get("head"), bound),
        ):
            if name not in reader.names:
                yield (
                    f"{reader.at(span)}: {name} has no value in this `not`, which an OPA server "
                    "refuses as unsafe, and which does not hold here; bind it before "
                    "(`some x in ...`), or ask in a rule of its own"
                )
        for loop in objects(rule):
            match loop:
                case {"Every": {"key": key, "value": value, "query": scope}}:
                    names = {reader.text_of(span) for span in (key, value) if span}
                case {"Call": {"fcn": function, "params": [_, pattern]}} if _is_walk(function):
                    names, scope = set(variables(pattern)), rule
                case _:
                    continue
            for name, span in _in_an_index(scope, names):
                yield (
                    f"{reader.at(span)}: to the engine {name} of `every` or `walk` has no value in "
                    f"this place; ask it in a function of its own (`known(x) if ...`, and here "
                    f"`known({name})`)"
                )


def _unsafe(reader: Reader, tree: Any, visible: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the variables in negations that nothing around them binds."""
    match tree:
        case {"NotExpr": negated}:
            yield from (
                (name, span) for name, span in used_variables(negated) if name not in visible
            )
            yield from _unsafe(reader, negated, visible)
        case {"Every": {"key": key, "value": value, "domain": domain, "query": query}}:
            names = {reader.text_of(span) for span in (key, value) if span}
            yield from _unsafe(reader, domain, visible)
            yield from _unsafe(reader, {"query": query}, visible | names)
        case {"query": {"stmts": [*statements]}}:
            inner = visible | set(_bound(statements))
            yield from _unsafe(reader, [*tree.values()], inner)
        case dict():
            yield from _unsafe(reader, [*tree.values()], visible)
        case list():
            for one in tree:
                yield from _unsafe(reader, one, visible)


def _bound(statements: list[Any]) -> Iterator[str]:
    """Yield the variables that a body's own conditions may bind: those that no `not` holds."""
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


def _in_an_index(query: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield where ``names`` stand in a pattern that is looked up, or in a negated index."""
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


def _late(statements: list[Any], given: set[str]) -> Iterator[tuple[str, Any]]:
    last = {name: place for place, one in enumerate(statements) for name in variables(one)}
    bound = set(given)
    for place, statement in enumerate(statements):
        literal = statement["literal"]
        if "NotExpr" in literal:
            for name, span in used_variables(literal["NotExpr"]["expr"]):
                if last[name] > place and name not in bound:
                    yield name, span
        bound.update(variables(statement))
