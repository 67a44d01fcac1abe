"""The verifier of a log: entries and a head in, findings out.

``LogVerifier`` recomputes the tree over the entries and compares it with the signed head, and with
the checkpoints that somebody kept outside; ``contents.py`` verifies what the entries say. Trust
comes from outside: from a trust document. A rollback of the whole state shows only in a checkpoint
that was kept outside. The verifier does no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.ahead import EntryReader, InOneThread, ReadEntry, read_ahead
from agentguard.audit.checkpoint import WitnessedCheckpoint
from agentguard.audit.contents import ContentsVerifier
from agentguard.audit.entry import StoredEntry, parse_time
from agentguard.audit.findings import Problems
from agentguard.audit.head import Head
from agentguard.audit.merkle import CompactRange
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.trust import TrustDocument, TrustedKey


@dataclass(slots=True)
class LogVerifier:
    """Verifies a log, entry by entry in its order; use ``walk``, then read the findings.

    ``kept`` are checkpoints of this log that somebody kept outside. Signatures are checked in
    entries from the time ``since`` on (seconds since the epoch), and always of the head. With
    ``contents`` false, only hashes, the head and checkpoints are verified. The verifier holds no
    entries in memory, only what later entries need.
    """

    trust: TrustDocument
    kept: Sequence[WitnessedCheckpoint] = ()
    since: int = 0
    contents: bool = True
    reader: EntryReader = field(default_factory=InOneThread)
    problems: Problems = field(default_factory=Problems)
    said: ContentsVerifier = field(init=False)
    """What the entries say."""

    head: Head | None = None
    """The head, None where no key of the log has signed it."""

    is_intact: bool = True
    """Whether the entries are those that the head and all checkpoints vouch for."""

    _tree: CompactRange = field(default_factory=CompactRange)
    _agreed: int = 0  # the largest size at which a checkpoint agreed

    def __post_init__(self) -> None:
        self.said = ContentsVerifier(self.trust, self.since, self.problems)

    @property
    def entries(self) -> int:
        """The number of entries so far."""
        return self._tree.size

    def walk(self, head: bytes | None, entries: Iterable[StoredEntry]) -> Iterator[int]:
        """Verify the log, yielding the number of entries so far.

        ``head`` is the signed note of the log's head, None without one. Entries past those that it
        covers are not read.
        """
        key = self._read_head(head)
        witnesses = [*self.kept]
        if self.head is not None:
            covered = self.head.checkpoint
            witnesses.append(WitnessedCheckpoint(covered, "the log's own head"))
            entries = islice(entries, self.head.size)
        by_size: defaultdict[int, list[WitnessedCheckpoint]] = defaultdict(list)
        for witness in witnesses:  # a forked log has two checkpoints of one size
            by_size[witness.point.size].append(witness)
        self._compare(by_size[0])
        for size, read in enumerate(self._read(entries), start=1):
            if read.stored.index != size - 1:
                what = f"entry {size - 1} is missing: the next one is {read.stored.index}"
                self._fail(read.stored.index, what)
                return
            if self.contents:
                self._verify_contents(read)
            self._tree.append(merkle.leaf_hash(read.stored.body))
            if size in by_size:
                self._compare(by_size[size])
            yield size
        largest = max(witnesses, key=lambda witness: witness.point.size, default=None)
        if largest is not None and largest.point.size > self.entries:
            what = (
                f"the log ends here, but {largest.whose} vouches for {largest.point.size} entries: "
                "its tail is cut off"
            )
            self._fail(self.entries, what)
        self.said.finish()
        self._compare_map()
        self._tell_unvouched()
        if self.head is not None and key is not None and self.entries:
            self._check_time(self.head, key)

    def _compare_map(self) -> None:
        """Make the map again from the entries, and compare it with the head's.

        After an entry that can't be read, or is refused, nobody can say what the map should be.
        """
        if self.head is None or self.said.changed != self.head.size:
            return
        if self.said.values.root() != self.head.map_root:
            what = "the map of what decides later calls is not the one that the entries make"
            self._fail(None, what)

    def _tell_unvouched(self) -> None:
        unvouched = self.said.unvouched
        if unvouched:
            what = (
                f"{len(unvouched)} entries, up to {unvouched[-1]}, were written while no key of "
                "the log counted: whoever has a compromised key may have written them"
            )
            self.problems.add(unvouched[0], what)

    def _fail(self, index: int | None, what: str) -> None:
        self.problems.add(index, what)
        self.is_intact = False

    def _read(self, entries: Iterable[StoredEntry]) -> Iterator[ReadEntry]:
        if not self.contents:
            return map(ReadEntry, entries)
        return read_ahead(entries, self.reader, since=self.since)

    def _verify_contents(self, read: ReadEntry) -> None:
        try:
            self.said.verify(read)
        except AgentguardError as error:
            self.problems.add(read.stored.index, str(error))

    def _compare(self, witnesses: Sequence[WitnessedCheckpoint]) -> None:
        """Compare checkpoints with the entries so far."""
        size, first = self.entries, self._agreed
        for point, whose in witnesses:
            if point.root != self._tree.root() and self.is_intact:
                where = (
                    f"entries {first} to {size - 1} differ"
                    if size - first > 1
                    else "the entry differs"
                )
                what = f"{where} from what {whose} of {size} entries vouches for"
                self._fail(first, what)
        if self.is_intact and witnesses:
            self._agreed = size

    # --- the head --------------------------------------------------------------------------------

    def _read_head(self, note: bytes | None) -> TrustedKey | None:
        """Verify the signature of the head; return the key."""
        if note is None:
            self._fail(None, "the log has no head")
            return None
        trusted = {one.key: one for one in self.trust.keys_for("log")}
        try:
            self.head, key = heads.verify(note, trusted, self.trust.log)
        except AgentguardError as error:
            self._fail(None, f"the head does not verify: {error}")
            return None
        return trusted[key]

    def _check_time(self, head: Head, key: TrustedKey) -> None:
        """Check that the key of the head was valid at the newest time in the log."""
        try:
            key.check(max(self.said.latest_time, parse_time(head.at)))
            if key.compromised_since is not None and not self.contents:
                message = "its key was compromised: only the contents tell since when"
                raise VerificationError(message)
            if parse_time(head.at) < self.said.latest_time:
                raise VerificationError("an entry is newer than it")
        except AgentguardError as error:
            self._fail(None, f"the head does not verify: {error}")
