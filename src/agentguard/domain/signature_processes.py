"""Verifies the signatures of a log on several cores, each in a process of its own.

Threads do not help: each would wait for the interpreter between two signatures. A process that
fails gives no answer, and its signatures count as not verified: the verifier checks each of them
in its place then, as ``audit/ahead.py`` says. The answers to a batch bear the batch's random name:
other output of the process, which a module of the site may print, is no answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agentguard.audit.ahead import InOneThread, SignatureCheck, SignatureChecker
from agentguard.domain import signature_worker

_AHEAD: Final = 4
"""Batches for each process, so that none waits for the reader."""

_MOST: Final = 4
"""The most processes by default: the reader keeps no more of them busy."""

_ALONE: Final = 256
"""Signatures that are verified here first: a process takes longer to start than these take."""

_PIPE_SIZE: Final = 1024 * 1024


@contextmanager
def signature_checker(jobs: int, *, alone: int = _ALONE) -> Iterator[SignatureChecker]:
    """Provide a checker with ``jobs`` processes, or for 1 with none but this one.

    The processes start after ``alone`` signatures, and end with the context.
    """
    if jobs == 1:
        yield InOneThread()
        return
    checker = _InProcesses(jobs, alone)
    try:
        yield checker
    finally:
        checker.close()


def default_jobs() -> int:
    """Return the number of cores that this process may use, four at most."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


class _InProcesses:
    """A ``SignatureChecker`` whose batches go to processes in turn."""

    def __init__(self, count: int, alone: int) -> None:
        self.batches = _AHEAD * count
        self._count = count
        self._alone = alone
        self._workers: list[_Worker] = []

    def start(self, checks: Sequence[SignatureCheck]) -> Callable[[], Sequence[bool]]:
        """Hand a batch to the next process."""
        if self._alone > 0:
            self._alone -= len(checks)
            return InOneThread().start(checks)
        if len(self._workers) < self._count:
            self._workers.append(_Worker())
        else:
            self._workers.append(self._workers.pop(0))
        return self._workers[-1].start(checks)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that verifies batches in the order in which it gets them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # no process can start: all is verified here
            self._process = subprocess.Popen(  # noqa: S603  a file of this package
                [sys.executable or "", "-P", str(Path(signature_worker.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pipesize=_PIPE_SIZE,
                start_new_session=True,  # an interrupt is this process's to handle
            )

    def start(self, checks: Sequence[SignatureCheck]) -> Callable[[], Sequence[bool]]:
        """Send a batch; the returned function reads the answers."""
        questions = b"".join(
            signature_worker.question(check.key.raw, check.signature, check.message)
            for check in checks
        )
        name, count = os.urandom(signature_worker.NAME_SIZE), len(checks)
        if self._process is None or self._process.stdin is None:
            return lambda: [False] * count
        try:
            self._process.stdin.write(signature_worker.batch(name, questions))
            self._process.stdin.flush()
        except OSError:
            self.close()
        return lambda: self._answers(name, count)

    def _answers(self, name: bytes, count: int) -> Sequence[bool]:
        process, size = self._process, len(name) + count
        output = process.stdout.read(size) if process is not None and process.stdout else b""
        if len(output) != size or not output.startswith(name):  # it has ended, or prints more
            self.close()
            return [False] * count
        return [answer == signature_worker.HOLDS for answer in output[len(name) :]]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # what was not sent yet can't be sent any more
                process.communicate()
            process.wait()  # where that error came first
