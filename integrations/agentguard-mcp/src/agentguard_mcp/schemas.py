"""Whether a JSON value matches a JSON schema: by the schema alone, in limited time.

A schema may come from a hostile server, and a value from a hostile client. The library
``jsonschema`` has the vocabulary of each draft. Here, each of its steps looks at the time, and no
schema of elsewhere is fetched. The patterns run in the engine of ``jsonschema-rs``, which has no
exponential pattern: Python's own can't be stopped. This module knows nothing of tools.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urljoin

import attrs
import jsonschema_rs as rust
from jsonschema import (  # type: ignore[import-untyped]
    Draft3Validator,
    Draft202012Validator,
    ValidationError,
)
from jsonschema.validators import extend, validator_for  # type: ignore[import-untyped]
from referencing import Registry, Resource, Specification
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

SECONDS: Final = 1.0
"""The CPU time that the check of a schema, or of a value against a schema, may take."""

MAX_SIZE: Final = 1 << 18
"""The characters of the largest schema, as JSON: what reads it as a whole can't be stopped."""

RETRY: Final = 60.0
"""The seconds after which a schema is checked again whose check took too long."""

MAX_LOOKAROUND: Final = 4_096
"""The characters of the longest text that is matched with a look-around or a back-reference."""

MAX_UNEVALUATED: Final = 2_000
"""The most members that ``unevaluatedItems`` and ``unevaluatedProperties`` look at: the library
compares them with each other."""

_BACKTRACKS: Final = 10_000
_PATTERN_SIZE: Final = 1 << 20
"""The bytes of a compiled pattern."""

_LINEAR: Final = rust.RegexOptions(size_limit=_PATTERN_SIZE)
_LOOKAROUND: Final = rust.FancyRegexOptions(_BACKTRACKS, _PATTERN_SIZE)
_PLAIN: Final = re.compile(r"\^?[\w -]*", re.ASCII)
"""A pattern without a ``$``, which Python finds before a line feed, too."""

_OTHER_DRAFT: Final = "a part of it names another draft than the whole"
_UNEVALUATED: Final = "unevaluatedProperties"

_END: ContextVar[float] = ContextVar("agentguard_mcp_schema_end")


class UncheckableError(Exception):
    """A schema, or a value against a schema, that can't be checked; the text says why."""


class _LateError(UncheckableError):
    """A check that has taken too long: it may be in time at another moment."""


class Schema:
    """A schema that can be checked; ``of`` makes one."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> Schema:
        """Return the schema of a JSON object; raises ``UncheckableError``.

        The draft is the one that ``$schema`` names, and 2020-12 where there is none.
        """
        try:
            text = json.dumps(dict(schema), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UncheckableError("it is no JSON") from error
        if len(text) > MAX_SIZE:
            raise UncheckableError(f"it has more than {MAX_SIZE} characters")
        found = _tried(text, int(time.monotonic() / RETRY))
        if isinstance(found, str):
            raise UncheckableError(found)
        return found

    def error(self, value: Any) -> ValidationError | None:
        """Return how ``value`` does not match, None for one that matches.

        Raises ``UncheckableError`` where this can't be said in time.
        """
        with _limited():
            return next(self._validator.iter_errors(value), None)


@lru_cache(maxsize=512)
def _tried(text: str, _period: int) -> Schema | str:
    """Return what ``_known`` does; a check that takes too long is tried once in a period."""
    try:
        return _known(text)
    except _LateError as error:
        return str(error)


@lru_cache(maxsize=512)
def _known(text: str) -> Schema | str:
    """Return a schema that is given as JSON, or why it can't be checked; raises ``_LateError``."""
    schema = json.loads(text)
    try:
        with _limited():
            draft = _draft_of(schema, Draft202012Validator)
            _require_plain_names(schema)
            _require_sound(draft, schema)
            registry = _require_resolved(draft, schema)
        # the library knows the schemas of all drafts by their names, and a registry's own go before
        checked = Schema(_steps_of(draft)(schema, registry=registry))
        checked.error({})  # a reference without an end is found here
    except _LateError:
        raise
    except UncheckableError as error:
        return str(error)
    return checked


_NO_REMOTE_SCHEMAS: Final[Registry[Any]] = Registry()


def _draft_of(schema: Mapping[str, Any], default: Any) -> Any:
    """Return the draft that a schema names; raises ``UncheckableError`` for an unknown one."""
    if "$schema" not in schema:
        return default
    named = schema["$schema"]
    draft = validator_for(schema, default=None) if isinstance(named, str) else None
    if draft is None or draft is Draft3Validator:
        raise UncheckableError("it names a draft of JSON Schema that nobody knows here")
    return draft


