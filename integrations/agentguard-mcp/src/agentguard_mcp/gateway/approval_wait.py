"""The wait of a call for an approval, and what the client hears meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agentguard import Agent, ApprovalPending
from agentguard_mcp.gateway.dialogs import Dialogs
from agentguard_mcp.gateway.messages import Message, meta_of

_BEAT: Final = 5.0
"""Seconds between two notices that a call waits for an approval."""


async def approved(
    agent: Agent,
    waiting: ApprovalPending,
    seconds: float,
    tell: Callable[[int], None] | None = None,
) -> bool:
    """Wait for the answer to a request for an approval; return whether one has come.

    The wait takes at most ``seconds``. Meanwhile ``tell`` is called every few seconds, with numbers
    that grow.
    """
    clock = asyncio.get_running_loop().time
    end, beat = clock() + seconds, 0
    while (left := end - clock()) > 0:
        beat += 1
        if tell is not None:
            tell(beat)
        pause = left if tell is None else min(left, _BEAT)
        if await agent.approvals.await_(waiting.request, timeout=pause):
            return True
    return False


async def approved_for_client(
    agent: Agent, waiting: ApprovalPending, seconds: float, request: Message, dialogs: Dialogs
) -> bool:
    """Wait as ``approved`` does, while the client that has sent ``request`` hears of the wait.

    A client that has asked for progress hears that the call waits: some clients then wait on. A
    client that gets a dialog can end the wait. ``dialogs`` reach the client.
    """
    token = meta_of(request).get("progressToken")

    def tell(beat: int) -> None:
        dialogs.send(_notice(token, beat, waiting.request.request_id))

    answer = approved(agent, waiting, seconds, None if token is None else tell)
    if seconds <= 0 or not dialogs.can_show(request):
        return await answer
    ended = asyncio.Event()
    tool = request.get("params", {}).get("name", request["method"])
    dialog = asyncio.ensure_future(dialogs.show(tool, waiting.request, ended))
    try:
        return await unless(ended, answer)
    finally:
        dialog.cancel()
        await asyncio.gather(dialog, return_exceptions=True)  # the dialog closes before the answer


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
