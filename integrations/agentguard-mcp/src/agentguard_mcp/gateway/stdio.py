"""A gateway on stdio: one client at standard input and output, one server as a process or a URL.

``run`` opens the guard and serves until the client or the server is gone. ``serve`` does the same
for streams and a guard that the caller has.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from agentguard import ConfigError, Guard
from agentguard_mcp.gateway.connect import Link, linked, proved_callers
from agentguard_mcp.gateway.messages import MAX_LINE, Message, RequestId, write
from agentguard_mcp.gateway.relay import Relay
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.upstream import Upstream, UpstreamLostError
from agentguard_mcp.gateway.upstream.protocol import GRACE

_FAILED: Final = 1


class _Client:
    """The client's end of the relay: messages go to a stream, whose buffer has no bound here."""

    def __init__(self, output: asyncio.StreamWriter) -> None:
        self._output = output

    def send(self, message: Message) -> None:
        """Write a message, unless the client is gone."""
        if not self._output.transport.is_closing():
            self._output.write(write(message))

    def sent(self, _identifier: RequestId) -> None:
        """Do nothing: all messages share one connection."""

    def poll(self, _identifier: RequestId) -> None:
        """Do nothing: the client gets the answer as soon as the server gives it."""


def run(settings: Settings, config: Path) -> int:
    """Serve the client of this process; return the exit code: 0, or 1 where the server has ended.

    ``config`` is the agentguard.toml of the guard. Until the end, what else this process prints
    goes to standard error. Raises as ``Guard.open`` does, and ``ConfigError`` for a server that
    can't be started, an agent that the configuration does not name, and streams that are no pipes.
    """
    require_pipe(0)
    require_pipe(1)
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)  # a library that prints must not speak MCP
    with Guard.open(config) as guard:
        return asyncio.run(_served(guard, settings, incoming, outgoing))


def require_pipe(number: int) -> None:
    """Raise ``ConfigError`` unless a descriptor is a pipe, a socket or a terminal.

    An event loop can't wait for another file, such as ``/dev/null``.
    """
    mode = os.fstat(number).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(number)):
        message = "standard input and output of the gateway must be pipes: an MCP client starts it"
        raise ConfigError(message)


async def _served(guard: Guard, settings: Settings, incoming: int, outgoing: int) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    await loop.connect_read_pipe(
        partial(asyncio.StreamReaderProtocol, reader), os.fdopen(incoming, "rb", buffering=0)
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(outgoing, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await serve(guard, settings, reader, writer, stop)


async def serve(
    guard: Guard,
    settings: Settings,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    stop: asyncio.Event | None = None,
) -> int:
    """Serve one client at two streams until the client or the server is gone, or ``stop`` is set.

    This also ends a start of the server that waits for an approval. Returns 1 where the server
    ended or broke the protocol, and 0 otherwise. A call that runs at the end is in the log with the
    outcome ``unknown``. Raises ``ConfigError`` for a server that can't be started, and what
    ``Guard.new_agent`` and ``Calls.start`` raise.
    """
    lines = _Lines(reader)
    stopped = asyncio.ensure_future((stop or asyncio.Event()).wait())
    link = None
    try:
        opening = _opened(guard, settings, _Client(writer))
        link = await _unless(opening, stopped, asyncio.ensure_future(lines.end()))
    finally:
        if link is None:
            lines.close()
            stopped.cancel()
            writer.close()
    if link is None:
        return 0
    relay, upstream = link
    from_client = asyncio.ensure_future(_from_client(relay, lines, writer))
    from_server = asyncio.ensure_future(_from_server(relay, upstream, writer))
    lost: UpstreamLostError | None = None
    tasks: set[asyncio.Future[Any]] = {from_client, from_server, stopped}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for ended in (from_server, from_client):
            lost = lost or (ended.result() if ended.done() else None)
        if lost is not None:
            await relay.lose_server(lost)
        return 0 if lost is None else _FAILED
    finally:
        await relay.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(OSError):
            await asyncio.wait_for(writer.drain(), GRACE)
        writer.close()
        await upstream.end(at_once=lost is not None)


async def _unless(
    start: Coroutine[Any, Any, Link], stopped: asyncio.Future[Any], gone: asyncio.Future[None]
) -> Link | None:
    """Return what ``start`` returns, or None as soon as one of the two futures is done.

    A start may wait long for an approval.
    """
    opening = asyncio.ensure_future(start)
    try:
        await asyncio.wait((opening, stopped, gone), return_when=asyncio.FIRST_COMPLETED)
        return opening.result() if opening.done() else None
    finally:
        gone.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait((opening,))
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().upstream.end(at_once=True)


async def _opened(guard: Guard, settings: Settings, client: _Client) -> Link:
    agent = await asyncio.to_thread(guard.new_agent, settings.agent)
    callers = proved_callers(guard, settings)
    joins = callers is None
    return await linked(guard, agent, settings, client, callers, joins_retries=joins)


class _Lines:
    """The client's lines. Some may come before the server runs; these are kept."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._kept: deque[bytes | None] = deque()
        self._reading: asyncio.Future[bytes | None] | None = None

    async def end(self) -> None:
        """Keep lines until the client is gone; longer than ``MAX_LINE`` together, they wait."""
        size = 0
        while size <= MAX_LINE:
            self._reading = asyncio.ensure_future(_line(self._reader))
            line = await asyncio.shield(self._reading)
            if line == b"":
                return
            self._kept.append(line)
            self._reading = None
            size += len(line or b"")
        await asyncio.Event().wait()

    async def next(self) -> bytes | None:
        """Return the next line, as ``_line`` does."""
        if self._kept:
            return self._kept.popleft()
        reading, self._reading = self._reading, None
        return await (reading or _line(self._reader))

    def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()


async def _from_client(
    relay: Relay, lines: _Lines, writer: asyncio.StreamWriter
) -> UpstreamLostError | None:
    """Pass the client's lines on; return None once the client is gone, or how the server was lost.

    No line is read of a client that does not read: the answers would wait in memory.
    """
    try:
        while (line := await lines.next()) != b"":
            if line is None:
                relay.refuse_long_line()
            elif not line.isspace():
                relay.from_client(line)
            await writer.drain()
    except UpstreamLostError as error:
        return error
    except OSError:
        pass
    return None


async def _from_server(
    relay: Relay, upstream: Upstream, writer: asyncio.StreamWriter
) -> UpstreamLostError:
    """Pass the server's lines on; return how the server was lost."""
    try:
        while line := await upstream.next():
            if not line.isspace():
                relay.from_server(line)
                await writer.drain()
    except UpstreamLostError as error:
        return error
    except OSError:
        pass
    return UpstreamLostError()


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next line, empty at the end, and None for a line longer than ``MAX_LINE``.

    A last line without a line feed is no line: whoever wrote it died in the middle.
    """
    is_long = False
    while True:
        try:
            line = await reader.readuntil()
        except (asyncio.IncompleteReadError, OSError):  # the second where answers are unread
            return b""
        except asyncio.LimitOverrunError as error:
            is_long = True
            await reader.readexactly(error.consumed)
        else:
            return None if is_long else line
