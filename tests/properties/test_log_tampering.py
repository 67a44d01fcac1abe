"""Any edit, deletion, swap, duplicate, splice or truncation of a log is found.

The attacks work on what a log holds, as lists; each is then examined in memory and in an SQLite
file. An insider, who has the log's own key and signs what he has made, is caught by the checkpoint
that was kept outside. The untampered twin of each verifies.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from embedded_parts import runtime_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentguard import Decision, Denied, Guard
from agentguard.audit import ahead, checkpoint, merkle
from agentguard.audit.ahead import BATCH, Batch, EntryReader, InOneThread, Reading
from agentguard.audit.checkpoint import Checkpoint, End
from agentguard.audit.entry import Attachment, StoredEntry
from agentguard.audit.findings import ShardReport
from agentguard.audit.merkle import CompactRange
from agentguard.audit.summary import Search, Summary
from agentguard.audit.verify import ShardVerifier
from agentguard.domain import entry_processes, worker_processes
from agentguard.domain.entry_processes import entry_reader
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.keys import Signer
from agentguard.storage import registry_file, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.reader import StateReader
from agentguard.storage.shard_file import ShardFile


@dataclass(repr=False)
class Copy:
    """What a log holds, for everybody to change; a ``LogReader``."""

    trust: TrustDocument
    signer: Signer
    listed: bytes | None
    rows: list[tuple[int, bytes]]
    notes: list[bytes]
    about: dict[bytes, Summary]
    beside: dict[int, list[Attachment]] = field(default_factory=dict)

    def registry(self) -> bytes | None:
        return self.listed

    def shards(self) -> Sequence[int]:
        return (0,)

    def entries(
        self, shard: int, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        past = [(index, body) for index, body in self.rows if index > after]
        return iter(past[::-1] if newest_first else past)

    def stored(self, shard: int) -> Iterator[StoredEntry]:
        for index, body in self.rows:
            yield StoredEntry(index, body, self.summary(body), self.beside.get(index, []))

    def entry(self, shard: int, index: int) -> StoredEntry | None:
        return next((stored for stored in self.stored(shard) if stored.index == index), None)

    def snapshot(self, shard: int) -> AbstractContextManager[None]:
        return nullcontext()

    def strays(self, shard: int) -> Iterator[tuple[int, str]]:
        return iter(())

    def shared_ids(self, shard: int) -> Iterator[tuple[int, int]]:
        return iter(())

    def end(self, shard: int) -> End:
        """A careful attacker changes it as well."""
        tree = self.tree()
        return End(self.trust.origin(0), tree.size, tree.encode())

    def damage(self, shard: int) -> Iterator[str]:
        return iter(())

    def search(
        self, shard: int, search: Search, *, after: int = -1, newest_first: bool = False
    ) -> Iterator[int]:
        for index, body in self.entries(shard, after=after, newest_first=newest_first):
            if search.matches(self.summary(body)):
                yield index

    def named(self, shard: int, prefix: str) -> Iterator[int]:
        raise NotImplementedError  # nobody who verifies asks

    def traces(self, shard: int, prefix: str) -> Iterator[str]:
        raise NotImplementedError

    def unsettled(self, shard: int, *, newest_first: bool = False) -> Iterator[int]:
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to let go of."""

    def checkpoints(self, shard: int) -> Iterator[bytes]:
        return iter(self.notes)

    def checkpoint(self, shard: int, size: int | None = None) -> bytes | None:
        sizes = {checkpoint.parse(note).checkpoint.size: note for note in self.notes}
        return sizes.get(max(sizes) if size is None else size)

    def summary(self, body: bytes) -> Summary:
        """A careful attacker moves the columns for searches along with their entry."""
        return self.about.get(body, Summary("outcome", "2026-11-25T12:00:00.000000Z"))

    def tree(self) -> CompactRange:
        tree = CompactRange()
        for body in self.bodies:
            tree.append(merkle.leaf_hash(body))
        return tree

    @property
    def bodies(self) -> list[bytes]:
        return [body for _index, body in self.rows]

    def with_bodies(self, bodies: list[bytes]) -> Copy:
        """Another history in the same file, numbered as a careful attacker would."""
        return replace(self, rows=list(enumerate(bodies)))

    def signed_again(self) -> Copy:
        """The same with checkpoints to match: what the holder of the log's key can do."""
        tree = self.tree()
        point = Checkpoint(self.trust.origin(0), tree.size, tree.root())
        return replace(self, notes=[checkpoint.sign(point, self.signer)])

    def in_sqlite(self, folder: Path) -> StateReader:
        """The same in a file."""
        origin, path = self.trust.origin(0), sqlite.shard_path(folder, 0)
        path.unlink(missing_ok=True)
        file = ShardFile.take(path, origin, Anchor(None, origin, ()), self.trust)
        assert file is not None
        file.close()
        with closing(sqlite3.connect(path)) as connection:
            many = connection.executemany
            several = f"({', '.join('?' * (1 + len(Summary._fields)))})"
            about = [(index, *self.summary(body)) for index, body in self.rows]
            notes = [(checkpoint.parse(note).checkpoint.size, note) for note in self.notes]
            beside = [(index, *kept) for index, all_ in self.beside.items() for kept in all_]
            many("INSERT INTO entries VALUES (?, ?)", self.rows)
            many(f"INSERT INTO summaries VALUES {several}", about)  # noqa: S608  of our own columns
            many("INSERT INTO checkpoints VALUES (?, ?)", notes)
            many("INSERT INTO attachments VALUES (?, ?, ?, ?, ?)", beside)
            connection.execute("UPDATE shard SET origin = ?, size = ?, range = ?", self.end(0))
            connection.commit()
        if self.listed is not None:
            registry_file.write(folder, self.listed)
        return StateReader(folder)


