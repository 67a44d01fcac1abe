"""A gateway over HTTP: listens with uvicorn, and serves the clients until a signal comes.

``run`` opens the guard, ``serve_http`` serves with a guard that the caller has. Needs the extra
``serve``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from agentguard import Agent, AgentguardError, ConfigError, Guard
from agentguard.adapters import listen_unix, peer_of
from agentguard_mcp.gateway.connect import Link, linked, proved_callers
from agentguard_mcp.gateway.http.admission import Admission, OpenAdmission, ProofAdmission
from agentguard_mcp.gateway.http.bearer import BearerAdmission
from agentguard_mcp.gateway.http.endpoint import Endpoint
from agentguard_mcp.gateway.http.headers import MAX_HEADERS
from agentguard_mcp.gateway.http.request_context import RequestContexts
from agentguard_mcp.gateway.http.sessions import Sessions
from agentguard_mcp.gateway.http.settings import EndpointSettings, Place
from agentguard_mcp.gateway.http.streams import Streams
from agentguard_mcp.gateway.limits import Limits
from agentguard_mcp.gateway.settings import Settings

try:
    import uvicorn

    from agentguard.adapters import HttpConnection, listen_tcp, uvicorn_config
except ModuleNotFoundError as error:
    message = (
        "agentguard mcp serve needs uvicorn: from a clone of the project, run "
        "pip install './integrations/agentguard-mcp[serve]'"
    )
    raise ConfigError(message, code="config.extra_missing") from error

CONNECTIONS: Final = 512
"""The most connections and requests; a further one is answered with 503."""

_END: Final = 2
"""Seconds for what is still under way once the calls have ended."""

_TICK: Final = 0.05
_SWEEP: Final = 5.0

OnReady = Callable[[Place], None]
"""Is told where the gateway listens, once it does."""


def run(settings: Settings, endpoint: EndpointSettings, config: Path, on_ready: OnReady) -> None:
    """Serve clients over HTTP until SIGTERM or SIGINT.

    ``config`` is the agentguard.toml of the guard. Raises as ``Guard.open`` and ``serve_http`` do.
    """
    with Guard.open(config) as guard:
        asyncio.run(_run(guard, settings, endpoint, on_ready))


async def _run(
    guard: Guard, settings: Settings, endpoint: EndpointSettings, on_ready: OnReady
) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve_http(guard, settings, endpoint, stop, on_ready)


async def serve_http(
    guard: Guard,
    settings: Settings,
    endpoint: EndpointSettings,
    stop: asyncio.Event,
    on_ready: OnReady,
) -> None:
    """Serve clients over HTTP until ``stop`` is set; calls that run then have time to end.

    Raises ``ConfigError`` where the address can't be had, for a certificate or a key that can't be
    read, and for an agent that the configuration does not name; and what ``proved_callers`` raises.
    """
    agent = await asyncio.to_thread(guard.new_agent, settings.agent)
    sessions = _sessions(guard, agent, settings, endpoint)
    with closing(await asyncio.to_thread(_bound, endpoint)) as listening:
        place = Place.of(endpoint, 0 if endpoint.socket is not None else listening.getsockname()[1])
        admission = _admission(guard, agent, settings, endpoint, place)
        served = Endpoint(place, sessions, admission, share=CONNECTIONS // 4)
        try:
            server = _Server(_configured(served, endpoint))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                await _started(server, serving)
                if not serving.done():
                    on_ready(place)
                    await _until(stop, serving, sessions, endpoint.idle)
                    served.drain()
                    await _drained(served, endpoint.drain)
            finally:
                _remove(endpoint)
                await _end(server, serving, sessions)
        except ConfigError:
            _remove(endpoint)
            raise
        finally:
            admission.close()


def _sessions(
    guard: Guard, agent: Agent, settings: Settings, endpoint: EndpointSettings
) -> Sessions:
    """Return the sessions of a gateway, which count their calls and first descriptions together."""
    proofs = proved_callers(guard, settings)
    limits, first = Limits(settings), dict[str, str]()
    is_known = endpoint.oauth is not None

    async def open_link(streams: Streams, contexts: RequestContexts) -> Link:
        joins = proofs is None and not is_known and not streams.is_shared
        return await linked(
            guard,
            agent,
            settings,
            streams,
            contexts,
            joins_retries=joins,
            limits=limits,
            first=first,
        )

    return Sessions(open_link, proofs, most=endpoint.sessions, idle=endpoint.idle, known=is_known)


def _remove(endpoint: EndpointSettings) -> None:
    """Remove the file of a socket while the gateway listens: no other server's file is there."""
    if endpoint.socket is not None:
        with suppress(OSError):
            endpoint.socket.unlink()


