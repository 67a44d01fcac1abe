"""What a running tool can ask about the call that it runs in, without being handed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from agentguard.errors import UnguardedCallError

_RUNNING: ContextVar[str | None] = ContextVar("agentguard_running", default=None)


def idempotency_key() -> str:
    """Return the id of the invocation in which this tool runs (32 hex digits).

    Hand it to a service that takes idempotency keys: one authorization is one key, so that an
    effect of a call in doubt can be asked about, and is never had twice by a retry below the tool.
    Raises ``UnguardedCallError`` (``tool.unguarded``) outside a guarded call.
    """
    running = _RUNNING.get()
    if running is None:
        message = "no guarded call is running here: call the tool with agent.call"
        raise UnguardedCallError(message)
    return running


@contextmanager
def running(invocation_id: str) -> Iterator[None]:
    """Let ``idempotency_key`` answer within a call."""
    token = _RUNNING.set(invocation_id)
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _RUNNING.reset(token)