def history(seed: str, calls: int = 5) -> Copy:
    """A log with calls of two agents: allowed, failed, denied."""

    def policy(document):
        return Decision.deny("no") if document["args"].get("x") == 3 else Decision.allow()

    with Guard.ephemeral(policy) as guard:

        @guard.tool
        def note(x):
            return 1 / (x - 2) if seed else x

        for name in ("reader", "writer"):
            agent = guard.new_agent(name)
            for number in range(calls):
                try:
                    agent.call(note, x=number)
                except (Denied, ZeroDivisionError):
                    continue
        reader = guard.reader()
        stored = list(reader.stored(0))
        log: Any = runtime_of(guard).current_ports().log
        return Copy(
            guard.trust,
            log._signer,
            reader.registry(),
            [(one.index, one.body) for one in stored],
            list(reader.checkpoints(0)),
            {one.body: one.summary for one in stored if one.summary is not None},
            {one.index: list(one.attachments) for one in stored},
        )


@pytest.fixture(scope="module")
def log():
    return history("a")


@pytest.fixture(scope="module")
def other():
    return history("b")


@pytest.fixture(scope="module")
def long_log():
    """A log whose signatures are verified in several batches, the last of them not full."""
    long = history("a", calls=100)
    assert len(long.rows) > 3 * BATCH
    assert len(long.rows) % BATCH
    return long


@pytest.fixture(scope="module")
def anchors(log, tmp_path_factory):
    """The folder with the checkpoint that somebody has kept: of the whole log."""
    folder = tmp_path_factory.mktemp("anchors")
    anchor = Anchor(folder, log.trust.origin(0), [log.signer.public_key])
    anchor.write(log.notes[-1])
    anchor.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


def looked_at(copy: Copy, anchors: Path | None = None) -> Report:
    return examine(copy, copy.trust, anchor=anchors)


def test_the_untampered_twin_verifies_everywhere(log, anchors, folder):
    for reader in (log, log.in_sqlite(folder), log.signed_again()):
        report = examine(reader, log.trust, anchor=anchors)
        assert report.problems == ()
        assert report.anchored
        assert report.in_doubt == ()
        assert report.entries == len(log.rows)


@dataclass(frozen=True)
class Attack:
    """One attack; its numbers are taken modulo what there is."""

    kind: str
    place: int
    other: int
    byte: int

    def on(self, log: Copy, stranger: Copy) -> list[bytes]:
        """The entries of ``log`` after it; some attacks change nothing, which is assumed away."""
        bodies = list(log.bodies)
        place, other = self.place % len(bodies), self.other % len(bodies)
        strange = stranger.bodies[self.other % len(stranger.bodies)]
        match self.kind:
            case "edit":
                body = bytearray(bodies[place])
                body[self.other % len(body)] ^= self.byte
                bodies[place] = bytes(body)
            case "delete":
                del bodies[place : place + 1 + other % 3]
            case "swap":
                bodies[place], bodies[other] = bodies[other], bodies[place]
            case "duplicate":
                bodies.insert(other, bodies[place])
            case "splice":
                bodies[place] = strange
            case "insert":
                bodies.insert(place, strange if self.byte % 3 else b"{}"[: self.byte % 2 * 2])
            case "truncate":
                del bodies[place:]
        assume(bodies != log.bodies)
        return bodies


