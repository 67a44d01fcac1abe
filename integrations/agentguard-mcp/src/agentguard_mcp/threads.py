"""Runs what may wait for a disk or a guard server in threads of its own, beside the event loop.

The threads are not those in which an SDK runs sync tools. A tool that runs in such a thread, and
calls another server, would otherwise wait for a thread that its own kind has taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

T = TypeVar("T")

MAX_THREADS: Final = 32
"""The most threads of one event loop; a further call waits for one of them."""

_LIMITER: Final = RunVar[CapacityLimiter]("agentguard_mcp_threads")


async def in_thread(function: Callable[[], T]) -> T:
    """Return what ``function`` returns, or raise what it raises; context variables are kept."""
    limiter = _LIMITER.get(None)
    if limiter is None:
        limiter = CapacityLimiter(MAX_THREADS)
        _LIMITER.set(limiter)
    return await anyio.to_thread.run_sync(function, limiter=limiter)
