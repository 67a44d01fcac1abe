"""A call's arguments as canonical bytes: equal arguments have equal bytes, others have not.

``Arguments`` is the value that the policy reads and the invocation commits to. The table below has
the types that can be encoded (records.md, "One call's bytes"). ``binding.py`` binds the arguments
of plain Python functions; each adapter binds those of its framework's tools. ``structures.py``
reads the members of objects.

A value without a JSON form becomes a tagged object, such as ``{"$decimal": "1.50"}``. A key of the
arguments that begins with ``$`` gets a second ``$``, so that no argument can pretend to be a tag,
or to be what a call brings beside its arguments (``$mcp``).

The reason of a refusal is signed and logged, where nothing can be redacted or erased. An error
therefore names a place in the arguments by names from the code alone: the error quotes no key of a
dictionary, no undeclared name and no value.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from uuid import UUID

from agentguard.call import addresses, structures
from agentguard.call.budget import REMAINING, bounded, counted, spend, too_large
from agentguard.errors import ArgumentsError, EncodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

MAX_DEPTH: Final = canonical.MAX_DEPTH - 2
"""The deepest nesting of arguments: the policy's input, two levels deeper, must be valid JSON."""

MAX_UNBOUND: Final = 16 * 1024
"""The most bytes of the names of injected arguments, as JSON: each entry of a call has them."""

_MUTABLE: Final = frozenset({list, dict})

_FEW: Final = 64 * 1024
"""So many characters, names included, are encoded without the budget of ``bounded``."""

_SHORT: Final = 32
"""A key of at most so many characters costs no budget, since the value beside the key does."""

_Place: TypeAlias = "tuple[_Place | None, str | int | None]"
"""The place of a value: the place of its container, and its name or position there.

The container of an argument is None. The name None stands for an undeclared name, which may be
data.
"""


class FactoryMade(Enum):
    """What an adapter binds in place of a value that a default factory makes anew at each call."""

    MADE = "made"


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """The bound arguments of one call.

    ``values`` are the JSON values, tags included, that the policy reads. ``encoded`` are their RFC
    8785 bytes, which the invocation commits to. ``unbound`` are the names of the parameters that
    the framework injects, which are not part of the call. Raises ``ArgumentsError`` for such names
    that the log can't hold: ``arguments.unencodable``, or ``arguments.too_large`` past
    ``MAX_UNBOUND``.
    """

    values: Mapping[str, JSON]
    encoded: bytes
    unbound: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.unbound:
            _require_loggable(self.unbound)

    @classmethod
    def of(
        cls,
        values: Mapping[str, object],
        *,
        unbound: Sequence[str] = (),
        declared: Collection[str] = (),
        beside: Mapping[str, object] = MappingProxyType({}),
    ) -> Arguments:
        """Encode ``values``, a mapping of argument names to Python values.

        ``declared`` are the names in the tool's code or schema, which an error may quote.
        ``beside`` is what the call brings beside its arguments, by the name of the protocol that
        has it: ``{"mcp": ...}`` becomes the member ``$mcp``, which no argument can be.
        Raises ``ArgumentsError``: ``arguments.unencodable`` for a value outside the table,
        ``arguments.too_large`` past 256 KiB.
        """
        injected = tuple(sorted(unbound))
        members: dict[str, Any] = dict(values.items())
        if not beside and _are_plain(members):  # the usual case
            encoded = _dumps(members, canonical.dumps_record)
            return cls(MappingProxyType(members), encoded, injected)
        encoded_values = bounded(
            lambda: (
                {
                    _key(name): _encode(value, 1, (None, name if name in declared else None))
                    for name, value in members.items()
                }
                | {
                    f"${name}": _encode(value, 1, (None, f"${name}"))
                    for name, value in beside.items()
                }
            )
        )
        encoded = _dumps(encoded_values)
        return cls(MappingProxyType(encoded_values), encoded, injected)

    @property
    def are_immutable(self) -> bool:
        """Whether no value can change; a mutable value is encoded as an object or a list."""
        return _MUTABLE.isdisjoint(map(type, self.values.values()))


def _require_loggable(unbound: Sequence[str]) -> None:
    try:
        size = len(canonical.dumps_record(unbound))
    except EncodeError as error:
        raise ArgumentsError("the name of an injected argument is no text") from error
    if size > MAX_UNBOUND:
        message = (
            f"the names of the injected arguments take {size} bytes, and {MAX_UNBOUND} at most may "
            "stand in the log: let the tool have fewer, or shorter ones"
        )
        raise ArgumentsError(message, code="arguments.too_large")


