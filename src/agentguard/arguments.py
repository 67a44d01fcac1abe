"""A call's arguments, as canonical bytes that equal arguments share and no others.

Here live the exact table of the types that can be bound (records.md, "One call's bytes"), the
``Arguments`` value that the policy reads and the invocation commits to, and the binder for plain
Python functions. How a framework's tools are bound stands in that framework's adapter; it ends
here all the same, in ``Arguments.of``.

Values without a JSON form become tagged objects, such as ``{"$decimal": "1.50"}``; a real key
that begins with ``$`` gets one more, so that no argument can pretend to be a tag.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from agentguard import canonical
from agentguard.canonical import JSON
from agentguard.errors import ArgumentsError, EncodeError

MAX_DEPTH: Final = canonical.MAX_DEPTH - 2
"""How deep arguments may be nested: the policy's input, which holds them, is read as JSON again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """The bound arguments of one call.

    ``values`` is what the policy reads (JSON values, tags included); ``encoded`` their RFC 8785
    bytes, which the invocation commits to; ``unbound`` the names that the framework injects and
    that are not part of the call.
    """

    values: Mapping[str, JSON]
    encoded: bytes
    unbound: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, object], *, unbound: Sequence[str] = ()) -> Arguments:
        """Encode ``values``, a mapping of argument names to Python values.

        Raises ``ArgumentsError``: ``arguments.unencodable`` for a value outside the table,
        ``arguments.too_large`` past 256 KiB.
        """
        try:
            "".join(unbound).encode()
        except UnicodeError as error:
            raise ArgumentsError("the name of an injected argument is no text") from error
        encoded_values = {_key(name): _encode(value, 1, name) for name, value in values.items()}
        encoded = _dumps(encoded_values)
        return cls(MappingProxyType(encoded_values), encoded, tuple(sorted(unbound)))


def encode_result(value: object) -> bytes | None:
    """Return the canonical bytes of a tool's result, or None when it has none."""
    try:
        return _dumps(_encode(value, 1, "result"))
    except Exception:  # noqa: BLE001  the tool has run: whatever its result raises, it has no bytes
        return None


def _dumps(value: JSON) -> bytes:
    try:
        encoded = canonical.dumps(value)
    except EncodeError as error:
        raise ArgumentsError(f"the arguments have no canonical form: {error}") from error
    if len(encoded) > canonical.MAX_BYTES:
        message = (
            f"the arguments take {len(encoded)} bytes, more than {canonical.MAX_BYTES}; "
            "pass a reference (a path, an id) instead of the content"
        )
        raise ArgumentsError(message, code="arguments.too_large")
    return encoded


# --- the table ----------------------------------------------------------------------------------


def _encode(value: object, depth: int, path: str) -> JSON:
    """Encode one value. Exact types only: a subclass may behave unlike what is written down."""
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value  # type: ignore[return-value]
    if depth > MAX_DEPTH:
        message = f"argument {path!r} is nested more than {MAX_DEPTH} levels deep"
        raise ArgumentsError(message)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, depth, path)
    try:
        return _encode_structure(value, depth, path)
    except ArgumentsError:
        raise
    except Exception as error:  # a user's class may raise from an attribute
        raise _unencodable(value, path) from error


def _unencodable(value: object, path: str) -> ArgumentsError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    message = (
        f"argument {path!r} is a {kind}, which has no encoding; "
        "pass plain values (numbers, strings, lists, dictionaries, dataclasses, models)"
    )
    return ArgumentsError(message)


def _key(name: object) -> str:
    if type(name) is not str:
        raise ArgumentsError(f"an argument's name must be a string, not {type(name).__name__}")
    return f"${name}" if name.startswith("$") else name


def _int(value: Any, _depth: int, _path: str) -> JSON:
    if -canonical.MAX_INTEGER <= value <= canonical.MAX_INTEGER:
        return int(value)
    try:
        return {"$int": str(value)}
    except ValueError:  # Python's own limit on digits
        return {"$int": hex(value)}


def _float(value: Any, _depth: int, path: str) -> JSON:
    if not math.isfinite(value):
        raise ArgumentsError(f"argument {path!r} is {value}, which no policy can compare")
    return float(value)


def _decimal(value: Any, _depth: int, path: str) -> JSON:
    if not value.is_finite():
        raise ArgumentsError(f"argument {path!r} is {value}, which no policy can compare")
    return {"$decimal": str(value)}


def _list(value: Any, depth: int, path: str) -> JSON:
    return [_encode(item, depth + 1, path) for item in value]


def _set(value: Any, depth: int, path: str) -> JSON:
    items = [_encode(item, depth + 2, path) for item in value]
    return {"$set": sorted(items, key=_dumps)}


def _dict(value: Any, depth: int, path: str) -> JSON:
    if all(type(key) is str for key in value):
        return {_key(k): _encode(v, depth + 1, f"{path}.{k}") for k, v in value.items()}
    pairs: list[JSON] = [
        [_encode(k, depth + 3, path), _encode(v, depth + 3, path)] for k, v in value.items()
    ]
    return {"$dict": sorted(pairs, key=_dumps)}


def _tuple(value: Any, depth: int, path: str) -> JSON:
    return {"$tuple": [_encode(item, depth + 2, path) for item in value]}


