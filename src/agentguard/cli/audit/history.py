"""Reads the log as rows in the order of time: each entry, with the outcome of each call.

The columns beside the entries only help to find entries; a row holds what the entry itself says.
Nothing is verified here (``audit verify`` does that). An entry that can't be read becomes a row of
the kind ``damaged``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar

from agentguard.audit import checkpoint, statements
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.find import read_body, read_entry_of_kind, search_entries
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import (
    AdministeredEntry,
    ErasureEntry,
    ResolutionEntry,
)
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.running import OfRunningCall
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import log_row as rows
from agentguard.cli.audit.filters import EVERYTHING, Filter
from agentguard.cli.audit.log_row import Row
from agentguard.cli.terminal.shown import Shown
from agentguard.errors import AgentguardError, DecodeError
from agentguard.identity.trust import TrustDocument

E = TypeVar("E", bound=OutcomeEntry | OfRunningCall | AdministeredEntry)

_REMEMBERED: Final = 4096
"""Calls that are kept in memory, since their outcomes mostly follow soon."""

_LAST: Final = "\U0010ffff"
"""Sorts after every time."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An entry on its way into the order of all shards: by time, and then by place."""

    at: str
    shard: int
    index: int
    entry: Entry | None
    problem: str = ""


def _order(read: _Read) -> tuple[str, int, int]:
    return read.at, read.shard, read.index