def encode_result(value: object) -> bytes | None:
    """Return the canonical bytes of a tool's result; None for a result without an encoding."""
    try:
        if _are_plain({"": value}):
            return _dumps(value, canonical.dumps_record)  # type: ignore[arg-type]
        return _dumps(bounded(lambda: _encode(value, 1, (None, "result"))))
    except Exception:  # noqa: BLE001  the tool has run: an error of its result changes nothing
        return None


def _dumps(value: JSON, encode: Callable[[JSON], bytes] = canonical.dumps) -> bytes:
    try:
        encoded = encode(value)
    except EncodeError as error:
        raise ArgumentsError(f"the arguments have no canonical form: {error}") from error
    if len(encoded) > canonical.MAX_BYTES:
        raise too_large()
    return encoded


def _are_plain(members: Mapping[str, Any]) -> bool:
    """Whether the members are their own encoding, and few: texts, integers and the like.

    ``orjson`` writes them in canonical form, since their names are ASCII.
    """
    size = 0
    for name, value in members.items():
        if type(name) is not str or not name.isascii() or name.startswith("$"):
            return False
        kind = type(value)
        if kind is str:
            size += len(value)
        elif kind is int:
            if abs(value) > canonical.MAX_INTEGER:
                return False
        elif value is not None and kind is not bool:
            return False
        size += len(name)
    return size <= _FEW


# --- the table ----------------------------------------------------------------------------------


def _encode(value: object, depth: int, place: _Place) -> JSON:
    """Encode one value of an exact type; a subclass may behave otherwise than its encoding says."""
    kind = type(value)
    remaining = REMAINING.get()  # spend(), without the cost of a call
    remaining[0] -= 2 + len(value) if kind is str else 1  # type: ignore[arg-type]
    if remaining[0] < 0:
        raise too_large()
    if value is None or kind is str or kind is bool:
        return value  # type: ignore[return-value]
    if depth > MAX_DEPTH:
        message = f"argument {_path(_root(place))} is nested more than {MAX_DEPTH} levels deep"
        raise ArgumentsError(message)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, depth, place)
    try:
        return _encode_structure(value, depth, place)
    except ArgumentsError:
        raise
    except Exception as error:  # an attribute of the application's class may raise
        raise _unencodable(value, place) from error


def _root(place: _Place) -> _Place:
    """Return the place of the argument that contains a value."""
    return place if place[0] is None else _root(place[0])


def _path(place: _Place) -> str:
    """Return a place as text, such as ``'customer.addresses[2][...]'``."""
    steps: list[str] = []
    outer, step = place
    while outer is not None:
        steps.append("[...]" if step is None else f"[{step}]" if type(step) is int else f".{step}")
        outer, step = outer
    return repr("".join([str(step or "[...]"), *reversed(steps)]))


def _unencodable(value: object, place: _Place) -> ArgumentsError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    message = (
        f"argument {_path(place)} is a {kind}, which has no encoding; "
        "pass plain values (numbers, strings, lists, dictionaries, dataclasses, models)"
    )
    return ArgumentsError(message)


def _key(name: object) -> str:
    if type(name) is not str:
        raise ArgumentsError(f"an argument's name must be a string, not {type(name).__name__}")
    if len(name) > _SHORT:
        spend(len(name))
    return f"${name}" if name.startswith("$") else name


def _int(value: Any, _depth: int, _place: _Place) -> JSON:
    if -canonical.MAX_INTEGER <= value <= canonical.MAX_INTEGER:
        return int(value)
    try:
        return {"$int": counted(str(value))}
    except ValueError:  # Python's own limit on digits
        return {"$int": counted(hex(value))}


def _infinite(place: _Place) -> ArgumentsError:
    message = f"argument {_path(place)} is no finite number: no policy could compare it"
    return ArgumentsError(message)


def _float(value: Any, _depth: int, place: _Place) -> JSON:
    if not math.isfinite(value):
        raise _infinite(place)
    return float(value)


def _decimal(value: Any, _depth: int, place: _Place) -> JSON:
    if not value.is_finite():
        raise _infinite(place)
    return {"$decimal": counted(str(value))}


def _list(value: Any, depth: int, place: _Place) -> JSON:
    return [_encode(item, depth + 1, (place, at)) for at, item in enumerate(value)]


def _set(value: Any, depth: int, place: _Place) -> JSON:
    inside = (place, None)
    items = [_encode(item, depth + 2, inside) for item in value]
    return {"$set": sorted(items, key=_dumps)}


def _dict(value: Any, depth: int, place: _Place) -> JSON:
    inside = (place, None)
    if all(type(key) is str for key in value):
        return {_key(k): _encode(v, depth + 1, inside) for k, v in value.items()}
    pairs: list[JSON] = [
        [_encode(k, depth + 3, inside), _encode(v, depth + 3, inside)] for k, v in value.items()
    ]
    return {"$dict": sorted(pairs, key=_dumps)}


