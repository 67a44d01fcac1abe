"""What the benchmarks measure on: states on disk, filled quickly, and the bare floors beside them.

The entries are those of real guarded calls, each with its own signatures; only their commits are
taken together, as those of many callers are.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from guarded_call import POLICY, TABLES, guarded

from agentguard import Guard
from agentguard.audit.entry import LOG, LogPlace, Record
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.domain import config, domain, keystore
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.domain.domain import StateDomain
from agentguard.guard.embedded import Embedded
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import b64url_decode
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer, PublicKey
from agentguard.store import sqlite
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog

BATCH = 32
"""Entries to a commit, and to a checkpoint, in a log that is filled."""


@dataclass(frozen=True)
class State:
    """A trust domain in a folder, with its configuration and the passphrase of its keys."""

    folder: Path

    @property
    def path(self) -> Path:
        """Its configuration."""
        return self.folder / config.FILE

    @property
    def passphrase(self) -> bytes:
        """What unlocks its keys."""
        return (self.folder / "passphrase").read_bytes()

    @property
    def trust(self) -> TrustDocument:
        """Its public keys."""
        return keystore.load_trust(config.load(self.path).state)

    @property
    def anchor(self) -> Path:
        """Where the anchors lie."""
        return self.folder / "anchor"

    def reader(self) -> StoredLog:
        """Open the log to read."""
        return StoredLog.of(config.load(self.path).state)

    @property
    def size(self) -> int:
        """The number of entries of its log."""
        return self.reader().size()

    def guard(self) -> Guard:
        """Open a guard on it, as a program would."""
        return Guard.open(self.path, passphrase=self.passphrase)

    def log(self) -> StoreLog:
        """Open its log to write, without a guard."""
        settings = config.load(self.path)
        return domain.take_up(settings, self.passphrase).open_log(datetime.now(UTC))


def found(folder: Path) -> State:
    """Found a trust domain in a new folder."""
    folder.mkdir(parents=True)
    (folder / "passphrase").write_bytes(os.urandom(16).hex().encode())
    (folder / "authz.rego").write_text(POLICY)
    (folder / "authz.rego").chmod(0o600)
    state = State(folder)
    (agent,) = TABLES["agents"].values()
    scope = ", ".join(f'"{name}"' for name in agent["max_scope"])
    state.path.write_text(
        f'trust_domain = "{TABLES["trust_domain"]}"\nanchor = "anchor"\n'
        '[policy]\npath = "authz.rego"\n[agents.code-reviewer]\n'
        f'type = "{agent["type"]}"\nauthority = "own"\nmax_scope = [{scope}]\n'
    )
    state.path.chmod(0o600)
    domain.found(config.load(state.path), state.passphrase, now=datetime.now(UTC))
    return state


@contextmanager
def both_guards() -> Iterator[tuple[Path, Guard, Guard]]:
    """Yield a temporary folder, and two guards with the same Rego policy: in memory and on disk."""
    with tempfile.TemporaryDirectory(prefix="agentguard-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "memory.rego").write_text(POLICY)
        tools = {"trigger_ci": {"attributes": {"branch": "branch", "repo": "repo"}}}
        in_memory = Guard.ephemeral(folder / "memory.rego", config={**TABLES, "tools": tools})
        state = found(folder / "durable")
        with state.path.open("a") as file:
            file.write('[tools.trigger_ci]\nattributes = { branch = "branch", repo = "repo" }\n')
        yield folder, stack.enter_context(in_memory), stack.enter_context(state.guard())


def fill(state: State, entries: int) -> Iterator[int]:
    """Write a log of ``entries`` entries with a real guard, yielding how many there are so far."""
    settings = config.load(state.path)
    home = domain.take_up(settings, state.passphrase)
    batching = _Batching(settings, state.passphrase, home.trust, home.issuer, home.log_key)
    with Guard(Embedded(settings, configured_engine(settings), batching)) as guard:
        call = guarded(guard)
        for written in range(0, entries, 2):
            call()
            yield written
    yield entries


class _Batching(StateDomain):
    """A domain whose log is written in batches."""

    def open_log(self, *args: Any, **options: Any) -> StoreLog:
        """Open the log to write."""
        return _in_batches(super().open_log(*args, **options))


def _in_batches(log: StoreLog) -> StoreLog:
    """Have an append return before it is durable, and commit ``BATCH`` entries at once."""
    places = itertools.count(log.head.size)
    enqueue = log.enqueue

    def put(record: Record | UnsignedOutcome, **_checks: object) -> LogPlace:
        place = next(places)
        enqueue(record)
        if place % BATCH == BATCH - 1:
            log.flush()
        return LogPlace(LOG, place)

    log.append = log.enqueue = put  # type: ignore[method-assign, assignment]
    return log


class GroupCommit:
    """The floor of an append: leader/follower group commit of bare rows, one signature a batch."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._signer = Ed25519Signer.from_seed(os.urandom(32))
        self._changed = threading.Condition()
        self._pending: list[tuple[Sequence[bytes], threading.Event]] = []
        self._busy = False

    def append(self, bodies: Sequence[bytes]) -> None:
        """Make ``bodies`` durable, together with those of whoever waits."""
        done = threading.Event()
        with self._changed:
            self._pending.append((bodies, done))
            while not done.is_set() and self._busy:
                self._changed.wait()
            if done.is_set():
                return
            self._busy = True
            batch, self._pending = self._pending, []
        self._commit([(body,) for bodies, _done in batch for body in bodies])
        with self._changed:
            for _bodies, committed in batch:
                committed.set()
            self._busy = False
            self._changed.notify_all()

    def _commit(self, rows: list[tuple[bytes]]) -> None:
        rows.append((self._signer.sign(rows[0][0]),))
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO entries (body) VALUES (?)", rows)
        self._connection.execute("COMMIT")