numbers = st.integers(0, 2**16)
jobs = st.integers(2, 5)
kinds = st.sampled_from(["edit", "delete", "swap", "duplicate", "splice", "insert", "truncate"])
attacks = st.builds(Attack, kinds, numbers, numbers, st.integers(1, 255))


@given(attack=attacks)
def test_every_change_of_entries_is_found(log, other, attack):
    changed = log.with_bodies(attack.on(log, other))
    assert not looked_at(changed).ok
    assert not examine(changed, log.trust, contents=False).ok  # by its hashes alone


@settings(max_examples=40)
@given(attack=attacks)
def test_every_change_of_entries_is_found_in_a_file(log, other, folder, attack):
    reader = log.with_bodies(attack.on(log, other)).in_sqlite(folder)
    try:
        assert not examine(reader, log.trust).ok
    finally:
        reader.close()


@given(attack=attacks)
def test_the_first_finding_is_not_behind_the_change(log, other, attack):
    """A finding says where: at the change, or earlier in the batch whose checkpoint fails."""
    bodies = attack.on(log, other)
    changed = next(
        (i for i, (a, b) in enumerate(zip(bodies, log.bodies, strict=False)) if a != b),
        min(len(bodies), len(log.bodies)),
    )
    places = [p.index for p in looked_at(log.with_bodies(bodies)).problems if p.index is not None]
    assert min(places) <= changed


@given(attack=attacks)
def test_what_the_logs_own_key_has_signed_anew_is_found_with_the_anchor(
    log, other, anchors, attack
):
    """The insider: his log agrees with itself, and not with what somebody has kept."""
    forged = log.with_bodies(attack.on(log, other)).signed_again()
    assert not looked_at(forged, anchors).ok


@given(size=st.integers(0, 200))
def test_every_truncation_below_a_kept_checkpoint_is_found(log, anchors, size):
    """Cut cleanly, with all that lies beside it, and the checkpoints to match."""
    size %= len(log.rows)
    sizes = [checkpoint.parse(note).checkpoint.size for note in log.notes]
    notes = [note for note, end in zip(log.notes, sizes, strict=True) if end <= size]
    cut = replace(log.with_bodies(log.bodies[:size]), notes=notes)
    for copy in (cut, cut.signed_again()):
        report = looked_at(copy, anchors)
        assert any("cut off" in problem.what for problem in report.problems)
        assert not report.anchored


@given(data=st.data())
def test_a_shuffled_log_is_found(log, data):
    bodies = data.draw(st.permutations(log.bodies))
    assume(bodies != log.bodies)
    assert not looked_at(log.with_bodies(bodies)).ok


@given(data=st.data())
def test_every_change_of_a_checkpoint_is_found(log, data):
    notes = list(log.notes)
    place = data.draw(st.integers(0, len(notes) - 1))
    note = bytearray(notes[place])
    note[data.draw(st.integers(0, len(note) - 1))] ^= data.draw(st.integers(1, 255))
    notes[place] = bytes(note)
    assert not looked_at(replace(log, notes=notes)).ok


@given(data=st.data())
def test_checkpoints_in_another_order_are_found(log, data):
    notes = data.draw(st.permutations(log.notes))
    assume(notes != log.notes)
    assert not looked_at(replace(log, notes=notes)).ok


@given(data=st.data())
def test_every_change_beside_the_log_is_found(log, data):
    places = [(i, n) for i, kept in log.beside.items() for n in range(len(kept))]
    index, number = data.draw(st.sampled_from(places))
    kept = log.beside[index][number]
    part = data.draw(st.sampled_from(["salt", "data"]))
    content = bytearray(getattr(kept, part))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    changed = list(log.beside[index])
    changed[number] = kept._replace(**{part: bytes(content)})
    (problem,) = looked_at(replace(log, beside=log.beside | {index: changed})).problems
    assert problem.index == index


@given(data=st.data())
def test_what_is_moved_beside_another_entry_is_found(log, data):
    filled = [index for index, kept in log.beside.items() if kept]
    source, target = data.draw(st.sampled_from(filled)), data.draw(st.sampled_from(range(20)))
    assume(source != target)
    moved = replace(log, beside=log.beside | {target: log.beside[source]})
    assert not looked_at(moved).ok


