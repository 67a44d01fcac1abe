"""Writes a stream of server-sent events as the answer to an HTTP request (MCP's streamable HTTP).

An event of a stream that can be resumed has an id. The first event of such a stream has an id and
no message, so that the client can come again before there is a message, and the time after which
the client does so (``retry``). WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from agentguard_mcp.gateway.http.asgi import PIECE, Http
from agentguard_mcp.gateway.http.stream import Event, Reader

BEAT: Final = 15.0
"""Seconds of silence after which a stream begins, or says that the connection is alive."""

RETRY: Final = 500
"""Milliseconds after which a client comes again whose connection has ended."""

_HEADERS: Final = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # a proxy such as nginx passes each event on at once
}
_ALIVE: Final = b": alive\n\n"

SILENCE: Final = Event("", b"")
"""Stands for a while without an event: a comment tells the client that the connection lives."""


async def send_events(
    http: Http,
    reader: Reader,
    gone: asyncio.Future[None],
    headers: Mapping[str, str],
    first: Event | None,
) -> None:
    """Send ``first`` and what follows, until the reader ends or the client is ``gone``.

    ``first`` is as ``next_event`` returns it. ``headers`` go with the answer.
    """
    await http.start(200, {**_HEADERS, **headers})
    event = first
    if event is SILENCE:
        reader.stream.begin()
    while event is not None and not gone.done():
        for part in _parts(event):
            await http.write(part)
        event = await next_event(reader, gone, BEAT)
    await http.write(b"", is_last=True)


async def next_event(reader: Reader, gone: asyncio.Future[None], seconds: float) -> Event | None:
    """Return the next event, ``SILENCE`` after so many seconds without one, None at the end."""

    def wake(_gone: object) -> None:
        reader.changed.set()

    gone.add_done_callback(wake)
    try:
        async with asyncio.timeout(seconds):
            while True:
                event = reader.take()
                if event is not None or reader.is_over or gone.done():
                    return event
                reader.changed.clear()
                await reader.changed.wait()
    except TimeoutError:
        return SILENCE
    finally:
        gone.remove_done_callback(wake)


def _parts(event: Event) -> Iterator[bytes]:
    """Yield an event as it goes to the client; its line ends with a line feed.

    A long line is a part of its own, without a copy: many connections may write the same line.
    """
    if event is SILENCE:
        yield _ALIVE
        return
    identifier = f"id: {event.identifier}\n".encode() if event.identifier else b""
    if not event.line:
        yield identifier + f"retry: {RETRY}\ndata: \n\n".encode()
    elif len(event.line) <= PIECE:
        yield identifier + b"event: message\ndata: " + event.line + b"\n"
    else:
        yield identifier + b"event: message\ndata: "
        yield event.line
        yield b"\n"
