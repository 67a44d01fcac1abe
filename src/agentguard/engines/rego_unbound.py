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

from agentguard.engines.rego_tree import Reader, name_of, objects, used_variables, variables


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