class History:
    """The rows of one log, of which one at a time is in memory."""

    def __init__(self, reader: LogReader, shown: Shown | None = None) -> None:
        self._reader = reader
        self._shown = shown or Shown()
        self._calls: dict[tuple[int, int], CallEntry] = {}

    def rows(
        self,
        selection: Filter = EVERYTHING,
        *,
        after: Mapping[int, int] | None = None,
        newest_first: bool = False,
        outcomes: bool = True,
    ) -> Iterator[Row]:
        """Yield the wanted entries of all shards, and those that can't be read.

        ``after`` names indices, by shard, past which to begin. Without ``outcomes`` it is not
        looked up what became of a call. Raises ``StorageError``.
        """
        streams: list[Iterator[_Read]] = []
        for shard in self._reader.shards():
            begin = after.get(shard, -1) if after is not None else -1
            bodies = self._bodies(shard, selection, after=begin, newest_first=newest_first)
            streams.append(_in_order(shard, bodies, newest_first=newest_first))
        for read in heapq.merge(*streams, key=_order, reverse=newest_first):
            row = self._row(read, outcomes=outcomes)
            if row.about is None or selection.matches(row.about, row.outcome):
                yield row

    def call_of(self, shard: int, index: int, outcome: OutcomeEntry) -> int | None:
        """Return where the call of an outcome stands, None where it is not in its shard.

        Raises ``StorageError``.
        """
        return self._outcome(rows.of_entry(shard, index, outcome), outcome).call

    def about_call(self, kind: type[E], shard: int, call: CallEntry) -> Iterator[E]:
        """Yield the entries of a kind that belong to a call, as far as the columns lead to them.

        An entry that can't be read is left out: it becomes a row of the kind damaged. Raises
        ``StorageError``.
        """
        if call.invocation_id is None:
            return
        search = Search(invocation_id=call.invocation_id)
        for located in search_entries(self._reader, kind, search, [shard]):
            entry = located.entry
            named = entry.call if isinstance(entry, AdministeredEntry) else entry
            if named.invocation_sha256 == call.invocation_sha256:
                yield entry

    def handed_out(self, shard: int, call: CallEntry) -> bool:
        """Whether a call did not run, since the journal had the result of an earlier one."""
        outcomes = self.about_call(OutcomeEntry, shard, call)
        return any(outcome.ended.replay_of is not None for outcome in outcomes)

    def erased(self, row: Row, call: CallEntry, trust: TrustDocument) -> bool:
        """Whether the admin key has signed that a call's data are erased."""
        with suppress(DecodeError):  # a call without a time, which audit verify reports
            called_at = parse_time(call.at)
            return any(
                erasure.is_of(row.shard, row.index, call.invocation_sha256)
                and erasure.is_valid(trust, called_at)
                for shard in self._reader.shards()
                for erasure in self.about_call(ErasureEntry, shard, call)
            )
        return False

    def _bodies(
        self, shard: int, selection: Filter, *, after: int, newest_first: bool
    ) -> Iterator[tuple[int, bytes]]:
        reader = self._reader
        if selection.everything:  # so that no column can hide an entry
            yield from reader.entries(shard, after=after, newest_first=newest_first)
            return
        if selection.in_doubt:
            selected = reader.unsettled(shard, newest_first=newest_first)
        else:
            selected = reader.search(
                shard, selection.search, after=after, newest_first=newest_first
            )
        for index in selected:
            body = read_body(reader, shard, index)
            if body is not None:
                yield index, body

    def _row(self, read: _Read, *, outcomes: bool) -> Row:
        if read.entry is None:
            return rows.damaged(read.shard, read.index, read.problem)
        try:
            row = rows.of_entry(read.shard, read.index, read.entry)
            return self._with_others(row, read.entry, outcomes=outcomes)
        except AgentguardError as error:
            return rows.damaged(read.shard, read.index, str(error))

    def _with_others(self, row: Row, entry: Entry, *, outcomes: bool) -> Row:
        """Add what other entries, or the data beside the entry, say of the same call."""
        match entry:
            case CallEntry():
                self._remember(row.shard, row.index, entry)
                row = self._with_arguments(row, entry)
                return self._with_end(row, entry) if outcomes and entry.allowed else row
            case OutcomeEntry():
                return self._outcome(row, entry)
            case AdministeredEntry():
                return self._administered(row, entry)
        return row

    def _with_arguments(self, row: Row, call: CallEntry) -> Row:
        """Add the arguments that are shown; raises ``VerificationError`` for changed ones."""
        stated = call.commitments["arguments"]
        if stated is None or not self._shown.names(call.tool):
            return row
        stored = self._reader.entry(row.shard, row.index)
        kept = [one for one in stored.attachments if one.role == "arguments"] if stored else []
        statements.check_attachments(kept, call.commitments)
        data = kept[0].data if kept else None
        return replace(row, shown=self._shown.of(call.tool, data))

    # --- what belongs together ------------------------------------------------------------------

    def _with_end(self, row: Row, call: CallEntry) -> Row:
        for outcome in self.about_call(OutcomeEntry, row.shard, call):
            return rows.ended(row, outcome)
        for shard in self._reader.shards():
            for resolution in self.about_call(ResolutionEntry, shard, call):
                if resolution.is_of(row.shard, row.index, call.invocation_sha256):
                    return rows.settled(row, resolution)
        return replace(row, outcome="in_doubt")

    def _outcome(self, row: Row, outcome: OutcomeEntry) -> Row:
        for index in self._calls_of(row, outcome):
            call = self._call(row.shard, index)
            if call is not None and call.invocation_sha256 == outcome.invocation_sha256:
                return rows.of_outcome(row, outcome, call, index)
        return rows.ended(row, outcome) if outcome.status != "not_run" else row

    def _administered(self, row: Row, entry: AdministeredEntry) -> Row:
        place = entry.call
        there = place.shard in self._reader.shards()
        call = self._call(place.shard, place.index) if there else None
        if call is None or call.invocation_sha256 != place.invocation_sha256:
            return row
        return rows.of_administered(row, call)

    def _calls_of(self, row: Row, outcome: OutcomeEntry) -> Iterator[int]:
        """Yield where the call of an outcome may stand: where it says, or its id is found."""
        place, invocation_id = outcome.ended.authorization, outcome.ended.invocation_id
        if place is not None:
            if place.shard == row.shard:
                yield place.index
        elif invocation_id is not None:  # interrupted before its place was known
            search = Search(kind="call", invocation_id=invocation_id)
            yield from self._reader.search(row.shard, search)

    def _call(self, shard: int, index: int) -> CallEntry | None:
        """Return the call at a place, None where none can be read."""
        cached = self._calls.get((shard, index))
        if cached is not None:
            return cached
        with suppress(AgentguardError):
            located = read_entry_of_kind(self._reader, shard, index, CallEntry)
            if located is not None:
                self._remember(shard, index, located.entry)
                return located.entry
        return None

    def _remember(self, shard: int, index: int, call: CallEntry) -> None:
        if len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[shard, index] = call


def newest(rows: Iterable[Row], number: int) -> list[Row]:
    """Take the first of rows that come newest first, and return them newest last."""
    return list(islice(rows, number))[::-1]


def expected(reader: LogReader) -> int | None:
    """Return how many entries a log has by its own word; None where it can't be read."""
    with suppress(AgentguardError):
        notes = [reader.checkpoint(shard) for shard in reader.shards()]
        return sum(checkpoint.parse(note).checkpoint.size for note in notes if note is not None)
    return None


def _in_order(
    shard: int, bodies: Iterator[tuple[int, bytes]], *, newest_first: bool
) -> Iterator[_Read]:
    """Read entries. Times never go back in a shard; if they were changed, the places count."""
    edge, further = (_LAST, min) if newest_first else ("", max)
    for index, body in bodies:
        try:
            parsed = parse_entry(body)
        except AgentguardError as error:
            yield _Read(edge, shard, index, None, str(error))
            continue
        edge = further(edge, parsed.at)
        yield _Read(edge, shard, index, parsed)
