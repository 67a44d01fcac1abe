"""Edits of a log's files by SQL, and the problems that verification then reports."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from agentguard.audit import merkle
from agentguard.domain import keystore
from agentguard.storage.anchor import head_path
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in

PASSPHRASE = b"correct horse battery staple"


def use(place: Any, ran: list[Any], calls: int) -> None:
    """Make so many calls in a guard of the place."""
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        for number in range(calls):
            agent.call(tool, number)


def file_of(place: Any) -> Path:
    return path_in(place.config.state)


def anchor_of(place: Any) -> Path:
    trust = keystore.load_trust(place.config.state)
    return head_path(place.config.anchor, trust.log)


def change(place: Any, *statements: Any) -> None:
    """Run SQL statements on the log's file, as somebody with write access can.

    The function ``leaf_hash`` is there, by which a careful editor has the hash beside an entry fit.
    """
    with closing(sqlite3.connect(file_of(place))) as connection:
        connection.create_function("leaf_hash", 1, merkle.leaf_hash)
        for statement in statements:
            parts = statement if isinstance(statement, tuple) else (statement,)
            connection.execute(*parts)
        connection.commit()


def problems(place: Any) -> list[str]:
    """Verify the place's log and return what was found."""
    report = place.examine()
    assert report.ok == (not report.problems)
    return [problem.what for problem in report.problems]


def bodies(place: Any) -> list[tuple[int, bytes]]:
    reader = StoredLog.of(place.config.state)
    try:
        return list(reader.entries())
    finally:
        reader.close()
