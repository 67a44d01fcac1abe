"""The verifier of one shard of the log: entries and checkpoints in, findings out.

``ShardVerifier`` recomputes the tree over the entries and compares the tree with every checkpoint,
the log's own and those that somebody kept outside; ``contents.py`` verifies what the entries say.
Trust comes from outside: from a trust document. A rollback of the whole state shows only in a
checkpoint that was kept outside. The verifier does no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agentguard.audit import checkpoint, merkle, statements
from agentguard.audit.ahead import EntryReader, InOneThread, ReadEntry, read_ahead
from agentguard.audit.checkpoint import Checkpoint, End, WitnessedCheckpoint
from agentguard.audit.contents import ContentsVerifier
from agentguard.audit.entry import StoredEntry, parse_time, time_of
from agentguard.audit.findings import MAX_LISTED, Problem, ShardReport
from agentguard.audit.merkle import CompactRange
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey


class _OwnCheckpoint(NamedTuple):
    """A checkpoint from the log; ``signer`` is None where the signature was not checked."""

    point: Checkpoint
    note: bytes
    signer: TrustedKey | None

    def as_witnessed(self) -> WitnessedCheckpoint:
        return WitnessedCheckpoint(self.point, "the log's own checkpoint")


@dataclass(slots=True)
class ShardVerifier:
    """Verifies one shard, entry by entry in the order of the log.

    ``kept`` are checkpoints of this shard that somebody kept outside. A shard without entries is no
    problem where the shard ``may_be_empty``: the writer died before the first entry, or has not
    written one yet. ``invocations`` are the digests of the invocations in the shards before, to
    which the verifier adds those of this shard. Signatures are checked in entries from the time
    ``since`` on (seconds since the epoch), and always of the newest checkpoint. With ``contents``
    false, only hashes and checkpoints are verified. The verifier holds no entries in memory, only
    what later entries need. Use ``walk``, then ``report``.
    """

    shard: int
    origin: str
    trust: TrustDocument
    kept: Sequence[WitnessedCheckpoint] = ()
    since: int = 0
    contents: bool = True
    may_be_empty: bool = False
    invocations: set[bytes] = field(default_factory=set)
    reader: EntryReader = field(default_factory=InOneThread)
    _tree: CompactRange = field(default_factory=CompactRange)
    _problems: list[Problem] = field(default_factory=list)
    _unlisted_count: int = 0
    _head: _OwnCheckpoint | None = None
    _witnessed_size: int = 0  # the largest size at which an outside checkpoint agreed
    _is_intact: bool = True
    _contents: ContentsVerifier = field(init=False)

    def __post_init__(self) -> None:
        self._contents = ContentsVerifier(
            self.shard, self.origin, self.trust, self.since, self.invocations
        )

    def walk(self, entries: Iterable[StoredEntry], notes: Iterable[bytes]) -> Iterator[int]:
        """Verify the shard, yielding the number of entries so far.

        ``notes`` are the log's own signed checkpoints. ``report`` has the result.
        """
        witnessed: defaultdict[int, list[WitnessedCheckpoint]] = defaultdict(list)
        for witness in self.kept:  # a forked log has two checkpoints of one size
            witnessed[witness.point.size].append(witness)
        pending = iter(notes)
        own = self._next_checkpoint(pending)
        stored = None
        for size, read in enumerate(self._read(entries), start=1):
            stored = read.stored
            if stored.index != size - 1:
                what = f"entry {size - 1} is missing: the next one is {stored.index}"
                self._add_problem(stored.index, what)
                self._is_intact = False
                return
            if self.contents:
                self._verify_contents(read)
            self._tree.append(merkle.leaf_hash(stored.body))
            while own is not None and own.point.size <= size:
                self._compare(own.as_witnessed(), self._head_size())
                self._adopt(own)
                own = self._next_checkpoint(pending)
            if size in witnessed:
                self._compare_witnessed(witnessed[size])
            yield size
        while own is not None:
            self._add_truncation(own.as_witnessed())
            own = self._next_checkpoint(pending)
        self._finish(stored)

    def report(self) -> ShardReport:
        """Return the findings after the end of ``walk``."""
        contents = self._contents
        return ShardReport(
            shard=self.shard,
            entries=self._tree.size,
            head=self._head.point if self._head is not None else None,
            kept=bool(self.kept),
            anchored=bool(self.kept) and self._is_intact,
            open_calls=tuple(contents.open_calls.values()),
            admin_statements=tuple(contents.admin_statements),
            heads=tuple(contents.heads),
            missing_data=tuple(contents.missing_data),
            problems=tuple(self._problems),
            unlisted_count=self._unlisted_count,
            call_counts=tuple(
                (jti, most, used) for (jti, most), used in contents.call_counts.items()
            ),
            approvals=tuple(contents.approvals),
            requests=tuple(contents.requests),
            request_ends=tuple(contents.request_ends),
            observed_calls=contents.observed_calls,
            adoptions=tuple(contents.adoptions),
            logouts=tuple(contents.logouts),
            surrenders=tuple(contents.surrenders),
            latest_calls=tuple(contents.latest_calls.values()),
        )

    def compare_end(self, end: End | None) -> None:
        """Compare, after ``walk``, the entries with the state from which the writer continues."""
        if self._is_intact and end != End(self.origin, self._tree.size, self._tree.encode()):
            what = "its table shard, from which a writer goes on, does not agree with its entries"
            self._add_problem(None, what)

    def _add_problem(self, index: int | None, what: str) -> None:
        if len(self._problems) < MAX_LISTED:
            self._problems.append(Problem(self.shard, index, what))
        else:
            self._unlisted_count += 1

    def _read(self, entries: Iterable[StoredEntry]) -> Iterator[ReadEntry]:
        if not self.contents:
            return map(ReadEntry, entries)
        return read_ahead(entries, self.reader, since=self.since)

    def _verify_contents(self, read: ReadEntry) -> None:
        try:
            self._contents.verify(read)
        except AgentguardError as error:
            self._add_problem(read.stored.index, str(error))

    # --- the log's own checkpoints ---------------------------------------------------------------

    def _head_size(self) -> int:
        return self._head.point.size if self._head is not None else 0

    def _next_checkpoint(self, notes: Iterator[bytes]) -> _OwnCheckpoint | None:
        before = self._head_size()
        for note in notes:
            try:
                own = self._read_checkpoint(note)
            except AgentguardError as error:
                after = f"a checkpoint of more than {before} entries"
                which = after if before else "the first checkpoint"
                self._add_problem(before, f"{which} does not verify: {error}")
                self._is_intact = False
                continue
            if own.point.size <= before:
                self._add_problem(own.point.size, "a checkpoint is repeated or out of order")
                continue
            return own
        return None

    def _read_checkpoint(self, note: bytes) -> _OwnCheckpoint:
        if self.contents and self._contents.checks_signatures:
            point, signer = statements.check_checkpoint(note, self.trust, self.origin)
            return _OwnCheckpoint(point, note, signer)
        point = checkpoint.parse(note).checkpoint
        if point.origin != self.origin:
            raise VerificationError("it is another log's", code="checkpoint.origin")
        return _OwnCheckpoint(point, note, None)

    def _adopt(self, own: _OwnCheckpoint) -> None:
        """Make a checkpoint the head; its key must be valid at the time of the newest entry."""
        if not self._is_intact:
            return
        self._head = own
        if own.signer is not None:
            try:
                own.signer.check(self._contents.latest_time)
            except VerificationError as error:
                size = own.point.size
                self._add_problem(size - 1, f"the checkpoint of {size} entries: {error}")

    # --- comparing checkpoints with the entries --------------------------------------------------

    def _compare_witnessed(self, witnesses: Sequence[WitnessedCheckpoint]) -> None:
        for witness in witnesses:
            self._compare(witness, self._witnessed_size)
        if self._is_intact and witnesses:
            self._witnessed_size = self._tree.size

    def _compare(self, witness: WitnessedCheckpoint, before: int) -> None:
        """Compare a checkpoint with the entries so far.

        ``before`` is the size at which the last checkpoint of the same source agreed.
        """
        point, whose = witness
        if point.size != self._tree.size:
            self._add_problem(
                point.size, f"{whose} of {point.size} entries has no place in the log"
            )
            self._is_intact = False
        elif point.root != self._tree.root() and self._is_intact:
            where = (
                f"entries {before} to {point.size - 1} differ"
                if point.size - before > 1
                else "the entry differs"
            )
            what = f"{where} from what {whose} of {point.size} entries vouches for"
            self._add_problem(before, what)
            self._is_intact = False

    def _add_truncation(self, witness: WitnessedCheckpoint) -> None:
        point, whose = witness
        what = (
            f"the log ends here, but {whose} vouches for {point.size} entries: its tail is cut off"
        )
        self._add_problem(self._tree.size, what)
        self._is_intact = False

    def _finish(self, newest: StoredEntry | None) -> None:
        size = self._tree.size
        if size == 0 and self.may_be_empty and not self.kept:
            return
        if self._head is None or self._head.point.size != size:
            if self._is_intact:
                what = "the newest entries are under no checkpoint" if size else "it is empty"
                self._add_problem(size - 1 if size else None, what)
            self._is_intact = False
        elif self._head.signer is None and newest is not None:
            self._check_head(self._head, newest)
        for index, what in self._contents.mistaken_outcomes():
            self._add_problem(index, what)
        largest = max(self.kept, key=lambda witness: witness.point.size, default=None)
        if largest is not None and largest.point.size > size:
            self._add_truncation(largest)

    def _check_head(self, head: _OwnCheckpoint, newest: StoredEntry) -> None:
        """Check the newest checkpoint's signature, which covers all entries before."""
        try:
            _point, signer = statements.check_checkpoint(head.note, self.trust, self.origin)
            newest_time = parse_time(time_of(newest.body))
            signer.check(max(self._contents.latest_time, newest_time))
            if signer.compromised_since is not None and not self.contents:
                raise VerificationError(
                    "its key was compromised: only the contents tell since when"
                )
        except AgentguardError as error:
            self._add_problem(newest.index, f"the newest checkpoint does not verify: {error}")
            self._is_intact = False