async def _end(server: uvicorn.Server, serving: asyncio.Task[None], sessions: Sessions) -> None:
    await sessions.close()
    server.should_exit = True
    await serving
    await sessions.close()  # of a session that began meanwhile


def _admission(
    guard: Guard, agent: Agent, settings: Settings, endpoint: EndpointSettings, place: Place
) -> Admission:
    if endpoint.oauth is not None:
        return BearerAdmission(guard, agent, settings, endpoint.oauth, place)
    if settings.proofs is not None:
        return ProofAdmission(settings.proofs.audience)
    return OpenAdmission()


async def _until(
    stop: asyncio.Event, serving: asyncio.Task[None], sessions: Sessions, idle: float
) -> None:
    """Wait for the end, and end idle sessions meanwhile."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while not stopped.done() and not serving.done():
            await asyncio.wait(
                {stopped, serving},
                timeout=min(_SWEEP, idle / 2),
                return_when=asyncio.FIRST_COMPLETED,
            )
            sessions.end_idle()
    finally:
        stopped.cancel()


async def _started(server: _Server, serving: asyncio.Task[None]) -> None:
    """Wait until the server listens, or ends before."""
    started = asyncio.ensure_future(server.has_started.wait())
    await asyncio.wait({started, serving}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()


async def _drained(served: Endpoint, seconds: float) -> None:
    """Wait until no request waits for its answer, for so many seconds at most."""
    end = asyncio.get_running_loop().time() + seconds
    while served.pending and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(_TICK)


def _bound(endpoint: EndpointSettings) -> socket.socket:
    if endpoint.socket is not None:
        return _bound_at(endpoint.socket)
    try:
        return listen_tcp(endpoint.host, endpoint.port)
    except OSError as error:
        place = f"{endpoint.host} port {endpoint.port}"
        message = f"the gateway can't listen at {place}: {error}; --listen names another address"
        raise ConfigError(message, code="server.address") from error


def _bound_at(path: Path) -> socket.socket:
    """Return a unix socket that listens at ``path``, for this process's user alone."""
    if not hasattr(socket, "SO_PEERCRED"):
        message = "this system does not say who connects to a unix socket: listen on loopback"
        raise ConfigError(message, code="server.address")
    try:
        return listen_unix(path, mode=0o600)
    except AgentguardError as error:
        message = f"the gateway can't listen: {error}"
        raise ConfigError(message, code="server.address") from error


def _configured(served: Endpoint, settings: EndpointSettings) -> uvicorn.Config:
    try:
        return uvicorn_config(
            served,
            _Connection,
            most=CONNECTIONS,
            max_headers=MAX_HEADERS,
            grace=_END,
            certificate=settings.certificate,
            key=settings.key,
        )
    except OSError as error:  # among them ssl.SSLError
        message = f"the certificate or the key of the gateway can't be read: {error}"
        raise ConfigError(message, code="server.address") from error


class _Server(uvicorn.Server):
    """A server of uvicorn that says when it listens, and leaves the signals to the gateway."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        self.has_started.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal: the gateway ends its calls first."""
        yield


class _Connection(HttpConnection):
    """A connection, which at a unix socket is closed unless it comes from this process's user."""

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        super().connection_made(transport)
        connected = transport.get_extra_info("socket")
        if connected.family == socket.AF_UNIX and peer_of(connected) != os.geteuid():
            transport.abort()
