"""The file of an empty shard, which anybody can make who writes into the state: no key is needed.

Under a high number it must not lead the next writer to a number that no shard can have: what is
written there would be read by nobody.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentguard.domain import keystore
from agentguard.storage import sqlite


@pytest.mark.parametrize("planted", [1, 7, 999_999_999])
def test_writers_take_shards_that_everybody_reads(place, ran, planted):
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(lambda: ran.append(0), name="first"))
    state = place.config.state
    origin = keystore.load_trust(state).origin(planted)
    row = "INSERT INTO shard VALUES (1, ?, 0, x'')"
    sqlite.make(sqlite.shard_path(state, planted), sqlite.SHARD, row, (origin,))
    assert place.examine().ok

    writers = [place.open() for _ in range(3)]  # each has a shard of its own
    for number, guard in enumerate(writers):
        tool = guard.tool(lambda number=number: ran.append(number), name=f"tool-{number}")
        guard.new_agent("reader").call(tool)
    for guard in writers:
        guard.close()
    assert ran == [0, 0, 1, 2]
    assert len(place.seen().authorizations) == 4
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    place.take_up().lease(datetime.now(UTC)).close()
