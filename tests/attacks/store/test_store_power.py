"""Power cuts, acted: of the files there is what was synced, and a part of what was written since.

What a commit has acknowledged was synced before (``test_storage_faults_kernel.py``: where the
kernel syncs nothing, no commit is acknowledged). So a cut leaves the write-ahead log as it was by
then, whole, and behind it any part of what came later, also torn. Amid a checkpoint it leaves any
of the pages that SQLite copies into the database.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from rounds import FULL
from store_place import KIND, Place, add, get, record, verified

from agentguard.audit.map import key
from agentguard.errors import StorageError

CUTS = 50 if FULL else 8
PAGE = 4096


class Files(NamedTuple):
    """What a database and its write-ahead log have at a moment."""

    database: bytes
    log: bytes

    @classmethod
    def of(cls, path: Path) -> Files:
        return cls(path.read_bytes(), path.with_name(path.name + "-wal").read_bytes())


def after_a_cut(folder: Path, database: bytes, log: bytes) -> Place:
    place = Place(folder, "none")
    place.kind = "file"
    folder.mkdir()
    place.path.write_bytes(database)
    place.path.with_name(place.path.name + "-wal").write_bytes(log)
    return place


def torn(chance: random.Random, synced: bytes, written: bytes) -> bytes:
    """Return what a cut may leave of a write-ahead log: what was synced, and some of the rest."""
    rest = bytearray(written[len(synced) :][: chance.randrange(len(written) - len(synced) + 1)])
    for _ in range(chance.randrange(4)):
        if rest:
            at = chance.randrange(len(rest))
            rest[at : at + 512] = bytes(len(rest[at : at + 512]))  # a sector that was not written
    return synced + bytes(rest)


def goes_on(place: Place, acknowledged: list[str]) -> None:
    """Require that all is there, and that the log goes on."""
    store = place.open()
    try:
        size = verified(store).size
        assert size >= len(acknowledged)
        found = get(store, *(key(KIND, name) for name in acknowledged))
        assert found == [b"kept"] * len(acknowledged)
        pages = store.look(lambda view: view.pages("runs"))
        assert {f"runs/{name}" for name in acknowledged} <= {*pages}
        assert add(store, "later") == size
    finally:
        place.close()


def write(store, name):
    """Add an entry with its page, and return its name once that is acknowledged."""

    def job(tx):
        tx.write_page(f"runs/{name}", b"page")
        tx.put(key(KIND, name), b"kept")
        return tx.append(record(name, tx.at))

    store.run(job)
    return name


@pytest.mark.parametrize("cut", range(CUTS))
def test_a_power_cut_loses_nothing_that_was_acknowledged(on_disk, tmp_path, cut):
    chance = random.Random(f"{cut} power")  # noqa: S311  no secret
    store = on_disk.open()
    names = iter(f"entry {number}" for number in range(1000))
    acknowledged = [write(store, next(names)) for _ in range(chance.randrange(1, 40))]
    synced = Files.of(on_disk.path)
    for _ in range(chance.randrange(1, 4)):  # these may be lost
        write(store, next(names))
    log = torn(chance, synced.log, Files.of(on_disk.path).log)
    goes_on(after_a_cut(tmp_path / "cut", synced.database, log), acknowledged)


@pytest.mark.parametrize("cut", range(CUTS))
def test_a_power_cut_amid_a_checkpoint_loses_nothing(on_disk, tmp_path, cut):
    chance = random.Random(f"{cut} checkpoint")  # noqa: S311  no secret
    store = on_disk.open()
    acknowledged = [write(store, f"entry {number}") for number in range(chance.randrange(2, 40))]
    before = Files.of(on_disk.path)
    with closing(sqlite3.connect(on_disk.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        after = on_disk.path.read_bytes()
    assert after != before.database
    pages = [
        chance.choice((before.database, after))[at : at + PAGE] for at in range(0, len(after), PAGE)
    ]
    database = b"".join(page.ljust(PAGE, b"\0") for page in pages)
    goes_on(after_a_cut(tmp_path / "cut", database, before.log), acknowledged)


def test_what_was_synced_is_needed(on_disk, tmp_path):
    """The twin: without the end of what was acknowledged, an entry is missing."""
    store = on_disk.open()
    acknowledged = [write(store, f"entry {number}") for number in range(5)]
    synced = Files.of(on_disk.path)
    with pytest.raises((AssertionError, StorageError)):
        goes_on(after_a_cut(tmp_path / "cut", synced.database, synced.log[:-1]), acknowledged)
