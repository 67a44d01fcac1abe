"""Verifies a whole log: every shard, the registry, and the checkpoints in anchors.

``audit/verify.py`` verifies one shard; this module reads the shards and the anchors, and compares
them with each other. Problems are reported (``report.py``), not raised, also where a log can't be
read to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path

from agentguard.audit import checkpoint
from agentguard.audit.ahead import EntryReader
from agentguard.audit.checkpoint import Checkpoint, WitnessedCheckpoint
from agentguard.audit.entry import StoredEntry, parse_time, time_of
from agentguard.audit.find import (
    LocatedEntry,
    entries_of_call,
    read_entry_of_kind,
    search_entries,
)
from agentguard.audit.findings import MAX_LISTED, Problem, ShardReport
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.late_calls import late_calls
from agentguard.audit.log import LogReader
from agentguard.audit.registry import verify_registry
from agentguard.audit.resolutions import ResolutionVerifier
from agentguard.audit.summary import Search
from agentguard.audit.verify import ShardVerifier
from agentguard.domain.entry_processes import entry_reader
from agentguard.domain.report import Report
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import anchor
from agentguard.storage.anchor import Anchor


def examine(  # noqa: PLR0913  what a caller may leave out or add
    reader: LogReader,
    trust: TrustDocument,
    *,
    anchor: Path | None = None,
    apart: bool = False,
    kept: Sequence[WitnessedCheckpoint] = (),
    since: int = 0,
    contents: bool = True,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda _entries: None,
) -> Report:
    """Verify every shard of a log against ``trust`` and the anchors in a directory.

    ``apart`` is true where nobody who writes the state can change the anchors
    (``storage/writers.py``). ``kept`` are further checkpoints from outside the state. ``since`` and
    ``contents`` leave out what ``ShardVerifier`` names; without contents no call is reported as in
    doubt. Signatures are verified by ``jobs`` processes, for 1 by none but this one; the report is
    the same. ``progress`` gets the number of entries verified so far, of all shards.
    """
    with entry_reader(jobs) as entry_reading:
        return _LogVerification(
            reader, trust, anchor, apart, kept, since, contents, entry_reading, progress
        ).report()


@dataclass(slots=True)
class _LogVerification:
    reader: LogReader
    trust: TrustDocument
    anchors: Path | None
    apart: bool
    kept: Sequence[WitnessedCheckpoint]
    since: int
    contents: bool
    entry_reading: EntryReader
    progress: Callable[[int], None]
    problems: list[Problem] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    calls: set[bytes] = field(default_factory=set)
    alone: list[int] = field(default_factory=list)
    entries: int = 0

    def report(self) -> Report:
        try:
            # in this order: a shard that is named at one time is there at each later time
            registered = self._registered()
            known = (registered or frozenset()) | self._anchored()
            present = sorted(self.reader.shards())
        except AgentguardError as error:
            return Report((), (Problem(0, None, str(error)),))
        if not present:
            self.problems.append(Problem(0, None, "the log has no shard"))
        reports = [self._shard(number, is_known=number in known) for number in present]
        if registered is not None:
            self._find_unregistered(reports, registered)
        missing = tuple(sorted(known.difference(present)))
        for number in missing:
            what = "the shard is missing: the registry or a checkpoint kept outside knows it"
            self.problems.append(Problem(number, None, what))
        self._compare_heads(reports)
        self._count_calls(reports)
        self._count_approvals(reports)
        self._compare_request_ends(reports)
        self._find_unapproved(reports)
        self.problems += late_calls(reports)
        settlement = ResolutionVerifier(self.reader, self.trust, reports, frozenset(self.damaged))
        try:
            self.problems += settlement.problems()
        except StorageError as error:  # of a shard that could be read before
            self.problems.append(Problem(0, None, str(error)))
        return Report(
            tuple(reports),
            _listed(self.problems, reports),
            settlement.in_doubt(),
            missing,
            tuple(sorted(self.damaged)),
            tuple(self.alone),
        )

    def _count_calls(self, reports: Sequence[ShardReport]) -> None:
        """Report delegations that were used for more calls than they allow, in all shards."""
        calls: Counter[tuple[str, int]] = Counter()
        for report in reports:
            calls.update({(jti, most): used for jti, most, used in report.call_counts})
        for (jti, most), used in sorted(calls.items()):
            if used > most:
                limit = (jti, most)
                shard = next(r.shard for r in reports if limit in {c[:2] for c in r.call_counts})
                what = f"{used} calls were made under the delegation {jti}, which allows {most}"
                self.problems.append(Problem(shard, None, what))

    def _count_approvals(self, reports: Sequence[ShardReport]) -> None:
        """Report requests that let more than one call run, or that no entry states."""
        used: dict[str, tuple[int, int]] = {}
        requested = {request.request_id: request.digests for r in reports for request in r.requests}
        for report in reports:
            for request, index in report.approvals:
                first = used.setdefault(request.request_id, (report.shard, index))
                if first != (report.shard, index):
                    what = f"its approval was used before, by entry {first[1]} of shard {first[0]}"
                    self.problems.append(Problem(report.shard, index, what))
                if requested.get(request.request_id) != request:
                    what = "no entry states the request that was approved, as it was approved"
                    self.problems.append(Problem(report.shard, index, what))

    def _compare_request_ends(self, reports: Sequence[ShardReport]) -> None:
        """Report requests that ended twice, that no entry states, or whose approval was used."""
        requested = {r.request_id: r for one in reports for r in one.requests}
        used = {request.request_id for report in reports for request, _index in report.approvals}
        ended: dict[str, tuple[int, int]] = {}
        for report in reports:
            for index, end in report.request_ends:
                request_id = end.request_id
                first = ended.setdefault(request_id, (report.shard, index))
                if first != (report.shard, index):
                    what = f"its request has ended before, by entry {first[1]} of shard {first[0]}"
                    self.problems.append(Problem(report.shard, index, what))
                request = requested.get(request_id)
                if request is None or request.asked != end.asked:
                    what = "no entry states the request that ended, as it ended"
                    self.problems.append(Problem(report.shard, index, what))
                if request_id in used:
                    what = "its request has let a call run, and can't have ended without one"
                    self.problems.append(Problem(report.shard, index, what))

    def _find_unapproved(self, reports: Sequence[ShardReport]) -> None:
        """Report calls that people were asked to approve and that ran without an answer.

        Calls are searched by columns, which were compared with the entries before. A shard whose
        file is damaged has a problem already.
        """
        requests = [request for report in reports for request in report.requests]
        digests = {request.call_digest for request in requests}
        searches = {
            Search(principal=one.principal, tool=one.tool.name, decision="allow")
            for one in requests
        }
        since = min((request.at for request in requests), default=None)
        for report in reports:
            if report.shard in self.damaged:
                continue
            for search in searches:
                with suppress(StorageError):  # the walk has reported what can't be read
                    recent = search._replace(since=since)
                    for found in search_entries(self.reader, CallEntry, recent, [report.shard]):
                        self._require_approved(found, digests)

    def _require_approved(self, found: LocatedEntry[CallEntry], digests: AbstractSet[str]) -> None:
        call = found.entry
        if call.approvals or call.call_sha256 not in digests:
            return
        with suppress(StorageError):  # the walk has reported what can't be read
            for ended in entries_of_call(self.reader, OutcomeEntry, call, [found.shard]):
                if ended.entry.status != "not_run":
                    what = "a call that people were asked to approve ran, and rests on no answer"
                    self.problems.append(Problem(found.shard, ended.index, what))

    def _find_unregistered(
        self, reports: Sequence[ShardReport], registered: frozenset[int]
    ) -> None:
        """Report shards with a second entry that the registry does not name.

        The issuer registers a shard before its writer writes a second entry.
        """
        begun = {report.shard for report in reports if report.entries > 1}
        if begun <= registered:
            return
        for number in sorted(begun.difference(self._registered() or registered)):  # by now
            what = "the registry does not name this shard: it was rolled back"
            self.problems.append(Problem(number, None, what))

    def _registered(self) -> frozenset[int] | None:
        data = self.reader.registry()
        if data is None:
            self.problems.append(Problem(0, None, "the registry of the shards is missing"))
            return None
        try:
            return verify_registry(data, self.trust).shards
        except AgentguardError as error:
            what = f"the registry of the shards does not verify: {error}"
            self.problems.append(Problem(0, None, what))
            return None

    def _anchored(self) -> frozenset[int]:
        shards = {self.trust.shard_of(seen.point.origin) for seen in self.kept}
        if self.anchors is not None:
            shards.update(anchor.anchored_shards(self.anchors, self.trust.log))
        return frozenset(shards)

    def _shard(self, number: int, *, is_known: bool) -> ShardReport:
        origin = self.trust.origin(number)
        kept = [seen for seen in self.kept if seen.point.origin == origin]
        if self.anchors is not None:
            keys = [trusted.key for trusted in self.trust.keys_for("log")]
            try:
                seen = Anchor(self.anchors, origin, keys).read()
            except StorageError as error:
                self.problems.append(Problem(number, None, str(error)))
            else:
                if seen is not None and not kept and not self.apart:
                    self.alone.append(number)
                kept += [WitnessedCheckpoint(seen)] if seen is not None else []
        verifier = ShardVerifier(
            number,
            origin,
            self.trust,
            kept,
            self.since,
            self.contents,
            may_be_empty=not is_known,
            invocations=self.calls,
            reader=self.entry_reading,
        )
        try:
            with self.reader.snapshot(number):
                report = self._walked(verifier, number)
        except StorageError as error:
            self.damaged.add(number)
            self.problems.append(Problem(number, None, str(error)))
            report = replace(verifier.report(), anchored=False)  # later entries are unknown
        self.problems += report.problems
        return report

    def _walked(self, verifier: ShardVerifier, number: int) -> ShardReport:
        before = self.entries
        entries: Iterable[StoredEntry] = (
            self.reader.stored(number)
            if self.contents
            else starmap(StoredEntry, self.reader.entries(number))
        )
        for done in verifier.walk(entries, self.reader.checkpoints(number)):
            self.entries = before + done
            self.progress(self.entries)
        verifier.compare_end(self.reader.end(number))
        for what in self.reader.damage(number):
            self.damaged.add(number)
            self.problems.append(Problem(number, None, f"its file is damaged: {what}"))
        strays = self.reader.strays(number) if number not in self.damaged else ()
        for index, table in strays:
            what = f"in {table} something stands beside an entry that is not there"
            self.problems.append(Problem(number, index, what))
        if self.contents and number not in self.damaged:
            self.problems += self._shared_ids(number)
        return verifier.report()

    def _shared_ids(self, shard: int) -> Iterator[Problem]:
        """Yield a problem of each call with the id of an earlier call: the id names either.

        An invocation that is there twice has been reported, and so has a changed column.
        """
        for index, before in self.reader.shared_ids(shard):
            call, first = self._call(shard, index), self._call(shard, before)
            if call is None or first is None or call.invocation_sha256 == first.invocation_sha256:
                continue
            if call.invocation_id == first.invocation_id:
                yield Problem(
                    shard,
                    index,
                    f"its call has the id of another call, at {before} in this shard: name each by "
                    "its place",
                )

    def _call(self, shard: int, index: int) -> CallEntry | None:
        with suppress(StorageError):  # the walk has reported what can't be read
            located = read_entry_of_kind(self.reader, shard, index, CallEntry)
            return None if located is None else located.entry
        return None

    def _compare_heads(self, reports: Sequence[ShardReport]) -> None:
        """Compare each head in a shard's opening entries with the shard that the head is of.

        That shard's own checkpoints were compared with its entries before.
        """
        checked: dict[Checkpoint, str | None] = {}  # many openings embed the head of an idle shard
        for report in reports:
            for index, head in report.heads:
                if head not in checked:
                    checked[head] = self._head_problem(head)
                what = checked[head] or self._clock_problem(report.shard, index, head)
                if what is not None:
                    self.problems.append(Problem(report.shard, index, what))

    def _clock_problem(self, shard: int, index: int, head: Checkpoint) -> str | None:
        """Return the problem of an opening entry that is older than the embedded head's entry."""
        number = self.trust.shard_of(head.origin)
        opened, newest = self._time(shard, index), self._time(number, head.size - 1)
        if opened is None or newest is None or opened >= newest:
            return None
        return (
            f"it is older than entry {head.size - 1} of shard {number}, which was there when it "
            "was written: the clock was set back"
        )

    def _time(self, shard: int, index: int) -> int | None:
        """Return the second in which an entry was written; None for one that can't be read."""
        with suppress(AgentguardError):
            for _index, body in self.reader.entries(shard, after=index - 1):
                return parse_time(time_of(body))
        return None

    def _head_problem(self, head: Checkpoint) -> str | None:
        try:
            number = self.trust.shard_of(head.origin)
        except VerificationError:
            return "it embeds the head of another log"
        try:
            if number not in self.reader.shards():
                return f"shard {number}, whose head it embeds, is missing"
            note = self.reader.checkpoint(number, head.size)
            same = note is not None and checkpoint.parse(note).checkpoint == head
        except AgentguardError as error:
            return f"shard {number}, whose head it embeds, can't be read: {error}"
        if same:
            return None
        return (
            f"it embeds a head of shard {number} with {head.size} entries that is not in that "
            "shard: it was cut, rolled back or forked"
        )


def _listed(problems: Iterable[Problem], reports: Iterable[ShardReport]) -> tuple[Problem, ...]:
    """Keep so many problems of each shard, and say of the others how many there are."""
    further = Counter({report.shard: report.unlisted_count for report in reports})
    listed: list[Problem] = []
    seen = Counter[int]()
    for problem in problems:
        seen[problem.shard] += 1
        if seen[problem.shard] > MAX_LISTED:
            further[problem.shard] += 1
        else:
            listed.append(problem)
    more = (Problem(n, None, f"and {count} more") for n, count in further.items() if count)
    return (*listed, *more)