@contextmanager
def group_commit(path: Path) -> Iterator[GroupCommit]:
    """Open a database of bare rows, in write-ahead mode with every commit on the disk."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (idx INTEGER PRIMARY KEY, body BLOB)")
    yield GroupCommit(connection)
    connection.close()


def bare_rows(state: State) -> Callable[[], int]:
    """Return the floor of verifying without signatures: read each row, and hash it."""
    path = sqlite.path_in(config.load(state.path).state)

    def once() -> int:
        connection = sqlite3.connect(path)
        count = 0
        for _index, body in connection.execute("SELECT idx, body FROM entry ORDER BY log, idx"):
            sha256(body).digest()
            count += 1
        connection.close()
        return count

    return once


def bare_signatures(state: State, sample: int) -> tuple[Callable[[], int], int]:
    """Return the floor of verifying: the Ed25519 verifications of the first ``sample`` entries.

    And the number of these entries. The floor verifies one signature for each statement, also where
    several statements have a joint one.
    """
    reader = state.reader()
    trust = state.trust
    keys: dict[str, PublicKey] = {key.key.thumbprint: key.key for key in trust.keys}
    held: list[tuple[PublicKey, bytes, bytes]] = []
    size = 0
    for size, body in itertools.islice(reader.entries(), sample):  # noqa: B007  the last one counts
        value = orjson.loads(body)
        if value["kind"] == "identity":
            claims = orjson.loads(_part(value["credential"], 1))
            key = PublicKey.from_jwk(claims["cnf"]["jwk"])
            keys[key.thumbprint] = key
            signed, _dot, _rest = value["credential"].rpartition(".")
            kid = orjson.loads(_part(signed, 0))["kid"]
            held.append((keys[kid], _part(value["credential"], 2), signed.encode()))
        encoded = value.get("invocation") or value.get("statement")
        if encoded is not None:
            envelope = Envelope.parse(encoded, may_be_joint=True)
            key = keys[envelope.key_ids[0]]
            held.append((key, *envelope.signed(key)))

    def once() -> int:
        for key, signature, message in held:
            key.verify(signature, message)
        return len(held)

    return once, size + 1


def _part(token: str, part: int) -> bytes:
    return b64url_decode(token.split(".")[part])
