"""A guard closes while somebody in the same process reads the guard's log, row after row.

The reader gets its next rows once the guard has let SQLite go. A guard that waits for the reader
would hold up every thread of the process, until SQLite gives up after five seconds.
"""

from __future__ import annotations

import shutil
import threading
from contextlib import closing

from agentguard.domain import keystore, verify
from agentguard.storage import sqlite
from agentguard.store import reader as log_reader
from agentguard.store.reader import StoredLog


def test_a_guard_does_not_wait_for_a_reader_in_its_process(used, monkeypatch):
    # SQLite gives up after an hour here, so that a wait shows itself
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 3600.0)
    guard = used.open()
    reader = StoredLog.of(used.config.state)
    walk = reader.entries()
    read = [next(walk)]  # the statement stays open between two batches of rows
    closing = threading.Thread(target=guard.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    read += walk
    assert len(read) > log_reader._AT_ONCE  # else the statement was over before the close
    assert [index for index, _body in read] == list(range(len(read)))
    reader.close()


def test_what_a_guard_wrote_is_there_after_it_closed_beside_a_reader(used, tmp_path):
    """The entries are in the write-ahead log: for who reads on, opens, or copies the files."""
    before = used.examine().entries
    with used.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="note")(lambda: None))
        reader = StoredLog.of(used.config.state)
        walk = reader.entries()
        next(walk)
    assert list(used.config.state.rglob("*-wal"))
    report = used.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    assert report.entries > before
    copy = shutil.copytree(used.config.state, tmp_path / "copy")
    with closing(StoredLog.of(copy)) as other:
        assert verify.examine(other, keystore.load_trust(copy)).entries == report.entries
    reader.close()
    with used.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="note")(lambda: None))
    assert used.examine().problems == ()
    assert used.examine().entries > report.entries


def test_a_guard_that_nobody_reads_leaves_one_file(used):
    with used.open():
        pass
    assert not list(used.config.state.rglob("*-wal"))
