"""A rollback journal beside the log: SQLite would remove the file that the journal names.

A log has a write-ahead log and never a rollback journal, so whoever lays one there can write the
state. By it, files outside the state would go: the anchor first, and then the state is rolled back.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from edited_logs import bodies

from agentguard import StorageError
from agentguard.domain import adoption, keystore
from agentguard.domain.verify import examine
from agentguard.storage import anchor
from agentguard.store import sqlite as store_file
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine, path_in

PASSPHRASE = b"correct horse battery staple"


def adopt(place) -> None:
    confirmed = adoption.compare(place.config)
    adoption.adopt(place.config, PASSPHRASE, confirmed, note="a note", now=datetime.now(UTC))


WAYS: dict[str, Callable[[Any], object]] = {
    "take": lambda place: place.open().close(),
    "erase": lambda place: store_file.erase(path_in(place.config.state), [1]),
    "read": bodies,
    "adopt": adopt,
}


def lay_journal(log: Path, target: Path) -> Path:
    """Write the shortest journal that SQLite plays back: a header, and the name of a file."""
    name, magic = os.fsencode(target), bytes.fromhex("d9d505f920a163d7")
    pages = log.stat().st_size // 4096
    header = (magic + struct.pack(">IIIII", 0, 1234, pages, 512, 4096)).ljust(512, b"\0")
    checked = sum(byte if byte < 128 else byte - 256 for byte in name) & 0xFFFFFFFF
    end = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">II", len(name), checked)
    journal = log.with_name(f"{log.name}-journal")
    journal.write_bytes(header + end + magic)
    return journal


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "precious"
    path.write_text("outside of the state")
    return path


def test_sqlite_itself_follows_the_journal_and_removes_what_it_names(used, victim):
    """Else nothing here could fail."""
    log = path_in(used.config.state)
    journal = lay_journal(log, victim)
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("PRAGMA application_id")
    assert not journal.exists()
    # SQLite 3.40 removes the other file, and 3.53 keeps it; none between them was tried.
    assert not victim.exists() or sqlite3.sqlite_version_info >= (3, 41)


@pytest.mark.parametrize("way", WAYS)
def test_nobody_opens_a_log_with_a_journal_beside_it(used, victim, way):
    journal = lay_journal(path_in(used.config.state), victim)
    with pytest.raises(StorageError, match=r"log\.sqlite-journal is not agentguard's") as caught:
        WAYS[way](used)
    assert caught.value.code == "storage.corrupt"
    assert victim.exists()
    journal.unlink()
    WAYS[way](used)  # the twin
    assert used.examine().ok


def test_verification_says_so(used, victim):
    """Of a log that is verified when the journal comes."""
    trust = keystore.load_trust(used.config.state)
    with closing(StoredLog(FileEngine(path_in(used.config.state), writes=False))) as reader:
        lay_journal(path_in(used.config.state), victim)
        report = examine(reader, trust, anchor=used.config.anchor)
    assert any("log.sqlite-journal is not agentguard's" in one.what for one in report.problems)


@pytest.mark.parametrize("way", WAYS)
def test_nor_one_beside_which_it_is_laid_while_it_is_opened(used, victim, monkeypatch, way):
    """After the last look, and before SQLite's first one."""
    log = path_in(used.config.state)
    connect = sqlite3.connect

    def connect_late(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute("PRAGMA busy_timeout=50")
        lay_journal(log, victim)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_late)
    with pytest.raises(StorageError, match=r"log\.sqlite-journal is not agentguard's"):
        WAYS[way](used)
    assert victim.exists()
    monkeypatch.undo()
    log.with_name("log.sqlite-journal").unlink()
    WAYS[way](used)  # the twin
    assert used.examine().ok


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_nor_one_that_takes_the_log_s_place_while_it_is_opened(
    used, victim, monkeypatch, tmp_path, mode
):
    """The connection that keeps the log locked is on one file then, and the writer's on another."""
    log, other = path_in(used.config.state), tmp_path / "other"
    shutil.copy(log, other)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    connect, opened = sqlite3.connect, []

    def connect_to_another(where: str, **options: Any) -> sqlite3.Connection:
        if "mode=rw" not in where:
            return connect(where, **options)
        exchange(log, other)
        connection: sqlite3.Connection = connect(where, **options)
        exchange(log, other)
        lay_journal(log, victim)
        opened.append(where)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to_another)
    with pytest.raises(StorageError, match="another file takes its place") as caught:
        used.open()
    assert caught.value.code == "storage.locked"
    assert "damaged" not in str(caught.value)  # the log is not
    assert opened
    assert victim.exists()


