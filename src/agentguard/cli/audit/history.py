"""Reads the log as rows in the order of time: each entry, with the outcome of each call.

The columns beside the entries only help to find entries; a row holds what the entry itself says.
Nothing is verified here (``audit verify`` does that). An entry that can't be read becomes a row of
the kind ``damaged``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar

from agentguard.audit import checkpoint, statements
from agentguard.audit.calls import Authorization, Outcome, read_authorization, read_outcome
from agentguard.audit.entry import Entry, parse_entry, parse_time
from agentguard.audit.find import read_body, read_entry_of_kind, search_entries
from agentguard.audit.log import LogReader
from agentguard.audit.statements import AdminStatement
from agentguard.audit.summary import Search
from agentguard.cli.audit import log_row as rows
from agentguard.cli.audit.filters import EVERYTHING, Filter
from agentguard.cli.audit.log_row import Row
from agentguard.cli.terminal.shown import Shown
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import is_integer

T = TypeVar("T")

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
        self._calls: dict[tuple[int, int], Authorization] = {}

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

    def call_of(self, shard: int, index: int, outcome: Entry) -> int | None:
        """Return where the call of an outcome entry stands, None where it is not in its shard.

        Raises ``DecodeError`` or ``StorageError``.
        """
        return self._outcome(rows.of_entry(shard, index, outcome), outcome).call

    def about_call(
        self, kind: str, shard: int, call: Authorization, read: Callable[[Entry], T]
    ) -> Iterator[T]:
        """Yield what the entries of a kind say that belong to a call, as the columns say.

        An entry that ``read`` can't read is left out. Raises ``StorageError``.
        """
        if call.invocation_id is None:
            return
        for located in search_entries(self._reader, Search(kind, call.invocation_id), [shard]):
            with suppress(AgentguardError):  # it becomes a row of the kind damaged
                yield read(located.entry)

    def handed_out(self, shard: int, call: Authorization) -> bool:
        """Whether a call did not run, since the journal had the result of an earlier one."""
        ends = self.about_call("outcome", shard, call, read_outcome)
        return any(
            end.replay_of is not None and end.invocation_sha256 == call.invocation_sha256
            for end in ends
        )

    def erased(self, row: Row, call: Authorization, trust: TrustDocument) -> bool:
        """Whether the admin key has signed that a call's data are erased."""

        def read(parsed: Entry) -> AdminStatement:
            return statements.check_admin_statement(parsed, trust, parse_time(parsed.at))

        return any(
            statement.is_of(row.shard, row.index, call)
            for shard in self._reader.shards()
            for statement in self.about_call("erasure", shard, call, read)
        )

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
        row = rows.of_entry(read.shard, read.index, read.entry)
        try:
            return self._of_kind(row, read.entry, outcomes=outcomes)
        except AgentguardError as error:
            return rows.damaged(read.shard, read.index, str(error))

    def _of_kind(self, row: Row, parsed: Entry, *, outcomes: bool) -> Row:
        match parsed.kind:
            case "call":
                call = read_authorization(parsed)
                self._remember(row.shard, row.index, call)
                about = self._with_arguments(rows.of_call(row, parsed, call), call)
                return self._with_end(about, call) if outcomes and call.allowed else about
            case "outcome":
                return self._outcome(row, parsed)
            case "resolution" | "erasure":
                return self._administered(row, parsed)
        alone = rows.ALONE.get(parsed.kind)
        return alone(row, parsed) if alone is not None else row

    def _with_arguments(self, row: Row, call: Authorization) -> Row:
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

    def _with_end(self, row: Row, call: Authorization) -> Row:
        for read in self.about_call("outcome", row.shard, call, read_outcome):
            if read.invocation_sha256 == call.invocation_sha256:
                return rows.ended(row, read)
        for shard in self._reader.shards():
            read_statement = statements.read_admin_statement
            for statement in self.about_call("resolution", shard, call, read_statement):
                if statement.is_of(row.shard, row.index, call):
                    return rows.settled(row, statement)
        return replace(row, outcome="in_doubt")

    def _outcome(self, row: Row, parsed: Entry) -> Row:
        read = read_outcome(parsed)
        for index in self._calls_of(row, read):
            began = self._call(row.shard, index)
            if began is not None and began.invocation_sha256 == read.invocation_sha256:
                return rows.of_outcome(row, parsed, read, began, index)
        return rows.ended(row, read) if read.status != "not_run" else row

    def _administered(self, row: Row, parsed: Entry) -> Row:
        statement = statements.read_admin_statement(parsed)
        place = statement.call
        there = place.shard in self._reader.shards()
        call = self._call(place.shard, place.index) if there else None
        if call is None or not statement.is_of(place.shard, place.index, call):
            call = None
        return rows.of_administered(row, parsed, statement, call)

    def _calls_of(self, row: Row, read: Outcome) -> Iterator[int]:
        """Yield where the call of an outcome may stand: where it says, or its id is found."""
        match read.predicate.get("authorization"):
            case {"shard": row.shard, "index": index} if is_integer(index):
                yield index
            case None if read.invocation_id is not None:  # interrupted before its place was known
                search = Search(kind="call", invocation_id=read.invocation_id)
                yield from self._reader.search(row.shard, search)

    def _call(self, shard: int, index: int) -> Authorization | None:
        """Return the call at a place, None where none can be read."""
        cached = self._calls.get((shard, index))
        if cached is not None:
            return cached
        try:
            log_entry = read_entry_of_kind(self._reader, shard, index, "call")
            if log_entry is None:
                return None
            call = read_authorization(log_entry.entry)
        except AgentguardError:
            return None
        self._remember(shard, index, call)
        return call

    def _remember(self, shard: int, index: int, call: Authorization) -> None:
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