@given(gone=st.sets(st.integers(0, 40)))
def test_what_is_gone_from_beside_entries_is_found_and_located(log, gone):
    """No erasure of these calls is on record. The hashes hold all the same."""
    beside = {index: kept for index, kept in log.beside.items() if index not in gone}
    report = looked_at(replace(log, beside=beside))
    lost = {index for index, kept in log.beside.items() if kept} & gone
    assert {problem.index for problem in report.problems} == lost
    assert examine(replace(log, beside=beside), log.trust, contents=False).ok


def test_another_logs_trust_document_believes_nothing(log, other):
    assert looked_at(replace(log, trust=other.trust)).ok is False
    assert looked_at(replace(other, trust=log.trust)).ok is False


@given(data=st.data())
def test_every_change_of_a_summary_is_found_and_located(log, data):
    """The columns are for searches; a changed one hides an entry from them."""
    index, body = data.draw(st.sampled_from(log.rows))
    name = data.draw(st.sampled_from(Summary._fields))
    value = data.draw(st.sampled_from([None, "", "x", "deny", "allow", "key", "1999"]))
    changed = log.about[body]._replace(**{name: value})
    assume(changed != log.about[body])
    (problem,) = looked_at(replace(log, about=log.about | {body: changed})).problems
    assert problem.index == index


@given(data=st.data())
def test_every_change_of_the_registry_is_found(log, other, data):
    listed = bytearray(log.listed)
    listed[data.draw(st.integers(0, len(listed) - 1))] ^= data.draw(st.integers(1, 255))
    for registry_of in (bytes(listed), other.listed, b"", None):
        (problem,) = looked_at(replace(log, listed=registry_of)).problems
        assert "registry" in problem.what


# --- several processes --------------------------------------------------------------------------


class NothingIsRead:
    """Reads no entry, so that the verifier reads and checks each in its place, one by one."""

    batches = 1

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        return lambda: [Reading()] * len(batch.bodies)


def read_by(reader: EntryReader, copy: Copy) -> ShardReport:
    verifier = ShardVerifier(0, copy.trust.origin(0), copy.trust, reader=reader)
    for _done in verifier.walk(copy.stored(0), copy.checkpoints(0)):
        pass
    return verifier.report()


def in_processes(jobs: int, copy: Copy, size: int = BATCH) -> ShardReport:
    """The report with the first batches, of ``size`` entries, read in other processes."""
    with pytest.MonkeyPatch.context() as patch, entry_reader(jobs, alone=0) as reader:
        patch.setattr(ahead, "BATCH", size)
        return read_by(reader, copy)


