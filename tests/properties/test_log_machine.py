"""The log as a state machine: whatever happens to it, the verifier's verdict is the right one.

Appends, hand-overs, failed commits, commits of unknown fate, crashes at each point of a commit,
restarts and several shards, in any order; and every so often somebody gets at a copy of the files.
A model knows what is durable, what the anchors have seen and which shard has seen how much of
which other, and thereby what must be found with the anchors and what without.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from agentguard import StorageError
from agentguard.audit import checkpoint, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Record
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import PolicyEntry
from agentguard.audit.merkle import CompactRange
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage.backend import Head
from agentguard.storage.lease import Lessor
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
MAX_OPEN = 3

ISSUER, LOG_KEY, STRANGER = (Ed25519Signer.from_seed(os.urandom(32)) for _ in range(3))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TRUST = TrustDocument(
    "acme.example",
    "acme.example/log/0123456789abcdef",
    (
        TrustedKey("issuer", ISSUER.public_key, int(BEGAN.timestamp())),
        TrustedKey("log", LOG_KEY.public_key, int(BEGAN.timestamp())),
    ),
)


class Faulty:
    """A shard's real file, and where it fails or dies."""

    durable = True

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.before: Exception | None = None
        self.after: Exception | None = None
        self.head: StorageError | None = None
        self.dies: tuple[str, Callable[[], None]] | None = None

    def read_head(self) -> Head:
        if self.head is not None:
            raise self.head
        head: Head = self.inner.read_head()
        return head

    def try_write(self) -> None:
        self.inner.try_write()

    def write(self, records: Sequence[Record], head: Head, sign: Callable[[], bytes]) -> None:
        if self.before is not None:
            raise self.before
        point, copy = self.dies or ("", lambda: None)
        if point == "before the commit":
            copy()
        anchor = self.inner._anchor
        if point == "between the commit and the anchor":
            write = anchor.write

            def copy_and_write(note: bytes) -> None:
                copy()
                write(note)

            anchor.write = copy_and_write
        self.inner.write(records, head, sign)
        vars(anchor).pop("write", None)
        if point == "after the anchor":
            copy()
        if self.after is not None:
            raise self.after

    def close(self) -> None:
        self.inner.close()

    def abandon(self) -> None:
        self.inner.abandon()


POINTS = ("before the commit", "between the commit and the anchor", "after the anchor")


@dataclass
class Shard:
    """What the model knows of one shard; ``sizes`` are those of its checkpoints."""

    durable: list[bytes] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    anchored: int = 0

    def commit(self, *bodies: bytes, anchored: bool = True) -> None:
        self.durable += [*self.pending, *bodies]
        self.pending = []
        self.sizes.append(len(self.durable))
        if anchored:
            self.anchored = len(self.durable)


@dataclass(frozen=True)
class Sight:
    """One shard's opening entry at ``index`` embeds the head of another, ``of``, at ``size``."""

    shard: int
    index: int
    of: int
    size: int


@dataclass(frozen=True)
class Copy:
    """A copy of the state: of each shard, how many entries it had."""

    folder: Path
    sizes: dict[int, int]
    named: frozenset[int]


class LogMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    copies = Bundle("copies")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="log-machine-"))
        self.generation = 0
        self.clock = 0
        self.made = 0
        self.shards: dict[int, Shard] = {}
        self.sights: list[Sight] = []
        self.open: dict[int, tuple[ShardLog, Faulty]] = {}
        self.home.mkdir()

    @property
    def home(self) -> Path:
        """The folder in which the state and the anchors lie: another one after each crash."""
        return self.folder / str(self.generation)

    def teardown(self) -> None:
        for log, backend in self.open.values():
            backend.before = backend.after = backend.head = None
            with suppress(StorageError):
                log.close()
        shutil.rmtree(self.folder)

    # --- what the program does ----------------------------------------------------------------

    def now(self) -> datetime:
        self.clock += 1
        return BEGAN + timedelta(seconds=self.clock)

    def record(self) -> Record:
        self.made += 1
        at = self.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        engine = {"name": "function", "version": str(self.made)}
        return PolicyEntry.new(engine, None, {}, at=at)

    @initialize()
    def found(self) -> None:
        (self.home / "state").mkdir(mode=0o700)
        self.lease()

    @precondition(lambda self: len(self.open) < MAX_OPEN)
    @rule()
    def lease(self) -> None:
        """A process starts: it takes the first free shard, or adds one."""
        log = lessor(self.home).lease(self.now())
        number = log.shard
        free = sorted(self.shards.keys() - self.open.keys())
        assert number == (free[0] if free else len(self.shards))
        shard = self.shards.setdefault(number, Shard())
        index = len(shard.durable)
        self.sights += [
            Sight(number, index, of, other.sizes[-1])
            for of, other in self.shards.items()
            if of != number
        ]
        shard.commit(newest(self.home / "state", number))
        backend = Faulty(log._backend)
        log._backend = backend
        log._flusher = threading_off  # so that nothing becomes durable by itself
        self.open[number] = log, backend

    def chosen(self, data: st.DataObject) -> tuple[Shard, ShardLog, Faulty]:
        number = data.draw(st.sampled_from(sorted(self.open)), label="shard")
        return self.shards[number], *self.open[number]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        shard, log, _backend = self.chosen(data)
        record = self.record()
        receipt = log.append(record)
        assert receipt.index == len(shard.durable) + len(shard.pending)
        shard.commit(record.body)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        shard, log, _backend = self.chosen(data)
        record = self.record()
        log.enqueue(record)
        shard.pending.append(record.body)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        shard, log, _backend = self.chosen(data)
        log.flush()
        if shard.pending:
            shard.commit()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        shard, log, _backend = self.chosen(data)
        log.close()
        if shard.pending:
            shard.commit()
        del self.open[log.shard]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), error=st.sampled_from([StorageError("away"), OSError(5, "I/O error")]))
    def fail(self, data: st.DataObject, error: Exception) -> None:
        """A commit fails, and nothing of it is there."""
        _shard, log, backend = self.chosen(data)
        backend.before = error
        with pytest.raises(StorageError):
            log.append(self.record())
        backend.before = None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fail_late(self, data: st.DataObject) -> None:
        """A commit succeeds, and says that it has failed: the head tells."""
        shard, log, backend = self.chosen(data)
        record = self.record()
        backend.after = OSError(5, "I/O error")
        log.append(record)
        backend.after = None
        shard.commit(record.body)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), committed=st.booleans(), tries=st.integers(0, 3))
    def leave_unknown(self, data: st.DataObject, committed: bool, tries: int) -> None:
        """Nobody knows what became of a commit, for a while; then the head can be read again."""
        shard, log, backend = self.chosen(data)
        record = self.record()
        already = log._uncertain is not None  # then nothing is written before that is settled
        error = OSError(5, "I/O error")
        backend.before, backend.after = (None, error) if committed else (error, None)
        backend.head = StorageError("unreadable", code="storage.corrupt")
        with pytest.raises(StorageError):
            log.append(record)
        if committed and not already:
            shard.commit(record.body)
        backend.before = backend.after = None
        for _ in range(tries):  # the disk is well, and still nothing may go into the log
            with pytest.raises(StorageError):
                log.append(self.record())
            self.check_entries()
        backend.head = None

    @precondition(lambda self: self.open)
    @rule(data=st.data(), point=st.sampled_from(["idle", *POINTS]))
    def crash(self, data: st.DataObject, point: str) -> None:
        """All processes are killed: what the disk holds at that moment is all there is."""
        target = self.folder / str(self.generation + 1)
        if point == "idle":
            image(self.home, target)
        else:
            shard, log, backend = self.chosen(data)
            record = self.record()
            backend.dies = point, lambda: image(self.home, target)
            log.append(record)
            if point != "before the commit":
                shard.commit(record.body, anchored=point == "after the anchor")
        for log, _backend in self.open.values():
            log._pending = []
            log.close()  # in the old folder, where nobody looks any more
        self.open.clear()
        for shard in self.shards.values():
            shard.pending = []
        shutil.rmtree(self.home)
        self.generation += 1

    # --- what must be true at any time ----------------------------------------------------------

    @invariant()
    def check_verdict(self) -> None:
        if not self.shards:
            return
        report = looked_at(self.home / "state", self.home / "anchor")
        assert report.problems == ()
        assert report.anchored
        assert not looked_at(self.home / "state", None).anchored

    @invariant()
    def check_entries(self) -> None:
        """Exactly what is durable is there: nothing is lost, and nothing is there twice."""
        if self.shards:
            with closing(StateReader(self.home / "state")) as reader:
                assert list(reader.shards()) == sorted(self.shards)
                for number, shard in self.shards.items():
                    assert [body for _index, body in reader.entries(number)] == shard.durable

    # --- what somebody does to a copy of the files ------------------------------------------------

    def tampered(self) -> Path:
        """A copy of the state to get at; the anchors are out of reach."""
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        image(self.home, scratch)
        return scratch / "state"

    def judge(self, state: Path, *, by_anchor: bool, without: bool, shard: int | None) -> None:
        """Hold the verifier's verdict against what must be found."""
        report = looked_at(state, self.home / "anchor")
        assert report.ok is not (by_anchor or without)
        report_without = looked_at(state, None)
        assert report_without.ok is not without
        assert not report_without.anchored
        if by_anchor and shard is not None:
            assert shard in {problem.shard for problem in report.problems}

    def seen_beyond(self, of: int, size: int) -> bool:
        """Whether some other shard has seen more of a shard than ``size`` entries."""
        return any(sight.of == of and sight.size > size for sight in self.sights)

    @rule(target=copies)
    def keep_a_copy(self) -> Copy:
        folder = Path(tempfile.mkdtemp(prefix="copy-", dir=self.folder))
        image(self.home, folder)
        sizes = {number: len(shard.durable) for number, shard in self.shards.items()}
        return Copy(folder / "state", sizes, frozenset(self.shards))

    @rule(
        data=st.data(),
        how=st.sampled_from(["edit", "delete", "delete the last", "swap", "repeat", "another key"]),
    )
    def change_entries(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.shards)), label="shard")
        bodies = list(self.shards[number].durable)
        state = self.tampered()
        place = data.draw(st.integers(0, len(bodies) - 1), label="place")
        match how:
            case "edit":
                body = bytearray(bodies[place])
                body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
                bodies[place] = bytes(body)
            case "delete":
                del bodies[place]
            case "delete the last":
                del bodies[-1]
            case "swap":
                other = (place + 1) % len(bodies)
                bodies[place], bodies[other] = bodies[other], bodies[place]
            case "repeat":
                bodies.insert(place, bodies[place])
        rewrite(state, number, bodies, checkpoints=True)
        if how == "another key":
            vouch(state, number, len(bodies), STRANGER)
        changed = how == "another key" or bodies != self.shards[number].durable
        self.judge(state, by_anchor=changed, without=changed, shard=number)

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """One shard goes back to an older checkpoint, with all that lies beside it."""
        number = data.draw(st.sampled_from(sorted(self.shards)), label="shard")
        shard = self.shards[number]
        size = data.draw(st.sampled_from(shard.sizes), label="size")
        state = self.tampered()
        rewrite(state, number, shard.durable[:size])
        self.judge(
            state,
            by_anchor=size < shard.anchored,
            without=self.seen_beyond(number, size),
            shard=number,
        )

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """The newest entry is another one, vouched for with the log's own key."""
        numbers = [n for n, shard in self.shards.items() if shard.durable[-1:] != shard.durable[:1]]
        numbers = [n for n in numbers if parse_entry(self.shards[n].durable[-1]).kind == "policy"]
        if not numbers:
            return
        number = data.draw(st.sampled_from(sorted(numbers)), label="shard")
        shard = self.shards[number]
        size = len(shard.durable)
        state = self.tampered()
        rewrite(state, number, [*shard.durable[:-1], self.record().body])
        vouch(state, number, size, LOG_KEY)
        self.judge(
            state,
            by_anchor=shard.anchored == size,
            without=self.seen_beyond(number, size - 1),
            shard=number,
        )

    @rule(copy=copies, data=st.data())
    def roll_back_one(self, copy: Copy, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(copy.sizes)), label="shard")
        state = self.tampered()
        for path in (state / "shards").glob(f"{number}.sqlite*"):
            path.unlink()
        for path in (copy.folder / "shards").glob(f"{number}.sqlite*"):
            shutil.copy(path, state / "shards" / path.name)
        size = copy.sizes[number]
        self.judge(
            state,
            by_anchor=size < self.shards[number].anchored,
            without=self.seen_beyond(number, size),
            shard=number,
        )

    @rule(copy=copies)
    def roll_back_all(self, copy: Copy) -> None:
        by_anchor = any(
            copy.sizes.get(number, 0) < shard.anchored for number, shard in self.shards.items()
        )
        self.judge(copy.folder, by_anchor=by_anchor, without=False, shard=None)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.shards)), label="shard")
        state = self.tampered()
        for path in (state / "shards").glob(f"{number}.sqlite*"):
            path.unlink()
        if list(state.glob("shards/*.sqlite")):  # without any, it is no log at all
            self.judge(state, by_anchor=True, without=True, shard=number)

    @rule(copy=copies)
    def remove_what_the_registry_did_not_know_yet(self, copy: Copy) -> None:
        added = self.shards.keys() - copy.named
        if not added:
            return
        state = self.tampered()
        shutil.copy(copy.folder / "registry.json", state / "registry.json")
        for number in added:
            for path in (state / "shards").glob(f"{number}.sqlite*"):
                path.unlink()
        seen = any(sight.of in added and sight.shard not in added for sight in self.sights)
        self.judge(state, by_anchor=True, without=seen, shard=min(added))

    @rule(copy=consumes(copies))
    def forget_a_copy(self, copy: Copy) -> None:
        shutil.rmtree(copy.folder.parent)


