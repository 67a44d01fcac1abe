"""``Relay``: passes the messages between one client and one server, and guards those that run code.

The client's requests keep their ids. A response counts only for a request that waits for it, so a
server can't answer what nobody has asked, and a client can't answer what the server has not asked.
A request that MCP does not name is refused in both directions, and such a notice is dropped: nobody
knows whether it runs code (``params.py``, ``methods.py``). ``calls.py`` decides on calls,
``executions.py`` runs each call once, and ``stdio.py`` connects the relay to its streams.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from agentguard import AgentguardError
from agentguard_mcp import listing
from agentguard_mcp.gateway import answers, error_codes
from agentguard_mcp.gateway.calls import Calls
from agentguard_mcp.gateway.dialogs import Dialogs
from agentguard_mcp.gateway.executions import Executions
from agentguard_mcp.gateway.messages import (
    MAX_LINE,
    Client,
    Message,
    Peer,
    RequestId,
    cancelled,
    cleaned,
    is_request,
    is_response,
    plain,
    read,
    without_tasks,
)
from agentguard_mcp.gateway.methods import FROM_SERVER, SERVER_NOTICES
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.tool_list import Ask
from agentguard_mcp.gateway.upstream import NotSentError, UpstreamLostError
from agentguard_mcp.listing import LIST
from agentguard_mcp.messages import ERROR
from agentguard_mcp.params import CLIENT_NOTICES, GUARDED, OWN, PASSED, unknown_member

MAX_PENDING: Final = 1_000
"""The most requests of one side that wait for an answer."""

_ENDLESS: Final = "subscriptions/listen"
_LISTING_TIMEOUT: Final = 30.0
_MAX_NOTED: Final = 100
"""How many dropped messages of one side are logged; a server may print millions."""

_LOGGER = logging.getLogger("agentguard.mcp")


@dataclass(slots=True)
class _Passed:
    """A client's request that went on without a decision; ``timer`` ends the wait."""

    request: Message
    timer: asyncio.TimerHandle | None


