"""The processes that read entries: what they answer, and what counts as their answer."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit.ahead import Batch, InOneThread, Reading, read_ahead
from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry, StoredEntry
from agentguard.call.client import Client
from agentguard.domain import entry_worker
from agentguard.domain.entry_processes import entry_reader
from agentguard.signing import canonical

NOT_READ = [b"", b"{}", b"[]", b"\xff", b"[" * 99, b'{"at":"x","kind":"key"}', b" " * 300_000]
"""Bodies of no entry."""

FORGED = -1 - len(NOT_READ)
"""The place of the outcome whose signature does not hold."""


class Recording(InOneThread):
    """Keeps the batches that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.batches_read: list[Batch] = []

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        self.batches_read.append(batch)
        return super().start(batch)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """A log with a refused call, a forged signature, and bodies that are no entries."""

    def policy(document: Any) -> Decision:
        return Decision.deny("no") if document["args"]["x"] == 3 else Decision.allow()

    with Guard.ephemeral(policy) as guard:
        agent = guard.new_agent("reader")

        @guard.tool
        def tool(x: int) -> int:
            return x

        for number in range(10):
            try:
                agent.call(tool, x=number)
            except Denied:
                continue
        stored = list(guard.reader().stored(0))
    members: Any = canonical.loads(stored[-1].body)
    statement = members["statement"]
    signature = statement["joint"] if "joint" in statement else statement["signatures"][0]
    signature["sig"] = canonical.b64_encode(bytes(64))
    bodies = [canonical.dumps(members), *NOT_READ]
    stored += [StoredEntry(len(stored) + place, body) for place, body in enumerate(bodies)]
    recording = Recording()
    assert len(list(read_ahead(stored, recording, since=0))) == len(stored)
    (batch,) = recording.batches_read
    return batch


@pytest.fixture
def read_here(monkeypatch) -> list[Batch]:
    """The batches that this process reads itself."""
    seen: list[Batch] = []
    start = InOneThread.start

    def spied(self: InOneThread, batch: Batch) -> Callable[[], Sequence[Reading]]:
        seen.append(batch)
        return start(self, batch)

    monkeypatch.setattr(InOneThread, "start", spied)
    return seen


def test_a_process_reads_what_this_one_reads(batch, read_here):
    expected = InOneThread().start(batch)()
    kinds = Counter(reading.entry.kind for reading in expected if reading.entry is not None)
    assert {"shard", "identity", "call", "outcome"} <= kinds.keys()
    calls = [reading for reading in expected if reading.content is not None]
    assert [reading.signer is None for reading in calls] == [False] * (len(calls) - 1) + [True]
    assert expected[FORGED].content is not None
    assert list(expected[FORGED + 1 :]) == [Reading()] * len(NOT_READ)
    read_here.clear()
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch), reader.start(batch._replace(keys=()))]
        assert [answer() for answer in answers] == [expected, expected]
    assert read_here == []


def test_batches_that_are_longer_than_a_pipe_are_answered(read_here):
    """Else each of two processes could wait until the other one reads."""
    at = "2026-11-25T12:00:00Z"
    members: dict[str, Any] = {"config": {"text": "x" * 200_000}, "config_sha256": "0" * 64}
    batch = Batch([canonical.dumps({"at": at, "kind": "config", **members})] * 12)
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch) for _ in range(3)]
        for answer in answers:
            entries = [reading.entry for reading in answer()]
            assert entries == [Entry("config", at, members)] * 12
    assert read_here == []


def test_no_signature_is_checked_before_the_time_since(batch):
    (newest, *_others) = sorted(filter(None, (r.at for r in InOneThread().start(batch)())))[::-1]
    for since, is_checked in ((newest + 1, False), (0, True)):
        readings = InOneThread().start(batch._replace(since=since))()
        assert any(reading.signer for reading in readings) is is_checked
        assert any(reading.content for reading in readings)


PRINTED = {"nothing": b"", "a byte": b"\x01", "a line": b"hello\n", "all": b"\x01" * 9999}


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_what_else_a_process_prints_is_no_answer(batch, read_here, tmp_path, monkeypatch, printed):
    """Else what a module of the site prints would be read as entries."""
    expected = InOneThread().start(batch)()
    read_here.clear()
    program = f"import os\nos.write(1, {printed!r})\n"
    (tmp_path / "sitecustomize.py").write_text(program, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch) for _ in range(3)]
        assert [answer() for answer in answers] == [expected] * 3
    assert len(read_here) == (3 if printed else 0)


def test_a_message_makes_nothing_but_the_values_of_a_batch():
    class Made:
        def __reduce__(self) -> Any:
            return os.getcwd, ()

    assert entry_worker.readings_of(entry_worker.dumps([Reading()])) == [Reading()]
    with pytest.raises(pickle.UnpicklingError, match="getcwd"):
        entry_worker.readings_of(pickle.dumps([Made()]))


def classes_in(annotation: Any) -> set[type]:
    """Return agentguard's classes that a value of an annotated type may hold, at any depth."""
    if isinstance(annotation, type) and annotation.__module__.startswith("agentguard."):
        hints = get_type_hints(annotation).values()
        return {annotation}.union(*map(classes_in, hints))
    return set().union(*map(classes_in, get_args(annotation)))


def test_a_message_has_a_place_for_each_class_of_a_reading_and_of_a_batch():
    """Else the answer about an entry with such a value would be lost."""
    expected = classes_in(Reading)
    assert {Authorization, Client} <= expected
    assert expected | classes_in(Batch) <= set(entry_worker._CLASSES.values())


@pytest.fixture(scope="module")
def from_clients(batch) -> Batch:
    """The entries of calls that came from the clients of a guard server."""
    bodies = []
    for body in batch.bodies:
        members: Any = canonical.loads(body) if b'"kind":"call"' in body else None
        if members is not None:
            members["client"] = {"isolation": "separate-user", "name": "reviewer"}
            bodies.append(canonical.dumps(members))
    return batch._replace(bodies=bodies)


def test_a_process_reads_the_calls_of_a_guard_server(from_clients, read_here):
    expected = InOneThread().start(from_clients)()
    calls = [one.content for one in expected if isinstance(one.content, Authorization)]
    clients = [call.client for call in calls]
    assert clients == [Client("reviewer", "separate-user")] * 10
    read_here.clear()
    with entry_reader(2, alone=0) as reader:
        assert reader.start(from_clients)() == expected
    assert read_here == []


def test_an_answer_that_can_not_be_read_is_read_here(from_clients, read_here, monkeypatch):
    expected = InOneThread().start(from_clients)()
    read_here.clear()
    classes = {key: one for key, one in entry_worker._CLASSES.items() if one is not Client}
    monkeypatch.setattr(entry_worker, "_CLASSES", classes)
    with entry_reader(2, alone=0) as reader:
        assert reader.start(from_clients)() == expected
    assert len(read_here) == 1
