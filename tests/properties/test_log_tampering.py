"""Any edit, deletion, swap, duplicate, splice or truncation of a log is found.

The attacks work on what a log holds, as lists; a database in memory and one in a file then hold it.
An insider, who has the log's own key and signs what he has made, is caught by the head that was
kept outside. The untampered twin of each verifies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from embedded_parts import runtime_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentguard import Decision, Denied, Guard
from agentguard.audit import ahead, merkle
from agentguard.audit import head as heads
from agentguard.audit.ahead import BATCH, Batch, Reading
from agentguard.audit.checkpoint import WitnessedCheckpoint
from agentguard.audit.entry import LOG, StoredEntry
from agentguard.audit.findings import Problem
from agentguard.audit.head import Head
from agentguard.audit.map import Bucket, encode, key
from agentguard.audit.merkle import CompactRange
from agentguard.audit.summary import Summary
from agentguard.audit.verify import LogVerifier
from agentguard.domain import entry_processes, worker_processes
from agentguard.domain.entry_processes import entry_reader
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.keys import Signer
from agentguard.storage import sqlite as shared
from agentguard.storage.anchor import head_path
from agentguard.store import sqlite, store, tree
from agentguard.store.anchor import Anchor
from agentguard.store.engine import Writing
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine, MemoryEngine


@dataclass(frozen=True, repr=False)
class Copy:
    """What a log holds, for everybody to change."""

    trust: TrustDocument
    signer: Signer
    head: bytes
    entries: Sequence[StoredEntry]
    map: Bucket

    def _repr_pretty_(self, printer: Any, _cycle: object) -> None:
        """Hypothesis would print it all with each failure."""
        printer.text(f"a log of {len(self.entries)} entries")

    def holding(self, entries: Sequence[StoredEntry]) -> Copy:
        """Another history, numbered as a careful attacker would."""
        return replace(self, entries=[replace(one, index=n) for n, one in enumerate(entries)])

    def with_entry(self, index: int, **changes: Any) -> Copy:
        """The same but for one entry."""
        entries = list(self.entries)
        entries[index] = replace(entries[index], **changes)
        return self.holding(entries)

    def signed_again(self) -> Copy:
        """The same with a head to match: what the holder of the key can do."""
        peaks = CompactRange()
        for one in self.entries:
            peaks.append(merkle.leaf_hash(one.body))
        map_root, at = sha256(encode(self.map)).digest(), heads.parse(self.head).at
        head = Head(self.trust.log, peaks.size, peaks.root(), map_root, at)
        return replace(self, head=heads.sign(head, self.signer))

    def engine(self, path: Path | None = None) -> FileEngine | MemoryEngine:
        """The same in a database, with hashes beside the entries that a careful attacker fits."""
        engine: FileEngine | MemoryEngine = MemoryEngine(self.head)
        if path is not None:
            sqlite.make(path, self.head)
            engine = FileEngine(path)
        peaks, completed, rows = CompactRange(), list[tree.Completed](), []
        for one in self.entries:
            leaf = merkle.leaf_hash(one.body)
            peaks.append(leaf, completed)
            rows.append((LOG, one.index, *(one.summary or ()), leaf, one.body))
        beside = [(LOG, one.index, *kept) for one in self.entries for kept in one.attachments]

        def write(writing: Writing) -> None:
            writing.write(store._ADD_ENTRY, rows)
            writing.write(store._ADD_ATTACHMENT, beside)
            writing.write(store._ADD_TREE, [(LOG, *one) for one in tree.stored(completed)])
            if self.map:
                writing.write(store._PUT_NODE, [(LOG, "", encode(self.map))])
            writing.write_head(lambda: (self.head, peaks.encode()))
            writing.commit()

        engine.write(write)
        return engine


def history(calls: int = 5) -> Copy:
    """A log with calls of two agents: allowed, failed, denied."""

    def policy(document):
        return Decision.deny("no") if document["args"].get("x") == 3 else Decision.allow()

    with Guard.ephemeral(policy) as guard:

        @guard.tool
        def note(x):
            return 1 / (x - 2)

        for name in ("reader", "writer"):
            agent = guard.new_agent(name)
            for number in range(calls):
                try:
                    agent.call(note, x=number)
                except (Denied, ZeroDivisionError):
                    continue
        reader: Any = guard.reader()
        log: Any = runtime_of(guard).current_ports().log
        return Copy(guard.trust, log._store._signer, reader.head(), list(reader.stored()), Bucket())


@pytest.fixture(scope="module")
def log():
    return history()


@pytest.fixture(scope="module")
def other():
    return history()


@pytest.fixture(scope="module")
def long_log():
    """A log whose signatures are verified in several batches, the last of them not full."""
    long = history(calls=100)
    assert len(long.entries) > 3 * BATCH
    assert len(long.entries) % BATCH
    return long


@pytest.fixture(scope="module")
def anchors(log, tmp_path_factory):
    """The folder with the head that somebody has kept: of the whole log."""
    folder = tmp_path_factory.mktemp("anchors")
    path = head_path(folder, log.trust.log)
    Anchor(path, log.trust.log, lambda: log.trust.keys_for("log")).write(len(log.entries), log.head)
    return folder


@pytest.fixture(scope="module", params=["memory", "file"])
def look(request, tmp_path_factory):
    """Examines what a database holds; one in memory, and one in a file.

    The file is made for each example, and no disk is waited for.
    """
    path = tmp_path_factory.mktemp("state") / "log.sqlite" if request.param == "file" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        patch.setattr(shared, "make_durable", lambda made: made.execute("PRAGMA synchronous=OFF"))
        yield lambda copy, *anchor, **how: looked_at(copy, *anchor, path=path, **how)


def looked_at(
    copy: Copy, anchor: Path | None = None, *, path: Path | None = None, **how: Any
) -> Report:
    with closing(StoredLog(copy.engine(path))) as reader:
        return examine(reader, copy.trust, anchor=anchor, **how)


def walked(copy: Copy, **how: Any) -> LogVerifier:
    """The verifier after the lists themselves, without a database."""
    verifier = LogVerifier(copy.trust, **how)
    deque(verifier.walk(copy.head, copy.entries), maxlen=0)
    return verifier


def test_the_untampered_twin_verifies_everywhere(log, anchors, look):
    for copy in (log, log.signed_again()):
        report = look(copy, anchors)
        assert report.problems == ()
        assert report.anchored
        assert report.in_doubt == ()
        assert report.entries == len(log.entries)


@dataclass(frozen=True)
class Attack:
    """One attack; its numbers are taken modulo what there is."""

    kind: str
    place: int
    other: int
    byte: int

    def on(self, log: Copy, stranger: Copy) -> Copy:
        """The log after it; some attacks change nothing, which is assumed away.

        A careful attacker moves all that is beside an entry along.
        """
        entries = list(log.entries)
        place, other = self.place % len(entries), self.other % len(entries)
        strange = stranger.entries[self.other % len(stranger.entries)]
        match self.kind:
            case "edit":
                body = bytearray(entries[place].body)
                body[self.other % len(body)] ^= self.byte
                entries[place] = replace(entries[place], body=bytes(body))
            case "delete":
                del entries[place : place + 1 + other % 3]
            case "swap":
                entries[place], entries[other] = entries[other], entries[place]
            case "duplicate":
                entries.insert(other, entries[place])
            case "splice":
                entries[place] = strange
            case "insert":
                nothing = replace(strange, body=b"{}"[: self.byte % 2 * 2], attachments=())
                entries.insert(place, strange if self.byte % 3 else nothing)
            case "truncate":
                del entries[place:]
        changed = log.holding(entries)
        assume(bodies(changed) != bodies(log))
        return changed


def bodies(copy: Copy) -> list[bytes]:
    return [one.body for one in copy.entries]


numbers = st.integers(0, 2**16)
kinds = st.sampled_from(["edit", "delete", "swap", "duplicate", "splice", "insert", "truncate"])
attacks = st.builds(Attack, kinds, numbers, numbers, st.integers(1, 255))


@given(attack=attacks)
def test_every_change_of_entries_is_found(log, other, look, attack):
    changed = attack.on(log, other)
    assert not look(changed).ok
    assert not look(changed, contents=False).ok  # by its hashes alone


@given(attack=attacks, size=numbers)
def test_a_finding_says_where_the_first_change_is(log, other, attack, size):
    """At the change or before it, but past what an older checkpoint vouches for.

    Where the log is shorter than what vouches for it, no root tells: its end is a finding.
    Entries past the head are not walked.
    """
    changed = attack.on(log, other)
    assume(bodies(changed)[: len(log.entries)] != bodies(log))
    older = log.holding(log.entries[: size % len(log.entries)]).signed_again()
    point = heads.parse(older.head).checkpoint
    verifier = walked(changed, kept=[WitnessedCheckpoint(point)])
    assert not verifier.is_intact
    found = min(one.index for one in verifier.problems.listed() if one.index is not None)
    pairs = enumerate(zip(bodies(changed), bodies(log), strict=False))
    end = min(len(changed.entries), len(log.entries))
    first = next((index for index, (new, old) in pairs if new != old), end)
    vouching = point.size if first < point.size else len(log.entries)
    assert found <= (first if len(changed.entries) >= vouching else end)
    assert found >= point.size or first < point.size


@given(attack=attacks)
def test_what_the_logs_own_key_has_signed_anew_is_found_with_the_anchor(
    log, other, anchors, look, attack
):
    """The insider: his log agrees with itself, and not with what somebody has kept."""
    attacked = attack.on(log, other)
    report = look(attacked.signed_again(), anchors)
    assert not report.ok
    goes_on = bodies(attacked)[: len(log.entries)] == bodies(log)  # the last entry once more
    assert report.anchored == goes_on


@given(size=numbers)
def test_every_truncation_below_a_kept_head_is_found(log, anchors, look, size):
    """Cut cleanly, with all that lies beside it, and a head to match."""
    cut = log.holding(log.entries[: size % len(log.entries)]).signed_again()
    assert look(cut).ok  # nobody can tell without the anchor
    report = look(cut, anchors)
    assert any("cut off" in problem.what for problem in report.problems)
    assert not report.anchored


@given(size=numbers)
def test_an_older_head_is_found(log, look, size):
    """Entries past the head are under none."""
    older = log.holding(log.entries[: size % len(log.entries)]).signed_again()
    report = look(replace(log, head=older.head))
    assert not report.ok
    assert len(older.entries) in {problem.index for problem in report.problems}


def test_a_map_that_the_logs_own_key_has_signed_anew_is_found(log, anchors, look):
    changed = replace(log, map=Bucket({key(1, "a name"): b"a fact"}))
    assert not look(changed).ok
    forged = changed.signed_again()
    found = [problem.what for problem in look(forged).problems]
    assert found == ["the map of what decides later calls is not the one that the entries make"]
    assert not look(forged, anchors).anchored


@given(data=st.data())
def test_a_shuffled_log_is_found(log, look, data):
    shuffled = log.holding(data.draw(st.permutations(log.entries)))
    assume(bodies(shuffled) != bodies(log))
    assert not look(shuffled).ok


@given(data=st.data())
def test_every_change_of_the_head_is_found(log, look, data):
    note = bytearray(log.head)
    note[data.draw(st.integers(0, len(note) - 1))] ^= data.draw(st.integers(1, 255))
    assert not look(replace(log, head=bytes(note))).ok


def test_other_peaks_beside_the_head_are_found(log, tmp_path):
    """With which no guard would go on."""
    engine = log.engine(tmp_path / "log.sqlite")

    def edit(writing):
        writing.write("UPDATE head SET peaks = ?", [(bytes(32),)])
        writing.commit()

    engine.write(edit)
    with closing(StoredLog(engine)) as reader:
        (problem,) = examine(reader, log.trust).problems
    assert "the peaks beside the head" in problem.what


@given(data=st.data())
def test_every_change_beside_the_log_is_found(log, look, data):
    stored = data.draw(st.sampled_from([one for one in log.entries if one.attachments]))
    kept = list(stored.attachments)
    number = data.draw(st.integers(0, len(kept) - 1))
    part = data.draw(st.sampled_from(["salt", "data"]))
    content = bytearray(getattr(kept[number], part))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    kept[number] = kept[number]._replace(**{part: bytes(content)})
    (problem,) = look(log.with_entry(stored.index, attachments=kept)).problems
    assert problem.index == stored.index


@given(data=st.data())
def test_what_is_moved_beside_another_entry_is_found(log, look, data):
    source = data.draw(st.sampled_from([one for one in log.entries if one.attachments]))
    target = data.draw(st.sampled_from(log.entries))
    assume(source != target)
    assert not look(log.with_entry(target.index, attachments=source.attachments)).ok


@given(gone=st.sets(st.integers(0, 40)), is_emptied=st.booleans())
def test_what_is_gone_from_beside_entries_is_found_and_located(log, look, gone, is_emptied):
    """No erasure of these calls is on record. The hashes hold all the same."""
    changed, lost = log, set()
    for one in log.entries:
        if one.index in gone and one.attachments:
            lost.add(one.index)
            empty = [kept._replace(commitment="", salt=b"", data=b"") for kept in one.attachments]
            changed = changed.with_entry(one.index, attachments=empty if is_emptied else ())
    assert {problem.index for problem in look(changed).problems} == lost
    assert look(changed, contents=False).ok


def test_another_logs_trust_document_believes_nothing(log, other, look):
    assert not look(replace(log, trust=other.trust)).ok


@given(data=st.data())
def test_every_change_of_a_summary_is_found_and_located(log, look, data):
    """The columns are for searches; a changed one hides an entry from them."""
    stored = data.draw(st.sampled_from(log.entries))
    name = data.draw(st.sampled_from(Summary._fields))
    value = data.draw(st.sampled_from([None, "", "x", "deny", "allow", "key", "1999"]))
    assume(value is not None or name not in ("kind", "at"))  # which a database always has
    changed = stored.summary._replace(**{name: value})
    assume(changed != stored.summary)
    (problem,) = look(log.with_entry(stored.index, summary=changed)).problems
    assert problem.index == stored.index


# --- several processes --------------------------------------------------------------------------


class NothingIsRead:
    """Reads no entry, so that the verifier reads and checks each in its place, one by one."""

    batches = 1

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        return lambda: [Reading()] * len(batch.bodies)


def in_processes(jobs: int, copy: Copy, size: int = BATCH) -> tuple[Problem, ...]:
    """The problems with the first batches, of ``size`` entries, read in other processes."""
    with pytest.MonkeyPatch.context() as patch, entry_reader(jobs, alone=0) as reader:
        patch.setattr(ahead, "BATCH", size)
        return walked(copy, reader=reader).problems.listed()


def workers() -> list[int]:
    """The ids of the processes that read entries for this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    started = f"\0-m\0{entry_processes.NAME}\0".encode()  # others only have the name among others
    return [child for child, command in commands.items() if started in command]


