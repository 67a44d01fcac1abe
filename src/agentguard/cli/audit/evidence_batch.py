"""The verification of several evidence files, on several cores where there are many of them.

An answer is the object that ``evidence verify --json`` prints for a file. A process that ends
before it has answered changes no answer: its files are verified in the command's own process.
``evidence.py`` prints the answers.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Final

from agentguard.audit import evidence_file
from agentguard.audit.evidence import verify_evidence
from agentguard.cli.audit import evidence_report
from agentguard.cli.terminal import files
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument

Answer = dict[str, object]

ALONE: Final = 512
"""Files that this process verifies first: another process takes as long to start."""

_CHUNK: Final = 32
_AHEAD: Final = 2
"""Chunks for each process that are begun before their answers are asked for."""


def answers(paths: Sequence[Path], trust: TrustDocument, jobs: int) -> Iterator[Answer]:
    """Yield the answer for each file in order; ``jobs`` processes verify those after ``ALONE``.

    A file that can't be read is answered like one that does not verify.
    """
    alone = len(paths) if jobs == 1 else ALONE
    for path in paths[:alone]:
        yield _answer(path, trust)
    chunks = [paths[at : at + _CHUNK] for at in range(alone, len(paths), _CHUNK)]
    if chunks:
        yield from _shared_out(chunks, trust.dumps(), jobs)


def _shared_out(chunks: Sequence[Sequence[Path]], trust: bytes, jobs: int) -> Iterator[Answer]:
    try:
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _follow_the_command)
    except (OSError, NotImplementedError):  # the system has no semaphores
        for chunk in chunks:
            yield from _answers(chunk, trust)
        return
    begun: deque[Callable[[], list[Answer]]] = deque()
    with pool:
        for chunk in chunks:
            begun.append(_begin(pool, chunk, trust))
            if len(begun) > _AHEAD * jobs:
                yield from begun.popleft()()
        while begun:
            yield from begun.popleft()()


def _begin(
    pool: ProcessPoolExecutor, paths: Sequence[Path], trust: bytes
) -> Callable[[], list[Answer]]:
    """Hand files to a process; the returned function waits for the answers."""
    here = partial(_answers, paths, trust)
    try:
        future = pool.submit(_answers, paths, trust)
    except (BrokenProcessPool, OSError):  # no process can start
        return here

    def wait() -> list[Answer]:
        try:
            return future.result()
        except BrokenProcessPool:
            return here()

    return wait


def _answers(paths: Sequence[Path], trust: bytes) -> list[Answer]:
    document = TrustDocument.loads(trust)
    return [_answer(path, document) for path in paths]


def _answer(path: Path, trust: TrustDocument) -> Answer:
    try:
        # One byte more than the limit, so that a file which is too long is refused.
        data = files.read_or_stdin(path, evidence_file.MAX_BYTES + 1)
        proved = evidence_report.as_json(verify_evidence(data, trust))
    except AgentguardError as error:
        return {"file": str(path), "ok": False, "code": error.code, "problem": str(error)}
    return {"file": str(path), **proved}


def _follow_the_command() -> None:
    """Leave an interrupt from the keyboard to the command's process, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """End this process after the command's: a killed command tells its processes nothing."""
    command = parent_process()
    if command is not None:
        command.join()
        os._exit(1)
