"""A log with more shards than a process may open files: a crowd of writers leaves it behind."""

from __future__ import annotations

import resource
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentguard.storage import reader as readers
from agentguard.storage.reader import StateReader


@contextmanager
def at_most(descriptors):
    """Let the process open no more files than these, beside those that are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(open_.name) for open_ in Path("/dev/fd").iterdir()) + descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("shards", "kept", "descriptors"),
    [
        pytest.param(20, 10, 50, id="where a reader keeps ten open"),
        pytest.param(
            *(90, readers._KEPT, 230),
            id="where it keeps as many as it does",
            marks=pytest.mark.slow("90 shards at once"),
        ),
    ],
)
def test_it_verifies_and_is_written_all_the_same(
    place, ran, monkeypatch, shards, kept, descriptors
):
    monkeypatch.setattr(readers, "_KEPT", kept)
    domain, now = place.take_up(), datetime.now(UTC)
    for log in [domain.lease(now) for _ in range(shards)]:
        log.close()
    with at_most(descriptors):
        report = place.examine()
        assert (report.problems, len(report.shards)) == ((), shards)
        with place.open() as guard:
            guard.new_agent("reader").call(guard.tool(lambda: ran.append(0), name="tool"))
    assert ran == [0]
    assert place.examine().ok


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
