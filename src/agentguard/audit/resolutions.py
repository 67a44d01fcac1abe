"""Compares the administrator's resolutions and erasures with the calls they name, in all shards.

A resolution settles a call in doubt, and an erasure explains why a call's data are missing.
``verify.py`` verifies each shard by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agentguard.audit.entry import CallPlace, parse_time
from agentguard.audit.find import read_entry_of_kind, search_entries
from agentguard.audit.findings import MissingData, Problem, ShardReport
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry, ErasureEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.errors import DecodeError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument

CallKey = tuple[int, int, str]
"""A call: the shard and index of its authorization, and the digest of its invocation."""

_MAX_LISTED: Final = 20
"""The number of entries with missing data that are listed for a shard."""


@dataclass(frozen=True, slots=True)
class ResolutionVerifier:
    """Verifies the resolutions and erasures of a log whose shards have been verified.

    ``reports`` are the findings of the shards. ``damaged`` shards are not read again.
    """

    reader: LogReader
    trust: TrustDocument
    reports: Sequence[ShardReport]
    damaged: frozenset[int]

    def in_doubt(self) -> tuple[str, ...]:
        """Return the ids of the calls that have neither an outcome nor a resolution."""
        resolved = {_key(one.call) for _, _, one in self._statements() if one.ran is not None}
        return tuple(name for key, name in self._open_calls().items() if key not in resolved)

    def problems(self) -> Iterator[Problem]:
        """Yield the statements that do not fit their calls, and the unexplained losses of data."""
        open_calls = self._open_calls()
        ran: dict[CallKey, bool] = {}
        for report, index, statement in self._statements():
            is_open = _key(statement.call) in open_calls
            what = None if is_open else self._mismatch(report, index, statement)
            what = what or _contradiction(statement, ran)
            if what is not None:
                yield Problem(report.shard, index, what)
        yield from self._unexplained_losses()

    def _open_calls(self) -> dict[CallKey, str]:
        return {
            (report.shard, call.place, call.invocation_sha256): call.invocation_id
            for report in self.reports
            for call in report.open_calls
        }

    def _statements(self) -> Iterator[tuple[ShardReport, int, AdministeredEntry]]:
        for report in self.reports:
            for index, statement in report.admin_statements:
                yield report, index, statement

    # --- statements about calls that are not open ------------------------------------------------

    def _mismatch(
        self, report: ShardReport, index: int, statement: AdministeredEntry
    ) -> str | None:
        place = statement.call
        call = self._call(place)
        if call is None:
            return f"it speaks of a call at {place.index} in shard {place.shard}: none is there"
        if statement.ran is None:
            return None
        if not call.allowed:
            return "it resolves a call that was denied"
        before = self._entries_before(report, index, place.shard)
        if any(outcome < before for outcome in self._outcomes(place, call)):
            return "it resolves a call whose outcome stands before it"
        return None

    def _call(self, place: CallPlace) -> CallEntry | None:
        try:
            located = read_entry_of_kind(self.reader, place.shard, place.index, CallEntry)
        except StorageError:  # the shard's report has the damage
            return None
        call = None if located is None else located.entry
        is_named = call is not None and call.invocation_sha256 == place.invocation_sha256
        return call if is_named else None

    def _outcomes(self, place: CallPlace, call: CallEntry) -> Iterator[int]:
        """Yield the indices of the outcomes of a call."""
        if place.shard in self.damaged:
            return
        search = Search(invocation_id=call.invocation_id)
        for located in search_entries(self.reader, OutcomeEntry, search, [place.shard]):
            if located.entry.invocation_sha256 == place.invocation_sha256:
                yield located.index

    def _entries_before(self, report: ShardReport, index: int, shard: int) -> int:
        """Return how many entries of a shard were certainly durable before an entry of another.

        The times of entries do not decide: an outcome may wait to be written while another process
        resolves the call.
        """
        if shard == report.shard:
            return index
        origin = self.trust.origin(shard)
        heads = (head for at, head in report.heads if at < index and head.origin == origin)
        return max((head.size for head in heads), default=0)

    # --- missing data ----------------------------------------------------------------------------

    def _unexplained_losses(self) -> Iterator[Problem]:
        erased = {_key(one.call) for _, _, one in self._statements() if one.ran is None}
        if any(_losses(report, erased) for report in self.reports):
            erased.update(self._later_erasures())
        for report in self.reports:
            losses = _losses(report, erased)
            for one in losses[:_MAX_LISTED]:
                roles = ", ".join(one.roles)
                what = f"what was kept beside it is gone ({roles}), and no erasure is on record"
                yield Problem(report.shard, one.index, what)
            if len(losses) > _MAX_LISTED:
                others = len(losses) - _MAX_LISTED
                what = f"the same of {others} more entries: {len(losses)} have lost what was kept"
                yield Problem(report.shard, None, what)

    def _later_erasures(self) -> Iterator[CallKey]:
        """Yield the calls that were erased while the shards were being verified."""
        sizes = {report.shard: report.entries for report in self.reports}
        for shard in set(self.reader.shards()) - self.damaged:
            for _index, body in self.reader.entries(shard, after=sizes.get(shard, 0) - 1):
                with suppress(DecodeError, VerificationError):  # an invalid one explains nothing
                    entry = parse_entry(body)
                    if isinstance(entry, ErasureEntry):
                        entry.verify(self.trust, parse_time(entry.at))
                        yield _key(entry.call)


def _contradiction(statement: AdministeredEntry, ran: dict[CallKey, bool]) -> str | None:
    """Return the problem of a resolution that differs from an earlier one of the same call.

    ``ran`` holds the first resolution of each call, and gets this one.
    """
    resolved = statement.ran
    if resolved is None or ran.setdefault(_key(statement.call), resolved) is resolved:
        return None
    return "it contradicts another resolution of the same call"


def _key(call: CallPlace) -> CallKey:
    return call.shard, call.index, call.invocation_sha256


def _losses(report: ShardReport, erased: set[CallKey]) -> list[MissingData]:
    return [
        one
        for one in report.missing_data
        if (report.shard, one.place, one.invocation_sha256) not in erased
    ]
