"""Edits of a log's files by SQL, and the problems that verification then reports."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from agentguard.domain import keystore
from agentguard.storage.anchor import anchor_path
from agentguard.storage.reader import StateReader
from agentguard.storage.sqlite import shard_path

PASSPHRASE = b"correct horse battery staple"


def use(place: Any, ran: list[Any], calls: int) -> None:
    """Make so many calls in a guard of the place."""
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        for number in range(calls):
            agent.call(tool, number)


def file_of(place: Any, shard: Any = 0) -> Path:
    return shard_path(place.config.state, shard)


def anchor_of(place: Any, shard: int = 0) -> Path:
    trust = keystore.load_trust(place.config.state)
    return anchor_path(place.config.anchor, f"{trust.log}/{shard}")


def change(place: Any, *statements: Any) -> None:
    """Run SQL statements on the first shard, as somebody with write access can."""
    change_in(place, 0, *statements)


def change_in(place: Any, shard: int, *statements: Any) -> None:
    connection = sqlite3.connect(file_of(place, shard))
    for statement in statements:
        parts = statement if isinstance(statement, tuple) else (statement,)
        connection.execute(*parts)
    connection.commit()
    connection.close()


def problems(place: Any) -> list[str]:
    """Verify the place's log and return what was found."""
    report = place.examine()
    assert report.ok == (not report.problems)
    return [problem.what for problem in report.problems]


def bodies(place: Any) -> list[tuple[int, bytes]]:
    reader = StateReader(place.config.state)
    try:
        return list(reader.entries(0))
    finally:
        reader.close()
