"""Objects as patterns, and unions as conditions: what means otherwise than its author thought.

In Rego ``{"role": role} = x`` holds for an object with this one member. Here it holds for one with
more members as well, so that a rule allows what its author never saw. Comparisons of whole values
(``x == {"role": "lead"}``) and arrays as patterns are exact here, too.

A name that stands twice among a function's parameters, or as key and value of ``some``, makes the
two equal in Rego; here the latter value counts, and ``same(x, x)`` holds for any two.

A body that begins with a union is a comprehension to OPA, and mostly not here: to it
``allow if { input.roles | {"a"} == xs }`` asks whether there is a set, and that holds always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.engines.rego_tree import Reader, objects, variables

_SIDED: Final = ("ArithExpr", "AssignExpr", "BinExpr", "BoolExpr")


def mistakes(reader: Reader) -> Iterator[str]:
    """Yield a sentence for each such pattern, name and union in a module."""
    rules = {rule.path[len(reader.package)] for rule in reader.module().rules}
    for node in reader.rules:
        for span in _unions(node):
            yield (
                f"{reader.at(span)}: a body that begins with `|` is a comprehension to an OPA "
                "server, and one that is a condition holds always; give the union a name first "
                "(`all := x | y`)"
            )
        ((_kind, rule),) = node.items()
        for span in _spans(rule, rules):
            yield (
                f"{reader.at(span)}: an object as a pattern holds here also for objects with more "
                "members; take the members by name, and compare object.keys where there must be "
                "no others, or write == where the whole is known, and := for a name of its own"
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
    """Yield where a body begins with a union, be it only the left side of its first condition."""
    for node in objects(rule):
        match node:
            case {"stmts": [{"literal": {"Expr": {"expr": {"SetCompr": whole}}}}, *_]}:
                yield whole["span"]
            case {"stmts": [{"literal": {"Expr": {"expr": first}}}, *_]}:
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


def _bound(rule: Mapping[str, Any]) -> set[str]:
    """Return the variables that get a value elsewhere than in one `=`."""
    bound = set(variables([*_heads(rule)]))
    unified = Counter[str]()
    for node in objects(rule):
        match node:
            case {"AssignExpr": {"op": "ColEq", "lhs": pattern}} | {"RefBrack": {"index": pattern}}:
                bound |= set(variables(pattern))
            case {"SomeIn": {"key": key, "value": value}}:
                bound |= set(variables([key, value]))
            case {"AssignExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
                unified.update(set(variables([left, right])))
    return bound | {name for name, n in unified.items() if n > 1}


def _spans(rule: Mapping[str, Any], rules: set[str]) -> Iterator[Mapping[str, Any]]:
    """Yield where the outermost objects stand that are patterns; ``rules`` are their names."""
    declared = rules | _bound(rule)
    for part in _heads(rule):  # what is constant in a parameter is matched as loosely
        yield from (found["span"] for found in _literals(part))
    for node in objects(rule):
        match node:
            case {"AssignExpr": {"op": "ColEq", "lhs": pattern}}:
                sides = [pattern]
            case {"AssignExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
                # a variable that nothing else binds gets the object
                sides = [a for a, b in ((left, right), (right, left)) if not _is_new(b, declared)]
            case {"SomeIn": {"key": key, "value": value}}:
                # what is constant is matched as loosely
                yield from (found["span"] for found in _literals([key, value]))
                continue
            case {"RefBrack": {"index": index}}:
                sides = [index]
            case _:
                continue
        for side in sides:
            # a side without a variable is compared as a whole
            if any(variables(side)):
                yield from (found["span"] for found in _literals(side))


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