threading_off: Any = object()
"""Stands where a log keeps its flusher, so that it starts none."""


def lessor(home: Path) -> Lessor:
    return Lessor(home / "state", home / "anchor", TRUST, ISSUER, LOG_KEY)


def newest(state: Path, shard: int) -> bytes:
    with closing(StateReader(state)) as reader:
        return list(reader.entries(shard))[-1][1]


def image(home: Path, target: Path) -> None:
    """Copy what the disk holds: all but the locks, and what SQLite shares in memory."""
    shutil.copytree(
        home, target, ignore=shutil.ignore_patterns("*-shm", "*.lock"), dirs_exist_ok=True
    )


def looked_at(state: Path, anchors: Path | None) -> Report:
    with closing(StateReader(state)) as reader:
        return examine(reader, TRUST, anchor=anchors)


def changing(state: Path, shard: int) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(state / "shards" / f"{shard}.sqlite")) as connection:
        yield connection
        connection.commit()


def rewrite(state: Path, shard: int, bodies: list[bytes], *, checkpoints: bool = False) -> None:
    """Put these entries in the place of all; the ``checkpoints`` beyond them stay, or go."""
    size = len(bodies)
    tree = CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    for connection in changing(state, shard):
        about = dict(
            connection.execute(
                "SELECT entries.body, summaries.at FROM entries JOIN summaries USING (idx)"
            ).fetchall()
        )
        connection.execute("DELETE FROM entries")
        connection.execute("DELETE FROM summaries")
        connection.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(bodies))
        for index, body in enumerate(bodies):
            kind, at = said(body) or ("policy", about.get(body, ""))
            connection.execute(
                "INSERT INTO summaries (idx, kind, at) VALUES (?, ?, ?)", (index, kind, at)
            )
        if not checkpoints:
            connection.execute("DELETE FROM checkpoints WHERE size > ?", (size,))
        connection.execute("UPDATE shard SET size = ?, range = ?", (size, tree.encode()))


def said(body: bytes) -> tuple[str, str] | None:
    with suppress(Exception):
        parsed = parse_entry(body)
        return parsed.kind, parsed.at
    return None


def vouch(state: Path, shard: int, size: int, signer: Ed25519Signer) -> None:
    """Sign the checkpoint of ``size`` for what stands in the file now."""
    tree = CompactRange()
    for connection in changing(state, shard):
        rows = connection.execute("SELECT body FROM entries WHERE idx < ? ORDER BY idx", (size,))
        for (body,) in rows.fetchall():
            tree.append(merkle.leaf_hash(body))
        point = Checkpoint(TRUST.origin(shard), size, tree.root())
        note = checkpoint.sign(point, signer)
        connection.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (size, note))


LogMachine.TestCase.settings = settings(
    max_examples=40 if FULL else 5,
    stateful_step_count=40 if FULL else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLogMachine = LogMachine.TestCase