def _timedelta(value: Any, _depth: int, _path: str) -> JSON:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _time(value: Any, _depth: int, path: str) -> JSON:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise _unencodable(value, path)  # its zone has no offset without a date
    return {"$time": value.isoformat()}


def _tagged(tag: str, text: Callable[[Any], str]) -> Callable[[Any, int, str], JSON]:
    return lambda value, _depth, _path: {tag: text(value)}


_ENCODERS: Final[Mapping[type, Callable[[Any, int, str], JSON]]] = {
    int: _int,
    float: _float,
    list: _list,
    dict: _dict,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    Decimal: _decimal,
    bytes: _tagged("$bytes", canonical.b64url_encode),
    datetime: _tagged("$datetime", datetime.isoformat),
    date: _tagged("$date", date.isoformat),
    time: _time,
    timedelta: _timedelta,
    UUID: _tagged("$uuid", str),
    **dict.fromkeys((PosixPath, PurePosixPath), _tagged("$path", str)),
    PureWindowsPath: _tagged("$windows_path", str),
}


def _encode_structure(value: object, depth: int, path: str) -> JSON:
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, Enum):
        return {
            "$enum": name,
            "name": value._name_,
            "value": _encode(value._value_, depth + 1, path),
        }
    if kind.__module__ == "pydantic.networks":
        return {"$url": name, "value": str(value)}
    groups = _members(value)
    if groups is None or _hides_state(value, groups):
        raise _unencodable(value, path)
    encoded: dict[str, JSON] = {"$object": name}
    for group, members in groups.items():
        encoded[group] = {_key(k): _encode(v, depth + 2, f"{path}.{k}") for k, v in members.items()}
    return encoded


def _members(value: Any) -> dict[str, dict[str, object]] | None:
    """Return what a dataclass or a pydantic model (v2, v1) holds, by kind of member.

    Read from the object itself: a model's serializers may hide a field. The kinds are kept apart,
    since an extra value may have the name of a field.
    """
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {"fields": {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}}
    if not _is_model(kind):
        return None
    groups: dict[str, dict[str, object]] = {"fields": dict(value.__dict__)}
    if hasattr(value, "__pydantic_private__"):
        extra, private = value.__pydantic_extra__, value.__pydantic_private__
    else:
        extra = None
        names = getattr(kind, "__private_attributes__", {})
        private = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if extra:
        groups["extra"] = dict(extra)
    if private:
        groups["private"] = dict(private)
    v2 = hasattr(value, "__pydantic_fields_set__")
    given: set[str] = value.__pydantic_fields_set__ if v2 else value.__fields_set__
    unset = set(groups["fields"]) - given
    if unset:
        groups["unset"] = dict.fromkeys(unset)  # to a tool, null is not the same as not given
    return groups


def _is_model(kind: type) -> bool:
    """Tell a pydantic model, v2 or v1 (of which ``__fields__`` is asked only where it is real)."""
    v1 = any("__fields__" in base.__dict__ for base in kind.__mro__)
    return v1 or hasattr(kind, "__pydantic_fields__")


_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made at run time


def _hides_state(value: object, groups: Mapping[str, Mapping[str, object]]) -> bool:
    """Tell whether an object holds more than its members show: then equal bytes prove nothing."""
    if any(kind is not object and not kind.__flags__ & _HEAP_TYPE for kind in type(value).__mro__):
        return True  # a type written in C keeps its state where nobody sees it
    fields = groups["fields"]
    pydantic = _is_model(type(value))
    slots = {
        slot
        for kind in type(value).__mro__
        for slot in _slots(kind)
        if not (pydantic and slot.startswith("__"))
    }
    loose = {"__dict__", "__weakref__"}
    return bool((set(getattr(value, "__dict__", {})) | slots) - set(fields) - loose)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


# --- plain functions ----------------------------------------------------------------------------

Binder = Callable[[tuple[object, ...], Mapping[str, object]], dict[str, object]]


def binder(function: Callable[..., object]) -> Binder:
    """Return the function that binds positional and keyword arguments to names.

    Defaults are filled in, ``**kwargs`` flattened, ``*args`` kept under its name. ``inspect``
    runs here, once, and not at each call. The binder raises ``ArgumentsError``
    (``arguments.invalid``) where Python would raise ``TypeError``.
    """
    signature = inspect.signature(function)
    name = getattr(function, "__name__", "the tool")  # and no more of it: a closure can be read
    parameters = signature.parameters.values()
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    names = tuple(signature.parameters)
    accepted = frozenset(names)
    empty = inspect.Parameter.empty
    defaults = {p.name: p.default for p in parameters if p.default is not empty}

    def bind_fast(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        # the usual call: all by name, or all by position; what is unusual is bound exactly
        if (args and kwargs) or len(args) > len(names) or not accepted.issuperset(kwargs):
            return bind_exactly(args, kwargs)
        bound = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        return bound if len(bound) == len(names) else bind_exactly(args, kwargs)

    def bind_exactly(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            message = f"the arguments do not fit {name}: {error}"
            raise ArgumentsError(message, code="arguments.invalid") from error
        bound.apply_defaults()
        return _flatten(bound, signature)

    return bind_fast if plain else bind_exactly


def _flatten(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, object]:
    values = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = values.pop(parameter.name, {})
            repeated = set(extra) & set(values)
            if repeated:
                message = f"argument {min(repeated)!r} is given twice"
                raise ArgumentsError(message, code="arguments.invalid")
            values.update(extra)
    return values