@contextmanager
def _limited() -> Iterator[None]:
    """Limit the CPU time of the block; raise ``UncheckableError`` for whatever fails in it."""
    before = _END.set(time.thread_time() + SECONDS)
    try:
        yield
    except UncheckableError:
        raise
    except RecursionError as error:
        raise UncheckableError("it is nested too deeply, or a reference has no end") from error
    except Exception as error:  # the library raises many kinds of errors for a schema that is none
        raise UncheckableError(f"it can't be used ({type(error).__name__})") from error
    finally:
        _END.reset(before)


def _step() -> None:
    if time.thread_time() > _END.get():
        raise _LateError(f"the check takes more than {SECONDS:g} s")


# --- the schema -----------------------------------------------------------------------------------


def _require_sound(draft: Any, schema: Any) -> None:
    """Raise ``UncheckableError`` for what the draft's own schema refuses."""
    named = {"$schema": draft.META_SCHEMA["$schema"]}
    try:
        rust.meta.validate({**schema, **named} if isinstance(schema, dict) else schema)
    except rust.ValidationError as error:
        raise UncheckableError(f"it is no schema of its draft ({error.kind.name})") from error


def _require_resolved(draft: Any, schema: Any) -> Registry[Any]:
    """Return where the references of a schema lead.

    Raises ``UncheckableError`` for a part that can't be used: a reference out of the schema or to
    nowhere, a pattern that is none, another draft, and a name that two parts have, of which each
    validator takes the one or the other.
    """
    kind = specification_with(draft.ID_OF(draft.META_SCHEMA))
    root: Resource[Any] = kind.create_resource(schema)
    registry: Registry[Any] = _NO_REMOTE_SCHEMAS.with_resource(root.id() or "", root).crawl()
    todo: list[tuple[Resource[Any], Any, str | None]] = [
        (root, registry.resolver_with_root(root), "")
    ]
    named: set[tuple[str, str]] = set()
    seen: set[int] = set()
    aims: list[tuple[Any, Any]] = []
    while todo or aims:
        _step()
        if not todo:
            contents, resolver = aims.pop()
            if not isinstance(contents, bool) and id(contents) not in seen:
                # a keyword stands above that the draft does not know: nobody has looked there
                _require_sound(draft, contents)
                todo.append((kind.create_resource(contents), resolver, None))
            continue
        resource, resolver, place = todo.pop()
        own, anchors = resource.id(), {one.name for one in resource.anchors()}
        if place is None:
            if own is not None or anchors:
                raise UncheckableError("an $id or $anchor is where no keyword of the draft leads")
        else:
            place = place if own is None else urljoin(place, own)
            names = {(place, name) for name in anchors} | (set() if own is None else {(place, "")})
            if names & named:
                raise UncheckableError("two parts of it have the same $id or the same $anchor")
            named |= names
        aims += _require_usable(draft, resource.contents, resolver)
        seen.add(id(resource.contents))
        parts = _parts(kind, resource)
        todo += [(one, resolver.in_subresource(one), place) for one in parts]
    return registry


def _parts(kind: Specification[Any], resource: Resource[Any]) -> Iterator[Resource[Any]]:
    """Yield the parts of a part.

    The library passes over all ``dependencies`` where the value of the first is a list.
    """
    yield from resource.subresources()
    found = resource.contents.get("dependencies") if isinstance(resource.contents, dict) else None
    if isinstance(found, dict) and isinstance(next(iter(found.values()), None), list):
        yield from (kind.create_resource(one) for one in found.values() if isinstance(one, dict))