def workers() -> list[int]:
    """The ids of the processes that read entries for this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    started = f"\0-m\0{entry_processes.NAME}\0".encode()  # others only have the name among others
    return [child for child, command in commands.items() if started in command]


def with_another_signature(body: bytes, bit: int) -> bytes:
    """The entry with one bit of the first signature in it changed; as it is, if it has none."""
    members: Any = canonical.loads(body)
    envelope = members.get("invocation") or members.get("statement")
    if envelope is None:
        return body
    signature = envelope["joint"] if "joint" in envelope else envelope["signatures"][0]
    bad = bytearray(canonical.b64_decode(signature["sig"]))
    bad[bit // 8 % len(bad)] ^= 1 << bit % 8
    signature["sig"] = canonical.b64_encode(bytes(bad))
    return canonical.dumps(members)


@pytest.mark.slow("it starts processes for each of a dozen logs")
@settings(max_examples=12)
@given(forged=st.dictionaries(numbers, numbers, max_size=4), attack=st.none() | attacks, jobs=jobs)
def test_the_findings_are_the_same_with_any_number_of_processes(
    long_log, other, forged, attack, jobs
):
    """An insider signs a checkpoint of it: whether a signature holds decides what else is found."""
    bodies = attack.on(long_log, other) if attack is not None else list(long_log.bodies)
    for place, bit in forged.items():
        index = place % max(len(bodies), 1)
        if bodies and bodies[index] in long_log.about:
            bodies[index] = with_another_signature(bodies[index], bit)
    about = {new: long_log.about[old] for old, new in zip(long_log.bodies, bodies, strict=False)}
    copy = replace(long_log.with_bodies(bodies).signed_again(), about=about | long_log.about)
    report = examine(copy, copy.trust, jobs=1)
    assert examine(copy, copy.trust, jobs=jobs) == report
    for size in (BATCH, 7):  # of small batches, this process reads some
        assert in_processes(jobs, copy, size) == report.shards[0]
    assert read_by(NothingIsRead(), copy) == report.shards[0]
    if attack is None:  # without an anchor, some other attacks leave a log that is whole
        assert report.ok == (bodies == long_log.bodies)


def test_a_forged_signature_in_any_batch_is_a_finding_at_its_entry(long_log):
    """Not one signature holds because others of its batch do."""
    for index in (20, BATCH - 1, BATCH, len(long_log.rows) - 1):
        bodies = list(long_log.bodies)
        bodies[index] = with_another_signature(bodies[index], index)
        about = long_log.about | {bodies[index]: long_log.about[long_log.bodies[index]]}
        forged = replace(long_log.with_bodies(bodies).signed_again(), about=about)
        for jobs in (1, 3):
            first = in_processes(jobs, forged).problems[0]
            assert first.index == index
            assert first.what.startswith("the signature does not hold")


def test_what_stands_before_a_row_that_cannot_be_read_is_verified(long_log):
    """A file whose damage begins in the middle of a batch."""

    class Damaged(Copy):
        def stored(self, shard: int) -> Iterator[StoredEntry]:
            for one in super().stored(shard):
                if one.index == BATCH + 30:
                    raise StorageError("the page is not there", code="storage.damaged")
                yield one

    index = BATCH + 20
    bodies = list(long_log.bodies)
    bodies[index] = with_another_signature(bodies[index], 0)
    damaged = Damaged(**vars(long_log.with_bodies(bodies)))
    damaged.about = long_log.about | {bodies[index]: long_log.about[long_log.bodies[index]]}
    reports = [examine(damaged, damaged.trust, jobs=jobs) for jobs in (1, 3)]
    assert reports[0] == reports[1]
    problems = {(problem.index, problem.what) for problem in reports[0].problems}
    assert (None, "the page is not there") in problems
    assert index in {problem.index for problem in reports[0].problems}
    assert not reports[0].anchored


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent", None])
def test_where_no_process_reads_each_entry_is_read_here(long_log, monkeypatch, program):
    """A program that ends at once, and none."""
    index = len(long_log.rows) - 1
    bodies = list(long_log.bodies)
    bodies[index] = with_another_signature(bodies[index], 0)
    about = long_log.about | {bodies[index]: long_log.about[long_log.bodies[index]]}
    forged = replace(long_log.with_bodies(bodies).signed_again(), about=about)
    assert in_processes(2, long_log).problems == ()
    monkeypatch.setattr(sys, "executable", program)
    assert in_processes(2, long_log).problems == ()
    assert [problem.index for problem in in_processes(2, forged).problems] == [index]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_changes_no_finding(long_log, monkeypatch, sent):
    """Its batches, to which nobody answers, are read here."""
    bodies = list(long_log.bodies)
    for index in (BATCH, 2 * BATCH, len(bodies) - 1):
        bodies[index] = with_another_signature(bodies[index], 0)
    about = {new: long_log.about[old] for old, new in zip(long_log.bodies, bodies, strict=True)}
    forged = replace(long_log.with_bodies(bodies).signed_again(), about=about)
    expected = in_processes(2, forged)
    assert expected.problems
    for last in (1, BATCH, 2 * BATCH):
        with entry_reader(2, alone=0) as reader:
            verifier = ShardVerifier(0, forged.trust.origin(0), forged.trust, reader=reader)
            for size in verifier.walk(forged.stored(0), forged.checkpoints(0)):
                if size == last:
                    assert workers()
                    for process in workers():
                        os.kill(process, sent)
                    monkeypatch.setattr(worker_processes, "_PATIENCE", 0.1)
            assert verifier.report() == expected
        monkeypatch.setattr(worker_processes, "_PATIENCE", 30)  # a busy machine starts one slowly
        assert not workers()


def test_a_shard_that_is_not_read_to_its_end_changes_no_finding_of_the_next(long_log):
    """What was begun of its later entries is not taken for the next shard's."""
    rows = [row for row in long_log.rows if row[0] != 5]
    with entry_reader(2, alone=0) as reader:
        for _ in range(3):
            (problem,) = read_by(reader, replace(long_log, rows=rows)).problems
            assert "entry 5 is missing" in problem.what
            assert read_by(reader, long_log) == read_by(InOneThread(), long_log)


def test_an_interrupt_ends_the_processes(long_log):
    def interrupted() -> None:
        with entry_reader(3, alone=0) as reader:
            verifier = ShardVerifier(0, long_log.trust.origin(0), long_log.trust, reader=reader)
            for size in verifier.walk(long_log.stored(0), long_log.checkpoints(0)):
                if size == BATCH:
                    assert workers()
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not workers()
