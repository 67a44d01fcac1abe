"""The processes that read entries: what they answer, and what counts as their answer."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit.ahead import Batch, InOneThread, Reading, read_ahead
from agentguard.audit.entry import StoredEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.domain import entry_processes
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
        stored = list(guard.reader().stored())
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


def signers(readings: Sequence[Reading]) -> list[Reading]:
    """Return what a process tells of readings: who has signed."""
    return [Reading(signer=one.signer) for one in readings]


def test_a_process_reads_what_this_one_reads(batch, read_here):
    expected = InOneThread().start(batch)()
    kinds = Counter(reading.entry.kind for reading in expected if reading.entry is not None)
    assert {"key", "identity", "call", "outcome"} <= kinds.keys()
    calls = [one for one in expected if isinstance(one.entry, CallEntry | OutcomeEntry)]
    assert [reading.signer is None for reading in calls] == [False] * (len(calls) - 1) + [True]
    assert list(expected[FORGED + 1 :]) == [Reading()] * len(NOT_READ)
    read_here.clear()
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch), reader.start(batch._replace(keys=()))]
        assert [answer() for answer in answers] == [signers(expected)] * 2
    assert read_here == []


def test_batches_that_are_longer_than_a_pipe_are_answered(read_here):
    """Else each of two processes could wait until the other one reads."""
    at = "2026-11-25T12:00:00Z"
    members: dict[str, Any] = {"config": {"text": "x" * 200_000}, "config_sha256": "0" * 64}
    batch = Batch([canonical.dumps({"at": at, "kind": "config", **members})] * 12)
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch) for _ in range(3)]
        for answer in answers:
            assert answer() == [Reading()] * 12
    assert read_here == []


def test_no_signature_is_checked_before_the_time_since(batch):
    (newest, *_others) = sorted(filter(None, (r.at for r in InOneThread().start(batch)())))[::-1]
    for since, is_checked in ((newest + 1, False), (0, True)):
        readings = InOneThread().start(batch._replace(since=since))()
        assert any(reading.signer for reading in readings) is is_checked
        assert any(isinstance(reading.entry, CallEntry) for reading in readings)


PRINTED = {"nothing": b"", "a byte": b"\x01", "a line": b"hello\n", "all": b"\x01" * 9999}


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_what_else_a_process_prints_is_no_answer(batch, read_here, tmp_path, monkeypatch, printed):
    """Else what a module of the site prints would be read as entries."""
    expected = signers(InOneThread().start(batch)())
    read_here.clear()
    program = f"import os\nos.write(1, {printed!r})\n"
    (tmp_path / "sitecustomize.py").write_text(program, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with entry_reader(2, alone=0) as reader:
        answers = [reader.start(batch) for _ in range(3)]
        assert [signers(answer()) for answer in answers] == [expected] * 3
    assert len(read_here) == (3 if printed else 0)


@pytest.mark.parametrize("answer", [b"", b"\x91\x01", b"\x81\xa1a\xc0", pickle.dumps(["x"])])
def test_an_answer_that_can_not_be_read_is_read_here(batch, read_here, monkeypatch, answer):
    expected = InOneThread().start(batch)()
    read_here.clear()
    readings = entry_processes._InProcesses._readings
    monkeypatch.setattr(
        entry_processes._InProcesses, "_readings", lambda self, _answer: readings(self, answer)
    )
    with entry_reader(2, alone=0) as reader:
        assert reader.start(batch)() == expected
    assert len(read_here) == 1
