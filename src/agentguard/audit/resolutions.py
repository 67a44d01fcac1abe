"""Compares the administrator's resolutions and erasures with the calls they name.

A resolution settles a call in doubt, and an erasure explains why a call's data are missing.
``contents.py`` has verified each statement by itself, and settled the calls that were open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from agentguard.audit.contents import ContentsVerifier
from agentguard.audit.entry import parse_time
from agentguard.audit.find import read_entry_of_kind
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry, ErasureEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.errors import DecodeError, StorageError, VerificationError

_MAX_LISTED: Final = 20
"""The number of entries with missing data that are listed."""


def misfits(reader: LogReader, said: ContentsVerifier) -> Iterator[tuple[int, str]]:
    """Yield the index and the problem of each statement that does not fit its call."""
    for index, statement in said.admin_statements:
        what = _misfit(reader, index, statement)
        if what is not None:
            yield index, what


def _misfit(reader: LogReader, index: int, statement: AdministeredEntry) -> str | None:
    place, located = statement.call, None
    with suppress(StorageError):  # the walk has reported what can't be read
        located = read_entry_of_kind(reader, place.index, CallEntry)
    call = None if located is None or place.index > index else located.entry
    if call is None or call.invocation_sha256 != place.invocation_sha256:
        return f"it speaks of a call at {place.index}: none is there"
    if statement.ran is None:
        return None
    if not call.allowed:
        return "it resolves a call that was denied"
    return "it resolves a call whose outcome stands before it"


def unexplained_losses(
    reader: LogReader, said: ContentsVerifier, size: int
) -> Iterator[tuple[int | None, str]]:
    """Yield the entries whose data are gone without an erasure; ``size`` entries were verified.

    Each is an index, None for many entries, and the problem. Raises ``StorageError``.
    """
    erased = {
        (one.call.index, one.call.invocation_sha256)
        for _index, one in said.admin_statements
        if one.ran is None
    }
    if any((one.place, one.invocation_sha256) not in erased for one in said.missing_data):
        erased.update(_later_erasures(reader, said, size))
    losses = [one for one in said.missing_data if (one.place, one.invocation_sha256) not in erased]
    for one in losses[:_MAX_LISTED]:
        roles = ", ".join(one.roles)
        yield one.index, f"what was kept beside it is gone ({roles}), and no erasure is on record"
    if len(losses) > _MAX_LISTED:
        others = len(losses) - _MAX_LISTED
        yield None, f"the same of {others} more entries: {len(losses)} have lost what was kept"


def _later_erasures(
    reader: LogReader, said: ContentsVerifier, size: int
) -> Iterator[tuple[int, str]]:
    """Yield the calls that were erased while the log was being verified."""
    for _index, body in reader.entries(after=size - 1):
        with suppress(DecodeError, VerificationError):  # an invalid one explains nothing
            entry = parse_entry(body)
            if isinstance(entry, ErasureEntry):
                entry.verify(said.trust, parse_time(entry.at))
                yield entry.call.index, entry.call.invocation_sha256
