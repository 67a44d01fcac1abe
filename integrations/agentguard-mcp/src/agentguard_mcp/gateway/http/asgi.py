"""One HTTP request of a gateway's client, by the interface of ASGI: read in full, and answered.

``endpoint.py`` decides what the answer is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple

from agentguard_mcp.gateway.http.admission import Admitted
from agentguard_mcp.gateway.http.refusal import HttpRefusalError
from agentguard_mcp.gateway.messages import Message, encoded

MAX_BODY: Final = 4 << 20
"""The longest body of a request, in bytes."""

PIECE: Final = 1 << 16
"""The most bytes of an answer that are written at once: more would wait in memory for the client.

Many connections may have one long message, and their clients may read none of it.
"""

BODY_SECONDS: Final = 30.0
"""Seconds in which the body of a request has to come."""

_JSON: Final = {"content-type": "application/json", "cache-control": "no-store"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Http(NamedTuple):
    """One HTTP request: its headers, who sends it, and how to read and to answer."""

    headers: Mapping[str, str]
    admitted: Admitted
    receive: Receive
    send: Send

    async def answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a whole body."""
        given = {**(_JSON if body else {}), **(headers or {}), "content-length": str(len(body))}
        await self.start(status, given)
        await self.write(body, is_last=True)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer whose body ``write`` sends in parts."""
        raw = _raw(headers)
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, part: bytes, *, is_last: bool = False) -> None:
        """Send a part of the body, in pieces, each once the client has taken those before."""
        for start in range(0, len(part) or 1, PIECE):
            more = not is_last or start + PIECE < len(part)
            piece = part[start : start + PIECE]
            await self.send({"type": "http.response.body", "body": piece, "more_body": more})

    async def refuse(self, error: HttpRefusalError, request: Message | None = None) -> None:
        """Answer with a JSON-RPC error."""
        failure: dict[str, Any] = {"code": error.code, "message": str(error)}
        if error.data is not None:
            failure["data"] = dict(error.data)
        identifier = None if request is None else request.get("id")
        body = encoded({"jsonrpc": "2.0", "id": identifier, "error": failure})
        await self.answer(error.status, body, error.headers)


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a ``send`` that adds headers to the answer."""
    added = _raw(headers)

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_with_headers


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def gone_from(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def body_of(receive: Receive) -> bytes:
    """Return the body; raises ``HttpRefusalError`` for one that is too long or too slow."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpRefusalError(400, "the request was cut short")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > MAX_BODY:
                    text = f"the body takes more than {MAX_BODY} bytes"
                    raise HttpRefusalError(413, text)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise HttpRefusalError(408, "the body came too slowly") from error
