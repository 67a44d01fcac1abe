"""``Executions``: the guarded calls of one client; a call that is sent again at once runs once.

Some clients send a call again when an answer takes long: CrewAI tries three times, a second or two
apart, and does not cancel what it has given up. The gateway sees the same call from the same client
then. Such a call shares the execution that still runs. For ``KEPT`` seconds after the end a call of
a tool gets what is known of the execution, where the client can hardly have wanted a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from agentguard_mcp.gateway import answers
from agentguard_mcp.gateway.messages import Message, encoded
from agentguard_mcp.gateway.upstream import NotSentError

SLOW: Final = 1.0
"""Seconds from which on a client may have given a call up before its answer came."""

KEPT: Final = 5.0
"""Seconds for which the end of a call counts for the same call; CrewAI waits two before a try."""

MAX_KEPT: Final = 16
"""The most calls whose ends are remembered."""

Forward = Callable[[Message], Awaitable[Message]]
"""Sends an authorised request to the server, and returns the response."""


@dataclass(slots=True)
class _Execution:
    """A guarded call that runs, and how many requests of the client wait for its answer.

    ``was_sent`` says that the request has gone to the server. ``begun`` is a time of the loop.
    """

    request: Message
    begun: float
    waiting: int = 0
    was_sent: bool = False


@dataclass(frozen=True, slots=True)
class _End:
    """What a call that is made again gets for ``KEPT`` seconds."""

    answer: Message
    is_in_doubt: bool


class Executions:
    """Runs each call of one client once.

    ``answer`` makes the guarded call of a request, with the function that sends the request on.
    ``forward`` sends a request on, and raises ``NotSentError`` for one that was not sent. Without
    ``joins_retries``, each request is a call of its own, since each may have another caller.
    """

    def __init__(
        self,
        answer: Callable[[Message, Forward], Awaitable[Message]],
        forward: Forward,
        *,
        joins_retries: bool,
    ) -> None:
        self._answer = answer
        self._forward = forward
        self._joins_retries = joins_retries
        self._running: dict[bytes, tuple[asyncio.Task[Message], _Execution]] = {}
        self._ends: dict[bytes, _End] = {}

    async def answer(self, request: Message) -> Message:
        """Return the answer to a guarded request, by an execution of its own or a shared one.

        A task that is cancelled here gives its request up. The execution ends early only if all of
        its requests are given up. Raises what the execution raises.
        """
        key = self._key(request)
        while (found := self._running.get(key)) is not None and not found[1].waiting:
            await asyncio.wait([found[0]])  # all its requests are given up, so it ends now
        if found is None and (end := self._ends.get(key)) is not None:
            return {**end.answer, "id": request["id"]}
        task, execution = found or self._begin(key, request)
        execution.waiting += 1
        try:
            return {**await asyncio.shield(task), "id": request["id"]}
        except asyncio.CancelledError:
            execution.waiting -= 1
            if not execution.waiting:
                task.cancel()
                await asyncio.wait([task])  # the next call finds this one ended
            raise

    def _begin(self, key: bytes, request: Message) -> tuple[asyncio.Task[Message], _Execution]:
        # a client that goes on to another call has seen the answers of before
        self._ends = {one: end for one, end in self._ends.items() if end.is_in_doubt}
        loop = asyncio.get_running_loop()
        execution = _Execution(request, loop.time())
        task = loop.create_task(self._run(execution))
        self._running[key] = task, execution
        task.add_done_callback(partial(self._note, key, execution))
        return task, execution

    async def _run(self, execution: _Execution) -> Message:
        async def forward(request: Message) -> Message:
            execution.was_sent = True
            try:
                return await self._forward(request)
            except NotSentError:
                execution.was_sent = False
                raise

        return await self._answer(execution.request, forward)

    def _note(self, key: bytes, execution: _Execution, task: asyncio.Task[Message]) -> None:
        """Remember how a call of a tool that went to the server has ended."""
        del self._running[key]
        is_call = execution.request["method"] == "tools/call"  # what is read may be read again
        if not (is_call and execution.was_sent and self._joins_retries):
            return
        loop = asyncio.get_running_loop()
        is_in_doubt = task.cancelled() or task.exception() is not None
        is_in_doubt = is_in_doubt or answers.is_in_doubt(task.result())
        if is_in_doubt:
            kept = answers.still_in_doubt(execution.request)
        elif loop.time() - execution.begun >= SLOW and answers.is_result(task.result()):
            kept = answers.repeated(task.result(), KEPT)
        else:
            return
        self._ends.pop(key, None)
        self._ends[key] = _End(kept, is_in_doubt=is_in_doubt)
        loop.call_later(KEPT, self._forget, key, self._ends[key])
        while len(self._ends) > MAX_KEPT:
            del self._ends[next(iter(self._ends))]

    def _forget(self, key: bytes, end: _End) -> None:
        if self._ends.get(key) is end:
            del self._ends[key]

    def _key(self, request: Message) -> bytes:
        """Return what two requests share that are the same call: all but the id and ``_meta``."""
        if not self._joins_retries:
            return encoded(request["id"])
        params: dict[str, Any] = request.get("params", {})
        kept = {name: value for name, value in params.items() if name != "_meta"}
        return encoded([request["method"], kept], is_sorted=True)
