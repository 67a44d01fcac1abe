"""Objects as patterns, and unions as conditions: what means otherwise than its author thought.

In Rego ``{"role": role} := x`` holds for an object with this one member. Here it holds for one with
more members as well, so that a rule allows what its author never saw. Comparisons of whole values
(``x == {"role": "lead"}``) and arrays as patterns are exact here, too.

A name that stands twice among a function's parameters, or as key and value of ``some``, makes the
two equal in Rego; here the latter value counts, and ``same(x, x)`` holds for any two.

What begins with a union is a comprehension to OPA, and mostly not here: to it
``allow if { input.roles | {"a"} == xs }`` asks whether there is a set, and that holds always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Reader, objects, variables

_SIDED: Final = ("ArithExpr", "AssignExpr", "BinExpr", "BoolExpr")


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each such pattern, name and union in a module."""
    for node in reader.rules:
        for span in _unions(node):
            yield (
                f"{reader.at(span)}: what begins with a union is a comprehension to an OPA server, "
                "and as a condition holds always; give the union a name first (`all := x | y`)"
            )
        ((_kind, rule),) = node.items()
        for span in _spans(rule):
            yield (
                f"{reader.at(span)}: an object as a pattern holds here also for objects with more "
                "members; take the members by name, and compare object.keys where there must be "
                "no others"
            )
        for name, span in _repeated(reader, rule):
            yield (
                f"{reader.at(span)}: {name} stands here twice, and its two values need not be "
                "equal to the engine; name them apart, and write x == y where they must be"
            )


def _repeated(reader: Reader, rule: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names that two parameters have, or the key and the value of a loop."""
    for part in _heads(rule):
        count = Counter(variables(part))
        yield from ((name, rule["span"]) for name, n in count.items() if n > 1 and name != "_")
    for node in objects(rule):
        match node:
            case {"SomeIn": {"span": span, "key": key, "value": value}}:
                both = set(variables(key)) & set(variables(value)) - {"_"}
                yield from ((name, span) for name in sorted(both))
            case {"Every": {"span": span, "key": dict(key), "value": value}}:
                if (name := reader.text_of(key)) == reader.text_of(value) != "_":
                    yield name, span


def _unions(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield where a body, a set, an array or an object begins with a union, or its left side."""
    for node in objects(rule):
        match node:
            case {"stmts": [{"literal": {"Expr": {"expr": {"SetCompr": whole}}}}, *_]}:
                yield whole["span"]
            case {"stmts": [{"literal": {"Expr": {"expr": first}}}, *_]}:
                yield from _begins_with_union(first)
            case {"Array": {"items": [first, *_]}} | {"Set": {"items": [first, *_]}}:
                yield from _begins_with_union(first)
            case {"Object": {"fields": [[_, _, first], *_]}}:
                yield from _begins_with_union(first)


def _begins_with_union(expression: Any) -> Iterator[Mapping[str, Any]]:
    while isinstance(expression, dict):
        ((kind, inner),) = expression.items()
        if kind == "BinExpr" and inner["op"] == "Union":
            yield inner["span"]
            return
        if kind not in (*_SIDED, "Membership"):
            return
        expression = inner["value"] if kind == "Membership" else inner["lhs"]


def _spans(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield where the outermost objects stand that are patterns."""
    for part in _heads(rule):
        yield from (found["span"] for found in _literals(part))
    for node in objects(rule):
        match node:
            case {"AssignExpr": {"lhs": pattern}}:
                yield from (found["span"] for found in _literals(pattern))
            case {"SomeIn": {"key": key, "value": value}}:
                yield from (found["span"] for found in _literals([key, value]))
            case {"RefBrack": {"index": index}} if any(variables(index)):
                # an index without a variable is compared as a whole
                yield from (found["span"] for found in _literals(index))


def _heads(rule: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the parameters of a function."""
    head = rule.get("head")
    yield from (part.get("args") for part in ([rule] if head is None else head.values()))


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