class Relay:
    """The messages between a client and a server.

    ``make_calls`` gets the function with which the gateway asks the server itself, and returns the
    ``Calls``. ``from_client`` and ``from_server`` take one line each; ``lose_server`` and ``close``
    end the relay. ``joins_retries`` is for one client without proofs: a call that the client makes
    again while the first one runs, or right after its end, does not run again (``Executions``).
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        server: Peer,
        make_calls: Callable[[Ask], Calls],
        *,
        joins_retries: bool,
    ) -> None:
        self._settings = settings
        self._client = client
        self._server = server
        self._calls = make_calls(self._ask)
        self._passed: dict[RequestId, _Passed] = {}
        self._guarded: dict[RequestId, asyncio.Task[None]] = {}
        # no id of another gateway, which may be the client or the server, begins so
        self._own = f"{OWN}{secrets.token_hex(8)}/"
        self._dialogs = Dialogs(client, self._own, is_on=settings.elicit)
        self._executions = Executions(
            partial(self._calls.answer, dialogs=self._dialogs),
            self._forward,
            joins_retries=joins_retries,
        )
        self._awaited: dict[RequestId, asyncio.Future[Message]] = {}
        self._given_up: dict[RequestId, None] = {}
        self._asked: set[RequestId] = set()
        self._last = 0
        self._name = f"the MCP server {settings.server}"
        self._dropped: Counter[str] = Counter()
        self._lost: UpstreamLostError | None = None

    # --- from the client --------------------------------------------------------------------------

    def from_client(self, line: bytes) -> None:
        """Take a line of the client; raises ``UpstreamLostError`` where the server is gone."""
        try:
            message = read(line)
        except AgentguardError as error:
            self._client.send(
                answers.error(None, error_codes.PARSE_ERROR, f"{error} [{error.code}]")
            )
            return
        self.take(message)

    def take(self, message: Message) -> None:
        """Take a message of the client; raises ``UpstreamLostError`` where the server is gone."""
        if is_response(message):
            if not self._dialogs.take(message) and message["id"] in self._asked:
                self._asked.discard(message["id"])
                self._server.send(cleaned(message))
        elif is_request(message):
            self._request(message)
        else:
            self._notice_of_client(message)

    def refuse_long_line(self) -> None:
        """Tell the client that a line was longer than the gateway takes."""
        text = f"a message is longer than {MAX_LINE} bytes [json.size]"
        self._client.send(answers.error(None, error_codes.PARSE_ERROR, text))

    def _request(self, message: Message) -> None:
        identifier, method = message["id"], message["method"]
        waiting = len(self._passed) + len(self._guarded)
        in_use = (self._passed, self._guarded, self._awaited, self._given_up)
        if self._is_own(identifier) or any(identifier in requests for requests in in_use):
            self._refuse(identifier, error_codes.INVALID_REQUEST, "the id is in use")
        elif waiting >= MAX_PENDING:
            self._refuse(identifier, ERROR, "too many requests wait for an answer")
        elif method in GUARDED:
            self._start(identifier, self._guard(message))
        elif method in PASSED:
            self._pass_plain(message)
        else:
            text = f"the gateway passes no {method[:64]!r} on"
            self._refuse(identifier, error_codes.METHOD_NOT_FOUND, text)

    def _pass_plain(self, message: Message) -> None:
        """Send a request of which nobody decides on to the server, with what MCP has in it."""
        method = message["method"]
        unknown = unknown_member(method, message.get("params", {}))
        if unknown is not None:
            text = f"{method}: the gateway passes no {unknown[:64]!r} on"
            self._refuse(message["id"], error_codes.INVALID_PARAMS, text)
            return
        sent = plain(message)
        if method == "initialize":
            self._dialogs.greeted(message)
            sent = without_tasks(sent, "params")
        self._pass(message, sent)

    def _refuse(self, identifier: RequestId, code: int, text: str) -> None:
        self._client.send(answers.error(identifier, code, text))

    def _start(self, identifier: RequestId, answering: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(answering)
        self._guarded[identifier] = task
        # a task that is cancelled before its first step runs nothing of its own
        task.add_done_callback(lambda _task: self._guarded.pop(identifier, None))

    def _pass(self, message: Message, sent: Message) -> None:
        identifier, timer = message["id"], None
        self._server.send(sent)
        self._client.sent(identifier)
        if message["method"] != _ENDLESS:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._settings.timeout, self._give_up, identifier)
        self._passed[identifier] = _Passed(message, timer)

    def _give_up(self, identifier: RequestId) -> None:
        if self._passed.pop(identifier, None) is not None:
            self._note_given_up(identifier)
            text = f"the MCP server did not answer in {self._settings.timeout:g} seconds"
            self._refuse(identifier, ERROR, text)

    def _notice_of_client(self, message: Message) -> None:
        if message["method"] not in CLIENT_NOTICES:
            self._drop("the client", f"MCP names no notice {message['method'][:64]!r} of a client")
            return
        if message["method"] == "notifications/cancelled":
            identifier = message.get("params", {}).get("requestId")
            if not isinstance(identifier, str | int):
                return
            task, passed = self._guarded.get(identifier), self._passed.pop(identifier, None)
            if task is not None:
                task.cancel()  # the task tells the server, if the call has gone there
            if passed is None:
                return
            _stop(passed)
            self._note_given_up(identifier)
        self._server.send(plain(message))

    def _note_given_up(self, identifier: RequestId) -> None:
        """Note a request that the server may still answer: another request of the id gets nothing.

        The oldest of too many is forgotten, since a server answers few requests that are given up.
        """
        self._given_up[identifier] = None
        while len(self._given_up) > MAX_PENDING:
            del self._given_up[next(iter(self._given_up))]

    async def _guard(self, request: Message) -> None:
        """Answer a guarded request, unless the client cancels it."""
        try:
            answer = await self._executions.answer(request)
        except Exception:
            _LOGGER.exception("a call failed in the gateway")
            text = "the gateway has met an error: look at its log"
            answer = answers.error(request["id"], ERROR, text)
        self._client.send(answer)

    async def _forward(self, request: Message) -> Message:
        """Send an authorised request to the server, and return the response."""
        if self._lost is not None:
            raise NotSentError(str(self._lost))
        try:
            return await self._exchange(request, self._settings.timeout)
        except (TimeoutError, asyncio.CancelledError):
            self._note_given_up(request["id"])
            self._cancel(request["id"])
            raise

    def _cancel(self, identifier: RequestId) -> None:
        with suppress(UpstreamLostError):
            self._server.send(cancelled(identifier, "the client or the gateway gave up"))

    async def _ask(self, method: str, params: dict[str, Any]) -> Message:
        """Ask the server for the gateway itself."""
        self._last += 1
        request = {"id": f"{self._own}{self._last}", "method": method, "params": params}
        return await self._exchange(request, min(self._settings.timeout, _LISTING_TIMEOUT))

    async def _exchange(self, request: Message, timeout: float) -> Message:  # noqa: ASYNC109
        """Send a request and return its response, with the id of the request.

        Raises ``TimeoutError``, ``UpstreamLostError`` and, over HTTP, ``NotSentError`` and
        ``RefusedError``.
        """
        if self._lost is not None:
            raise self._lost
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._awaited[request["id"]] = future
        try:
            self._server.send(request)
            self._client.sent(request["id"])
            async with asyncio.timeout(timeout):
                return await future
        finally:
            del self._awaited[request["id"]]

    # --- from the server --------------------------------------------------------------------------

    def from_server(self, line: bytes) -> None:
        """Take a line of the server; a line that is no message, or answers nothing, is dropped."""
        try:
            message = cleaned(read(line))
        except AgentguardError as error:
            self._drop(self._name, f"{error} [{error.code}]")
            return
        if is_response(message):
            self._response(message)
        elif is_request(message):
            self._request_of_server(message)
        else:
            self._notice_of_server(message)

    def _response(self, message: Message) -> None:
        identifier = message["id"]
        if (future := self._awaited.get(identifier)) is not None:
            if not future.done():
                future.set_result(message)
        elif (passed := self._passed.pop(identifier, None)) is not None:
            _stop(passed)
            if passed.request["method"] == LIST:
                self._list(passed.request, message)
                return
            if passed.request["method"] == "initialize":
                message = without_tasks(message, "result")
            self._client.send(message)
        else:
            self._given_up.pop(identifier, None)
            self._drop(self._name, "a response to no request")

    def _list(self, request: Message, message: Message) -> None:
        """Answer a request for a list of tools with those that the client may see."""
        result = message.get("result")
        if result is not None:
            tools = self._calls.learn(request, listing.tools_of(result))
            message = {**message, "result": listing.with_tools(result, tools)}
            if not self._calls.shows_all(tools):
                self._start(message["id"], self._filter(request, message))
                return
        self._client.send(message)

    async def _filter(self, request: Message, message: Message) -> None:
        """Answer with those tools of a list that the client may see."""
        result = message["result"]
        tools = await self._calls.listed(request, result["tools"])
        self._client.send({**message, "result": {**result, "tools": tools}})

    def _request_of_server(self, message: Message) -> None:
        identifier, refused = message["id"], None
        is_used = identifier in self._asked or self._is_own(identifier)
        if message["method"] not in FROM_SERVER:
            refused = answers.error(identifier, error_codes.METHOD_NOT_FOUND, "no such method")
        elif is_used or len(self._asked) >= MAX_PENDING:
            refused = answers.error(identifier, error_codes.INVALID_REQUEST, "the id is in use")
        if refused is not None:
            self._server.send(refused)
            return
        self._asked.add(identifier)
        self._client.send(message)

    def _notice_of_server(self, message: Message) -> None:
        if message["method"] not in SERVER_NOTICES:
            self._drop(self._name, f"MCP names no notice {message['method'][:64]!r} of a server")
            return
        if message["method"] == "notifications/tools/list_changed":
            self._calls.forget_list()
        if message["method"] == "notifications/cancelled":
            identifier = message.get("params", {}).get("requestId")
            if not isinstance(identifier, str | int) or identifier not in self._asked:
                return
            self._asked.discard(identifier)
        self._client.send(message)

    def _drop(self, whose: str, what: str) -> None:
        self._dropped[whose] += 1
        if self._dropped[whose] <= _MAX_NOTED:
            _LOGGER.warning("%s: a message is dropped: %s", whose, what)

    def lose_request(self, identifier: RequestId, error: Exception) -> None:
        """Note that the server will not answer a request, for ``error``: as ``OnLost`` says."""
        if (future := self._awaited.get(identifier)) is not None:
            if not future.done():
                future.set_exception(error)
        elif (passed := self._passed.pop(identifier, None)) is not None:
            _stop(passed)
            text = f"the MCP server {self._settings.server} did not answer: {error}"
            self._refuse(identifier, ERROR, text)

    def _is_own(self, identifier: RequestId) -> bool:
        return isinstance(identifier, str) and identifier.startswith(self._own)

    # --- the end ----------------------------------------------------------------------------------

    async def lose_server(self, error: UpstreamLostError) -> None:
        """Answer all that waits for a server that is lost; calls that went there are in doubt."""
        self._lost = error
        self._calls.lose_server(error)
        text = f"the MCP server {self._settings.server} is lost: {error}"
        for identifier, passed in list(self._passed.items()):
            _stop(passed)
            self._refuse(identifier, ERROR, text)
        self._passed.clear()
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(error)
        await self._settle()

    async def close(self) -> None:
        """Cancel all calls that run: the client is gone, and their outcomes stay unknown."""
        for passed in self._passed.values():
            _stop(passed)
        self._passed.clear()
        for task in self._guarded.values():
            task.cancel()
        await self._settle()

    async def _settle(self) -> None:
        await asyncio.gather(*self._guarded.values(), return_exceptions=True)


def _stop(passed: _Passed) -> None:
    if passed.timer is not None:
        passed.timer.cancel()
