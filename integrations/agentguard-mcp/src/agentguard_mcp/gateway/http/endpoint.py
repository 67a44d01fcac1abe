"""``Endpoint``: MCP's streamable HTTP for the clients of a gateway.

An ASGI application for the revisions 2025-03-26 to 2026-07-28. The endpoint reads each request
strictly, hands the message to the relay of the session, and answers with one message, or with a
stream of events (``server_sent_events.py``). ``streams.py`` sorts the messages, ``sessions.py``
keeps the connections to the server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

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
from agentguard_mcp.gateway.http.replay import GoneError
from agentguard_mcp.gateway.http.request_context import RequestContext
from agentguard_mcp.gateway.http.server_sent_events import BEAT, SILENCE, next_event, send_events
from agentguard_mcp.gateway.http.sessions import MAX_PENDING, FullError, Session, Sessions
from agentguard_mcp.gateway.http.settings import Place
from agentguard_mcp.gateway.http.stream import Reader
from agentguard_mcp.gateway.messages import Message, cancelled, is_request, is_response, read
from agentguard_mcp.gateway.methods import LEGACY
from agentguard_mcp.gateway.upstream import UpstreamLostError
from agentguard_mcp.messages import ERROR

RECHECK: Final = 60.0
"""Seconds after which the token of a client that listens is looked at again."""

_LOGGER = logging.getLogger("agentguard.mcp")


class Endpoint:
    """The endpoint of a gateway at ``place``, for the callers that ``admission`` admits.

    One user, where callers are known, has at most ``share`` requests under way.
    """

    def __init__(
        self, place: Place, sessions: Sessions, admission: Admission, *, share: int
    ) -> None:
        self._place = place
        self._sessions = sessions
        self._admission = admission
        self._share = share
        self._under_way: Counter[str] = Counter()
        self._endless: set[Reader] = set()
        self._is_draining = False

    @property
    def pending(self) -> int:
        """How many requests of clients wait for their responses, but for endless ones."""
        return self._sessions.pending

    def drain(self) -> None:
        """Take no request any more, and end the connections on which clients listen.

        Responses and notices still go to calls that run, also to clients that come again for them.
        """
        self._is_draining = True
        for reader in self._endless:
            reader.finish()

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
            with self._counted(http.admitted):
                await self._dispatch(method, http)
        except HttpRefusalError as error:
            await http.refuse(error)

    @contextmanager
    def _counted(self, admitted: Admitted) -> Iterator[None]:
        """Count a request of a user; raises ``HttpRefusalError`` (503) for one too many.

        Each takes a connection, of which other users need some, too.
        """
        user = "" if admitted.owner is None else admitted.owner.user
        if user and self._under_way[user] >= self._share:
            text, later = "too many requests of the user are under way", {"retry-after": "10"}
            raise HttpRefusalError(503, text, code=ERROR, headers=later)
        self._under_way[user] += 1
        try:
            yield
        finally:
            self._under_way[user] -= 1
            if not self._under_way[user]:
                del self._under_way[user]

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
            take = self._single if is_single(message, http.headers) else self._within
            await take(http, message, len(body))
        except HttpRefusalError as error:
            await http.refuse(error, None if is_response(message) else message)

    async def _single(self, http: Http, message: Message, size: int) -> None:
        """Take a message of revision 2026-07-28, which has no session."""
        if is_response(message):
            raise HttpRefusalError(400, "a client sends no responses in this revision")
        if not is_request(message):
            require_served(http.headers.get("mcp-protocol-version", ""))
            await http.answer(202)  # there is no notice that a server could act on
            return
        require_agreement(message, http.headers)
        session = await self._opened(self._sessions.shared(http.admitted.owner))
        context = RequestContext(http.admitted.user, params_of(http.headers), size=size)
        await self._exchange(http, session, message, context)

    async def _within(self, http: Http, message: Message, size: int) -> None:
        """Take a message of a client that has a session, or begins one."""
        require_no_contradiction(message, http.headers)
        context = RequestContext(http.admitted.user, size=size)
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
        is_full = session.streams.pending >= MAX_PENDING
        if is_full or not self._sessions.has_room(session, context.size):
            raise HttpRefusalError(503, "too many requests wait for an answer", code=ERROR)
        registered = session.streams.register(message, context.size)
        if registered is None:
            raise HttpRefusalError(400, "the id is in use")
        request, reader = registered
        session.contexts.note(request["id"], context)
        is_endless = message["method"] == "subscriptions/listen"
        watching = self._watched(http, reader) if is_endless else None
        gone = asyncio.ensure_future(gone_from(http.receive))
        try:
            session.take(request)
            await self._reply(http, session, reader, gone, context, headers or {})
        except UpstreamLostError as error:
            session.streams.cancel(request["id"])
            status = 503 if context.is_single else 404  # a shared server, or a session
            raise HttpRefusalError(status, "the MCP server has ended", code=ERROR) from error
        finally:
            self._unwatch(reader, watching)
            self._let_go(session, reader, gone, is_single=context.is_single)
        return "result" in (reader.stream.answer or {})

    def _let_go(
        self, session: Session, reader: Reader, gone: asyncio.Future[None], *, is_single: bool
    ) -> None:
        """Note that a connection has ended.

        In revision 2026-07-28, a client cancels a request by this. In a session, the request goes
        on: the connection may have broken, and the client may come again for the answer.
        """
        identifier = session.streams.release(reader, is_gone=gone.done())
        gone.cancel()
        session.used_at = asyncio.get_running_loop().time()
        if identifier is not None and is_single:
            with suppress(UpstreamLostError):
                session.take(cancelled(identifier, "the client has closed the stream"))

    async def _reply(
        self,
        http: Http,
        session: Session,
        reader: Reader,
        gone: asyncio.Future[None],
        context: RequestContext,
        headers: Mapping[str, str],
    ) -> None:
        """Answer with one message, or with events where the answer is not the first event."""
        first = await next_event(reader, gone, BEAT)
        if first is not None and first.answer is not None:
            await self._whole(http, first.line, first.answer, context, headers)
        else:
            if first is not None:
                session.streams.keep(reader.stream)
            await send_events(http, reader, gone, headers, first)

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

    def _watched(self, http: Http, reader: Reader) -> asyncio.Task[None]:
        """Let a connection without an end of its own end with the gateway, or with the token."""
        self._endless.add(reader)
        return asyncio.create_task(self._watch(http, reader))

    async def _watch(self, http: Http, reader: Reader) -> None:
        """End a connection once the token of its client does not count any more."""
        ends_at = http.admitted.ends_at
        while ends_at is not None and (left := ends_at - time.time()) > 0:
            await asyncio.sleep(min(left, RECHECK))
            try:
                ends_at = (await self._admission.admit(http.headers)).ends_at
            except HttpRefusalError:
                break
        if ends_at is not None:
            reader.finish()

    def _unwatch(self, reader: Reader, watching: asyncio.Task[None] | None) -> None:
        self._endless.discard(reader)
        if watching is not None:
            watching.cancel()

    async def _get(self, http: Http) -> None:
        """Open the stream for what the server says by itself, or resume a stream."""
        event = http.headers.get("last-event-id")
        if event is None:
            self._require_open()
        if not accepts(http.headers, "text/event-stream"):
            raise HttpRefusalError(406, "Accept has to name text/event-stream")
        if http.headers.get("mcp-session-id") is None:
            allowed = {"allow": "POST"}
            raise HttpRefusalError(405, "only a session has such a stream", headers=allowed)
        session = self._session(http)
        session.used_at = asyncio.get_running_loop().time()
        reader = session.streams.listen() if event is None else _resumed(session, event)
        if reader is None:
            raise HttpRefusalError(409, "the session has such a stream already")
        gone = asyncio.ensure_future(gone_from(http.receive))
        watching = self._watched(http, reader) if reader.stream.is_standing else None
        try:
            if self._is_draining and reader.stream.is_standing:
                reader.finish()
            session.streams.keep(reader.stream)
            await send_events(http, reader, gone, {}, SILENCE)
        finally:
            self._unwatch(reader, watching)
            self._let_go(session, reader, gone, is_single=False)


def _resumed(session: Session, event: str) -> Reader:
    """Return what reads a stream behind an event; raises ``HttpRefusalError`` (410)."""
    try:
        return session.streams.resume(event)
    except GoneError as error:
        text = "nothing is kept that follows the event in Last-Event-ID"
        raise HttpRefusalError(410, text) from error
