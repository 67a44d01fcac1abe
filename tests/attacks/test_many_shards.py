"""A log with more shards than a process may open files: a crowd of writers leaves it behind."""

from __future__ import annotations

import resource
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest

from agentguard.storage import reader as readers
from agentguard.storage.reader import StateReader

SHARDS, DESCRIPTORS = 90, 250


@contextmanager
def at_most(descriptors):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def crowded(place):
    """A log of which each of many writers at once has had a shard."""
    domain, now = place.take_up(), datetime.now(UTC)
    writers = [domain.lease(now) for _ in range(SHARDS)]
    for log in writers:
        log.close()
    return place


def test_it_verifies_and_is_written_all_the_same(crowded, ran):
    with at_most(DESCRIPTORS):
        report = crowded.examine()
        assert (report.problems, len(report.shards)) == ((), SHARDS)
        with crowded.open() as guard:
            guard.new_agent("reader").call(guard.tool(lambda: ran.append(0), name="tool"))
    assert ran == [0]
    assert crowded.examine().ok


def test_the_twin_what_is_read_just_then_stays_open(place, monkeypatch):
    monkeypatch.setattr(readers, "_KEPT", 1)
    domain, now = place.take_up(), datetime.now(UTC)
    writers = [domain.lease(now) for _ in range(4)]
    for log in writers:
        log.close()
    with closing(StateReader(place.config.state)) as reader:
        walks = [reader.entries(shard) for shard in reader.shards()]
        assert [next(walk)[0] for walk in walks] == [0, 0, 0, 0]
        with reader.snapshot(0):
            assert [reader.checkpoint(shard) is not None for shard in (1, 2, 3, 0)] == [True] * 4
            assert [len(list(walk)) > 0 for walk in walks[:1]] == [True]
        for walk in walks:
            list(walk)
        reader.close()
        assert [reader.checkpoint(shard) is not None for shard in (1, 2, 3, 0)] == [True] * 4
        assert len(reader._open) == 1