def _require_usable(draft: Any, part: Any, resolver: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where the references of a part lead; raise ``UncheckableError`` for other problems."""
    if not isinstance(part, dict):
        return
    if _draft_of(part, draft) is not draft:
        raise UncheckableError(_OTHER_DRAFT)
    if part.get("$recursiveRef", "#") != "#":  # the library takes each for this one
        raise UncheckableError("a $recursiveRef is another one than #")
    for keyword in ("$ref", "$dynamicRef"):
        if isinstance(reference := part.get(keyword), str):
            yield _look_up(resolver, reference)
    names = part.get("patternProperties")
    for pattern in (part.get("pattern"), *(names if isinstance(names, dict) else ())):
        if isinstance(pattern, str):
            _pattern(pattern)


def _look_up(resolver: Any, reference: str) -> tuple[Any, Any]:
    """Return a part of the schema, and what looks up the references in it."""
    try:
        found = resolver.lookup(reference)
    except Unresolvable as error:
        raise UncheckableError(
            "it refers to another document, or to a part that it does not have"
        ) from error
    return found.contents, found.resolver


def _require_plain_names(schema: Any) -> None:
    """Raise ``UncheckableError`` for patterns of names that the library itself would match.

    Beside ``unevaluatedProperties`` it does, with Python's engine, at any place of the schema.
    """
    patterns: list[str] = []
    has_unevaluated = False
    todo: list[Any] = [schema]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            has_unevaluated |= _UNEVALUATED in part
            named = part.get("patternProperties")
            patterns += named if isinstance(named, dict) else ()
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    if has_unevaluated and not all(map(_PLAIN.fullmatch, patterns)):
        raise UncheckableError(
            f"beside {_UNEVALUATED}, a pattern of names may be letters, digits, _, - and spaces "
            "alone, with ^ before them"
        )


# --- the steps ------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _steps_of(draft: Any) -> Any:
    """Return the validator of a draft, each of whose steps looks at the time."""
    own: dict[str, Any] = {
        "additionalProperties": _additional_properties,
        "pattern": _match_pattern,
        "patternProperties": _pattern_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {
        keyword: _counted(own.get(keyword, function), is_unevaluated=keyword[:11] == "unevaluated")
        for keyword, function in draft.VALIDATORS.items()
    }
    # the library asks for the type of each schema that it goes through by itself
    types = draft.TYPE_CHECKER.redefine("boolean", _is_boolean)
    made: Any = extend(draft, keywords, type_checker=types)
    made.evolve = _evolve
    return made


def _counted(function: Callable[..., Any], *, is_unevaluated: bool) -> Callable[..., Any]:
    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        _step()
        if is_unevaluated and isinstance(instance, list | dict) and len(instance) > MAX_UNEVALUATED:
            raise UncheckableError(f"more than {MAX_UNEVALUATED} members may be unevaluated")
        return function(validator, value, instance, schema)

    return keyword


def _is_boolean(_checker: object, value: object) -> bool:
    _step()
    return isinstance(value, bool)


def _evolve(validator: Any, **changes: Any) -> Any:
    """Return the validator of a part of a schema; the library's own would drop all limits.

    It does so for a part that names a draft.
    """
    schema = changes.get("schema")
    if isinstance(schema, dict) and "$schema" in schema:
        draft = _draft_of(schema, None)
        if draft.META_SCHEMA != validator.META_SCHEMA:
            raise UncheckableError(_OTHER_DRAFT)
    return attrs.evolve(validator, **changes)


# --- the keywords that would take too long --------------------------------------------------------


@lru_cache(maxsize=1_024)
def _pattern(pattern: str) -> tuple[Any, bool]:
    """Return what matches a pattern (ECMA 262), and whether it takes linear time at most."""
    for options in (_LINEAR, _LOOKAROUND):
        try:
            made = rust.Draft202012Validator({"pattern": pattern}, pattern_options=options)
        except (rust.ValidationError, ValueError):
            continue
        return made, options is _LINEAR
    raise UncheckableError("a pattern is none, or is too large")


def _matches(pattern: str, text: str) -> bool:
    _step()
    engine, is_linear = _pattern(pattern)
    if not is_linear and len(text) > MAX_LOOKAROUND:
        raise UncheckableError(f"a text of more than {MAX_LOOKAROUND} characters meets a pattern")
    try:
        engine.validate(text)
    except rust.ValidationError as error:
        if not isinstance(error.kind, rust.ValidationErrorKind.Pattern):
            raise UncheckableError("a pattern takes too long") from error
        return False
    return True


def _match_pattern(
    _validator: Any, pattern: str, value: object, _schema: object
) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield ValidationError("the text does not match the pattern")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: object, _schema: object
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, schema in patterns.items():
        for name, member in value.items():
            if _matches(pattern, name):
                yield from validator.descend(member, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, value: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, member in value.items():
        if name not in declared and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(member, additional, path=name)


def _unique_items(
    _validator: Any, is_wanted: object, value: object, _schema: object
) -> Iterator[ValidationError]:
    """Yield an error for a list that has an item twice; the library compares all with each other.

    A caller's list of 50 KB would then hold all other callers up for many seconds.
    """
    if is_wanted is True and isinstance(value, list) and len({*map(_frozen, value)}) < len(value):
        yield ValidationError("the list has an item twice")


def _frozen(value: object) -> object:
    """Return what is equal for two values that are the same JSON, and has a hash."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(one)) for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_frozen, value))
    return isinstance(value, bool), value  # for Python, 1 and true are equal
