"""Verifies the signatures of a log on several cores: OpenSSL needs no lock of the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from agentguard.audit.ahead import InOneThread, SignatureCheck, SignatureChecker

_AHEAD: Final = 2
"""Batches for each thread, so that none waits for the reader."""

_MOST: Final = 4
"""The most threads by default: the reader, which has one thread, keeps no more of them busy."""


@contextmanager
def signature_checker(jobs: int | None) -> Iterator[SignatureChecker]:
    """Provide a checker with ``jobs`` threads; None for ``default_jobs``."""
    threads = default_jobs() if jobs is None else jobs
    if threads == 1:
        yield InOneThread()
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="agentguard-verify")
    try:
        yield _InThreads(pool, _AHEAD * threads)
    finally:
        pool.shutdown(cancel_futures=True)


def default_jobs() -> int:
    """Return one thread for each core that this process may use, four at most."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


class _InThreads:
    """A ``SignatureChecker`` whose batches are answered by the threads of a pool."""

    def __init__(self, pool: ThreadPoolExecutor, batches: int) -> None:
        self.batches = batches
        self._pool = pool

    def start(self, checks: Sequence[SignatureCheck]) -> Callable[[], Sequence[bool]]:
        """Hand a batch to the next free thread.

        Where no thread can start, as while the interpreter ends, this thread does the work.
        """
        try:
            return self._pool.submit(_answers, checks).result
        except RuntimeError:
            return InOneThread().start(checks)


def _answers(checks: Sequence[SignatureCheck]) -> Sequence[bool]:
    return [check.holds() for check in checks]