def exchange(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def test_nor_one_that_is_no_write_ahead_log(used):
    with closing(sqlite3.connect(path_in(used.config.state))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with pytest.raises(StorageError, match="no write-ahead log") as caught:
        used.open()
    assert caught.value.code == "storage.corrupt"


def test_a_log_is_opened_while_other_threads_open_files(used, tmp_path):
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            (tmp_path / "theirs").write_text("theirs")
            done.wait(0.001)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            used.open().close()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("is_closed", [True, False], ids=["and close them", ""])
def test_a_log_is_opened_where_other_threads_open_files_at_each_attempt(
    used, monkeypatch, tmp_path, is_closed
):
    connect, theirs = sqlite3.connect, []

    def connect_beside(*args: Any, **options: Any) -> sqlite3.Connection:
        theirs.append((tmp_path / "theirs").open("w"))
        if is_closed:
            threading.Timer(0.005, theirs[-1].close).start()
        connection: sqlite3.Connection = connect(*args, **options)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_beside)
    if is_closed:
        used.open().close()
    else:  # nobody can tell them from what SQLite has opened
        with pytest.raises(
            StorageError, match="threads of this process open other files"
        ) as caught:
            used.open()
        assert caught.value.code == "storage.locked"
        assert "damaged" not in str(caught.value)
        monkeypatch.undo()
        used.open().close()  # the twin: they stay open, and were there before
    assert theirs
    for one in theirs:
        one.close()


def hide_descriptors(monkeypatch: pytest.MonkeyPatch, listed: list[str] | None) -> None:
    """Have /dev/fd be as in a jail without /proc, or as where it is a folder of device nodes."""
    listdir = os.listdir

    def look(path: Any = ".") -> list[str]:
        if path != "/dev/fd":
            return listdir(path)
        if listed is None:
            raise FileNotFoundError(path)
        return listed

    monkeypatch.setattr(os, "listdir", look)


@pytest.mark.parametrize("listed", [None, ["0", "1", "2"]], ids=["no /dev/fd", "0, 1, 2 alone"])
def test_a_log_is_opened_where_the_system_does_not_list_what_is_open(
    used, victim, monkeypatch, tmp_path, listed
):
    hide_descriptors(monkeypatch, listed)
    used.open().close()
    test_nor_one_that_takes_the_log_s_place_while_it_is_opened(
        used, victim, monkeypatch, tmp_path, "delete"
    )


def test_nor_is_every_number_tried_there(used, monkeypatch):
    """A busy process opens files all the time: during a long look the log could not be opened."""
    hide_descriptors(monkeypatch, None)
    monkeypatch.setattr(os, "sysconf", lambda _name: 1 << 16)
    fstat, tried = os.fstat, set()

    def counted(number: int) -> os.stat_result:
        tried.add(number)
        return fstat(number)

    monkeypatch.setattr(os, "fstat", counted)
    used.open().close()
    assert 0 in tried
    assert max(tried) < 4096


def test_the_anchor_outlives_a_state_that_is_put_back_with_a_journal(used, ran, tmp_path):
    state = used.config.state
    shutil.copytree(state, tmp_path / "old")
    with used.open() as guard:
        guard.new_agent("reader").call(guard.tool(lambda: ran.append(0), name="tool"))
    kept = anchor.head_path(used.config.anchor, keystore.load_trust(state).log)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "old", state)
    journal = lay_journal(path_in(state), kept)
    with pytest.raises(StorageError, match="is not agentguard's"):
        used.open()
    assert kept.exists()
    journal.unlink()
    with pytest.raises(StorageError) as caught:
        used.open()
    assert caught.value.code == "storage.rolled_back"
