"""The wait of a call for an approval, and what the client hears meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agentguard import Agent, ApprovalPending
from agentguard_mcp.gateway.messages import Message, meta_of

_BEAT: Final = 5.0
"""Seconds between two notices that a call waits for an approval."""


async def approved(
    agent: Agent,
    waiting: ApprovalPending,
    seconds: float,
    request: Message | None = None,
    notify: Callable[[Message], None] = lambda _notice: None,
) -> bool:
    """Wait for the answer to a request for an approval; return whether one has come.

    The wait takes at most ``seconds``. A client that has asked for progress hears that the call
    waits: some clients then wait on. ``request`` is the client's, and ``notify`` sends a notice to
    the client.
    """
    clock = asyncio.get_running_loop().time
    end, beat = clock() + seconds, 0
    token = meta_of(request or {}).get("progressToken")
    while (left := end - clock()) > 0:
        beat += 1
        if token is not None:
            notify(_notice(token, beat, waiting.request.request_id))
        pause = left if token is None else min(left, _BEAT)
        if await agent.approvals.await_(waiting.request, timeout=pause):
            return True
    return False


async def unless(lost: asyncio.Event, answer: Coroutine[Any, Any, bool]) -> bool:
    """Return what ``answer`` returns, or False as soon as ``lost`` is set."""
    answering = asyncio.ensure_future(answer)
    losing = asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((answering, losing), return_when=asyncio.FIRST_COMPLETED)
        return answering.done() and answering.result()
    finally:
        answering.cancel()
        losing.cancel()


def _notice(token: Any, beat: int, identifier: str) -> Message:
    """Return the notice that a call waits; progress has to grow, and is the server's own later."""
    params = {
        "progressToken": token,
        "progress": beat / 1_000_000,
        "message": f"waiting for a person to approve request {identifier}",
    }
    return {"method": "notifications/progress", "params": params}
