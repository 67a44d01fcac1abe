"""A guarded MCP server, and clients of it: the guard of the agents, and the guard of the server.

``Scene.server`` is an ``MCPServer`` or a ``FastMCP`` with the same tools. ``call`` and ``within``
run code inside a guarded call of an agent, under a delegation of a user. ``exchange`` sends one
JSON-RPC request as it is, as an attacker does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from fastmcp import FastMCP
from mcp import Client
from mcp.client._memory import InMemoryTransport
from mcp.server.mcpserver import MCPServer
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest

from agentguard import Decision, Requirement
from agentguard.proof import CallReceiver, ProofStore
from agentguard.testing import RecordedGuard
from agentguard_mcp import current_caller, guard_server, guard_transport

AUDIENCE = "mcp:files"
SCOPE = ["files:read", "files:write"]
MODES = {"sdk": "auto", "fastmcp": "legacy"}
"""The kinds of servers, each with the era in which most tests use it; one test has all pairs."""


def below_ten(given: Any) -> Decision:
    """Allow what has no ``cents``, or fewer than ten; ask people about 5."""
    cents = given["args"].get("cents", 0)
    if cents == 5:
        return Decision.require_approval(Requirement())
    return Decision.allow() if cents < 10 else Decision.deny("too large")


class Scene:
    """The two guards, and a guarded server with its receiver and its runs."""

    def __init__(
        self,
        folder: Path,
        kind: str = "sdk",
        policy: Callable[[Any], Decision] = below_ten,
        audience: str = AUDIENCE,
        tools: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        agents = {name: {"max_scope": SCOPE} for name in ("clerk", "other")}
        self.agents = RecordedGuard.make(agents=agents)
        self.domain = self.agents.guard
        self.log = RecordedGuard.make(tools={"pay": {"requires": ["files:write"]}, **(tools or {})})
        self.log.decide = policy
        self.guard = self.log.guard
        self.folder = folder
        self.kind = kind
        self.audience = audience
        self.runs: list[Any] = []
        self._stores: list[ProofStore] = []
        self.server = self.new_server(kind, **more)

    def new_server(self, kind: str, **more: Any) -> Any:
        """Return another guarded server with the same store, as another worker has."""
        server = MCPServer("files") if kind == "sdk" else FastMCP("files")
        self._add(server)
        receiver = CallReceiver(
            more.pop("audience", self.audience),
            self.domain.trust,
            self.new_store(),
        )
        guard_server(server, self.guard, receiver, **more)
        return server

    def new_store(self) -> ProofStore:
        """Return a store of used proofs, which is closed with the scene."""
        self._stores.append(ProofStore(self.folder / "proofs.sqlite"))
        return self._stores[-1]

    def _add(self, server: Any) -> None:
        runs = self.runs

        @server.tool()
        def pay(cents: int) -> str:
            """Pays an amount."""
            caller = current_caller()
            assert caller is not None
            runs.append((cents, caller.principal))
            return f"paid {cents} for {caller.principal}"

        @server.tool()
        def look() -> str:
            """Looks."""
            return "seen"

        @server.tool()
        def fail() -> str:
            """Fails."""
            raise ValueError("broken")

        @server.resource("file:///{name}")
        def read(name: str) -> str:
            runs.append(name)
            return f"the file {name}"

        @server.prompt()
        def ask(topic: str) -> str:
            runs.append(topic)
            return f"about {topic}"

    def connect(self, mode: str = "auto", *, server: Any = None, **more: Any) -> Client:
        """Return a client of the server whose requests are proved."""
        transport = InMemoryTransport(low(server or self.server))
        return Client(guard_transport(transport, self.audience), mode=mode, **more)

    async def within(
        self,
        work: Callable[[], Any],
        *,
        user: str = "user:alice",
        agent: str = "clerk",
        **more: Any,
    ) -> Any:
        """Run an async function inside a guarded call."""

        async def use() -> Any:
            return await work()

        tool = self.domain.tool(name="use")(use)
        terms = {"scope": SCOPE, "audience": [self.audience], **more}
        with self.domain.delegate(user, **terms):
            return await self.domain.new_agent(agent).acall(tool)

    async def call(self, client: Client, name: str, arguments: Any = None, **more: Any) -> Any:
        """Call a tool of the server inside a guarded call, and return the result."""
        meta = more.pop("meta", None)
        return await self.within(lambda: client.call_tool(name, arguments or {}, meta=meta), **more)

    async def capture(self, name: str, arguments: Any, mode: str = "auto", **more: Any) -> Any:
        """Return the parameters of a proved call, which a thief takes before they are sent."""
        kept: list[Any] = []
        transport = thief(InMemoryTransport(low(self.server)), kept)
        async with Client(guard_transport(transport, self.audience), mode=mode) as client:
            kept.clear()
            with contextlib.suppress(Stolen):
                await self.call(client, name, arguments, **more)
        return copy.deepcopy(kept[-1].params)

    def approve(self, request_id: str) -> None:
        """Approve one request of the server, as the approver of its configuration."""
        inbox = self.guard.approvals
        inbox.approve(inbox.find(request_id), self.log.approver)

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self.domain.close()
        self.guard.close()


class Stolen(Exception):  # noqa: N818  a test raises it to keep a request from the server
    """A request was taken, and not sent."""


@contextlib.asynccontextmanager
async def thief(transport: Any, kept: list[Any]) -> AsyncIterator[Any]:
    """Keep what a client sends, and send no call of a tool."""
    async with transport as (read, write):
        send = write.send

        async def take(item: Any) -> None:
            kept.append(item.message)
            if getattr(item.message, "method", "") == "tools/call":
                raise Stolen
            await send(item)

        yield read, Taking(write, take)


class Taking:
    """A stream of messages with another ``send``."""

    def __init__(self, stream: Any, send: Callable[[Any], Any]) -> None:
        self.stream, self.send = stream, send
        self.aclose = stream.aclose

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()


def low(server: Any) -> Any:
    """Return the server of the SDK in a server."""
    return getattr(server, "_mcp_server", server)


async def exchange(server: Any, params: Any, method: str = "tools/call") -> dict[str, Any]:
    """Send one request as it is, and return the result, or the error in ``error``."""
    request = JSONRPCRequest(jsonrpc="2.0", id=7, method=method, params=params)
    async with InMemoryTransport(low(server)) as (read, write):
        if "io.modelcontextprotocol/protocolVersion" not in params.get("_meta", {}):
            for opening in _HANDSHAKE:
                await write.send(SessionMessage(opening))
        await write.send(SessionMessage(request))
        async for item in read:
            answer = item.message.model_dump(by_alias=True, mode="json", exclude_none=True)
            if answer.get("id") == 7:
                return answer["result"] if "result" in answer else {"error": answer["error"]}
    raise AssertionError("no answer")


_INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "thief", "version": "1"},
}
_HANDSHAKE = (
    JSONRPCRequest(jsonrpc="2.0", id=1, method="initialize", params=_INITIALIZE),
    JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized"),
)


def code_of(result: Any) -> str | None:
    """Return the reason code of a refused result, None for another result."""
    if isinstance(result, dict):
        if "error" in result:
            data = result["error"].get("data")
            assert isinstance(data, dict), result
            return str(data["dev.agentguard/code"])
        meta, is_error = result.get("_meta"), result.get("isError")
    else:
        meta, is_error = result.meta, result.is_error
    code = (meta or {}).get("dev.agentguard/code")
    assert (code is not None) <= bool(is_error)
    return code
