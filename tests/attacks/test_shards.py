"""Attacks on a log of several shards: the table of who does what, and how it is found out.

Whoever can write the state edits, cuts, swaps, removes, rolls back or forks its shards; some have
stolen the log's key as well. Each attack is found and located with the anchor; without one it is
either found all the same, or the log reads as consistent and UNANCHORED. The same attacks on the
entries of one log, in great number, stand in ``tests/properties``.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import AgentguardError, Decision, StorageError
from agentguard.audit import checkpoint, merkle, summary
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import parse_entry
from agentguard.audit.merkle import CompactRange
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.audit.statements import read_heads
from agentguard.domain import config, domain, keystore
from agentguard.domain.config import Config
from agentguard.domain.ephemeral import Domain
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical, dsse
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer, Signer
from agentguard.storage import anchor
from agentguard.storage.anchor import Anchor
from agentguard.storage.reader import StateReader
from agentguard.storage.shard_file import ShardFile

PASSPHRASE = b"correct horse battery staple"

Where = tuple[int, int | None]
"""The shard and the index at which a finding is due; None for a shard as a whole."""


@dataclass
class Log:
    """A log of five shards in a folder, with all that an attacker may have come by.

    ``old`` holds copies of the state: with ``one`` shard (as founded), with ``three``, the same
    once each of them had ``seen`` the others, ``later`` with four, and ``fork``, another end of
    ``later``. Shard 4 was added last, and no other shard has seen anything of it. ``other`` is the
    state of somebody else's log.
    """

    config: Config
    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    stranger: Signer
    old: Path
    other: Path

    @property
    def state(self) -> Path:
        return self.config.state

    def path(self, shard: int) -> Path:
        return self.state / "shards" / f"{shard}.sqlite"

    def change(self, shard: int, *statements: Any) -> None:
        """What somebody with SQLite and the right to write does."""
        with closing(sqlite3.connect(self.path(shard))) as connection:
            for statement in statements:
                connection.execute(*statement if isinstance(statement, tuple) else (statement,))
            connection.commit()

    def ask(self, shard: int, statement: str, *parameters: Any) -> list[Any]:
        with closing(sqlite3.connect(self.path(shard))) as connection:
            return connection.execute(statement, parameters).fetchall()

    def bodies(self, shard: int) -> list[bytes]:
        return [body for (body,) in self.ask(shard, "SELECT body FROM entries ORDER BY idx")]

    def sizes(self, shard: int) -> list[int]:
        """The sizes of the stored checkpoints."""
        return [size for (size,) in self.ask(shard, "SELECT size FROM checkpoints ORDER BY size")]

    def at(self, shard: int, kind: str, number: int = 0) -> int:
        """The index of an entry of a kind; ``number`` counts from 0, or from the end."""
        parsed = [parse_entry(body).kind for body in self.bodies(shard)]
        return [index for index, found in enumerate(parsed) if found == kind][number]

    def rewrite(self, shard: int, bodies: Sequence[bytes], beside: Log | None = None) -> None:
        """Put these entries in the place of all, with what stands beside each, numbered anew.

        ``beside``: the log of which an entry that is not in this one was taken.
        """
        about: dict[bytes, tuple[Any, ...]] = {}
        kept: dict[bytes, list[tuple[Any, ...]]] = {}
        for log in (*([beside] if beside is not None else []), self):
            for number in map(int, (path.stem for path in log.state.glob("shards/*.sqlite"))):
                by_index = dict(enumerate(log.bodies(number)))
                for index, *row in log.ask(number, "SELECT * FROM summaries"):
                    about[by_index[index]] = tuple(row)
                for index, *row in log.ask(number, "SELECT * FROM attachments"):
                    kept.setdefault(by_index[index], []).append(tuple(row))
        with closing(sqlite3.connect(self.path(shard))) as connection:
            many = connection.executemany
            for table in ("entries", "summaries", "attachments"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608  of these three
            many("INSERT INTO entries VALUES (?, ?)", enumerate(bodies))
            for index, body in enumerate(bodies):
                parsed = parse_entry(body)
                row = about.get(body) or summary.Summary(parsed.kind, parsed.at)
                marks = ", ?" * len(row)
                connection.execute(f"INSERT INTO summaries VALUES (?{marks})", (index, *row))  # noqa: S608
                # what was copied along once already is not there twice
                for role, *rest in {row[0]: row for row in kept.get(body, [])}.values():
                    connection.execute(
                        "INSERT INTO attachments VALUES (?, ?, ?, ?, ?)", (index, role, *rest)
                    )
            connection.commit()

    def vouch(self, shard: int, signer: Signer) -> None:
        """Sign the checkpoints of a shard anew, for what stands in it now, with its head."""
        bodies = self.bodies(shard)
        sizes = {*(size for size in self.sizes(shard) if size < len(bodies)), len(bodies)}
        tree = CompactRange()
        notes = []
        for body in bodies:
            tree.append(merkle.leaf_hash(body))
            if tree.size in sizes:
                point = Checkpoint(self.trust.origin(shard), tree.size, tree.root())
                notes.append((tree.size, checkpoint.sign(point, signer)))
        with closing(sqlite3.connect(self.path(shard))) as connection:
            connection.execute("DELETE FROM checkpoints")
            connection.executemany("INSERT INTO checkpoints VALUES (?, ?)", notes)
            connection.execute("UPDATE shard SET size = ?, range = ?", (tree.size, tree.encode()))
            connection.commit()

    def cut(self, shard: int, size: int) -> None:
        """Go back to an older stored checkpoint, consistently, with all that stands beside."""
        assert size in self.sizes(shard)
        tree = CompactRange()
        for body in self.bodies(shard)[:size]:
            tree.append(merkle.leaf_hash(body))
        self.change(
            shard,
            ("DELETE FROM entries WHERE idx >= ?", (size,)),
            ("DELETE FROM attachments WHERE idx >= ?", (size,)),
            ("DELETE FROM summaries WHERE idx >= ?", (size,)),
            ("DELETE FROM checkpoints WHERE size > ?", (size,)),
            ("UPDATE shard SET size = ?, range = ?", (size, tree.encode())),
        )

    def anchor(self, shard: int) -> Path:
        assert self.config.anchor is not None
        return anchor.anchor_path(self.config.anchor, self.trust.origin(shard))

    def write_registry(self, shards: Sequence[int], signer: Signer) -> None:
        at = verify_registry((self.state / "registry.json").read_bytes(), self.trust).at
        data = seal_registry(signer, self.trust, shards, at=at)
        (self.state / "registry.json").write_bytes(data)

    def bring_back(self, name: str, *parts: str) -> None:
        """Put parts of an older copy of the state into the place of what is there."""
        for part in parts:
            for old in sorted((self.old / name / "state").glob(part)):
                target = self.state / old.relative_to(self.old / name / "state")
                if target.is_dir():
                    shutil.rmtree(target)
                copy = shutil.copytree if old.is_dir() else shutil.copy
                copy(old, target)

    def examine(self, *, anchored: bool = True, trust: TrustDocument | None = None) -> Report:
        reader = StateReader(self.state)
        try:
            where = self.config.anchor if anchored else None
            return examine(reader, trust or self.trust, anchor=where)
        finally:
            reader.close()

    def open(self) -> Guard:
        """Open a guard on what lies there now."""
        home = domain.take_up(self.config, PASSPHRASE)
        return Guard(self.config, FunctionEngine(_allow), home)


def _allow(_document):
    return Decision.allow()


def settings_for(folder: Path) -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": str(folder / "state"),
        "anchor": str(folder / "anchor"),
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


def work(folder: Path, home: Domain, guards: int, calls: int) -> None:
    """Open guards at the same time on the state, each with a shard, and make calls with each."""
    settings = settings_for(folder)
    opened = [Guard(settings, FunctionEngine(_allow), home) for _ in range(guards)]
    try:
        for number, guard in enumerate(opened):
            agent = guard.new_agent("reader")
            tool = guard.tool(_note)
            for call in range(calls):
                agent.call(tool, text=f"{number}-{call}")
    finally:
        for guard in opened:
            guard.close()


def _note(text: str) -> str:
    return text


@dataclass
class _History:
    """The copies from which each test starts, made once."""

    folder: Path
    home: Domain


@pytest.fixture(scope="session")
def history(template, tmp_path_factory) -> _History:
    folder = tmp_path_factory.mktemp("history")
    now = folder / "now"

    def keep(name: str) -> None:
        shutil.copytree(now, folder / name)

    shutil.copytree(template, now)
    keep("one")
    home = domain.take_up(settings_for(now), PASSPHRASE)
    work(now, home, 3, 2)
    keep("three")
    work(now, home, 3, 2)
    keep("seen")
    work(now, home, 4, 2)
    keep("later")
    keep("fork")
    work(now, home, 5, 2)
    work(folder / "fork", domain.take_up(settings_for(folder / "fork"), PASSPHRASE), 5, 2)
    other = folder / "other"
    domain.found(settings_for(other), PASSPHRASE, now=datetime.now(UTC))
    work(other, domain.take_up(settings_for(other), PASSPHRASE), 2, 2)
    return _History(folder, home)


@pytest.fixture
def log(history, tmp_path) -> Log:
    """A copy of the log for one test."""
    for part in ("state", "anchor"):
        shutil.copytree(history.folder / "now" / part, tmp_path / part)
    return Log(
        settings_for(tmp_path),
        history.home.trust,
        history.home.issuer,
        keystore.load_key(tmp_path / "state", "log", PASSPHRASE),
        Ed25519Signer.from_seed(os.urandom(32)),
        history.folder,
        history.folder / "other" / "state",
    )


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """``does`` it, and returns where it is found with the anchor and where without.

    None in the second place: only an anchor can tell, and without one the log is UNANCHORED.
    """

    name: str
    does: Callable[[Log], tuple[Where, Where | None]]


TABLE: list[Attack] = []


def attack(name: str) -> Callable[[Any], None]:
    """Enter an attack in the table; what returns one place is found there either way."""

    def add(does: Callable[[Log], Any]) -> None:
        def both(log: Log) -> tuple[Where, Where | None]:
            found = does(log)
            return found if isinstance(found[0], tuple) else (found, found)

        TABLE.append(Attack(name, both))

    return add


def opening(log: Log, shard: int, of: int) -> tuple[int, int, int]:
    """Return the newest entry, (shard, index), in which ``shard`` says how far ``of`` was."""
    found = []
    for index, body in enumerate(log.bodies(shard)):
        parsed = parse_entry(body)
        if parsed.kind == "shard":
            sealed = Envelope.parse(parsed.members["statement"])
            said = dsse.parse_statement(sealed.payload, "shard").predicate
            found += [
                (index, head.size)
                for head in read_heads(said)
                if head.origin == log.trust.origin(of)
            ]
    index, size = max(found)
    return shard, index, size


def other_log(log: Log) -> Log:
    return replace(log, config=replace(log.config, state=log.other))


# in place


@attack("edit a byte of an authorization")
def _(log):
    index = log.at(1, "authorization", 1)
    body = log.bodies(1)[index].replace(b'"decision":"allow"', b'"decision":"alloW"')
    log.change(1, ("UPDATE entries SET body = ? WHERE idx = ?", (body, index)))
    return 1, index


def _another_version(log, shard, index):
    bodies = log.bodies(shard)
    edited = bodies[index].replace(b'"version":"', b'"version":"9')
    assert edited != bodies[index]
    log.rewrite(shard, [*bodies[:index], edited, *bodies[index + 1 :]])
    log.vouch(shard, log.log_key)


@attack("edit what others have seen, and sign with the stolen log key")
def _(log):
    *seen_by, _size = opening(log, 2, of=1)
    _another_version(log, 1, log.at(1, "policy", 0))
    return (1, 0), tuple(seen_by)


@attack("edit what nobody has seen, and sign with the stolen log key")
def _(log):
    _another_version(log, 4, log.at(4, "policy", -1))
    return (4, 0), None


@attack("edit a summary, by which the log is searched")
def _(log):
    index = log.at(2, "authorization", 1)
    log.change(2, ("UPDATE summaries SET principal = 'user:bob' WHERE idx = ?", (index,)))
    return 2, index


@attack("delete an entry")
def _(log):
    index = log.at(2, "authorization", 1)
    log.change(2, ("DELETE FROM entries WHERE idx = ?", (index,)))
    return 2, index + 1  # the one that stands where it is missed


@attack("delete an entry, and number the others anew")
def _(log):
    index = log.at(2, "authorization", 1)
    bodies = log.bodies(2)
    log.rewrite(2, bodies[:index] + bodies[index + 1 :])
    return 2, index


@attack("delete the first entry")
def _(log):
    log.change(2, "DELETE FROM entries WHERE idx = 0")
    return 2, 1


@attack("swap two entries")
def _(log):
    bodies = log.bodies(0)
    one, other = log.at(0, "authorization", 0), log.at(0, "authorization", 2)
    bodies[one], bodies[other] = bodies[other], bodies[one]
    log.rewrite(0, bodies)
    return 0, one


@attack("duplicate an entry")
def _(log):
    bodies = log.bodies(0)
    index = log.at(0, "authorization", 1)
    log.rewrite(0, [*bodies[: index + 1], bodies[index], *bodies[index + 1 :]])
    return 0, index + 1


@attack("duplicate an entry at the end, and sign with the stolen log key")
def _(log):
    bodies = log.bodies(0)
    log.rewrite(0, [*bodies, bodies[log.at(0, "authorization", -1)]])
    log.vouch(0, log.log_key)
    return 0, len(bodies)


@attack("splice in an entry of another log")
def _(log):
    bodies, other = log.bodies(1), other_log(log)
    index = log.at(1, "authorization", 1)
    bodies[index] = other.bodies(1)[other.at(1, "authorization", 1)]
    log.rewrite(1, bodies, other)
    return 1, index


@attack("splice in an entry of another log at the end, and sign with the stolen log key")
def _(log):
    bodies, other = log.bodies(3), other_log(log)
    log.rewrite(3, [*bodies, other.bodies(1)[other.at(1, "authorization", 1)]], other)
    log.vouch(3, log.log_key)
    return 3, len(bodies)


@attack("splice in an entry of another shard at the end, and sign with the stolen log key")
def _(log):
    bodies = log.bodies(3)
    log.rewrite(3, [*bodies, log.bodies(1)[log.at(1, "authorization", -1)]])
    log.vouch(3, log.log_key)
    return 3, len(bodies)


# the tail


@attack("truncate naively")
def _(log):
    size = len(log.bodies(1))
    log.change(1, ("DELETE FROM entries WHERE idx >= ?", (size - 3,)))
    return 1, size - 3


@attack("truncate to an older checkpoint, below what others have seen")
def _(log):
    *seen_by, seen = opening(log, 2, of=0)
    size = max(size for size in log.sizes(0) if size < seen)
    log.cut(0, size)
    return (0, size), tuple(seen_by)


@attack("truncate to an older checkpoint, above what others have seen")
def _(log):
    seen = max(opening(log, shard, of=0)[2] for shard in (1, 2, 3, 4))
    size = log.sizes(0)[-2]
    assert size >= seen
    log.cut(0, size)
    return (0, size), None


@attack("truncate a shard that nobody has seen to nothing but its opening entry")
def _(log):
    log.cut(4, 1)
    return (4, 1), None


@attack("empty a shard")
def _(log):
    for table in ("entries", "attachments", "summaries", "checkpoints"):
        log.change(4, f"DELETE FROM {table}")  # noqa: S608  of these four
    log.change(4, "UPDATE shard SET size = 0, range = x''")
    return 4, None


@attack("remove the checkpoints")
def _(log):
    log.change(1, "DELETE FROM checkpoints")
    return 1, len(log.bodies(1)) - 1


# whole shards


@attack("remove a shard: its file alone")
def _(log):
    log.path(4).unlink()
    return 4, None


@attack("remove a shard that nobody has seen, and its name from the registry")
def _(log):
    log.path(4).unlink()
    log.bring_back("later", "registry.json")
    return (4, None), None


@attack("remove a shard that others have seen, and its name from the registry")
def _(log):
    *seen_by, _size = opening(log, 3, of=2)
    log.path(2).unlink()
    log.write_registry([0, 1, 3, 4], log.issuer)
    return (2, None), tuple(seen_by)


@attack("remove a shard that others have seen, its name and its anchor")
def _(log):
    *seen_by, _size = opening(log, 3, of=2)
    log.path(2).unlink()
    log.write_registry([0, 1, 3, 4], log.issuer)
    log.anchor(2).unlink()
    return tuple(seen_by)


@attack("remove all shards but one, and the registry")
def _(log):
    for shard in (1, 2, 3, 4):
        log.path(shard).unlink()
    (log.state / "registry.json").unlink()
    return (2, None), (0, None)


@attack("roll back one shard")
def _(log):
    *seen_by, _size = opening(log, 1, of=2)
    log.bring_back("three", "shards/2.sqlite")
    return (2, len(log.bodies(2))), tuple(seen_by)


@attack("roll back the whole state")
def _(log):
    log.bring_back("later", "shards", "registry.json")
    return (0, len(log.bodies(0))), None


@attack("roll back the whole state to its first day")
def _(log):
    log.bring_back("one", "shards", "registry.json")
    return (0, len(log.bodies(0))), None


@attack("fork the whole log: another history of the same size, signed with the log key")
def _(log):
    sizes = [log.sizes(shard)[-1] for shard in range(5)]
    log.bring_back("fork", "shards", "registry.json")
    assert [log.sizes(shard)[-1] for shard in range(5)] == sizes
    return (0, 0), None


@attack("fork one shard that others have seen")
def _(log):
    *seen_by, _size = opening(log, 4, of=0)
    log.bring_back("fork", "shards/0.sqlite")
    return (0, 0), tuple(seen_by)


@attack("fork one shard that nobody has seen, but which has seen the others")
def _(log):
    log.bring_back("fork", "shards/4.sqlite")
    return (4, 0), (4, 0)


@attack("sign a shard anew with another key")
def _(log):
    log.vouch(2, log.stranger)
    return 2, 0


@attack("put another log's shard in the place of one")
def _(log):
    shutil.copy(log.other / "shards" / "1.sqlite", log.path(1))
    return 1, 0


@attack("rename a shard's file")
def _(log):
    log.path(2).rename(log.path(7))
    return 2, None


@attack("copy one shard over another")
def _(log):
    shutil.copy(log.path(1), log.path(2))
    return 2, 0


@attack("copy one shard to a number of its own")
def _(log):
    shutil.copy(log.path(1), log.path(5))
    return 5, 0


@attack("swap two shards")
def _(log):
    log.path(1).rename(log.path(9))
    log.path(2).rename(log.path(1))
    log.path(9).rename(log.path(2))
    return 1, 0


@attack("put what is no log in the place of a shard")
def _(log):
    log.path(2).write_bytes(b"not a database" * 1000)
    return 2, None


# the registry


@attack("remove the registry")
def _(log):
    (log.state / "registry.json").unlink()
    return 0, None


@attack("the registry of another log")
def _(log):
    shutil.copy(log.other / "registry.json", log.state / "registry.json")
    return 0, None


@attack("an unsigned registry")
def _(log):
    sealed = canonical.loads_object((log.state / "registry.json").read_bytes())
    (log.state / "registry.json").write_bytes(canonical.dumps({**sealed, "signatures": []}))
    return 0, None


@attack("a registry that the log key has signed")
def _(log):
    log.write_registry([0], log.log_key)
    return 0, None


@attack("a registry that a stranger has signed")
def _(log):
    log.write_registry([0, 1, 2, 3, 4], log.stranger)
    return 0, None


@attack("edit the registry")
def _(log):
    sealed: Any = canonical.loads_object((log.state / "registry.json").read_bytes())
    payload = canonical.b64_decode(sealed["payload"]).replace(b"[0,1,2,3,4]", b"[0,1,2,3]")
    sealed["payload"] = canonical.b64_encode(payload)
    (log.state / "registry.json").write_bytes(canonical.dumps(sealed))
    return 0, None


@attack("an empty registry file")
def _(log):
    (log.state / "registry.json").write_bytes(b"")
    return 0, None


# --- the table's two columns: with the anchor, and without ----------------------------------------


def located(log: Log, report: Report, where: Where) -> bool:
    """Whether something was found at this place, or in the batch in which it lies."""
    shard, index = where
    for problem in report.problems:
        if problem.shard == shard and (problem.index is None) == (index is None):
            if index is None or problem.index is None or problem.index == index:
                return True
            # a checkpoint vouches for a batch, and no more can be said than which one it is
            begins = max((size for size in log.sizes(shard) if size <= index), default=0)
            if begins <= problem.index <= index:
                return True
    return False


def test_the_untampered_twin_of_all_verifies(log):
    report = log.examine()
    assert report.problems == ()
    assert report.anchored
    assert [shard.shard for shard in report.shards] == [0, 1, 2, 3, 4]
    assert list(report.in_doubt) == []
    without = log.examine(anchored=False)
    assert without.ok
    assert not without.anchored
    log.open().close()
    assert log.examine().ok


@pytest.mark.parametrize("tried", TABLE, ids=lambda tried: tried.name)
def test_it_is_found_and_located_or_unanchored_and_never_healed(log, tried):
    where, without = tried.does(log)
    report = log.examine()
    assert not report.ok
    assert located(log, report, where), (where, report.problems)

    report = log.examine(anchored=False)
    assert not report.anchored
    if without is None:
        assert report.problems == ()
    else:
        assert not report.ok
        assert located(log, report, without), (without, report.problems)

    # a guard that comes next is refused, or goes on in a shard that is in order
    with suppress(AgentguardError), log.open() as guard:
        guard.new_agent("reader").call(guard.tool(_note), text="on")
    assert not log.examine().ok


def test_the_log_signed_anew_with_keys_of_the_attackers_own_is_nothing_to_its_trust(log):
    """A whole log, in good order, of somebody who founded one under the same names."""
    for part in ("shards", "registry.json"):
        target = log.state / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = log.other / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    theirs = keystore.load_trust(log.other)
    assert log.examine(anchored=False, trust=theirs).ok
    report = log.examine(anchored=False)
    assert {(problem.shard, problem.index) for problem in report.problems} >= {(0, 0), (1, 0)}


# --- at open --------------------------------------------------------------------------------------


def gone(*shards: int, registry: str = "") -> Callable[[Log], None]:
    """Remove shards; put the ``registry`` of an older copy in its place, or ``none``."""

    def does(log: Log) -> None:
        for shard in shards:
            log.path(shard).unlink()
        if registry == "none":
            (log.state / "registry.json").unlink()
        elif registry:
            log.bring_back(registry, "registry.json")

    return does


def back(name: str, *parts: str) -> Callable[[Log], None]:
    return lambda log: log.bring_back(name, *parts)


def renamed(log: Log) -> None:
    log.path(2).rename(log.path(7))


REFUSED: dict[str, Callable[[Log], None]] = {
    "the first shard is rolled back": back("seen", "shards/0.sqlite"),
    "the whole state is rolled back": back("seen", "shards", "registry.json"),
    "the first shard is forked": back("fork", "shards/0.sqlite"),
    "a shard's file is gone": gone(2),
    "a shard's file is gone, and the registry is an older one": gone(4, registry="later"),
    "a shard and the registry are gone": gone(4, registry="none"),
    "the registry is gone": gone(registry="none"),
    "a shard's file has another number": renamed,
}


@pytest.mark.parametrize("does", REFUSED.values(), ids=REFUSED)
def test_a_state_that_has_lost_something_is_not_opened(log, does):
    does(log)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"[Rr]estore") as caught:
            log.open()
        assert caught.value.code == "storage.rolled_back"
    assert not log.examine().ok  # and nothing was healed


def test_the_registry_is_gone_and_there_is_no_anchor(log):
    """To go on would be to sign a new one, and to forget the shard that went with it."""
    log = replace(log, config=replace(log.config, anchor=None))
    (log.state / "registry.json").unlink()
    log.path(4).unlink()
    with pytest.raises(StorageError) as caught:
        log.open()
    assert caught.value.code == "storage.rolled_back"
    assert not log.examine().ok


@pytest.mark.parametrize("shard", [1, 2, 3, 4])
def test_a_shard_that_was_rolled_back_is_refused_to_whoever_would_write_it(log, shard):
    before = [log.open() for _ in range(shard)]
    if shard == 4:
        log.cut(4, log.sizes(4)[-2])
    else:
        log.bring_back("later", f"shards/{shard}.sqlite")
    with pytest.raises(StorageError) as caught:
        log.open()
    assert caught.value.code == "storage.rolled_back"
    for guard in before:  # the others go on with theirs
        guard.new_agent("reader").call(guard.tool(_note), text="on")
        guard.close()
    assert {problem.shard for problem in log.examine().problems} >= {shard}


def test_an_empty_shard_of_somebody_who_died_making_it_is_no_finding(log):
    """The twin: what nobody knows of and nothing stands in was never part of the log."""
    origin = log.trust.origin(5)
    taken = ShardFile.take(log.path(5), origin, Anchor(None, origin, ()), log.trust)
    assert taken is not None
    taken.close()
    report = log.examine()
    assert report.problems == ()
    assert report.anchored
    guards = [log.open() for _ in range(6)]  # the sixth takes it up
    assert log.ask(5, "SELECT count(*) FROM entries") > [(0,)]
    for guard in guards:
        guard.close()
    assert log.examine().ok
    assert log.examine().anchored
