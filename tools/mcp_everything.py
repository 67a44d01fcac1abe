"""The everything-server of the MCP SDK 2, as ``scripts/mcp-conformance`` tests the server.

    python tools/mcp_everything.py FOLDER http PORT       the server alone, over HTTP
    python tools/mcp_everything.py FOLDER stdio           the server alone, on stdio
    python tools/mcp_everything.py FOLDER guarded PORT    the server behind guard_server, over HTTP

FOLDER holds the package ``mcp_everything_server``. A guarded server refuses a client without a
proof, and the conformance suite has none. So in the third form PORT is that of a proxy on the side
of the client: the proxy makes one guarded call for each request of the suite, adds the proof of
this call to the request, and changes nothing else. The guarded server listens on PORT + 1.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agentguard import AgentguardError, Decision, Guard
from agentguard.proof import CallReceiver, ProofStore, prove_call
from agentguard_mcp import guard_server

HOST: Final = "127.0.0.1"
SCOPE: Final = ["conformance"]
RETRY: Final = 100
"""Milliseconds after which a client opens a closed stream again, as the server's own main says."""

_HOP_BY_HOP: Final = {"connection", "content-length", "keep-alive", "transfer-encoding", "date"}


def main(folder: str, form: str, port: str = "0") -> None:
    """Serve until the process is ended."""
    sys.path.insert(0, folder)
    module = importlib.import_module("mcp_everything_server.server")
    if form == "stdio":
        module.mcp.run(transport="stdio")
    elif form == "http":
        asyncio.run(_serve(_app(module), int(port)))
    else:
        asyncio.run(_serve_guarded(module, int(port)))


def _app(module: Any) -> Any:
    return module.mcp.streamable_http_app(event_store=module.event_store, retry_interval=RETRY)


async def _serve(app: Any, port: int) -> None:
    settings = uvicorn.Config(app, host=HOST, port=port, log_level="warning")
    await uvicorn.Server(settings).serve()


async def _serve_guarded(module: Any, port: int) -> None:
    url = f"http://{HOST}:{port + 1}/mcp"
    agents = Guard.ephemeral(_allow, config={"agents": {"suite": {"max_scope": SCOPE}}})
    own = Guard.ephemeral(_allow)
    with tempfile.TemporaryDirectory() as folder, agents, own:
        store = ProofStore(Path(folder) / "proofs.sqlite")
        guard_server(module.mcp, own, CallReceiver(url, agents.trust, store), rounds=["*"])
        proxy = ProvingProxy(agents, url).app()
        await asyncio.gather(_serve(_app(module), port + 1), _serve(proxy, port))


def _allow(_call: Any) -> Decision:
    return Decision.allow()


class ProvingProxy:
    """Passes HTTP requests on to an MCP server, each request of MCP with a proof."""

    def __init__(self, guard: Guard, url: str) -> None:
        self._guard = guard
        self._agent = guard.new_agent("suite")
        self._url = url
        self._client = httpx.AsyncClient(timeout=None, trust_env=False)  # noqa: S113  streams stay

    def app(self) -> Starlette:
        """Return the proxy as an application."""
        methods = ["GET", "POST", "DELETE"]
        return Starlette(
            routes=[Route("/mcp", self._pass, methods=methods)], lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._client:
            yield

    async def _pass(self, request: Request) -> Response:
        body = await self._proved(await request.body())
        headers = [
            (name, value) for name, value in request.headers.raw if name != b"content-length"
        ]
        sent = self._client.build_request(request.method, self._url, content=body, headers=headers)
        answer = await self._client.send(sent, stream=True)

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        return StreamingResponse(parts(), answer.status_code, kept)

    async def _proved(self, body: bytes) -> bytes:
        """Return a request of MCP with a proof; what is no such request stays as it is."""
        try:
            message = json.loads(body)
            method, params = message["method"], message.get("params")
            message["id"], dict(params or {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return body

        async def request() -> dict[str, Any]:
            return prove_call(self._url, method, params)

        tool = self._guard.tool(name="request")(request)
        try:
            with self._guard.delegate("user:suite", scope=SCOPE, audience=[self._url]):
                proved = await self._agent.acall(tool)
        except AgentguardError as error:
            sys.stderr.write(f"no proof for {method}: {error}\n")
            return body
        return json.dumps({**message, "params": proved}).encode()


if __name__ == "__main__":
    main(*sys.argv[1:])
