"""Verifies a whole log, against the head in its anchor and checkpoints from elsewhere.

``audit/verify.py`` verifies the entries; this module reads the log and the anchor, and looks at
what needs a second look into the log. Problems are reported (``report.py``), not raised, also where
a log can't be read to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path

from agentguard.audit.checkpoint import Checkpoint, WitnessedCheckpoint
from agentguard.audit.entry import StoredEntry
from agentguard.audit.find import read_entry_of_kind
from agentguard.audit.findings import Problems
from agentguard.audit.head import Head
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.audit.resolutions import misfits, unexplained_losses
from agentguard.audit.verify import LogVerifier
from agentguard.domain.entry_processes import entry_reader
from agentguard.domain.report import Report
from agentguard.errors import AgentguardError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage.anchor import head_path
from agentguard.store.anchor import Anchor


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
    """Verify a log against ``trust`` and the log's anchor in a directory.

    ``apart`` is true where nobody who writes the state can change the anchor
    (``storage/writers.py``). ``kept`` are further checkpoints from outside the state. ``since`` and
    ``contents`` leave out what ``LogVerifier`` names; without contents no call is reported as in
    doubt. Signatures are verified by ``jobs`` processes, for 1 by none but this one; the report is
    the same. ``progress`` gets the number of entries verified so far. Entries that are appended
    meanwhile are left out.
    """
    problems = Problems()
    anchored = None if anchor is None else _anchored(anchor, trust, problems)  # before the head
    witnesses = []
    for seen in kept:
        if seen.point.origin == trust.log:
            witnesses.append(seen)
        else:
            problems.add(None, f"{seen.whose} is of {seen.point.origin}, which is another log")
    if anchored is not None:
        point = Checkpoint(trust.log, anchored.size, anchored.root)
        witnesses.append(WitnessedCheckpoint(point))
    with entry_reader(jobs) as reading:
        verifier = LogVerifier(trust, witnesses, since, contents, reading, problems)
        verification = _Verification(reader, verifier, anchored, progress)
        verification.run()
    said = verifier.said
    is_anchored = bool(witnesses) and verifier.is_intact
    is_apart = apart or len(witnesses) > (anchored is not None)
    return Report(
        entries=verifier.entries,
        head=verifier.head,
        kept=bool(witnesses),
        anchored=is_anchored,
        problems=problems.listed(),
        witness=None if not is_anchored else "outside" if is_apart else "same user",
        in_doubt=tuple(one.invocation_id for one in said.open_calls.values() if one.ran is None),
        adoptions=tuple(
            (index, entry)
            for index, entry in said.adoptions
            if entry.adoption.lost is not None or entry.adoption.unanchored is not None
        ),
        observed_calls=said.observed_calls,
        damaged=verification.is_damaged,
    )


def _anchored(folder: Path, trust: TrustDocument, problems: Problems) -> Head | None:
    """Return the head in the log's anchor; None without one that can be used."""
    try:
        path = head_path(folder, trust.log)
        return Anchor(path, trust.log, lambda: trust.keys_for("log")).read()
    except StorageError as error:
        problems.add(None, str(error))
        return None


@dataclass(slots=True)
class _Verification:
    reader: LogReader
    verifier: LogVerifier
    anchored: Head | None
    progress: Callable[[int], None]
    is_damaged: bool = field(default=False, init=False)

    def run(self) -> None:
        verifier = self.verifier
        try:
            for done in verifier.walk(self.reader.head(), self._entries()):
                self.progress(done)
            self._compare_maps()
            self._find_uncovered()
            for what in self.reader.damage():
                self._add_damage(f"the log is damaged: {what}")
            for index, problem in misfits(self.reader, verifier.said):
                verifier.problems.add(index, problem)
            losses = unexplained_losses(self.reader, verifier.said, verifier.entries)
            for place, problem in losses:
                verifier.problems.add(place, problem)
            if verifier.contents and not self.is_damaged:
                self._find_shared_ids()
        except AgentguardError as error:
            self._add_damage(str(error))
            verifier.is_intact = False  # nobody knows what comes later

    def _add_damage(self, what: str) -> None:
        self.verifier.problems.add(None, what)
        self.is_damaged = True

    def _entries(self) -> Iterable[StoredEntry]:
        if self.verifier.contents:
            return self.reader.stored()
        return starmap(StoredEntry, self.reader.entries())

    def _compare_maps(self) -> None:
        head, seen = self.verifier.head, self.anchored
        if head is None or seen is None or (head.size, head.root) != (seen.size, seen.root):
            return
        if head.map_root != seen.map_root:
            what = "the map of what decides later calls is another one than the anchor vouches for"
            self.verifier.problems.add(None, what)
            self.verifier.is_intact = False

    def _find_uncovered(self) -> None:
        """Report entries past the head, but for those of a later commit."""
        if self.verifier.head is None:
            return
        newest = next(self.reader.entries(newest_first=True), (-1, b""))[0]
        if newest >= self.verifier.entries and newest >= self.reader.size():
            what = "the newest entries are under no head"
            self.verifier.problems.add(self.verifier.entries, what)
            self.verifier.is_intact = False

    def _find_shared_ids(self) -> None:
        """Report each call with the id of an earlier call: the id names either.

        An invocation that is there twice has been reported, and so has a changed column.
        """
        for index, before in self.reader.shared_ids():
            call, first = self._call(index), self._call(before)
            if call is None or first is None or call.invocation_sha256 == first.invocation_sha256:
                continue
            if call.invocation_id == first.invocation_id:
                what = f"its call has the id of another call, at {before}: name each by its index"
                self.verifier.problems.add(index, what)

    def _call(self, index: int) -> CallEntry | None:
        with suppress(AgentguardError):  # the walk has reported what can't be read
            located = read_entry_of_kind(self.reader, index, CallEntry)
            return None if located is None else located.entry
        return None
