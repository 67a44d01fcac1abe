"""Mistakes: single expressions that the embedded engine and an OPA server evaluate differently.

These are numbers that Rego prints in another form, sets that are compared by order or written with
computed elements, a key and a value before ``in``, objects with one key twice, ``=`` and ``with``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.policy.rego.builtin_functions import COMPARED
from agentguard.policy.rego.syntax_tree import Names, Reader, Span, name_of, objects

# The form that both engines print. OPA keeps 1.0 and 1e3 as written: as keys they differ from 1 and
# 1000.
_PLAIN: Final = re.compile(r"(?!-0\Z)-?(?P<whole>0|[1-9][0-9]*)(?P<fraction>\.[0-9]*[1-9])?")
_DIGITS: Final = 15
_WHOLE: Final = 2**63
NOT_PLAIN: Final = (
    "may be another number, key or text on an OPA server; write 1 instead of 1.0, 1000 instead of "
    f"1e3, whole numbers below 2^63, and fractions with at most {_DIGITS} digits"
)
"""The message about a number that is not plain."""

_KEYED: Final = (
    "`key, value in collection` holds in the embedded engine where key and value are missing, and "
    "not on an OPA server; write collection[key] == value"
)
_ORDERED: Final = (
    "an OPA server orders sets differently among other values; compare the count of the sets, or "
    "their elements"
)
_UNIFIED: Final = (
    "`=` does not always compare in the embedded engine, and holds for any element inside `every`; "
    "write == to compare, := to assign, and compare the constants of a pattern by =="
)
_TWICE: Final = (
    "an object with one key twice, or with a computed key beside other keys, has another value on "
    "an OPA server where two keys are equal; write each key once, and put a computed key into an "
    "object of its own (object.union)"
)
_COMPUTED: Final = (
    "a set that is written with a computed element has that element twice on an OPA server where "
    "two elements are equal; write an array, or {x | some x in [...]}"
)
_WITH: Final = (
    "the embedded engine sometimes ignores `with`, which is meant for tests; pass the value to a "
    "function as an argument"
)
_ORDER: Final = frozenset({"Lt", "Le", "Gt", "Ge"})
_EVALUATED: Final = ("Var", "Call", "ArrayCompr", "SetCompr", "ObjectCompr", "Membership")
_JUDGED: Final = ("Number", "Membership", "BoolExpr", "AssignExpr", "stmts", "Object", "Set")
_SETS: Final = frozenset({"union", "intersection", "object.keys", "graph.reachable"})


def mistakes(readers: list[Reader]) -> Iterator[str]:
    """Yield a sentence for each such expression in the modules."""
    sets = {
        reader.path_of(tree.head["refr"])
        for reader in readers
        for tree in reader.rules
        if tree.form == "Set"
    }
    for reader in readers:
        operators = reader.parts("Call", "BinExpr", "ArithExpr", "BoolExpr", "Membership")
        compared = {id(part) for node in operators for part in _compared_as_sets(node)}
        for node in reader.parts(*_JUDGED):
            yield from (
                f"{reader.at(span)}: {problem}" for span, problem in _problems(reader, node, sets)
            )
            match node:
                case {"Set": {"span": span, "items": [_, _, *_] as items}} if (
                    id(node) not in compared
                ):
                    if None in (_constant(reader, item) for item in items):
                        yield f"{reader.at(span)}: {_COMPUTED}"


def _problems(
    reader: Reader, node: Mapping[str, Any], sets: set[Names]
) -> Iterator[tuple[Span, str]]:
    match node:
        case {"Number": {"span": span}} if not is_plain(number := reader.text_of(span)):
            yield span, f"{number} {NOT_PLAIN}"
        case {"Membership": {"span": span, "key": dict()}}:
            yield span, _KEYED
        case {"BoolExpr": {"op": op, "lhs": left, "rhs": right, "span": span}} if op in _ORDER:
            if any(_is_set(reader, side, sets) for side in (left, right)):
                yield span, _ORDERED
        case {"AssignExpr": {"op": "Eq", "span": span}}:
            yield span, _UNIFIED
        case {"stmts": [*statements]}:
            for statement in statements:
                yield from (
                    (change["span"], _WITH) for change in statement.get("with_mods", [])[:1]
                )
        case {"Object": {"span": span, "fields": fields}}:
            keys = [_constant(reader, key) for _, key, _ in fields]
            if len(keys) != len(set(keys)) or (len(keys) > 1 and None in keys):
                yield span, _TWICE


def _compared_as_sets(node: Mapping[str, Any]) -> list[Any]:
    """Return the operands that both engines compare as sets, with each element once."""
    match node:
        case {"Call": {"fcn": function, "params": [*parameters]}}:
            return parameters if ".".join(name_of(function).path) in COMPARED else []
        case {"BinExpr": inner} | {"ArithExpr": inner} | {"BoolExpr": inner}:
            return [inner["lhs"], inner["rhs"]]
        case {"Membership": {"collection": collection}}:
            return [collection]
    return []


def _constant(reader: Reader, value: Mapping[str, Any]) -> str | None:
    """Return the text of a constant key or element, or None for a computed one.

    Both kinds of quotes give the same text.
    """
    if any(kind in node for node in objects(value) for kind in _EVALUATED):
        return None
    match value:
        case {"String": {"value": text}} | {"RawString": {"value": text}}:
            return json.dumps(text)
    ((_kind, inner),) = value.items()
    return reader.text_of(inner["span"])


def is_plain(number: str) -> bool:
    """Tell whether both engines print a number in this form, and read the same value from it."""
    parts = _PLAIN.fullmatch(number)
    if parts is None:
        return False
    if parts["fraction"]:
        return len((parts["whole"] + parts["fraction"][1:]).lstrip("0")) <= _DIGITS
    return len(parts["whole"]) <= len(str(_WHOLE)) and int(parts["whole"]) < _WHOLE


def _is_set(reader: Reader, node: Mapping[str, Any], sets: set[Names]) -> bool:
    match node:
        case {"Set": _} | {"SetCompr": _} | {"BinExpr": _}:
            return True
        case {"Call": {"fcn": function}}:
            return ".".join(name_of(function).path) in _SETS
        case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
            name = name_of(node)
            return name.whole and reader.reference(name, call=False).path in sets
    return False
