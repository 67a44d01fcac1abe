"""A disk without room, for the process of a server: the kernel limits the size of its files."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from preloaded import Process


@contextmanager
def full_disk(server: Process | None, size: int = 16 << 10) -> Iterator[None]:
    """Have each write of a server fail that makes a file longer than ``size`` bytes.

    What the server prints, and what is no longer than that, is still written.
    """
    assert server is not None
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("this session has a limit on file sizes of its own")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # the server has ended
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
