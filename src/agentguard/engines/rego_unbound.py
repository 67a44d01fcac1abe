"""Variables that a negation uses before another expression of the body binds them: mistakes.

To Rego the order of a body's expressions means nothing. This engine evaluates
``not data.members[user]; user = input.user`` as it stands: the negation does not hold for the
variable without a value, and a rule that denies by it never fires. ``:=`` can't come later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentguard.engines.rego_tree import Reader, name_of, objects, variables


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each variable that is bound too late."""
    outer = {rule.path[len(reader.package)] for rule in reader.module().rules}
    for node in reader.rules:
        ((_kind, rule),) = node.items()
        heads = [rule] if rule.get("head") is None else rule["head"].values()
        given = outer.union(*(variables(head.get("args")) for head in heads))
        for body in objects(rule):
            for name, span in _late(body.get("stmts", []), given):
                yield (
                    f"{reader.at(span)}: this `not` uses {name} before it has a value, and does "
                    f"not hold here; put the expression that gives {name} its value before it"
                )


def _late(statements: list[Any], given: set[str]) -> Iterator[tuple[str, Any]]:
    bound = set(given)
    for place, statement in enumerate(statements):
        literal = statement["literal"]
        if "NotExpr" in literal:
            later = set(variables(statements[place + 1 :]))
            for name, span in _used(literal["NotExpr"]["expr"]):
                if name in later and name not in bound:
                    yield name, span
        bound.update(variables(statement))


def _used(expression: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables of an expression that are its body's."""
    todo = [expression]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            if "Var" in node and node["Var"]["value"] not in ("input", "data"):
                yield node["Var"]["value"], name_of(node).span
            # what is called is no variable; a comprehension's are its own
            own = ("fcn", "ArrayCompr", "SetCompr", "ObjectCompr")
            todo += [value for kind, value in node.items() if kind not in own]
