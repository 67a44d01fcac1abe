"""Does tasks on several cores: in this process, and in others, which run a module with ``work``.

Threads do not help: each would wait for the interpreter. While this process waits for an answer, it
does other tasks itself. A process that fails or stands still gives no answer, and this process does
the tasks of that process, too. An answer that can't be read is no answer either. The answer to a
task bears the task's random name: other output of the process, which a module of the site may
print, is no answer. ``entry_processes.py`` and ``agentguard evidence verify`` have the tasks.

A message is a task's name, the length of a value in four bytes, and the value: tasks on the stdin
of a process, and their answers on its stdout.
"""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

_AHEAD: Final = 3
"""The most tasks that a process has to answer: it does not wait for this process."""

_HERE: Final = 12
"""The tasks that this process does while it waits for an answer; a process starts meanwhile."""

_MOST: Final = 4
"""The most processes by default: this one keeps no more of them busy."""

_PATIENCE: Final = 30.0
"""The longest time without a byte from a process that has to answer, in seconds."""

_PIPE_SIZE: Final = 1024 * 1024

_NAME_SIZE: Final = 16
"""The size of a task's name, in bytes."""

_HEAD_SIZE: Final = _NAME_SIZE + 4
"""The size of a message before its value, in bytes."""

T = TypeVar("T")
R = TypeVar("R")


def default_jobs() -> int:
    """Return the number of cores that this process may use, four at most."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


@dataclass(frozen=True, slots=True)
class TaskKind(Generic[T, R]):
    """A kind of tasks.

    ``module`` is the name of the module that the other processes run. ``do`` does a task in this
    process. ``dumps`` returns a task as bytes for the process with a number (from 0). ``loads``
    returns the answer in the bytes of a process, None for what is no answer.
    """

    module: str
    do: Callable[[T], R]
    dumps: Callable[[T, int], bytes]
    loads: Callable[[bytes], R | None]


class WorkerProcesses(Generic[T, R]):
    """Hands tasks to ``count`` processes, which start with the first task, and to this process.

    ``tasks`` is the most tasks at a time that should be started and not finished.
    """

    def __init__(self, kind: TaskKind[T, R], count: int) -> None:
        self.tasks = _AHEAD * count + _HERE
        self._kind = kind
        self._count = count
        # nobody may ask for the answers any more
        self._later: deque[_Later[T, R]] = deque(maxlen=self.tasks)
        self._workers: list[_Worker] = []

    def start(self, task: T) -> Callable[[], R]:
        """Hand a task to the process with the least to do, or leave the task for this one.

        The returned function waits for the answer.
        """
        if not self._workers:
            self._workers = [_Worker(self._kind.module, each) for each in range(self._count)]
        for each in self._workers:
            each.exchange()
        free = [each for each in self._workers if each.is_running and each.waiting < _AHEAD]
        if free:
            least = min(free, key=lambda each: each.waiting)
            asked = least.send(self._kind.dumps(task, least.number))
            return partial(self._answered, least, asked, task)
        return self.leave(task)

    def leave(self, task: T) -> Callable[[], R]:
        """Leave a task for this process, until the answer is needed or this process waits."""
        later = _Later(self._kind.do, task)
        self._later.append(later)
        return partial(self._do_here, later)

    def _do_here(self, later: _Later[T, R]) -> R:
        with suppress(ValueError):  # it was done while this process waited
            self._later.remove(later)
        return later.do()

    def _answered(self, asked_worker: _Worker, asked: _Asked, task: T) -> R:
        """Wait for an answer, and do other tasks meanwhile; do the task where no answer comes."""
        while asked.answer is None and asked_worker.is_running:
            if self._later:
                self._later.popleft().do()
                asked_worker.exchange()
            elif not asked_worker.exchange(_PATIENCE):
                asked_worker.close()
        answer = None if asked.answer is None else self._kind.loads(asked.answer)
        return self._kind.do(task) if answer is None else answer

    def close(self) -> None:
        """End the processes."""
        for each in self._workers:
            each.close()


@dataclass(eq=False, slots=True)
class _Later(Generic[T, R]):
    """A task that this process does when the answer is needed, or while it waits."""

    work: Callable[[T], R]
    task: T
    answers: tuple[R, ...] = ()  # none or one

    def do(self) -> R:
        if not self.answers:
            self.answers = (self.work(self.task),)
        return self.answers[0]


@dataclass(eq=False, slots=True)
class _Asked:
    """A task that a process got, by its name, and the value of the answer."""

    name: bytes
    answer: bytes | None = None


class _Worker:
    """A process that does tasks in the order in which it gets them."""

    def __init__(self, module: str, number: int) -> None:
        self.number = number
        self._asked: deque[_Asked] = deque()  # what has no answer yet
        self._unsent = bytearray()
        self._received = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # no process can start: this one does all
            self._process = _process(module)

    @property
    def is_running(self) -> bool:
        """Whether the process answers, as far as is known."""
        return self._process is not None

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for an answer."""
        return len(self._asked)

    def send(self, task: bytes) -> _Asked:
        """Send a task, whose answer arrives in an ``exchange``."""
        asked = _Asked(os.urandom(_NAME_SIZE))
        self._unsent += _message(asked.name, task)
        self._asked.append(asked)
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
        while len(received) >= _HEAD_SIZE:
            if not self._asked or not received.startswith(self._asked[0].name):  # it prints more
                self.close()
                return
            end = _HEAD_SIZE + _size_of_value(received)
            if len(received) < end:
                return
            self._asked.popleft().answer = bytes(received[_HEAD_SIZE:end])
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


def _process(module: str) -> subprocess.Popen[bytes]:
    """Start a process that runs a module, with pipes at which nobody waits."""
    process = subprocess.Popen(  # noqa: S603  a module of this package
        [sys.executable or "", "-P", "-m", module],
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


def _message(name: bytes, value: bytes) -> bytes:
    """Return the message with a task or with the answer to a task."""
    return name + len(value).to_bytes(4) + value


def _size_of_value(head: bytes | bytearray) -> int:
    """Return the length of the value of a message that begins with ``head``, in bytes."""
    return int.from_bytes(head[_NAME_SIZE:_HEAD_SIZE])


def work(answer: Callable[[bytes], bytes]) -> None:
    """Answer tasks until stdin ends."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints from now on is in no answer
    gc.freeze()  # the modules stay: nobody has to look whether they do
    while head := source.read(_HEAD_SIZE):
        value = answer(source.read(_size_of_value(head)))
        target.write(_message(head[:_NAME_SIZE], value))
        target.flush()
