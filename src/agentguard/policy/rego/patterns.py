"""Mistakes: objects as patterns, repeated names in patterns, and unions at the start of a body.

In Rego ``{"role": role} := x`` holds for an object with this one member. The embedded engine also
accepts an object with more members, and a rule may allow more than its author meant. Both engines
compare whole values (``x == {"role": "lead"}``) and arrays as patterns exactly.

In Rego, a rule with one name for two parameters of a function, or for the key and the value of
``some``, holds only where the two values are equal. The embedded engine keeps the second value, and
a function ``same(x, x)`` holds for any two values.

OPA parses a body that begins with a union as a comprehension, and the engine mostly does not: on
OPA ``allow if { input.roles | {"a"} == xs }`` is a set, and a set as a condition always holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Reader, RuleTree, Span, variables

_SIDED: Final = ("ArithExpr", "AssignExpr", "BinExpr", "BoolExpr")


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each such pattern, name and union in a module."""
    for tree in reader.rules:
        for span in _unions(tree):
            yield (
                f"{reader.at(span)}: an OPA server reads an expression that begins with a union as "
                "a comprehension, and such a condition always holds; assign the union to a "
                "variable first (`all := x | y`)"
            )
        for span in _object_patterns(tree):
            yield (
                f"{reader.at(span)}: an object as a pattern also matches objects with more members "
                "in the embedded engine; read the members by name, and compare object.keys where "
                "other members are forbidden"
            )
        for name, span in _repeated_names(reader, tree):
            yield (
                f"{reader.at(span)}: {name} is written twice, and the engine does not require the "
                "two values to be equal; use two names, and write x == y where the values must be "
                "equal"
            )


def _repeated_names(reader: Reader, tree: RuleTree) -> Iterator[tuple[str, Span]]:
    """Yield the names that two parameters share, or the key and the value of a loop."""
    count = Counter(variables(tree.head.get("args")))
    yield from ((name, tree.rule["span"]) for name, n in count.items() if n > 1 and name != "_")
    for node in tree.parts("SomeIn", "Every"):
        match node:
            case {"SomeIn": {"span": span, "key": key, "value": value}}:
                both = set(variables(key)) & set(variables(value)) - {"_"}
                yield from ((name, span) for name in sorted(both))
            case {"Every": {"span": span, "key": Span() as key, "value": value}}:
                if (name := reader.text_of(key)) == reader.text_of(value) != "_":
                    yield name, span


def _unions(tree: RuleTree) -> Iterator[Span]:
    """Yield the spans of the unions that begin a body, a set, an array or an object."""
    for node in tree.parts("stmts", "Array", "Set", "Object"):
        match node:
            case {"stmts": [{"literal": {"Expr": {"expr": {"SetCompr": whole}}}}, *_]}:
                yield whole["span"]
            case {"stmts": [{"literal": {"Expr": {"expr": first}}}, *_]}:
                yield from _begins_with_union(first)
            case {"Array": {"items": [first, *_]}} | {"Set": {"items": [first, *_]}}:
                yield from _begins_with_union(first)
            case {"Object": {"fields": [[_, _, first], *_]}}:
                yield from _begins_with_union(first)


def _begins_with_union(expression: Any) -> Iterator[Span]:
    while isinstance(expression, dict):
        ((kind, inner),) = expression.items()
        if kind == "BinExpr" and inner["op"] == "Union":
            yield inner["span"]
            return
        if kind not in (*_SIDED, "Membership"):
            return
        expression = inner["value"] if kind == "Membership" else inner["lhs"]


def _object_patterns(tree: RuleTree) -> Iterator[Span]:
    """Yield the spans of the outermost objects that are patterns."""
    yield from (literal["span"] for literal in _literals(tree.head.get("args")))
    for node in tree.parts("AssignExpr", "SomeIn", "RefBrack"):
        match node:
            case {"AssignExpr": {"lhs": pattern}}:
                yield from (literal["span"] for literal in _literals(pattern))
            case {"SomeIn": {"key": key, "value": value}}:
                yield from (literal["span"] for literal in _literals([key, value]))
            case {"RefBrack": {"index": index}} if any(variables(index)):
                # An index without a variable is compared as a whole.
                yield from (literal["span"] for literal in _literals(index))


def _literals(pattern: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the object literals in a pattern and its arrays, but none inside another object."""
    match pattern:
        case {"Object": literal}:
            yield literal
        case {"Array": {"items": items}}:
            for item in items:
                yield from _literals(item)
        case list():
            for item in pattern:
                yield from _literals(item)
