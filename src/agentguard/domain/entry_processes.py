"""Reads the entries of a log on several cores, as tasks of ``worker_processes.py``.

A task is a batch, and the answer names the signers, both in MessagePack. The process that asks
reads the entries itself: an answer spares work alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from msgspec import MsgspecError, msgpack

from agentguard.audit.ahead import MOST_KEYS, Batch, EntryReader, InOneThread, Reading
from agentguard.domain.worker_processes import TaskKind, WorkerProcesses, work
from agentguard.signing.keys import PublicKey

NAME: Final = "agentguard.domain.entry_processes"
"""The module that the other processes run: this one."""

_ALONE: Final = 256
"""The entries that are read here first: for so few, no process is worth its start."""


@contextmanager
def entry_reader(jobs: int, *, alone: int = _ALONE) -> Iterator[EntryReader]:
    """Provide a reader of entries in ``jobs`` processes, of which this one is the first.

    The others start after ``alone`` entries, and end with the context.
    """
    if jobs == 1:
        yield InOneThread()
        return
    reader = _InProcesses(jobs - 1, alone)
    try:
        yield reader
    finally:
        reader.close()


class _InProcesses:
    """An ``EntryReader`` that shares batches out, after the first ``alone`` entries.

    Each process gets the keys that it lacks with its next batch.
    """

    def __init__(self, count: int, alone: int) -> None:
        kind = TaskKind(NAME, self._read, self._dumps, self._readings)
        self._processes = WorkerProcesses(kind, count)
        self.batches = self._processes.tasks
        self._alone = alone
        self._here = InOneThread()
        self._keys: list[deque[PublicKey]] = [deque(maxlen=MOST_KEYS) for _ in range(count)]

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        """Hand a batch to a process, or leave the batch for this one."""
        is_alone = self._alone > 0
        self._alone -= len(batch.bodies)
        self._here.learn(batch.keys)
        for keys in self._keys:
            keys.extend(batch.keys)
        return (self._processes.leave if is_alone else self._processes.start)(batch)

    def _read(self, batch: Batch) -> Sequence[Reading]:
        return self._here.start(batch)()

    def _dumps(self, batch: Batch, process: int) -> bytes:
        keys = self._keys[process]
        data = msgpack.encode((batch.bodies, [key.raw for key in keys], batch.since))
        keys.clear()
        return data

    def _readings(self, answer: bytes) -> Sequence[Reading] | None:
        try:
            signers = msgpack.decode(answer, type=list[str | None])
        except MsgspecError:
            return None
        keys = self._here.keys
        return [Reading(signer=None if one is None else keys.get(one)) for one in signers]

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def _answer(task: bytes, reader: InOneThread) -> bytes:
    bodies, keys, since = msgpack.decode(task, type=tuple[list[bytes], list[bytes], int])
    readings = reader.start(Batch(bodies, [PublicKey(key) for key in keys], since))()
    signers = [one.signer for one in readings]
    return msgpack.encode([None if one is None else one.thumbprint for one in signers])


if __name__ == "__main__":
    work(partial(_answer, reader=InOneThread()))
