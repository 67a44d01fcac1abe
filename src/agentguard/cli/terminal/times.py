"""The clock of the command line; times as a person gives them, and as they are shown to one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer

_AGO: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXAMPLES: Final = "2026-11-25, 2026-11-25T09:30:00Z, or how long ago it was: 30m, 2h, 7d"
_EXACT: Final = "2026-11-25T09:30:00Z"


def now() -> datetime:
    """Return the time of this machine: every command's clock."""
    return datetime.now(UTC)


def moment(text: str, now: datetime, *, exact: bool = False) -> datetime:
    """Read a time: RFC 3339, a date (its beginning), or how long before ``now``.

    Without an offset it is in UTC. An ``exact`` one is RFC 3339 with an offset. Raises
    ``typer.BadParameter``.
    """
    try:
        if _AGO.fullmatch(text) and not exact:
            ago = [{_UNITS[unit]: int(count)} for count, unit in _PART.findall(text)]
            return now - sum((timedelta(**part) for part in ago), timedelta())
        read = datetime.fromisoformat(text)
        if read.tzinfo is not None:
            return read.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is no time: say {_EXACT if exact else _EXAMPLES}"
        raise typer.BadParameter(message) from error
    if exact:
        raise typer.BadParameter(f"{text!r} has no offset: say {_EXACT}")
    return read.replace(tzinfo=UTC)


def given(text: str) -> datetime:
    """Read the time that an option is given; raises as ``moment`` does."""
    return moment(text, now())


def given_exactly(text: str) -> datetime:
    """Read the exact time that an option is given; raises as ``moment`` does."""
    return moment(text, now(), exact=True)


def shown(at: str | None) -> str:
    """Write an RFC 3339 time in UTC for people, to the second; nothing where there is none."""
    return (at or "")[:19].replace("T", " ")
