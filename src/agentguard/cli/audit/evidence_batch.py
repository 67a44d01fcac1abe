"""The verification of several evidence files, on several cores where there are many of them.

An answer is the object that ``evidence verify --json`` prints for a file, and the answers come in
the order of the files. Of the other processes, a task is the paths of files and the trust document,
and the answer is the answers; both are JSON. ``evidence.py`` prints the answers.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from agentguard.audit import evidence_file
from agentguard.audit.evidence import EvidenceVerifier
from agentguard.cli.audit import evidence_report
from agentguard.cli.terminal import files
from agentguard.domain.worker_processes import TaskKind, WorkerProcesses, work
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument

Answer = dict[str, object]

NAME: Final = "agentguard.cli.audit.evidence_batch"
"""The module that the other processes run: this one."""

ALONE: Final = 256
"""The most files that this process verifies alone: another process takes as long to start."""

_MOST: Final = 32
_MOST_BYTES: Final = 4 * 1024 * 1024
"""The most files of a task, and the length of a task's files from which on it gets no more."""


def answer(path: Path, verifier: EvidenceVerifier) -> Answer:
    """Return what a file proves; a file that can't be read is like one that does not verify."""
    try:
        # One byte more than the limit, so that a file which is too long is refused.
        data = files.read_or_stdin(path, evidence_file.MAX_BYTES + 1)
        proved = evidence_report.as_json(verifier.verify(data))
    except AgentguardError as error:
        return {"file": str(path), "ok": False, "code": error.code, "problem": str(error)}
    return {"file": str(path), **proved}


def answers(
    paths: Sequence[Path], trust: TrustDocument, jobs: int
) -> Generator[Answer, None, None]:
    """Yield the answer for each file in order.

    Where there are more files than ``ALONE``, ``jobs`` processes verify them, this one among them.
    """
    verifier = EvidenceVerifier(trust)
    if jobs == 1 or len(paths) <= ALONE:
        for path in paths:
            yield answer(path, verifier)
    else:
        yield from _shared_out(_tasks(paths), verifier, trust.dumps(), jobs - 1)


def _shared_out(
    tasks: Iterator[Sequence[Path]], verifier: EvidenceVerifier, trust: bytes, others: int
) -> Iterator[Answer]:
    kind: TaskKind[Sequence[Path], Sequence[Answer]] = TaskKind(
        NAME,
        do=lambda paths: [answer(path, verifier) for path in paths],
        dumps=lambda paths, _process: _dumps(paths, trust),
        loads=_read,
    )
    processes = WorkerProcesses(kind, others)
    begun: deque[Callable[[], Sequence[Answer]]] = deque()
    try:
        for task in tasks:
            begun.append(processes.start(task))
            if len(begun) == processes.tasks:
                yield from begun.popleft()()
        while begun:
            yield from begun.popleft()()
    finally:
        processes.close()


def _tasks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Yield the files in tasks of a bounded number and length."""
    task: list[Path] = []
    size = 0
    for path in paths:
        task.append(path)
        size += _size(path)
        if len(task) == _MOST or size >= _MOST_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _size(path: Path) -> int:
    with suppress(OSError, ValueError):  # the verification says what is wrong with the file
        return path.stat().st_size
    return 0


def _read(answer: bytes) -> Sequence[Answer] | None:
    """Return the answers of a process, None for what is none."""
    try:
        answers: Sequence[Answer] = json.loads(answer)
    except ValueError:
        return None
    return answers


def _dumps(paths: Sequence[Path], trust: bytes) -> bytes:
    return json.dumps({"paths": list(map(str, paths)), "trust": trust.decode()}).encode()


@lru_cache(1)
def _verifier(trust: str) -> EvidenceVerifier:
    return EvidenceVerifier(TrustDocument.loads(trust.encode()))


def _answers(task: bytes) -> bytes:
    members = json.loads(task)
    verifier = _verifier(members["trust"])
    return json.dumps([answer(Path(path), verifier) for path in members["paths"]]).encode()


if __name__ == "__main__":
    work(_answers)
