"""Stores on both engines, with entries that are as short as the tests allow."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.entry import Attachment, Record
from agentguard.audit.head import Head
from agentguard.audit.map import key
from agentguard.audit.summary import Summary
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustedKey
from agentguard.signing.keys import Ed25519Signer
from agentguard.store import check, sqlite
from agentguard.store.anchor import Anchor
from agentguard.store.store import Store, first_head
from agentguard.store.transaction import Transaction

LOG = "test.example/log/store"
SIGNER = Ed25519Signer.from_seed(sha256(b"store").digest())
START = "2026-12-02T00:00:00.000000Z"
FIRST = first_head(LOG, SIGNER, START)
KEYS = (TrustedKey("log", SIGNER.public_key, 0),)
KIND, OTHER = 1, 2


def record(name: str, at: str = START, **columns: Any) -> Record:
    summary = Summary("authorization", at, name, **columns)
    return Record(f"entry {name}".encode(), summary, (Attachment("input", "c", b"s", b"data"),))


class Place:
    """A store in a folder, which any number of processes open; or one in memory."""

    def __init__(self, folder: Path, kind: str = "file") -> None:
        self.path = folder / "store.sqlite"
        self.anchor_path = folder / "outside" / "anchor"
        self.kind = kind
        self.opened: list[Store] = []
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        if kind == "file":
            sqlite.make(self.path, FIRST)

    def clock(self) -> datetime:
        """Return what ``now`` says at the time."""
        return self.now()

    def open(self, *, anchored: bool = False, signer: Any = SIGNER) -> Store:
        engine = (
            sqlite.MemoryEngine(FIRST) if self.kind == "memory" else sqlite.FileEngine(self.path)
        )
        anchor = Anchor(self.anchor_path, LOG, lambda: KEYS) if anchored else None
        store = Store(engine, LOG, lambda: KEYS, signer, anchor=anchor, clock=self.clock)
        self.opened.append(store)
        return store

    def page(self, name: str) -> bytes:
        """Return a page, as an editor of the file reads it."""
        with closing(sqlite3.connect(self.path)) as raw:
            ((data,),) = raw.execute("SELECT data FROM page WHERE name = ?", (name,)).fetchall()
            return bytes(data)

    def put_page(self, name: str, data: bytes) -> None:
        """Write a page, as an editor of the file writes it."""
        with closing(sqlite3.connect(self.path)) as raw, raw:
            raw.execute("UPDATE page SET data = ? WHERE name = ?", (data, name))

    def close(self) -> None:
        for store in self.opened:
            store.close()


def add(store: Store, name: str, value: bytes | None = b"", kind: int = KIND) -> int:
    """Append one entry that gives its own name a value in the map."""
    one = key(kind, name)

    def job(tx: Transaction) -> int:
        tx.put(one, value)
        return tx.append(record(name, tx.at))

    index: int = store.run(job)
    return index


@pytest.fixture(params=["file", "memory"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def get(store: Store, *keys: bytes) -> list[bytes | None]:
    """Return the values of keys in the newest state."""
    return store.look(lambda values: [values.get(one) for one in keys])


def items(store: Store, kind: int) -> dict[bytes, bytes]:
    """Return every key of a kind with its value."""
    return store.look(lambda values: dict(values.items(kind)))


def verified(store: Store) -> Head:
    """Return the head over the whole store, in which all is as it was signed.

    Raises ``StorageError`` (``storage.corrupt``) for what is not.
    """
    head, read = store.head(), store._engine.read
    for problem in check.problems(read):
        raise StorageError(problem, code="storage.corrupt")
    return head
