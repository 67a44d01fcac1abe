"""Finding entries of the log: by a name that a person gives, or as a call's credentials.

What else belongs to a call, ``audit/find.py`` finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from agentguard.audit import statements
from agentguard.audit.calls import Authorization, read_authorization
from agentguard.audit.entry import Entry
from agentguard.audit.find import LocatedEntry, read_entry, read_entry_of_kind, scan_entries
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.audit.row import subject_of
from agentguard.errors import AgentguardError, CallError

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_SHORTEST: Final = 8
"""Characters of an invocation id that name a call, if no other begins with them."""

_NAMED: Final = 5
"""Calls that an ambiguous name is said to mean, at most."""


def find(reader: LogReader, wanted: str) -> LocatedEntry:
    """Find what an invocation id, its beginning, an index or ``SHARD/INDEX`` names.

    The entry of an outcome, a resolution or an erasure names its call; another is returned as it
    stands. Raises ``CallError`` (``call.unknown``, ``call.ambiguous``), ``DecodeError`` for an
    entry that can't be read, and ``StorageError``.
    """
    shard, slash, index = wanted.rpartition("/")
    numbers = (shard if slash else "0", index)
    if all(_NUMBER.fullmatch(number) for number in numbers):
        found = _at(reader, *map(int, numbers))
        if found is not None:
            return _call_of(reader, found)
    if len(wanted) >= _SHORTEST and not slash:
        return _named(reader, wanted)
    raise _unknown(f"the log holds no entry {wanted}, and an id takes {_SHORTEST} characters")


def of_trace(reader: LogReader, trace_id: str) -> Iterator[LocatedEntry]:
    """Find the calls of a trace, and its requests for approvals, in the order of their times.

    Raises as ``find`` does.
    """
    wanted = Filter(Search(trace_id=trace_id))
    found = None
    for row in History(reader).rows(wanted, outcomes=False):
        if row.entry is not None:
            yield (found := LocatedEntry(row.shard, row.index, row.entry))
    if found is None:
        raise _unknown(f"the log holds no call of the trace {trace_id}")


def credentials(
    reader: LogReader, call: Authorization, before: LocatedEntry
) -> Iterator[LocatedEntry]:
    """Yield the identity entries of a call's agent that stand before it, the newest first."""
    search = Search(kind="identity", agent=call.agent)
    none = True
    for index in reader.search(before.shard, search, newest_first=True):
        found = read_entry_of_kind(reader, before.shard, index, "identity")
        if found is not None and index < before.index and _is_of(found.entry, call.agent):
            none = False
            yield found
    if none:
        scanned = [
            one
            for one in scan_entries(reader, before.shard, ["identity"])
            if one.index < before.index and _is_of(one.entry, call.agent)
        ]
        yield from reversed(scanned)


def _at(reader: LogReader, shard: int, index: int) -> LocatedEntry | None:
    return read_entry(reader, shard, index) if shard in reader.shards() else None


def _call_of(reader: LogReader, found: LocatedEntry) -> LocatedEntry:
    """Return the call that an entry speaks of, or the entry."""
    place: tuple[int, int] | None = None
    if found.entry.kind == "outcome":
        index = History(reader).call_of(found.shard, found.index, found.entry)
        place = (found.shard, index) if index is not None else None
    elif found.entry.kind in ("resolution", "erasure"):
        said = statements.read_admin_statement(found.entry).call
        place = (said.shard, said.index)
    call = _at(reader, *place) if place is not None else None
    if call is None or call.entry.kind != "authorization":
        return found
    return call


def _named(reader: LogReader, prefix: str) -> LocatedEntry:
    calls: dict[str, LocatedEntry] = {}
    for shard in reader.shards():
        for index in reader.named(shard, prefix):
            found = read_entry_of_kind(reader, shard, index, "authorization")
            invocation_id = _id_of(found.entry) if found is not None else ""
            # the column may say anything
            if found is not None and invocation_id.startswith(prefix):
                calls.setdefault(invocation_id, found)
    if not calls:
        raise _unknown(f"the log holds no call {prefix}")
    if len(calls) > 1 and prefix not in calls:
        names = ", ".join(sorted(calls)[:_NAMED])
        message = f"{len(calls)} calls begin with {prefix}: give more of it ({names})"
        raise CallError(message, code="call.ambiguous")
    return calls.get(prefix) or next(iter(calls.values()))


def _id_of(parsed: Entry) -> str:
    with suppress(AgentguardError):
        return read_authorization(parsed).invocation_id or ""
    return ""


def _is_of(parsed: Entry, uri: str) -> bool:
    with suppress(AgentguardError):
        return subject_of(str(parsed.members["credential"])) == uri
    return False


def _unknown(problem: str) -> CallError:
    return CallError(f"{problem}: agentguard audit list shows those that there are")
