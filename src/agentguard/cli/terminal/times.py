"""The clock of the command line; parses the times that a user types, and formats times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_AGO: Final = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXAMPLES: Final = "2026-11-25, 2026-11-25T09:30:00Z, or how long ago it was: 30m, 2h, 7d"
_EXACT: Final = "2026-11-25T09:30:00Z"


def now() -> datetime:
    """Return the time of this machine in UTC; every command uses this clock."""
    return datetime.now(UTC)


def moment(text: str, now: datetime, *, exact: bool = False) -> datetime:
    """Parse a time: RFC 3339, a date (its beginning), or a span before ``now``, such as 30m.

    A time without an offset is in UTC. ``exact`` allows only RFC 3339 with an offset. Raises
    ``click.BadParameter``.
    """
    try:
        if _AGO.fullmatch(text) and not exact:
            ago = [{_UNITS[unit]: int(count)} for count, unit in _PART.findall(text)]
            return now - sum((timedelta(**part) for part in ago), timedelta())
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is not a time: write {_EXACT if exact else _EXAMPLES}"
        raise click.BadParameter(message) from error
    if exact:
        raise click.BadParameter(f"{text!r} has no offset: write {_EXACT}")
    return time.replace(tzinfo=UTC)


def parse(text: str) -> datetime:
    """Parse the time of an option; raises as ``moment`` does."""
    return moment(text, now())


def parse_exact(text: str) -> datetime:
    """Parse the exact time of an option; raises as ``moment`` does."""
    return moment(text, now(), exact=True)


def to_the_second(at: str | None) -> str:
    """Format an RFC 3339 time in UTC to the second; an empty text for None."""
    return (at or "")[:19].replace("T", " ")
