"""``Endpoint``: MCP's streamable HTTP for the clients of a gateway.

An ASGI application for the revisions 2025-03-26 to 2026-07-28. The endpoint reads each request
strictly, hands the message to the relay of the session, and answers with one message, or with a
stream of events where the server says more than the answer.
``streams.py`` sorts the messages, ``sessions.py`` keeps the connections to the server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Final

from agentguard import AgentguardError
from agentguard_mcp.gateway import error_codes
from agentguard_mcp.gateway.http.admission import Admission, Admitted
from agentguard_mcp.gateway.http.asgi import (
    Http,
    Receive,
    Scope,
    Send,
    body_of,
    gone_from,
    with_headers,
)
from agentguard_mcp.gateway.http.cors import answer_headers, preflight
from agentguard_mcp.gateway.http.headers import (
    accepts,
    is_single,
    params_of,
    read_headers,
    require_agreement,
    require_json,
    require_no_contradiction,
    require_own,
    require_served,
)
from agentguard_mcp.gateway.http.refusal import STATUS, HttpRefusalError
from agentguard_mcp.gateway.http.request_context import RequestContext
from agentguard_mcp.gateway.http.sessions import MAX_PENDING, FullError, Session, Sessions
from agentguard_mcp.gateway.http.settings import Place
from agentguard_mcp.gateway.http.streams import Item, Stream
from agentguard_mcp.gateway.messages import Message, cancelled, is_request, is_response, read
from agentguard_mcp.gateway.methods import LEGACY
from agentguard_mcp.gateway.upstream import UpstreamLostError
from agentguard_mcp.messages import ERROR

BEAT: Final = 15.0
"""Seconds of silence after which a stream begins, or says that the connection is alive."""

RECHECK: Final = 60.0
"""Seconds after which the token of a client that listens is looked at again."""

_EVENTS: Final = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # a proxy such as nginx passes each event on at once
}
_ALIVE: Final = b": alive\n\n"
_LOGGER = logging.getLogger("agentguard.mcp")


class Endpoint:
    """The endpoint of a gateway at ``place``, for the callers that ``admission`` admits."""

    def __init__(self, place: Place, sessions: Sessions, admission: Admission) -> None:
        self._place = place
        self._sessions = sessions
        self._admission = admission
        self._endless: set[Stream] = set()
        self._is_draining = False

    @property
    def pending(self) -> int:
        """How many requests of clients wait for their responses, but for endless ones."""
        return self._sessions.pending

    def drain(self) -> None:
        """Take no request any more, and end the streams on which clients listen.

        Responses and notices still go to calls that run.
        """
        self._is_draining = True
        for stream in self._endless:
            stream.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        http = Http({}, Admitted(None), receive, send)
        try:
            headers = read_headers(scope["headers"])
            require_own(headers, self._place.hosts, self._place.origins)
            if "origin" in headers:
                send = with_headers(send, answer_headers(headers["origin"]))
                http = Http({}, Admitted(None), receive, send)
            path, method = scope["path"], scope["method"]
            if method == "OPTIONS" and "origin" in headers:
                await http.answer(204, headers=preflight(headers))
                return
            found = self._admission.metadata(path) if method == "GET" else None
            if found is not None:
                await http.answer(200, found, {"cache-control": "public, max-age=60"})
                return
            self._require_served(path)
            http = Http(headers, await self._admission.admit(headers), receive, send)
            await self._dispatch(method, http)
        except HttpRefusalError as error:
            await http.refuse(error)

    def _require_served(self, path: str) -> None:
        if path != self._place.path:
            raise HttpRefusalError(404, "nothing is served at this path")

    def _require_open(self) -> None:
        if self._is_draining:
            raise HttpRefusalError(503, "the gateway ends", headers={"retry-after": "1"})

    async def _dispatch(self, method: str, http: Http) -> None:
        if method == "POST":
            await self._post(http)
        elif method == "GET":
            await self._get(http)
        elif method == "DELETE":
            self._sessions.end_soon(self._session(http))
            await http.answer(204)
        else:
            allowed = {"allow": "GET, POST, DELETE"}
            raise HttpRefusalError(405, "the method is not served", headers=allowed)

    # --- one message of a client ------------------------------------------------------------------

    async def _post(self, http: Http) -> None:
        require_json(http.headers)
        body = await body_of(http.receive)
        try:
            message = read(body)
        except AgentguardError as error:
            text = f"{error} [{error.code}]"
            raise HttpRefusalError(400, text, code=error_codes.PARSE_ERROR) from error
        try:
            if is_request(message):
                self._require_open()
            self._admission.require_passed(message.get("method", ""))
            await (self._single if is_single(message, http.headers) else self._within)(
                http, message
            )
        except HttpRefusalError as error:
            await http.refuse(error, None if is_response(message) else message)

    async def _single(self, http: Http, message: Message) -> None:
        """Take a message of revision 2026-07-28, which has no session."""
        if is_response(message):
            raise HttpRefusalError(400, "a client sends no responses in this revision")
        if not is_request(message):
            require_served(http.headers.get("mcp-protocol-version", ""))
            await http.answer(202)  # there is no notice that a server could act on
            return
        require_agreement(message, http.headers)
        session = await self._opened(self._sessions.shared(http.admitted.owner))
        context = RequestContext(http.admitted.user, params_of(http.headers))
        await self._exchange(http, session, message, context)

    async def _within(self, http: Http, message: Message) -> None:
        """Take a message of a client that has a session, or begins one."""
        require_no_contradiction(message, http.headers)
        context = RequestContext(http.admitted.user)
        if is_request(message) and message["method"] == "initialize":
            if "mcp-session-id" in http.headers:
                raise HttpRefusalError(400, "a session is initialised once")
            session = await self._opened(self._sessions.begin(http.admitted.owner))
            headers = {"mcp-session-id": session.identifier}
            if not await self._exchange(http, session, message, context, headers):
                self._sessions.end_soon(session)
            return
        session = self._session(http)
        if is_request(message):
            await self._exchange(http, session, message, context)
            return
        with suppress(UpstreamLostError):
            session.take(message)
        if message.get("method") == "notifications/cancelled":
            session.streams.cancel(message.get("params", {}).get("requestId"))
        await http.answer(202)

    def _session(self, http: Http) -> Session:
        """Return the session that a request names; raises ``HttpRefusalError`` (400, 404)."""
        revision = http.headers.get("mcp-protocol-version")
        if revision is not None and revision not in LEGACY:
            raise HttpRefusalError(400, "the revision in MCP-Protocol-Version has no sessions")
        identifier = http.headers.get("mcp-session-id")
        if identifier is None:
            raise HttpRefusalError(400, "the header Mcp-Session-Id is missing")
        session = self._sessions.find(identifier, http.admitted.owner)
        if session is None:
            raise HttpRefusalError(404, "there is no such session")
        return session

    async def _opened(self, opening: Awaitable[Session]) -> Session:
        """Return a session that begins; raises ``HttpRefusalError`` (503)."""
        try:
            return await opening
        except FullError as error:
            text, later = "there are too many sessions", {"retry-after": "10"}
            raise HttpRefusalError(503, text, code=ERROR, headers=later) from error
        except AgentguardError as error:
            _LOGGER.warning("a session can't begin: %s [%s]", error, error.code)
            text = f"the MCP server can't be started: the gateway's log says why [{error.code}]"
            raise HttpRefusalError(503, text, code=ERROR) from error

    # --- the answer -------------------------------------------------------------------------------

    async def _exchange(
        self,
        http: Http,
        session: Session,
        message: Message,
        context: RequestContext,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Hand a request to the relay, and answer with what comes; return whether a result came.

        ``headers`` go with an answer that HTTP does not refuse.
        """
        if session.streams.pending >= MAX_PENDING:
            raise HttpRefusalError(503, "too many requests wait for an answer", code=ERROR)
        registered = session.streams.register(message)
        if registered is None:
            raise HttpRefusalError(400, "the id is in use")
        request, stream = registered
        session.contexts.note(request["id"], context)
        is_endless = message["method"] == "subscriptions/listen"
        watching = self._watched(http, stream) if is_endless else None
        try:
            session.take(request)
            await self._reply(http, stream, context, headers or {})
        except UpstreamLostError as error:
            status = 503 if context.is_single else 404  # a shared server, or a session
            raise HttpRefusalError(status, "the MCP server has ended", code=ERROR) from error
        finally:
            self._unwatch(stream, watching)
            self._let_go(session, stream, is_single=context.is_single)
            if stream.answer is not None:  # else the call may still ask for its context
                session.contexts.forget(request["id"])
        return "result" in (stream.answer or {})

    def _let_go(self, session: Session, stream: Stream, *, is_single: bool) -> None:
        """Note that nobody reads a stream any more.

        In revision 2026-07-28, a client cancels a request by this. In a session, the request goes
        on: the connection may have broken.
        """
        identifier = session.streams.forget(stream)
        session.used_at = asyncio.get_running_loop().time()
        if identifier is not None and is_single:
            with suppress(UpstreamLostError):
                session.take(cancelled(identifier, "the client has closed the stream"))

    async def _reply(
        self, http: Http, stream: Stream, context: RequestContext, headers: Mapping[str, str]
    ) -> None:
        """Answer with one message, or with events where something comes before the answer."""
        gone = asyncio.ensure_future(gone_from(http.receive))
        try:
            item = await _next(stream, gone, BEAT)
            if isinstance(item, Item) and item.answer is not None:
                await self._whole(http, item.line, item.answer, context, headers)
            else:
                await self._events(http, stream, gone, headers, item)
        finally:
            gone.cancel()

    async def _whole(
        self,
        http: Http,
        line: bytes,
        answer: Message,
        context: RequestContext,
        headers: Mapping[str, str],
    ) -> None:
        """Answer with one message, and the status that HTTP has for what the message says."""
        refused = self._admission.refusal_of(answer, context, http.admitted)
        if refused is not None:
            await http.answer(refused.status, line, refused.headers)
        elif context.mismatch is not None:
            error = HttpRefusalError(400, context.mismatch, code=error_codes.HEADER_MISMATCH)
            await http.refuse(error, answer)
        else:
            code = answer.get("error", {}).get("code", 0)
            await http.answer(STATUS.get(code, 200) if context.is_single else 200, line, headers)

    async def _events(
        self,
        http: Http,
        stream: Stream,
        gone: asyncio.Future[None],
        headers: Mapping[str, str],
        item: Item | str | None,
    ) -> None:
        """Send events until the stream ends, or the client is gone."""
        await http.start(200, {**_EVENTS, **headers})
        while item is not None and not gone.done():
            await http.write(_event(item.line) if isinstance(item, Item) else _ALIVE)
            item = await _next(stream, gone, BEAT)
        await http.write(b"", is_last=True)

    def _watched(self, http: Http, stream: Stream) -> asyncio.Task[None]:
        """Let a stream without an end of its own end with the gateway, or with the token."""
        self._endless.add(stream)
        return asyncio.create_task(self._watch(http, stream))

    async def _watch(self, http: Http, stream: Stream) -> None:
        """End a stream once the token of its client does not count any more."""
        ends_at = http.admitted.ends_at
        while ends_at is not None and (left := ends_at - time.time()) > 0:
            await asyncio.sleep(min(left, RECHECK))
            try:
                ends_at = (await self._admission.admit(http.headers)).ends_at
            except HttpRefusalError:
                break
        if ends_at is not None:
            stream.end()

    def _unwatch(self, stream: Stream, watching: asyncio.Task[None] | None) -> None:
        self._endless.discard(stream)
        if watching is not None:
            watching.cancel()

    async def _get(self, http: Http) -> None:
        """Open the stream for what the server says by itself."""
        self._require_open()
        if not accepts(http.headers, "text/event-stream"):
            raise HttpRefusalError(406, "Accept has to name text/event-stream")
        if http.headers.get("mcp-session-id") is None:
            allowed = {"allow": "POST"}
            raise HttpRefusalError(405, "only a session has such a stream", headers=allowed)
        session = self._session(http)
        stream = session.streams.listen()
        if stream is None:
            raise HttpRefusalError(409, "the session has such a stream already")
        gone = asyncio.ensure_future(gone_from(http.receive))
        watching = self._watched(http, stream)
        try:
            await self._events(http, stream, gone, {}, "")
        finally:
            gone.cancel()
            self._unwatch(stream, watching)
            self._let_go(session, stream, is_single=False)


def _event(line: bytes) -> bytes:
    """Return a message, which ends with a line feed, as a server-sent event."""
    return b"event: message\ndata: " + line + b"\n"


async def _next(stream: Stream, gone: asyncio.Future[None], seconds: float) -> Item | str | None:
    """Return the next message, a text after so many seconds of silence, None at the end."""
    following = asyncio.ensure_future(stream.next())
    both: set[asyncio.Future[Any]] = {following, gone}
    try:
        done, _waiting = await asyncio.wait(
            both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if following in done:
            return following.result()
        return None if gone in done else ""
    finally:
        following.cancel()
