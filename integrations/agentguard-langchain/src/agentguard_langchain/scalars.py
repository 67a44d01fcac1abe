"""Values without parts: how a result's codec writes them as text, and reads them.

Values with parts stand in ``codec.py``.
"""

from __future__ import annotations

import ipaddress
import math
import typing
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import date, timedelta, timezone
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from langchain_core.messages.base import TextAccessor

from agentguard.adapters import EncodeError


class Scalar(NamedTuple):
    """The functions that write a value as text, and read the text."""

    write: Callable[[Any], str]
    read: Callable[[str], object]


def _write_zone(value: ZoneInfo) -> str:
    if value.key is None:
        raise EncodeError("a time zone that was read from a file can't be kept")
    return value.key


def _write_span(value: timedelta) -> str:
    return f"{value.days} {value.seconds} {value.microseconds}"


def _read_span(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split(" "))
    return timedelta(days, seconds, microseconds)


def _write_offset(value: timezone) -> str:
    """Write a fixed time zone; a name is written if Python would make another."""
    offset, name = value.utcoffset(None), value.tzname(None)
    return f"{_write_span(offset)}/{'' if timezone(offset).tzname(None) == name else name}"


def _read_offset(text: str) -> timezone:
    offset, _, name = text.partition("/")
    return timezone(_read_span(offset), name) if name else timezone(_read_span(offset))


_ADDRESSES: Final = (
    ipaddress.IPv4Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Interface,
    ipaddress.IPv6Network,
)
_PATHS: Final = (PosixPath, PurePosixPath, PureWindowsPath)

SCALARS: Final[Mapping[type, Scalar]] = {
    int: Scalar(str, int),
    float: Scalar(str, float),
    bytes: Scalar(lambda value: b64encode(value).decode(), b64decode),
    bytearray: Scalar(
        lambda value: b64encode(value).decode(), lambda text: bytearray(b64decode(text))
    ),
    TextAccessor: Scalar(str, TextAccessor),
    Decimal: Scalar(str, Decimal),
    UUID: Scalar(str, UUID),
    date: Scalar(date.isoformat, date.fromisoformat),
    timedelta: Scalar(_write_span, _read_span),
    timezone: Scalar(_write_offset, _read_offset),
    ZoneInfo: Scalar(_write_zone, ZoneInfo),
    **{kind: Scalar(str, kind) for kind in (*_ADDRESSES, *_PATHS)},
}
TAGGED: Final = {kind.__name__: scalar for kind, scalar in SCALARS.items()}

_LARGEST: Final = 1 << 63


def is_plain(value: object, kind: type) -> bool:
    """Whether JSON has the value as it is."""
    if kind is int:
        return -_LARGEST <= typing.cast("int", value) < _LARGEST
    return (
        value is None
        or kind in (bool, str)
        or (kind is float and math.isfinite(typing.cast("float", value)))
    )
