"""The arguments that a policy decides on: those that the tool gets, and no others.

An SDK reads arguments leniently. The text ``"true"`` and the number 1 become ``True``, ``"3"``
becomes 3, and a text with a list in JSON becomes the list. A policy that reads the arguments as
they were sent would then decide on other values than the tool gets. So arguments that do not match
the tool's own schema are refused, and the defaults of the arguments are filled in. A default within
an object that was sent is not: the tool may get more there than the policy sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from jsonschema import (  # type: ignore[import-untyped]
    Draft202012Validator,
    ValidationError,
)
from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry

from agentguard.adapters import ArgumentsError

_NO_REMOTE_SCHEMAS: Final[Registry[Any]] = Registry()
"""A schema that leads to another document is refused: nothing is fetched."""


def bound(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments to decide on: those sent, and the defaults of those left out.

    ``schema`` is the JSON schema of the tool's arguments. Raises ``ArgumentsError``
    (``arguments.invalid``) for arguments that do not match the schema, for a text that an SDK could
    read as JSON, and for a schema that can't be used. The message quotes no value.
    """
    properties = schema.get("properties")
    declared: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
    _require_match(schema, arguments, declared)
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


def _require_match(
    schema: Mapping[str, Any], arguments: Mapping[str, Any], declared: Mapping[str, Any]
) -> None:
    try:
        text = json.dumps(dict(schema), sort_keys=True)
        error = next(_validator(text).iter_errors(dict(arguments)), None)
    except Exception as problem:
        # the validator raises many kinds of errors for a schema that is none
        message = "the tool's schema can't be used to check the arguments"
        raise ArgumentsError(message, code="arguments.invalid") from problem
    if error is not None:
        path = [*error.absolute_path]
        is_known = bool(path) and path[0] in declared
        place = f"the argument {path[0]!r} does" if is_known else "the arguments do"
        message = f"{place} not match the schema of the tool ({error.validator})"
        raise ArgumentsError(message, code="arguments.invalid")


@lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    """Return the validator of a schema, which is given as JSON; raises for what is no schema."""
    schema = json.loads(text)
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return extend(kind, {"uniqueItems": _unique_items})(schema, registry=_NO_REMOTE_SCHEMAS)


def _unique_items(
    _validator: Any, is_wanted: object, value: object, _schema: object
) -> Iterator[ValidationError]:
    """Yield an error for a list that has an item twice, in the place of jsonschema's own look.

    That one compares each item with each other one where items have no order: a caller's list of
    50 KB would hold all other callers up for many seconds.
    """
    if is_wanted is True and isinstance(value, list) and len({*map(_frozen, value)}) < len(value):
        yield ValidationError("the list has an item twice")


def _frozen(value: object) -> object:
    """Return what is equal for two values that are the same JSON, and has a hash."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(one)) for name, one in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return isinstance(value, bool), value  # for Python, 1 and true are equal


def _could_be_read_as_json(value: object, schema: object) -> bool:
    """Whether an SDK could read a text as null, a list or an object.

    The SDK 2 does that for each parameter whose type is not plainly text.
    """
    if not isinstance(value, str):
        return False
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return False
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return read is None or isinstance(read, list | dict)
