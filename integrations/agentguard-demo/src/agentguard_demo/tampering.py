"""Verifies the log, and a copy of the log in which one byte is changed.

The verifier is agentguard's own, with the trust document from outside the state. The change is made
in the database file, without agentguard.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentguard import Report, TrustDocument
from agentguard.domain.verify import examine
from agentguard.store import sqlite
from agentguard.store.reader import StoredLog
from agentguard_demo.setting import Setting

_TIME_MEMBER: Final = b'"at":"'


@dataclass(frozen=True, slots=True)
class Change:
    """One byte of a file, before and after the change, in the log's entry ``index``."""

    path: Path
    offset: int
    before: str
    after: str
    index: int


def verify(setting: Setting, state: Path) -> Report:
    """Verify the log in ``state`` with the trust document and the checkpoints of the anchor."""
    reader = StoredLog.of(state)
    try:
        trust = TrustDocument.loads(setting.trust_file.read_bytes())
        return examine(reader, trust, anchor=setting.anchor)
    finally:
        reader.close()


def change_one_byte(setting: Setting, index: int) -> Change:
    """Copy the state, without its keys, and move the time of entry ``index`` by a microsecond.

    The entry stays well-formed: only hashes and signatures show the change.
    """
    ignored = shutil.ignore_patterns("keys")
    shutil.copytree(setting.state, setting.tampered_state, ignore=ignored)
    path = sqlite.path_in(setting.tampered_state)
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        copy.execute("VACUUM")  # removes stale copies of pages: each entry is in the file once
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (body,) = copy.execute("SELECT body FROM entry WHERE idx = ?", (index,)).fetchone()
    data = bytearray(path.read_bytes())
    begin = body[: body.index(_TIME_MEMBER) + len(_TIME_MEMBER) + len("2000-01-01T00:00:00.00000")]
    offset = data.index(begin) + len(begin)
    before, after = data[offset], ord("0") + (data[offset] - ord("0") + 1) % 10
    data[offset] = after
    path.write_bytes(data)
    return Change(path, offset, chr(before), chr(after), index)
