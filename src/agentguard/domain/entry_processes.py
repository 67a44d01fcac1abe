"""Reads the entries of a log on several cores: in this process, and in others.

Threads do not help: each would wait for the interpreter. While this process waits for an answer, it
reads other batches itself. A process that fails or stands still gives no answer, and this process
reads the batches of that process, too. An answer that can't be read is no answer either. The answer
to a batch bears the batch's random name: other output of the process, which a module of the site
may print, is no answer.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentguard.audit.ahead import Batch, EntryReader, InOneThread, Reading
from agentguard.domain import entry_worker
from agentguard.signing.keys import PublicKey

_AHEAD: Final = 3
"""The most batches that a process has to answer: it does not wait for this process."""

_HERE: Final = 12
"""The batches that this process reads while it waits for an answer; a process starts meanwhile."""

_MOST: Final = 4
"""The most processes by default: this one keeps no more of them busy."""

_ALONE: Final = 256
"""The entries that are read here first: for so few, no process is worth its start."""

_PATIENCE: Final = 30.0
"""The longest time without a byte from a process that has to answer, in seconds."""

_PIPE_SIZE: Final = 1024 * 1024


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


def default_jobs() -> int:
    """Return the number of cores that this process may use, four at most."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


@dataclass(eq=False, slots=True)
class _Later:
    """A batch that this process reads when the readings are needed, or while it waits."""

    reader: InOneThread
    batch: Batch
    readings: Sequence[Reading] | None = None

    def read(self) -> Sequence[Reading]:
        if self.readings is None:
            self.readings = self.reader.start(self.batch)()
        return self.readings


@dataclass(eq=False, slots=True)
class _Asked:
    """A batch that a process got, by its name, and the value of the answer."""

    name: bytes
    answer: bytes | None = None


class _InProcesses:
    """An ``EntryReader`` that reads a batch here where each other process has enough to do."""

    def __init__(self, count: int, alone: int) -> None:
        self.batches = _AHEAD * count + _HERE
        self._count = count
        self._alone = alone
        self._here = InOneThread()
        self._later: deque[_Later] = deque(maxlen=self.batches)  # nobody may ask for them any more
        self._workers: list[_Worker] = []

    def start(self, batch: Batch) -> Callable[[], Sequence[Reading]]:
        """Hand a batch to the process with the least to do, or leave the batch for this one."""
        if self._alone <= 0 and not self._workers:
            self._workers = [_Worker(self._here.keys.values()) for _ in range(self._count)]
        self._alone -= len(batch.bodies)
        self._here.learn(batch.keys)
        for worker in self._workers:
            worker.keys += batch.keys
            worker.exchange()
        free = [each for each in self._workers if each.is_running and each.waiting < _AHEAD]
        if free:
            worker = min(free, key=lambda each: each.waiting)
            return partial(self._answered, worker, worker.send(batch), batch)
        later = _Later(self._here, batch)
        self._later.append(later)
        return partial(self._read_here, later)

    def _read_here(self, later: _Later) -> Sequence[Reading]:
        with suppress(ValueError):  # it was read while this process waited
            self._later.remove(later)
        return later.read()

    def _answered(self, worker: _Worker, asked: _Asked, batch: Batch) -> Sequence[Reading]:
        """Wait for an answer, and read meanwhile; read the batch where no answer comes."""
        while asked.answer is None and worker.is_running:
            if self._later:
                self._later.popleft().read()
                worker.exchange()
            elif not worker.exchange(_PATIENCE):
                worker.close()
        if asked.answer is not None:
            with suppress(pickle.UnpicklingError):
                return entry_worker.readings_of(asked.answer)
        return self._here.start(batch)()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that reads batches in the order in which it gets them.

    ``keys`` are those that the process still has to get.
    """

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self.keys = list(keys)
        self._asked: deque[_Asked] = deque()  # what has no answer yet
        self._unsent = bytearray()
        self._received = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # no process can start: all is read here
            self._process = _process()

    @property
    def is_running(self) -> bool:
        """Whether the process answers, as far as is known."""
        return self._process is not None

    @property
    def waiting(self) -> int:
        """The number of batches that wait for an answer."""
        return len(self._asked)

    def send(self, batch: Batch) -> _Asked:
        """Send a batch, whose answer arrives in an ``exchange``."""
        asked = _Asked(os.urandom(entry_worker.NAME_SIZE))
        self._unsent += entry_worker.message(asked.name, batch._replace(keys=self.keys))
        self._asked.append(asked)
        self.keys = []
        self.exchange()
        return asked

    def exchange(self, wait: float = 0.0) -> bool:
        """Send and receive what is ready within ``wait`` seconds; return whether anything was."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return False
        sink, source = process.stdin.fileno(), process.stdout.fileno()
        poll = select.poll()
        poll.register(source, select.POLLIN)
        if self._unsent:
            poll.register(sink, select.POLLOUT)
        ready = [file for file, _event in poll.poll(wait * 1000)]
        try:
            if sink in ready:
                del self._unsent[: os.write(sink, self._unsent)]
            if source in ready:
                self._receive(os.read(source, _PIPE_SIZE))
        except OSError:
            self.close()
        return bool(ready)

    def _receive(self, data: bytes) -> None:
        received = self._received
        received += data
        if not data:  # it has ended
            self.close()
        while len(received) >= entry_worker.HEAD_SIZE:
            if not self._asked or not received.startswith(self._asked[0].name):  # it prints more
                self.close()
                return
            end = entry_worker.HEAD_SIZE + entry_worker.size_of_value(received)
            if len(received) < end:
                return
            self._asked.popleft().answer = bytes(received[entry_worker.HEAD_SIZE : end])
            del received[:end]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def _process() -> subprocess.Popen[bytes]:
    """Start a process, with pipes at which nobody waits."""
    process = subprocess.Popen(  # noqa: S603  a module of this package
        [sys.executable or "", "-P", "-m", entry_worker.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pipesize=_PIPE_SIZE,
        start_new_session=True,  # an interrupt is this process's to handle
    )
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
    return process