def _tuple(value: Any, depth: int, place: _Place) -> JSON:
    return {"$tuple": [_encode(item, depth + 2, (place, at)) for at, item in enumerate(value)]}


def _timedelta(value: Any, _depth: int, _place: _Place) -> JSON:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _datetime(value: Any, _depth: int, _place: _Place) -> JSON:
    return {"$datetime": value.isoformat(), **_clock(value)}


def _time(value: Any, _depth: int, place: _Place) -> JSON:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise _unencodable(value, place)  # the offset of its zone depends on the date
    return {"$time": value.isoformat(), **_clock(value)}


def _clock(value: datetime | time) -> dict[str, JSON]:
    """Return what ISO 8601 lacks: the fold of an ambiguous time, and the name of the time zone."""
    members: dict[str, JSON] = {"fold": 1} if value.fold else {}
    zone = value.tzinfo
    if zone is not None and type(zone) is not timezone:
        name = getattr(zone, "key", None) or getattr(zone, "zone", None)  # zoneinfo's; pytz's
        if type(name) is str:
            members["zone"] = counted(name)
    return members


def _deque(value: Any, depth: int, place: _Place) -> JSON:
    items = [_encode(item, depth + 2, (place, at)) for at, item in enumerate(value)]
    return {"$deque": items} if value.maxlen is None else {"$deque": items, "maxlen": value.maxlen}


def _namedtuple(value: Any, depth: int, place: _Place) -> JSON:
    kind = type(value)
    fields = zip(kind._fields, tuple.__iter__(value), strict=True)
    encoded = {_key(name): _encode(item, depth + 2, (place, name)) for name, item in fields}
    return {"$object": f"{kind.__module__}:{kind.__qualname__}", "fields": encoded}


def is_namedtuple(kind: type) -> bool:
    """Whether ``NamedTuple`` or ``namedtuple`` made a class, so that its fields are its state."""
    return kind.__bases__ == (tuple,) and "_fields" in vars(kind) and not kind.__dictoffset__


_Encoder = Callable[[Any, int, _Place], JSON]


def _tagged(tag: str, text: Callable[[Any], str]) -> _Encoder:
    return lambda value, _depth, _place: {tag: counted(text(value))}


_ENCODERS: Final[Mapping[type, _Encoder]] = {
    FactoryMade: lambda _value, _depth, _place: {"$made": True},
    int: _int,
    float: _float,
    list: _list,
    dict: _dict,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    Decimal: _decimal,
    bytes: _tagged("$bytes", canonical.b64url_encode),
    datetime: _datetime,
    date: _tagged("$date", date.isoformat),
    time: _time,
    timedelta: _timedelta,
    UUID: _tagged("$uuid", str),
    **dict.fromkeys((PosixPath, PurePosixPath), _tagged("$path", str)),
    PureWindowsPath: _tagged("$windows_path", str),
    deque: _deque,
    **dict.fromkeys((IPv4Address, IPv6Address), _tagged("$ip", addresses.address)),
    **dict.fromkeys((IPv4Network, IPv6Network), _tagged("$ip_network", addresses.network)),
    **dict.fromkeys((IPv4Interface, IPv6Interface), _tagged("$ip_interface", addresses.interface)),
}


def _encode_structure(value: object, depth: int, place: _Place) -> JSON:
    kind: Any = type(value)
    name = counted(f"{kind.__module__}:{kind.__qualname__}")
    if isinstance(value, Enum):
        return {
            "$enum": name,
            "name": value._name_,
            "value": _encode(value._value_, depth + 1, place),
        }
    if name == "pydantic.networks:NameEmail":
        # str() is ambiguous: `name <email>` may be the text of two values
        parts = {"name": value.name, "email": value.email}  # type: ignore[attr-defined]
        fields = {k: _encode(v, depth + 2, (place, k)) for k, v in parts.items()}
        return {"$object": name, "fields": fields}
    if is_namedtuple(kind):
        return _namedtuple(value, depth, place)
    if name == "pydantic.types:ByteSize" and not vars(value):
        return {"$byte_size": _int(value, depth, place)}
    if kind.__module__ == "pydantic.networks":
        return {"$url": name, "value": counted(str(value))}
    groups = structures.members(value)
    if groups is None or structures.hides_state(value, groups):
        raise _unencodable(value, place)
    declared = structures.declared_names(kind)
    encoded: dict[str, JSON] = {"$object": name}
    for group, members in groups.items():
        encoded[group] = {
            _key(k): _encode(v, depth + 2, (place, k if k in declared else None))
            for k, v in members.items()
        }
    return encoded
