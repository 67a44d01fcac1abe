"""Whether the arguments of a call have the types that the tool's schema says.

Many servers read arguments leniently: the text ``"true"`` and the number 1 become true, and a text
with a list in JSON becomes the list. The policy would then decide on another value than the tool
gets. So such a call is refused. All else of a schema is the server's to check. A null passes, since
no server makes another value of it. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard.adapters import ArgumentsError

_DEEPEST: Final = 200
"""The most steps from the schema to a part of it: references may lead in circles."""

_MOST: Final = 50_000
"""The most steps in all: the parts of a hostile schema may name each other again and again."""

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


def require_types(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise ``ArgumentsError`` (``arguments.invalid``) for arguments of other types.

    The message quotes no value.
    """
    check = _Check(schema)
    if check.fits(schema, arguments, 0):
        return
    if check.is_over:
        message = "the arguments have too many values, or the schema of the tool too many parts"
        raise ArgumentsError(message, code="arguments.invalid")
    properties = schema.get("properties")
    declared = properties if isinstance(properties, Mapping) else {}
    again = _Check(schema)
    wrong = (
        name
        for name, value in arguments.items()
        if name in declared and not again.fits(declared[name], value, 1)
    )
    name = next(wrong, None)
    place = "the arguments do" if name is None else f"the argument {name!r} does"
    message = f"{place} not have the type that the schema of the tool says"
    raise ArgumentsError(message, code="arguments.invalid")


class _Check:
    """One comparison of a value with the schema ``root``."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    @property
    def is_over(self) -> bool:
        """Whether the comparison has ended before its end."""
        return self._steps > _MOST

    def fits(self, schema: Any, value: Any, depth: int) -> bool:
        """Whether ``value`` has a type that a part of the schema says."""
        self._steps += 1
        if not isinstance(schema, Mapping) or value is None:
            return True
        if depth > _DEEPEST or self.is_over or not _is_any(value, schema.get("type")):
            return False
        below = depth + 1
        for part in (self._referred(schema.get("$ref")), *_parts(schema, "allOf")):
            if not self.fits(part, value, below):
                return False
        for choices in (_parts(schema, "anyOf"), _parts(schema, "oneOf")):
            if choices and not any(self.fits(one, value, below) for one in choices):
                return False
        return all(self.fits(part, one, below) for part, one in _members(schema, value))

    def _referred(self, reference: object) -> Any:
        """Return the part of the schema that a reference names, None for one of elsewhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        part: Any = self._root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            part = part.get(key) if isinstance(part, Mapping) else None
        return part


def _is_any(value: object, types: object) -> bool:
    """Whether a value is of one of the types of a schema; a type that nobody knows is any."""
    named = types if isinstance(types, list) else [types]
    return any(_is(value, one) for one in named)


def _is(value: object, kind: object) -> bool:
    known = _TYPES.get(kind) if isinstance(kind, str) else None
    if known is None:
        return True
    if isinstance(value, bool):  # a number for Python, and not for JSON
        return kind == "boolean"
    is_whole = isinstance(value, float) and value.is_integer()
    return isinstance(value, known) or (kind == "integer" and is_whole)


def _parts(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    found = schema.get(keyword)
    return found if isinstance(found, list) else []


def _members(schema: Mapping[str, Any], value: object) -> list[tuple[Any, Any]]:
    """Return each member of an object or a list with the part of the schema for the member."""
    if isinstance(value, dict):
        properties = schema.get("properties")
        declared = properties if isinstance(properties, Mapping) else {}
        others = None if "patternProperties" in schema else schema.get("additionalProperties")
        return [(declared.get(name, others), one) for name, one in value.items()]
    if isinstance(value, list):
        first, rest = _parts(schema, "prefixItems"), schema.get("items")
        return [(first[n] if n < len(first) else rest, one) for n, one in enumerate(value)]
    return []