def with_other_signatures(copy: Copy, bits: Mapping[int, int]) -> Copy:
    """The log with one bit changed of the first signature in each of these entries; signed again.

    An entry without a signature stays as it is, and so does one that is none.
    """
    for index, bit in bits.items():
        members: Any = json.loads(copy.entries[index].body or b"{}")
        envelope = members.get("invocation") or members.get("statement")
        if envelope is not None:
            signature = envelope["joint"] if "joint" in envelope else envelope["signatures"][0]
            bad = bytearray(canonical.b64_decode(signature["sig"]))
            bad[bit // 8 % len(bad)] ^= 1 << bit % 8
            signature["sig"] = canonical.b64_encode(bytes(bad))
            copy = copy.with_entry(index, body=canonical.dumps(members))
    return copy.signed_again()


@pytest.mark.slow("it starts processes for each of a dozen logs")
@settings(max_examples=12)
@given(
    forged=st.dictionaries(numbers, numbers, max_size=4),
    attack=st.none() | attacks,
    jobs=st.integers(2, 5),
)
def test_the_findings_are_the_same_with_any_number_of_processes(
    long_log, other, forged, attack, jobs
):
    """An insider signs a head of it: whether a signature holds decides what else is found."""
    copy = long_log
    if attack is None:
        copy = with_other_signatures(copy, {one % len(copy.entries): forged[one] for one in forged})
    else:
        copy = attack.on(copy, other).signed_again()
    report = looked_at(copy, jobs=1)
    assert looked_at(copy, jobs=jobs) == report
    problems = walked(copy).problems.listed()
    for size in (BATCH, 7):  # of small batches, this process reads some
        assert in_processes(jobs, copy, size) == problems
    assert walked(copy, reader=NothingIsRead()).problems.listed() == problems
    if attack is None:  # without an anchor, some other attacks leave a log that is whole
        assert report.ok == (bodies(copy) == bodies(long_log))


def test_a_forged_signature_in_any_batch_is_a_finding_at_its_entry(long_log):
    """Not one signature holds because others of its batch do."""
    for index in (20, BATCH - 1, BATCH, len(long_log.entries) - 1):
        forged = with_other_signatures(long_log, {index: index})
        for jobs in (1, 3):
            first = in_processes(jobs, forged)[0]
            assert first.index == index
            assert first.what.startswith("the signature does not hold")


def test_what_stands_before_a_row_that_cannot_be_read_is_verified(long_log):
    """A file whose damage begins in the middle of a batch."""

    class Damaged(StoredLog):
        def stored(self) -> Iterator[StoredEntry]:
            for one in super().stored():
                if one.index == BATCH + 30:
                    raise StorageError("the page is not there", code="storage.damaged")
                yield one

    index = BATCH + 20
    damaged = with_other_signatures(long_log, {index: 0})
    reader = Damaged(damaged.engine())
    report, other = (examine(reader, damaged.trust, jobs=jobs) for jobs in (1, 3))
    assert report == other
    problems = {(problem.index, problem.what) for problem in report.problems}
    assert (None, "the page is not there") in problems
    assert index in {problem.index for problem in report.problems}
    assert not report.anchored


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent", None])
def test_where_no_process_reads_each_entry_is_read_here(long_log, monkeypatch, program):
    """A program that ends at once, and none."""
    index = len(long_log.entries) - 1
    forged = with_other_signatures(long_log, {index: 0})
    assert in_processes(2, long_log) == ()
    monkeypatch.setattr(sys, "executable", program)
    assert in_processes(2, long_log) == ()
    assert [problem.index for problem in in_processes(2, forged)] == [index]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_changes_no_finding(long_log, monkeypatch, sent):
    """Its batches, to which nobody answers, are read here."""
    last = len(long_log.entries) - 1
    forged = with_other_signatures(long_log, dict.fromkeys((BATCH, 2 * BATCH, last), 0))
    expected = in_processes(2, forged)
    assert expected
    for stop in (1, BATCH, 2 * BATCH):
        with entry_reader(2, alone=0) as reader:
            verifier = LogVerifier(forged.trust, reader=reader)
            for size in verifier.walk(forged.head, forged.entries):
                if size == stop:
                    assert workers()
                    for process in workers():
                        os.kill(process, sent)
                    monkeypatch.setattr(worker_processes, "_PATIENCE", 0.1)
            assert verifier.problems.listed() == expected
        monkeypatch.setattr(worker_processes, "_PATIENCE", 30)  # a busy machine starts one slowly
        assert not workers()


def test_a_log_with_a_gap_is_not_read_to_its_end(long_log):
    gap = replace(long_log, entries=[one for one in long_log.entries if one.index != 5])
    assert "entry 5 is missing" in looked_at(gap).problems[0].what
    (problem,) = in_processes(2, gap)
    assert "entry 5 is missing" in problem.what
    assert not workers()


def test_an_interrupt_ends_the_processes(long_log):
    def interrupted() -> None:
        with entry_reader(3, alone=0) as reader:
            verifier = LogVerifier(long_log.trust, reader=reader)
            for size in verifier.walk(long_log.head, long_log.entries):
                if size == BATCH:
                    assert workers()
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not workers()
