"""A server over streamable HTTP behind a gateway (MCP 2025-03-26 to 2026-07-28; the extra httpx).

Each message is one POST, and the order of notices is kept (``send_order.py``). The answer is one
message, or a stream of events that ends with the answer; a second stream, which a GET opens, has
what the server says by itself. A GET also brings the rest of a stream whose connection has ended
(``resumption.py``), so that no call is sent twice. Revision 2026-07-28 has neither sessions nor
streams that are resumed: there, the gateway closes the connection of a request that is given up.
The session's id and the revision that the server has chosen go with each request. No redirect is
followed and no proxy of the environment is asked, since both would see the token.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final

from agentguard import AgentguardError, ConfigError
from agentguard.adapters import DecodeError
from agentguard_mcp.gateway import mcp_headers
from agentguard_mcp.gateway.mcp_headers import PLAIN, encoded
from agentguard_mcp.gateway.messages import (
    MAX_LINE,
    Message,
    RequestId,
    is_modern,
    is_request,
    is_response,
    meta_of,
    read,
    write,
)
from agentguard_mcp.gateway.upstream.protocol import (
    GRACE,
    TOO_LONG,
    NotSentError,
    OnLost,
    OnPoll,
    RefusedError,
    UpstreamLostError,
)
from agentguard_mcp.gateway.upstream.resumption import PAUSE, Resumption
from agentguard_mcp.gateway.upstream.send_order import SendOrder, Turn
from agentguard_mcp.gateway.upstream.server_sent_events import EventReader
from agentguard_mcp.params import STANDARD

try:
    import httpx
except ModuleNotFoundError as error:
    message = (
        "a gateway to a URL needs httpx: from a clone of the project, run "
        "pip install './integrations/agentguard-mcp[httpx]'"
    )
    raise ConfigError(message, code="config.extra_missing") from error

MAX_OPEN: Final = 200
"""The most requests to the server that are open at once."""

MAX_WAITING: Final = 4
"""The most messages of the server that wait for a client that reads slowly, each of 16 MiB."""

_REFUSALS: Final = frozenset({401, 403, 404, 429})
"""The statuses of a server that says that it has not taken a request."""

_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The statuses of a server that may still give the rest of a stream."""

_EVENTS: Final = "text/event-stream"
_JSON: Final = "application/json"
_WRITTEN: Final = "http11.send_request_body.complete"
"""The event of httpcore, below httpx, by which the bytes of a request are written."""

_LONGEST_PAUSE: Final = 60.0


