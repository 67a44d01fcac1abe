"""Find entries of the log: the entry that a user names, or the credentials of a call's agent.

``agentguard/audit/find.py`` finds the other entries of a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from agentguard.audit.entry import CallPlace, Entry
from agentguard.audit.find import (
    LocatedEntry,
    read_entry,
    read_entry_of_kind,
    scan_entries,
    search_entries,
)
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.identities import IdentityEntry
from agentguard.audit.kinds.running import OfRunningCall
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import log_row
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.errors import CallError

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_MIN_PREFIX: Final = 8
"""How many characters of an invocation id a user has to give at least."""

_MAX_LISTED: Final = 5
"""How many calls or traces the message about an ambiguous name lists at most."""

_TRACE_ID: Final = 32
"""The hex digits of a trace id."""

_LEFT_OUT: Final = "0" * 16
"""The first half of a trace id that Jaeger leaves out."""


def find(reader: LogReader, name: str) -> LocatedEntry[Entry]:
    """Find the entry that an invocation id, its beginning or an index names.

    For an outcome, a resolution or an erasure, return the authorization of its call; for another
    kind, return the entry itself. Raises ``CallError`` (``call.unknown``, ``call.ambiguous``),
    ``DecodeError`` for an entry that can't be read, and ``StorageError``.
    """
    if _NUMBER.fullmatch(name):
        log_entry = read_entry(reader, int(name))
        if log_entry is not None:
            return _call_of(reader, log_entry)
    if len(name) >= _MIN_PREFIX:
        return _by_prefix(reader, name)
    raise _unknown(f"the log holds no entry {name}, and an id takes {_MIN_PREFIX} characters")


def call(reader: LogReader, name: str) -> str | CallPlace:
    """Return the place of the call that a name means, or the name where it is a whole id.

    A whole id is returned without a look into the log: the command that uses the id finds out
    whether the call exists. Raises as ``find`` does, and ``CallError`` (``call.unknown``) for an
    entry of no call.
    """
    if log_row.is_id(name):
        return name
    found = find(reader, name)
    read, problem = found.entry, "has no id"
    if not isinstance(read, CallEntry):
        problem = f"is of the kind {read.kind}, and no call's"
    elif read.invocation_id is not None:
        return CallPlace(found.index, read.invocation_id, read.invocation_sha256)
    raise CallError(f"the entry {found.index} {problem}: name a call's")


def id_of(found: str | CallPlace) -> str:
    """Return the id of what ``call`` has returned."""
    return found.invocation_id if isinstance(found, CallPlace) else found


def of_trace(reader: LogReader, trace_id: str) -> Iterator[LocatedEntry[Entry]]:
    """Find the calls of a trace, and its requests for approvals, in the order of the log.

    ``trace_id`` is the id or its beginning. Raises as ``find`` does.
    """
    trace_id = whole_trace(reader, trace_id)
    selection = Filter(Search(trace_id=trace_id))
    is_empty = True
    for row in History(reader).rows(selection, outcomes=False):
        if row.entry is not None:
            is_empty = False
            yield LocatedEntry(row.index, row.entry)
    if is_empty:
        raise _unknown(f"the log holds no call of the trace {trace_id}")


def whole_trace(reader: LogReader, beginning: str) -> str:
    """Return the id of the one trace whose id begins so; a whole id is returned without a look.

    Jaeger leaves out the first half of an id where it is all zeros, so the beginning may be that of
    the second half. Raises ``CallError`` (``call.unknown``, ``call.ambiguous``) and
    ``StorageError``.
    """
    if len(beginning) == _TRACE_ID:
        return beginning
    prefixes = [beginning]
    if len(beginning) <= len(_LEFT_OUT):
        prefixes.append(_LEFT_OUT + beginning)
    candidates = {trace_id for prefix in prefixes for trace_id in reader.traces(prefix)}
    # an edited column may hold any text
    traces = sorted(one for one in candidates if _has_entry(reader, one))
    if not traces:
        raise _unknown(f"the log holds no call of a trace whose id begins with {beginning}")
    if len(traces) > 1:
        names = ", ".join(traces[:_MAX_LISTED])
        message = f"{len(traces)} traces begin with {beginning}: give more of the id ({names})"
        raise CallError(message, code="call.ambiguous")
    return traces[0]


def with_whole_trace(reader: LogReader, selection: Filter) -> Filter:
    """Return a filter that has the whole id of its trace; raises as ``whole_trace`` does."""
    search = selection.search
    if search.trace_id is None:
        return selection
    whole = search._replace(trace_id=whole_trace(reader, search.trace_id))
    return replace(selection, search=whole)


def _has_entry(reader: LogReader, trace_id: str) -> bool:
    rows = History(reader).rows(Filter(Search(trace_id=trace_id)), outcomes=False)
    return any(row.entry is not None for row in rows)


def credentials(reader: LogReader, agent: str, before: int) -> Iterator[IdentityEntry]:
    """Yield the identity entries of an agent before an index, the newest first."""
    search = Search(agent=agent)
    is_empty = True
    for located in search_entries(reader, IdentityEntry, search, newest_first=True):
        if located.index < before and located.entry.agent == agent:
            is_empty = False
            yield located.entry
    if is_empty:
        scanned = [
            located.entry
            for located in scan_entries(reader, (IdentityEntry,))
            if located.index < before and located.entry.agent == agent
        ]
        yield from reversed(scanned)


def _call_of(reader: LogReader, located: LocatedEntry[Entry]) -> LocatedEntry[Entry]:
    """Return the authorization of the call that an entry names, or the entry itself."""
    index: int | None = None
    match located.entry:
        case OutcomeEntry() as outcome:
            index = History(reader).call_of(located.index, outcome)
        case OfRunningCall() as entry:
            index = entry.authorization.index
        case AdministeredEntry() as entry:
            index = entry.call.index
    call = read_entry(reader, index) if index is not None else None
    return located if call is None or not isinstance(call.entry, CallEntry) else call


def _by_prefix(reader: LogReader, prefix: str) -> LocatedEntry[CallEntry]:
    calls: dict[str, LocatedEntry[CallEntry]] = {}
    for index in reader.named(prefix):
        located = read_entry_of_kind(reader, index, CallEntry)
        invocation_id = (located.entry.invocation_id or "") if located is not None else ""
        # an edited column may hold any text
        if located is not None and invocation_id.startswith(prefix):
            calls.setdefault(invocation_id, located)
    if not calls:
        raise _unknown(f"the log holds no call {prefix}")
    if len(calls) > 1 and prefix not in calls:
        names = ", ".join(sorted(calls)[:_MAX_LISTED])
        message = f"{len(calls)} calls begin with {prefix}: give more of it ({names})"
        raise CallError(message, code="call.ambiguous")
    return calls.get(prefix) or next(iter(calls.values()))


def _unknown(problem: str) -> CallError:
    return CallError(f"{problem}: agentguard audit list shows those that there are")
