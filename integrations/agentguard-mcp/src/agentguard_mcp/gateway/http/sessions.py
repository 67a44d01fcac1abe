"""``Sessions``: the connections to the server behind a gateway over HTTP, one for each session.

A client of a revision with ``initialize`` has a session, with a server process (or a connection) of
its own. The requests of revision 2026-07-28 stand by themselves: those of one caller share a
process, since nothing tells two clients of one caller apart. A session belongs to the caller who
has begun it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from agentguard_mcp.gateway import answers, error_codes
from agentguard_mcp.gateway.caller_source import CallerSource
from agentguard_mcp.gateway.connect import Link
from agentguard_mcp.gateway.http import replay
from agentguard_mcp.gateway.http.admission import Owner
from agentguard_mcp.gateway.http.request_context import RequestContexts
from agentguard_mcp.gateway.http.streams import Streams
from agentguard_mcp.gateway.messages import Message
from agentguard_mcp.gateway.relay import Relay
from agentguard_mcp.gateway.upstream import Upstream, UpstreamLostError

MAX_PENDING: Final = 200
"""The most requests of one session that wait for an answer."""

MAX_HELD: Final = 32 << 20
"""The most bytes of all requests that are under way; in memory, a request takes 25 times as much.

One session, and one user where callers are known, has at most a quarter of it.
"""

_SHARE: Final = 4
"""One user has at most a quarter of the sessions, where callers are known."""

Opener = Callable[[Streams, RequestContexts], Awaitable[Link]]
"""Starts the server, and returns the relay between the server and the streams."""


class FullError(Exception):
    """There are as many sessions as there may be, in all or for this caller."""


@dataclass(eq=False, slots=True)
class Session:
    """A relay with its server, and the streams of the client's responses.

    ``owner`` is the caller, None where callers are not known.
    """

    owner: Owner | None
    streams: Streams
    contexts: RequestContexts
    relay: Relay
    upstream: Upstream
    used_at: float
    identifier: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    is_ended: bool = False
    pump: asyncio.Task[None] | None = None

    def take(self, message: Message) -> None:
        """Take a message of the client; raises ``UpstreamLostError`` where the server is gone."""
        self.used_at = asyncio.get_running_loop().time()
        self.relay.take(message)


class Sessions:
    """The sessions of one gateway, at most ``most``; each ends after ``idle`` seconds of silence.

    ``known`` says that callers are known, so that each user has a share of the sessions.
    ``open_link`` starts the server of a session. ``proofs`` verifies the proofs of calls, None for
    calls without.
    """

    def __init__(
        self,
        open_link: Opener,
        proofs: CallerSource | None,
        *,
        most: int,
        idle: float,
        known: bool,
    ) -> None:
        self._open = open_link
        self._proofs = proofs
        self._most = most
        self._share = max(1, most // _SHARE) if known else most
        self._idle = idle
        self._sessions: dict[str, Session] = {}
        self._shared: dict[Owner | None, asyncio.Task[Session]] = {}
        self._begun: list[Owner | None] = []
        self._ends: dict[asyncio.Task[None], Owner | None] = {}
        self._is_closed = False

    @property
    def pending(self) -> int:
        """How many requests wait for their responses, in all sessions."""
        return sum(one.streams.pending for one in self._sessions.values())

    async def begin(self, owner: Owner | None, *, is_shared: bool = False) -> Session:
        """Begin a session; raises ``FullError``, and what ``linked`` raises."""
        self._require_room(owner)
        # requests with proofs have callers of their own, and share the relay all the same
        streams = Streams(is_shared=is_shared, is_for_one=self._proofs is None)
        contexts = RequestContexts(self._proofs)
        self._begun.append(owner)
        try:
            relay, upstream = await self._open(streams, contexts)
        finally:
            self._begun.remove(owner)
        if self._is_closed:
            await upstream.end(at_once=True)
            raise FullError
        now = asyncio.get_running_loop().time()
        session = Session(owner, streams, contexts, relay, upstream, now)
        streams.refuse = lambda request: _refuse(relay, request)
        streams.answered = contexts.forget
        streams.kept_more = self._bound_kept
        self._sessions[session.identifier] = session
        session.pump = asyncio.create_task(self._pump(session))
        return session

    def _bound_kept(self) -> None:
        """Have the sessions that keep the most drop what is beyond the bound of all sessions."""
        if sum(one.streams.kept_size for one in self._sessions.values()) <= replay.MAX_KEPT_IN_ALL:
            return
        sizes = {one: one.streams.kept_size for one in self._sessions.values()}
        for largest in sorted(sizes, key=sizes.__getitem__, reverse=True):
            beyond = sum(sizes.values()) - replay.MAX_KEPT_IN_ALL
            if beyond <= 0:
                break
            largest.streams.trim(max(0, sizes[largest] - beyond))
            sizes[largest] = largest.streams.kept_size

    def _require_room(self, owner: Owner | None) -> None:
        """Raise ``FullError`` for a session too many; one counts until its server has ended."""
        owners = [one.owner for one in self._sessions.values()]
        users = [one and one.user for one in (*owners, *self._begun, *self._ends.values())]
        if len(users) >= self._most or users.count(owner and owner.user) >= self._share:
            raise FullError

    def has_room(self, session: Session, size: int) -> bool:
        """Whether a session may have a further request under way, of ``size`` bytes."""
        user, all_held, held = session.owner and session.owner.user, size, size
        for one in self._sessions.values():
            all_held += one.streams.held_size
            is_of_user = user is not None and one.owner is not None and one.owner.user == user
            if one is session or is_of_user:
                held += one.streams.held_size
        return all_held <= MAX_HELD and held <= MAX_HELD // _SHARE

    def find(self, identifier: str, owner: Owner | None) -> Session | None:
        """Return a session of a caller; None for one that ended, and for another caller's."""
        session = self._sessions.get(identifier)
        return session if session is not None and session.owner == owner else None

    async def shared(self, owner: Owner | None) -> Session:
        """Return what the requests of a caller without a session share; raises as ``begin`` does.

        Requests that come while the server starts wait for the same server.
        """
        task = self._shared.get(owner)
        if task is None or (task.done() and _result_of(task) is None):
            task = self._shared[owner] = asyncio.create_task(self.begin(owner, is_shared=True))
            task.add_done_callback(lambda done: self._forget_failed(owner, done))
        return await asyncio.shield(task)

    def _forget_failed(self, owner: Owner | None, task: asyncio.Task[Session]) -> None:
        if _result_of(task) is None and self._shared.get(owner) is task:
            del self._shared[owner]

    async def _pump(self, session: Session) -> None:
        """Pass the server's lines on until the server ends; then the session ends, too."""
        lost = UpstreamLostError()
        try:
            while line := await session.upstream.next():
                if not line.isspace():
                    session.relay.from_server(line)
                await asyncio.sleep(0)  # the next line may be there: other sessions have a turn
        except UpstreamLostError as error:
            lost = error
        except OSError:
            pass
        finally:  # whatever stops the pump, nothing would answer the client any more
            self.end_soon(session, lost)

    def end_soon(self, session: Session, lost: UpstreamLostError | None = None) -> None:
        """End a session: at once for its client, and in a task of its own for the server.

        ``lost`` says how the server was lost, None for a server that is there.
        """
        if not session.is_ended:
            session.is_ended = True
            del self._sessions[session.identifier]
            if _result_of(self._shared.get(session.owner)) is session:
                del self._shared[session.owner]
            task = asyncio.create_task(_end(session, lost))
            self._ends[task] = session.owner
            task.add_done_callback(self._ends.pop)

    def end_idle(self) -> None:
        """End each session in which nothing has happened for too long.

        A request that waits is in use, also where its client is away: from the answer on, the
        client has the whole time to come again.
        """
        now = asyncio.get_running_loop().time()
        for session in list(self._sessions.values()):
            session.streams.trim()
            if session.streams.is_busy:
                session.used_at = now
            elif session.used_at < now - self._idle:
                self.end_soon(session)

    async def close(self) -> None:
        """End all sessions, and wait until their servers have ended; begin no session any more."""
        self._is_closed = True
        begun = [task for task in self._shared.values() if not task.done()]
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        for session in list(self._sessions.values()):
            self.end_soon(session)
        await asyncio.gather(*self._ends, return_exceptions=True)


def _result_of(task: asyncio.Task[Session] | None) -> Session | None:
    """Return the session that a task has begun, None for a task that failed or still runs."""
    if task is None or not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()


def _refuse(relay: Relay, request: Message) -> None:
    """Answer a request of the server that no client gets."""
    text = "no client answers requests of a server here"
    with suppress(UpstreamLostError):
        relay.take(answers.error(request["id"], error_codes.METHOD_NOT_FOUND, text))


async def _end(session: Session, lost: UpstreamLostError | None) -> None:
    """End the relay and the server; calls that run are in doubt, and their clients are told."""
    try:
        if lost is not None:
            await session.relay.lose_server(lost)
        await session.relay.close()
    finally:
        session.streams.close()
        if session.pump is not None:
            session.pump.cancel()
        await session.upstream.end(at_once=lost is not None)