class HttpServer:
    """A client of one server at ``url``; ``bearer`` is the token for the server, None for none.

    ``timeout`` is the number of seconds in which the server has to accept a connection, to send a
    byte, to end its answer and to give the rest of a stream; a subscription has no end.
    ``on_lost`` is told of each request that the server will not answer, with ``NotSentError`` where
    the request did not get there, and ``on_poll`` of each for whose answer the server wants to be
    asked again. Raises ``ConfigError`` for a token that no header can hold.
    """

    def __init__(
        self, url: str, bearer: str | None, timeout: float, on_lost: OnLost, on_poll: OnPoll
    ) -> None:
        headers = {"Accept-Encoding": "identity"}  # what is unpacked has no limit
        if bearer is not None:
            if not PLAIN.match(bearer):
                raise ConfigError("the token for the MCP server is no printable ASCII on one line")
            headers["Authorization"] = f"Bearer {bearer}"
        self._url = url
        self._timeout = timeout
        self._on_lost = on_lost
        self._on_poll = on_poll
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 30.0)),
            limits=httpx.Limits(max_connections=MAX_OPEN),
            follow_redirects=False,
            trust_env=False,
            verify=_certificates(),
        )
        self._order = SendOrder()
        self._messages: asyncio.Queue[bytes] = asyncio.Queue(maxsize=MAX_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stoppable: dict[RequestId, asyncio.Task[None]] = {}
        self._wanted: set[RequestId] = set()
        self._session: str | None = None
        self._revision: str | None = None
        self._hello: object = None
        self._listens = False
        self._is_closed = False

    def send(self, message: Message) -> None:
        """Send a message in a task of its own; raises ``UpstreamLostError`` and ``EncodeError``.

        The notice that a request is given up closes the stream of a request of revision
        2026-07-28, and any request that waits for its turn is then not sent at all.
        A message beyond ``2 * MAX_OPEN`` at once is not sent: ``on_lost`` is told of a request
        (``NotSentError``), and another message is dropped.
        """
        line = write(message)
        if self._is_closed:
            raise UpstreamLostError
        if message.get("method") == "notifications/cancelled" and self._give_up(message):
            return
        if len(self._tasks) >= 2 * MAX_OPEN:
            if is_request(message):
                error = NotSentError("too many requests at once")
                asyncio.get_running_loop().call_soon(self._on_lost, message["id"], error)
            return
        turn = self._order.turn(is_request=is_request(message))
        task = self._start(self._send_in_turn(message, line, turn))
        if is_request(message):
            self._stoppable[message["id"]] = task
            task.add_done_callback(partial(self._forget, message["id"], turn))

    def _forget(self, identifier: RequestId, turn: Turn, task: asyncio.Task[None]) -> None:
        """Note the end of a request that perhaps never began."""
        turn.end()
        self._wanted.discard(identifier)
        if self._stoppable.get(identifier) is task:
            del self._stoppable[identifier]

    def _give_up(self, notice: Message) -> bool:
        """Stop a request that can be stopped without a word to the server; return whether so."""
        identifier = notice.get("params", {}).get("requestId")
        if not isinstance(identifier, str | int):
            return False
        self._wanted.discard(identifier)
        task = self._stoppable.get(identifier)
        if task is not None:
            task.cancel()
        return task is not None

    async def next(self) -> bytes:
        """Return the server's next message; a server over HTTP has no end."""
        return await self._messages.get()

    async def end(self, *, at_once: bool = False) -> None:
        """End the session, and close all connections."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None and not at_once:
            with suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self._client.delete(self._url, headers=self._headers({}))
        await self._client.aclose()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _headers(self, message: Message) -> dict[str, str]:
        headers = {"Accept": f"{_JSON}, {_EVENTS}", "Content-Type": _JSON}
        revision = meta_of(message).get(f"{STANDARD}protocolVersion", self._revision)
        if isinstance(revision, str) and PLAIN.match(revision):
            headers["MCP-Protocol-Version"] = revision
        if self._session is not None:
            headers["Mcp-Session-Id"] = self._session
        method = message.get("method")
        if is_modern(message) and isinstance(method, str):
            headers["Mcp-Method"] = encoded(method)
            name = message.get("params", {}).get(mcp_headers.NAMED_BY.get(method, ""))
            if isinstance(name, str):
                headers["Mcp-Name"] = encoded(name)
        return headers

    async def _send_in_turn(self, message: Message, line: bytes, turn: Turn) -> None:
        try:
            await turn.come()
            if is_request(message) and not is_modern(message):
                self._stoppable.pop(message["id"], None)  # the server may get it now
                self._wanted.add(message["id"])
            await self._post(message, line, turn)
        finally:
            turn.end()
        if message.get("method") == "notifications/initialized" and not self._listens:
            self._listens = True  # a client may send the notice again and again
            self._start(self._listen())

    async def _post(self, message: Message, line: bytes, turn: Turn) -> None:
        """Send a message, and take what comes back; a request without an answer is lost.

        A request has gone out once its bytes are written, and another message once the server has
        answered.
        """

        async def trace(event: str, _details: object) -> None:
            if turn.is_request and event == _WRITTEN:
                turn.end()

        if message.get("method") == "initialize":
            self._hello = message["id"]
        identifier, resumption = message["id"] if is_request(message) else None, Resumption()
        error: Exception = UpstreamLostError("the answer has no response to the request")
        try:
            headers = self._headers(message)
            posting = self._client.stream(
                "POST", self._url, content=line, headers=headers, extensions={"trace": trace}
            )
            # a server may send comments for ever
            async with asyncio.timeout(self._longest(message)), posting as response:
                turn.end()
                if await self._take(response, identifier, resumption):
                    return
                if not response.is_success:
                    error = UpstreamLostError(f"HTTP status {response.status_code}")
                    if response.status_code in _REFUSALS:
                        error = RefusedError(f"HTTP status {response.status_code}")
        except (httpx.ConnectError, httpx.ConnectTimeout) as failed:
            error = NotSentError(f"no connection ({type(failed).__name__})")
        except (httpx.HTTPError, AgentguardError, TimeoutError) as failed:
            error = UpstreamLostError(_why(failed))
        if identifier is not None and not await self._resume(identifier, resumption):
            self._on_lost(identifier, error)

    def _longest(self, message: Message) -> float | None:
        """Return the seconds that the answer to a message may take, None for a subscription."""
        is_endless = is_modern(message) and message.get("method") == "subscriptions/listen"
        return None if is_endless else self._timeout

    async def _resume(self, identifier: RequestId, resumption: Resumption) -> bool:
        """Take the rest of a stream over other connections; return whether the answer came.

        This ends with the first connection that the server refuses, after ``TRIES`` connections
        without an event, and after ``timeout`` seconds. A request that is given up, and one of
        revision 2026-07-28, is not ``_wanted``.
        """
        with suppress(TimeoutError, AgentguardError):  # the second for an event that is too long
            async with asyncio.timeout(self._timeout):
                while identifier in self._wanted and resumption.may_go_on:
                    if resumption.is_closed:
                        self._on_poll(identifier)
                    await asyncio.sleep(resumption.pause)
                    if identifier not in self._wanted:  # given up meanwhile
                        return False
                    resumption.connect()
                    with suppress(httpx.HTTPError):
                        async with self._reading(resumption) as response:
                            if await self._take(response, identifier, resumption):
                                return True
                            if not response.is_success and response.status_code not in _LATER:
                                return False
        return False

    def _reading(self, resumption: Resumption) -> Any:
        """Return the connection that brings the stream of a GET, or the rest of a stream."""
        headers = {**self._headers({}), "Accept": _EVENTS}
        if resumption.event is not None:
            headers["Last-Event-ID"] = resumption.event
        return self._client.stream("GET", self._url, headers=headers, timeout=None)

    async def _take(
        self, response: httpx.Response, identifier: object, resumption: Resumption
    ) -> bool:
        """Pass the messages of a response on; return whether ``identifier`` was answered.

        Raises ``DecodeError`` (``json.size``) for a message beyond ``MAX_LINE``.
        """
        if self._session is None and response.is_success:
            session = response.headers.get("mcp-session-id")
            self._session = session if session and PLAIN.match(session) else None
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_answered = False
        if kind == _EVENTS and response.is_success:
            reader = EventReader(MAX_LINE, resumption.event)
            async for chunk in response.aiter_raw():
                for data in reader.feed(chunk):
                    is_answered |= await self._pass(data, identifier)
                resumption.move(reader)
                if is_answered:
                    return True
            resumption.is_closed = True
        elif kind == _JSON:
            body = bytearray()  # bytes would be copied for each chunk
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_LINE:
                    raise DecodeError(TOO_LONG, code="json.size")
            is_answered = bool(body) and await self._pass(bytes(body), identifier)
        return is_answered

    async def _pass(self, data: bytes, identifier: object) -> bool:
        """Hand a message on; return whether the message is the response to ``identifier``.

        An event without data, with which a stream may begin, is no message.
        """
        if not data.strip():
            return False
        try:
            message = read(data)
        except AgentguardError:
            message = {}  # the relay says so, and drops it
        is_answer = is_response(message) and identifier is not None
        is_answer = is_answer and message.get("id") == identifier
        if is_answer and identifier == self._hello:
            revision = message.get("result", {}).get("protocolVersion")
            self._revision = revision if isinstance(revision, str) else None
        await self._messages.put(data)
        return is_answer

    async def _listen(self) -> None:
        """Take what the server says by itself, as long as it offers a stream for this."""
        pause, resumption = PAUSE, Resumption()
        while True:
            with suppress(httpx.HTTPError, AgentguardError):
                async with self._reading(resumption) as response:
                    if response.is_success:
                        pause = PAUSE
                        await self._take(response, None, resumption)
                    elif resumption.event is None:
                        return  # 405: the server has no such stream
                    elif response.status_code not in _LATER:
                        resumption = Resumption()  # the server has forgotten the stream
            await asyncio.sleep(max(pause, resumption.pause))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _why(failed: Exception) -> str:
    """Return why there is no answer; an ``AgentguardError`` always says that it was too long."""
    is_long = isinstance(failed, AgentguardError)
    return TOO_LONG if is_long else f"the connection failed ({type(failed).__name__})"


@cache
def _certificates() -> ssl.SSLContext:
    """Return the certificates that count, read once: a read holds all sessions up for 20 ms."""
    return httpx.create_ssl_context(trust_env=False)
