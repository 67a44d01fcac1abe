"""Reads the log as rows in the order of the log: each entry, with the outcome of each call.

The columns beside the entries only help to find entries; a row holds what the entry itself says.
Nothing is verified here (``audit verify`` does that). An entry that can't be read becomes a row of
the kind ``damaged``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Final, TypeVar

from agentguard.audit import statements
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


class History:
    """The rows of one log, of which one at a time is in memory."""

    def __init__(self, reader: LogReader, shown: Shown | None = None) -> None:
        self._reader = reader
        self._shown = shown or Shown()
        self._calls: dict[int, CallEntry] = {}

    def rows(
        self,
        selection: Filter = EVERYTHING,
        *,
        after: int = -1,
        newest_first: bool = False,
        outcomes: bool = True,
    ) -> Iterator[Row]:
        """Yield the wanted entries past the index ``after``, and those that can't be read.

        Without ``outcomes`` it is not looked up what became of a call. Raises ``StorageError``.
        """
        for index, body in self._bodies(selection, after=after, newest_first=newest_first):
            row = self._row(index, body, outcomes=outcomes)
            if row.about is None or selection.matches(row.about, row.outcome):
                yield row

    def call_of(self, index: int, outcome: OutcomeEntry) -> int | None:
        """Return the index of the call of an outcome, None where it can't be found.

        Raises ``StorageError``.
        """
        return self._outcome(rows.of_entry(index, outcome), outcome).call

    def about_call(self, kind: type[E], call: CallEntry) -> Iterator[E]:
        """Yield the entries of a kind that belong to a call, as far as the columns lead to them.

        An entry that can't be read is left out: it becomes a row of the kind damaged. Raises
        ``StorageError``.
        """
        if call.invocation_id is None:
            return
        search = Search(invocation_id=call.invocation_id)
        for located in search_entries(self._reader, kind, search):
            entry = located.entry
            named = entry.call if isinstance(entry, AdministeredEntry) else entry
            if named.invocation_sha256 == call.invocation_sha256:
                yield entry

    def handed_out(self, call: CallEntry) -> bool:
        """Whether a call did not run, since the journal had the result of an earlier one."""
        outcomes = self.about_call(OutcomeEntry, call)
        return any(outcome.ended.replay_of is not None for outcome in outcomes)

    def erased(self, row: Row, call: CallEntry, trust: TrustDocument) -> bool:
        """Whether the admin key has signed that a call's data are erased."""
        with suppress(DecodeError):  # a call without a time, which audit verify reports
            called_at = parse_time(call.at)
            return any(
                erasure.is_of(row.index, call.invocation_sha256)
                and erasure.is_valid(trust, called_at)
                for erasure in self.about_call(ErasureEntry, call)
            )
        return False

    def _bodies(
        self, selection: Filter, *, after: int, newest_first: bool
    ) -> Iterator[tuple[int, bytes]]:
        reader = self._reader
        if selection.everything:  # so that no column can hide an entry
            yield from reader.entries(after=after, newest_first=newest_first)
            return
        if selection.in_doubt:
            selected = reader.unsettled(newest_first=newest_first)
        else:
            selected = reader.search(selection.search, after=after, newest_first=newest_first)
        for index in selected:
            body = read_body(reader, index)
            if body is not None:
                yield index, body

    def _row(self, index: int, body: bytes, *, outcomes: bool) -> Row:
        try:
            entry = parse_entry(body)
            return self._with_others(rows.of_entry(index, entry), entry, outcomes=outcomes)
        except AgentguardError as error:
            return rows.damaged(index, str(error))

    def _with_others(self, row: Row, entry: Entry, *, outcomes: bool) -> Row:
        """Add what other entries, or the data beside the entry, say of the same call."""
        match entry:
            case CallEntry():
                self._remember(row.index, entry)
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
        stored = self._reader.entry(row.index)
        kept = [one for one in stored.attachments if one.role == "arguments"] if stored else []
        statements.check_attachments(kept, call.commitments)
        data = kept[0].data if kept else None
        return replace(row, shown=self._shown.of(call.tool, data))

    # --- what belongs together ------------------------------------------------------------------

    def _with_end(self, row: Row, call: CallEntry) -> Row:
        for outcome in self.about_call(OutcomeEntry, call):
            return rows.ended(row, outcome)
        for resolution in self.about_call(ResolutionEntry, call):
            if resolution.is_of(row.index, call.invocation_sha256):
                return rows.settled(row, resolution)
        return replace(row, outcome="in_doubt")

    def _outcome(self, row: Row, outcome: OutcomeEntry) -> Row:
        for index in self._calls_of(outcome):
            call = self._call(index)
            if call is not None and call.invocation_sha256 == outcome.invocation_sha256:
                return rows.of_outcome(row, outcome, call, index)
        return rows.ended(row, outcome) if outcome.status != "not_run" else row

    def _administered(self, row: Row, entry: AdministeredEntry) -> Row:
        call = self._call(entry.call.index)
        if call is None or call.invocation_sha256 != entry.call.invocation_sha256:
            return row
        return rows.of_administered(row, call)

    def _calls_of(self, outcome: OutcomeEntry) -> Iterator[int]:
        """Yield where the call of an outcome may stand: where it says, or its id is found."""
        place, invocation_id = outcome.ended.authorization, outcome.ended.invocation_id
        if place is not None:
            yield place.index
        elif invocation_id is not None:  # interrupted before its place was known
            search = Search(kind="call", invocation_id=invocation_id)
            yield from self._reader.search(search)

    def _call(self, index: int) -> CallEntry | None:
        """Return the call at an index, None where none can be read."""
        cached = self._calls.get(index)
        if cached is not None:
            return cached
        with suppress(AgentguardError):
            located = read_entry_of_kind(self._reader, index, CallEntry)
            if located is not None:
                self._remember(index, located.entry)
                return located.entry
        return None

    def _remember(self, index: int, call: CallEntry) -> None:
        if len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[index] = call


def newest(rows: Iterable[Row], number: int) -> list[Row]:
    """Take the first of rows that come newest first, and return them newest last."""
    return list(islice(rows, number))[::-1]


def expected(reader: LogReader) -> int | None:
    """Return how many entries a log has by its own word; None where it can't be read."""
    with suppress(AgentguardError):
        return reader.size()
    return None
