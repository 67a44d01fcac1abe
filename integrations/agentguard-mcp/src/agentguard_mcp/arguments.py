"""The arguments that a policy decides on: those that the tool gets, and no others.

A server reads arguments leniently. The text ``"true"`` and the number 1 become ``True``, ``"3"``
becomes 3, and a text with a list in JSON becomes the list. A policy that reads the arguments as
they were sent would then decide on other values than the tool gets. So arguments that do not match
the tool's own schema are refused, and the defaults of the arguments are filled in. A default within
an object that was sent is not: the tool may get more there than the policy sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from agentguard.adapters import MAX_INTEGER, Arguments, ArgumentsError, ToolSpec
from agentguard_mcp.schemas import Schema, UncheckableError

_SCALARS: Final = frozenset({"boolean", "integer", "null", "number", "string"})
_ANY: Final = "any"


def require_checkable(schema: Mapping[str, Any]) -> Schema:
    """Return the schema of a tool's arguments, ready to check them.

    Raises ``ArgumentsError`` (``tool.uncheckable``) with the reason for one that can't be used.
    """
    try:
        return Schema.of(schema)
    except UncheckableError as error:
        message = f"the schema of the tool can't be used to check arguments: {error}"
        raise ArgumentsError(message, code="tool.uncheckable") from error


def decided_arguments(
    spec: ToolSpec, arguments: Mapping[str, Any], beside: Mapping[str, Any]
) -> Arguments:
    """Return the arguments of a call to decide on, and what the call brings ``beside`` them.

    Raises ``ArgumentsError`` as ``bound`` does.
    """
    declared = _declared_in(spec.schema)
    return Arguments.of(bound(spec.schema, arguments), declared=declared, beside=beside)


def _declared_in(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def bound(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments to decide on: those sent, and the defaults of those left out.

    ``schema`` is the JSON schema of the tool's arguments. Raises ``ArgumentsError``:
    ``arguments.invalid`` for arguments that do not match the schema, for a text that a server could
    read as JSON, for an integer beyond ``MAX_INTEGER`` and for a check that takes too long;
    ``tool.uncheckable`` for a schema that can't be used. The message quotes no value.
    """
    checked = require_checkable(schema)
    declared = _declared_in(schema)
    require_exact(arguments, declared)
    _require_match(checked, arguments, declared)
    for name, value in arguments.items():
        if name in declared and _could_be_read_as_json(value, declared[name]):
            message = f"the argument {name!r} is a text that could be read as JSON: send the value"
            raise ArgumentsError(message, code="arguments.invalid")
    defaults = {
        name: one["default"]
        for name, one in declared.items()
        if isinstance(one, Mapping) and "default" in one
    }
    return {**defaults, **arguments}


def require_exact(arguments: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Raise ``ArgumentsError`` for an integer that servers read as different numbers.

    JavaScript reads 9007199254740993 as 9007199254740992.
    """
    for name, value in arguments.items():
        if not is_exact(value):
            message = (
                f"{_place(name, declared)} an integer beyond 2^53-1, of which a server may make "
                "another number: send the number as a text, if the tool takes one"
            )
            raise ArgumentsError(message, code="arguments.invalid")


def is_exact(value: object) -> bool:
    """Whether each integer in a JSON value is the same number for all readers."""
    todo = [value]
    for one in todo:  # the list grows in the loop
        if isinstance(one, Mapping):
            todo += one.values()
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, int) and abs(one) > MAX_INTEGER:
            return False
    return True


def _require_match(
    schema: Schema, arguments: Mapping[str, Any], declared: Mapping[str, Any]
) -> None:
    try:
        error = schema.error(dict(arguments))
    except UncheckableError as problem:
        message = f"the arguments can't be checked against the schema of the tool: {problem}"
        raise ArgumentsError(message, code="arguments.invalid") from problem
    if error is not None:
        path = [*error.absolute_path]
        is_known = bool(path) and path[0] in declared
        place = f"the argument {path[0]!r} does" if is_known else "the arguments do"
        message = f"{place} not match the schema of the tool ({error.validator})"
        raise ArgumentsError(message, code="arguments.invalid")


def _place(name: str, declared: Mapping[str, Any]) -> str:
    return f"the argument {name!r} has" if name in declared else "the arguments have"


def _could_be_read_as_json(value: object, schema: object) -> bool:
    """Whether a server could read a text as null, a list or an object, and give it to the tool.

    The SDK for Python reads each text so whose parameter is not plainly text. What it has read is
    then no value of a parameter that takes no such value.
    """
    if not isinstance(value, str):
        return False
    types = _types(schema)
    try:
        read = json.loads(value)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):  # of limits that another reader does not have
        return not types <= _SCALARS
    if read is None:
        return not types.isdisjoint({"null", _ANY})
    return isinstance(read, list | dict) and not types <= _SCALARS


def _types(schema: object) -> set[str]:
    """Return the types that a schema names for a value, ``_ANY`` among them where it may be any."""
    if not isinstance(schema, Mapping):
        return {_ANY}
    named, parts = schema.get("type"), schema.get("anyOf", schema.get("oneOf"))
    if named is not None:
        types = named if isinstance(named, list) else [named]
        return {one if isinstance(one, str) else _ANY for one in types}
    return set().union(*map(_types, parts)) if isinstance(parts, list) else {_ANY}
