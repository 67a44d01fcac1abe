"""Objects as patterns, which this engine reads more loosely than Rego does.

In Rego ``{"role": role} = x`` holds for an object with this one member. Here it holds for one with
more members as well, so that a rule allows what its author never saw. Comparisons of whole values
(``x == {"role": "lead"}``) and arrays as patterns are exact here, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentguard.engines.rego_tree import Reader, objects, variables


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each object that is a pattern in a module."""
    for node in reader.rules:
        ((_kind, rule),) = node.items()
        for span in _spans(rule):
            yield (
                f"{reader.at(span)}: an object as a pattern holds here also for objects with more "
                "members; take the members by name, and compare object.keys where there must be "
                "no others"
            )


def _spans(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield where the outermost objects stand that are patterns."""
    declared = set[str]()
    for part in _heads(rule):  # what is constant in a parameter is matched as loosely
        yield from (found["span"] for found in _literals(part))
        declared |= set(variables(part))
    for node in objects(rule):
        match node:
            case {"AssignExpr": {"op": "ColEq", "lhs": pattern}} | {"SomeIn": {"value": pattern}}:
                declared |= set(variables(pattern))
    for node in objects(rule):
        match node:
            case {"AssignExpr": {"op": "ColEq", "lhs": pattern}}:
                sides = [pattern]
            case {"AssignExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
                # a variable that nothing else binds gets the object
                sides = [a for a, b in ((left, right), (right, left)) if not _is_new(b, declared)]
            case {"SomeIn": {"key": key, "value": value}}:
                sides = [key, value]
            case _:
                continue
        for side in sides:
            yield from (found["span"] for found in _literals(side) if any(variables(found)))


def _heads(rule: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the parameters of a function."""
    head = rule.get("head")
    yield from (part.get("args") for part in ([rule] if head is None else head.values()))


def _is_new(node: Any, declared: set[str]) -> bool:
    match node:
        case {"Var": {"value": str(name)}}:
            return name not in declared
    return False


def _literals(pattern: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the object literals in a pattern, an array's among them, but none within another."""
    match pattern:
        case {"Object": found}:
            yield found
        case {"Array": {"items": items}}:
            for item in items:
                yield from _literals(item)
        case list():
            for item in pattern:
                yield from _literals(item)
