"""A gateway over HTTP in the process of a test, and clients that speak HTTP to it by hand."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from gateway_scene import LIMIT, settings

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import EndpointSettings, Settings
from agentguard_mcp.gateway.http.server import serve_http
from agentguard_mcp.gateway.http.settings import Place

TYPES = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"sampling": {}},
    "clientInfo": {"name": "test", "version": "1"},
}
MODERN = "2026-07-28"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP: the default context reads all certificates, each time."""

STANDARD = "io.modelcontextprotocol/"


def events(text: str) -> list[dict[str, Any]]:
    """Return the messages of a body of events; an event without one begins a stream."""
    lines = [line for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def messages(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the messages of an answer: one, or those of a stream."""
    if response.headers["content-type"].startswith("text/event-stream"):
        return events(response.text)
    return [response.json()]


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    """Return the next message of a stream."""
    async with asyncio.timeout(LIMIT):
        async for line in lines:
            if line.startswith("data: {"):
                message: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return message
    raise EOFError


def call_of(tool: str, text: str = "", *, identifier: object = "c") -> dict[str, Any]:
    """Return the message of a call in a session."""
    params = {"name": tool, "arguments": {"text": text}}
    return {"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": params}


@dataclass
class Caller:
    """A client of a gateway at ``url``, which sends ``headers`` with each request."""

    http: httpx.AsyncClient
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    last: int = 0

    async def post(self, body: object, **headers: str) -> httpx.Response:
        """Send a body, which is bytes or becomes JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {**TYPES, **self.headers, **headers}
        return await self.http.post(self.url, content=content, headers=given)

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request of a session, and return its answer."""
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": method, "params": params or {}}
        response = await self.post(message)
        assert response.status_code == 200, response.text
        return messages(response)[-1]

    async def begin(self) -> Caller:
        """Begin a session."""
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        response = await self.post(message)
        assert response.status_code == 200, response.text
        self.headers["mcp-session-id"] = response.headers["mcp-session-id"]
        self.headers["mcp-protocol-version"] = messages(response)[-1]["result"]["protocolVersion"]
        notice = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await self.post(notice)).status_code == 202
        return self

    async def call(self, tool: str, text: str = "") -> dict[str, Any]:
        """Call a tool in a session, and return the result."""
        answer = await self.ask("tools/call", {"name": tool, "arguments": {"text": text}})
        result: dict[str, Any] = answer["result"]
        return result

    async def single(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        identifier: object = 7,
        meta: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request of revision 2026-07-28; ``headers`` change those that belong to it."""
        message, own = single(method, params, identifier=identifier, meta=meta)
        given = {name: value for name, value in {**own, **(headers or {})}.items() if value}
        return await self.post(message, **given)

    async def call_single(self, tool: str, text: str = "", **more: Any) -> httpx.Response:
        """Call a tool in revision 2026-07-28."""
        params = {"name": tool, "arguments": {"text": text}}
        return await self.single("tools/call", params, **more)


def single(
    method: str,
    params: dict[str, Any] | None = None,
    *,
    identifier: object = 7,
    meta: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a request of revision 2026-07-28, and the headers that belong to it."""
    given = params or {}
    standard = {f"{STANDARD}protocolVersion": MODERN, f"{STANDARD}clientCapabilities": {}}
    whole = {**given, "_meta": {**standard, **(meta or {})}}
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    if method in ("tools/call", "prompts/get"):
        headers["mcp-name"] = given["name"]
    if method == "resources/read":
        headers["mcp-name"] = given["uri"]
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": whole}, headers


@dataclass
class Served:
    """A gateway that listens; ``stop`` ends it."""

    place: Place
    http: httpx.AsyncClient
    stop: asyncio.Event
    serving: asyncio.Task[None]

    def caller(self, **headers: str) -> Caller:
        """Return a client without a session."""
        return Caller(self.http, self.place.url, headers)


@asynccontextmanager
async def served(
    recorded: RecordedGuard, given: Settings | None = None, **endpoint: Any
) -> AsyncIterator[Served]:
    """Run a gateway over HTTP until the block ends."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    chosen = EndpointSettings(**endpoint)
    work = serve_http(recorded.guard, given or settings(), chosen, stop, ready.set_result)
    serving = asyncio.create_task(work)
    async with asyncio.timeout(LIMIT):
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    async with httpx.AsyncClient(timeout=LIMIT, trust_env=False, verify=NO_TLS) as http:
        try:
            yield Served(ready.result(), http, stop, serving)
        finally:
            stop.set()
            async with asyncio.timeout(LIMIT):
                await serving
