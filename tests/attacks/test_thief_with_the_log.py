"""Who has the log's key as well, and appends what no honest process would, with valid checkpoints.

He can't make anything up that an agent signs, so he says again what one has signed once.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentguard.audit import entry
from agentguard.audit.entry import Record
from agentguard.storage.reader import StateReader

CALL = ("config", "policy", "identity", "authorization")
"""The kinds of entries that a call takes in its shard."""


def call(place) -> None:
    with place.open() as guard:
        guard.new_agent("reader").call(guard.tool(lambda: None, name="pay"))


@pytest.mark.parametrize("kinds", [CALL[:3], CALL])
def test_a_call_stands_once_in_all_shards(place, kinds):
    call(place)
    reader = StateReader(place.config.state)
    stored = list(reader.stored(0))
    reader.close()
    first, now = place.take_up().lease(datetime.now(UTC)), datetime.now(UTC)
    log = place.take_up().lease(now)
    assert (first.shard, log.shard) == (0, 1)
    copied = [s for s in stored if entry.parse(s.body).kind in kinds]
    for one in copied:
        log.append(Record(one.body, one.summary, tuple(one.attachments)))
    for opened in (log, first):
        opened.close()
    found = [(p.shard, p.what) for p in place.examine().problems]
    again = [(1, "the same invocation stands in the log before")]
    assert found == (again if "authorization" in kinds else [])
