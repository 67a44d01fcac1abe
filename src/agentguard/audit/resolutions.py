"""The administrator's words, held against the calls that they are of, across all shards.

A resolution settles a call in doubt; an erasure says why its data are not there any more. What one
shard says by itself is found in ``verify.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agentguard.audit import statements
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import CallPlace, Entry, parse_entry, parse_time
from agentguard.audit.findings import Gone, Problem, ShardReport
from agentguard.audit.log import LogReader
from agentguard.audit.statements import Administered
from agentguard.audit.summary import Search
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument

Place = tuple[int, int, str]
"""Of a call: its shard, the index of its authorization, the digest of its invocation."""

_SHOWN: Final = 20
"""Entries of a shard whose data are gone that are named one by one."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of the calls of a log whose shards have been walked.

    The shards that are ``damaged`` are not read once more.
    """

    reader: LogReader
    trust: TrustDocument
    reports: Sequence[ShardReport]
    damaged: frozenset[int]

    def in_doubt(self) -> tuple[str, ...]:
        """Return the ids of the calls of which nothing says what became of them."""
        resolved = {_place(said.call) for _, _, said in self._said() if said.ran is not None}
        return tuple(name for place, name in self._open().items() if place not in resolved)

    def problems(self) -> Iterator[Problem]:
        """Yield the words that do not fit their calls, and the data that no erasure explains."""
        open_calls = self._open()
        ran: dict[Place, bool] = {}
        for where, index, said in self._said():
            fits = _place(said.call) in open_calls
            what = None if fits else self._misplaced(where, index, said)
            what = what or _contradiction(said, ran)
            if what is not None:
                yield Problem(where.shard, index, what)
        yield from self._unexplained()

    def _open(self) -> dict[Place, str]:
        return {
            (report.shard, call.place, call.invocation_sha256): call.invocation_id
            for report in self.reports
            for call in report.open_calls
        }

    def _said(self) -> Iterator[tuple[ShardReport, int, Administered]]:
        for report in self.reports:
            for index, said in report.administered:
                yield report, index, said

    # --- words of a call that is not open ---------------------------------------------------------

    def _misplaced(self, where: ShardReport, index: int, said: Administered) -> str | None:
        place = said.call
        call = self._call(place)
        if call is None:
            return f"it speaks of a call at {place.index} in shard {place.shard}: none is there"
        if said.ran is None:
            return None
        if not call.allowed:
            return "it resolves a call that was denied"
        before = self._seen(where, index, place.shard)
        if any(outcome < before for outcome in self._ends(place, call)):
            return "it resolves a call whose outcome stands before it"
        return None

    def _call(self, place: CallPlace) -> Authorization | None:
        with suppress(AgentguardError):  # what can't be read, the walk has named
            parsed = self._entry(place.shard, place.index, "authorization")
            call = read_authorization(parsed) if parsed is not None else None
            if call is not None and call.invocation_sha256 == place.invocation_sha256:
                return call
        return None

    def _ends(self, place: CallPlace, call: Authorization) -> Iterator[int]:
        """Yield where the outcomes of a call stand."""
        if place.shard in self.damaged:
            return
        for index in self.reader.search(place.shard, Search("outcome", call.invocation_id)):
            with suppress(DecodeError):  # the walk has named it
                parsed = self._entry(place.shard, index, "outcome")
                outcome = read_outcome(parsed) if parsed is not None else None
                if outcome is not None and outcome.invocation_sha256 == place.invocation_sha256:
                    yield index

    def _seen(self, where: ShardReport, index: int, shard: int) -> int:
        """Return how many entries of a shard stood before an entry of another one, for certain.

        Times don't tell: an outcome may wait to be written while its call is resolved elsewhere.
        """
        if shard == where.shard:
            return index
        origin = self.trust.origin(shard)
        heads = (head for at, head in where.heads if at < index and head.origin == origin)
        return max((head.size for head in heads), default=0)

    def _entry(self, shard: int, index: int, kind: str) -> Entry | None:
        stored = self.reader.entry(shard, index)
        parsed = parse_entry(stored.body) if stored is not None else None
        return parsed if parsed is not None and parsed.kind == kind else None

    # --- data that are gone -----------------------------------------------------------------------

    def _unexplained(self) -> Iterator[Problem]:
        erased = {_place(said.call) for _, _, said in self._said() if said.ran is None}
        if any(_not_in(erased, report) for report in self.reports):
            erased.update(self._erased_meanwhile())
        for report in self.reports:
            gone = _not_in(erased, report)
            for one in gone[:_SHOWN]:
                roles = ", ".join(one.roles)
                what = f"what was kept beside it is gone ({roles}), and no erasure is on record"
                yield Problem(report.shard, one.index, what)
            if len(gone) > _SHOWN:
                others = len(gone) - _SHOWN
                what = f"the same of {others} more entries: {len(gone)} have lost what was kept"
                yield Problem(report.shard, None, what)

    def _erased_meanwhile(self) -> Iterator[Place]:
        """Yield the calls whose erasure was put on record while the shards were walked."""
        walked = {report.shard: report.entries for report in self.reports}
        for shard in set(self.reader.shards()) - self.damaged:
            for _index, body in self.reader.entries(shard, after=walked.get(shard, 0) - 1):
                with suppress(DecodeError, VerificationError):  # it explains nothing then
                    parsed = parse_entry(body)
                    if parsed.kind == "erasure":
                        at = parse_time(parsed.at)
                        yield _place(statements.check_administered(parsed, self.trust, at).call)


def _contradiction(said: Administered, ran: dict[Place, bool]) -> str | None:
    """Say so where a call was resolved otherwise before; of the others, note what was said."""
    if said.ran is None or ran.setdefault(_place(said.call), said.ran) is said.ran:
        return None
    return "it contradicts another resolution of the same call"


def _place(call: CallPlace) -> Place:
    return call.shard, call.index, call.invocation_sha256


def _not_in(erased: set[Place], report: ShardReport) -> list[Gone]:
    return [
        one for one in report.gone if (report.shard, one.place, one.invocation_sha256) not in erased
    ]
