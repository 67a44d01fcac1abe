"""``server_tools``: the tools of an MCP server for CrewAI, whose calls prove their caller.

Import this module by its own name, where ``agentguard-crewai`` is installed. CrewAI finds the tools
and runs them; each call goes over a connection of its own, whose requests are proved as in
``client.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, cast

from agentguard.adapters import require_supported

require_supported("agentguard-crewai", "crewai")

import httpx
from crewai.mcp import (
    MCPServerConfig,
    MCPServerHTTP,
    MCPServerSSE,
    MCPServerStdio,
    MCPToolResolver,
)
from crewai.mcp.content import content_blocks_to_text
from crewai.tools import BaseTool
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.utilities.logger import Logger
from crewai.utilities.string_utils import sanitize_tool_name
from mcp import ClientSession, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import get_default_environment, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError
from mcp.types import CONNECTION_CLOSED
from pydantic import BaseModel

from agentguard import AgentguardError, ConfigError
from agentguard.proof.receiver import require_audience
from agentguard_mcp.client import guard_transport

CONNECT_TIMEOUT: Final = 30.0
"""The seconds that the connection of a call and its session may take, as with CrewAI."""


def server_tools(
    server: MCPServerConfig, audience: str, *, name: str | None = None, timeout: float = 30
) -> list[BaseTool]:
    """Return the tools of a server for the ``tools`` of a CrewAI agent; each call has a proof.

    ``server`` is what CrewAI takes in ``mcps``, as ``MCPServerStdio(...)``. ``audience`` is the
    server's name in the delegation, and in the ``CallReceiver`` of the server or in the gateway:
    take the name from the configuration, and never from the server. ``name`` stands before the
    name of each tool, and makes the origin ``mcp:<name>``; by default, ``name`` is the audience
    without ``mcp:``. A call waits ``timeout`` seconds for its answer.

    The function connects to the server once, and lists the tools without a proof. Each call
    connects anew and is sent once. A call raises ``TimeoutError`` where no answer comes, or where
    the connection ends before the answer: the tool may have run. A call outside of a guarded call
    raises ``UnguardedCallError`` (``tool.unguarded``), and ``ProofError`` where the guard signs no
    proof: guard the crew with ``agentguard_crewai.guard_crew``.

    Raises ``ConfigError`` for an audience that no delegation can name, for an empty name, for what
    is no configuration of a server, and for a server that lists no tools; an exception of CrewAI's
    where the server can't be reached.
    """
    require_audience(audience)
    given: object = server
    if not isinstance(given, MCPServerStdio | MCPServerHTTP | MCPServerSSE):
        message = f"{server!r} is no server: give MCPServerStdio(...) or MCPServerHTTP(...)"
        raise ConfigError(message)
    known = audience.removeprefix("mcp:") if name is None else name
    if not known:
        raise ConfigError("name: a server needs a name, or an audience with more than mcp:")
    resolver = MCPToolResolver(agent=None, logger=Logger(verbose=False))
    found = cast("list[MCPNativeTool]", resolver.resolve([server]))
    if not found:
        raise ConfigError(f"the MCP server {known} lists no tools, or its tool_filter leaves none")
    connect = partial(_Connection, server, audience, timeout)
    return [_ProvedTool.of(one, connect, known) for one in found]


class _ProvedTool(MCPNativeTool):
    """A tool whose client proves its calls."""

    @classmethod
    def of(
        cls, tool: MCPNativeTool, connect: Callable[[], _Connection], server: str
    ) -> _ProvedTool:
        """Return the twin of a tool that CrewAI has found at a server."""
        make: Any = cls  # its arguments are not its fields, which a type checker goes by
        made: _ProvedTool = make(
            client_factory=connect,
            tool_name=sanitize_tool_name(tool.original_tool_name),
            tool_schema={"description": tool.description, "args_schema": _sparse(tool.args_schema)},
            server_name=server,
            original_tool_name=tool.original_tool_name,
        )
        return made

    def _run(self, **kwargs: Any) -> Any:
        """Call the tool.

        CrewAI wraps each exception in a ``RuntimeError``. The guard has to see that a call has no
        answer, because nobody knows then whether the tool ran.
        """
        try:
            return super()._run(**kwargs)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, _NoAnswerError | AgentguardError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None


class _NoAnswerError(TimeoutError):
    """A call was sent, and has no answer: the guard records that nobody knows whether it ran."""


class _Result(NamedTuple):
    """What a server has answered, as CrewAI's tool of a server reads it."""

    content: str
    is_error: bool


class _Connection:
    """One connection to a server, with the methods that CrewAI's tool of a server calls.

    A connection sends a call once. CrewAI's own client would send the call up to three times.
    """

    def __init__(self, server: MCPServerConfig, audience: str, timeout: float) -> None:
        self._server = server
        self._audience = audience
        self._timeout = timeout
        self._stack = AsyncExitStack()
        self._session: ClientSession | None = None

    async def connect(self) -> None:
        """Connect, and open the session; raises ``ConnectionError``, and what the SDK raises."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                guarded = guard_transport(_transport(self._server), self._audience)
                read, write, *_more = await self._stack.enter_async_context(guarded)
                session = await self._stack.enter_async_context(ClientSession(read, write))
                await session.initialize()
        except TimeoutError:
            await self.disconnect()
            message = f"no session within {CONNECT_TIMEOUT} seconds: the call was not sent"
            raise ConnectionError(message) from None
        except BaseException:
            await self.disconnect()
            raise
        self._session = session

    async def call_tool_result(self, tool: str, arguments: Mapping[str, Any]) -> _Result:
        """Call a tool; raises ``_NoAnswerError``, and as ``guard_transport`` says."""
        assert self._session is not None  # noqa: S101  CrewAI connects first
        try:
            async with asyncio.timeout(self._timeout):
                result = await self._session.call_tool(tool, dict(arguments))
        except TimeoutError:
            message = f"no answer within {self._timeout} seconds: the tool may have run"
            raise _NoAnswerError(message) from None
        except McpError as error:
            if error.error.code != CONNECTION_CLOSED:
                raise
            message = "the connection ended before the answer: the tool may have run"
            raise _NoAnswerError(message) from None
        return _Result(content_blocks_to_text(result.content), is_error=result.isError)

    async def disconnect(self) -> None:
        """Close the session and the connection."""
        await self._stack.aclose()


def _transport(server: MCPServerConfig) -> AbstractAsyncContextManager[Any]:
    """Return the SDK's transport to a server that CrewAI's configuration describes."""
    if isinstance(server, MCPServerStdio):
        environment = {**get_default_environment(), **(server.env or {})}
        return stdio_client(
            StdioServerParameters(command=server.command, args=server.args, env=environment)
        )
    if isinstance(server, MCPServerSSE):
        return sse_client(server.url, headers=server.headers)
    return _over_http(server)


@asynccontextmanager
async def _over_http(server: MCPServerHTTP) -> AsyncIterator[Any]:
    """Connect without redirects to another origin, which would take token and arguments elsewhere.

    The SDK follows a redirect within the origin by itself, and any other one as the client says.
    """
    async with (
        httpx.AsyncClient(headers=server.headers, timeout=None) as client,  # noqa: S113  the connection has one
        streamable_http_client(server.url, http_client=client) as streams,
    ):
        yield streams


def _sparse(schema: type[BaseModel]) -> type[BaseModel]:
    """Return a schema that leaves out what is None, before the call is decided, signed and sent.

    CrewAI puts None where a model gave nothing, and servers refuse null for most arguments.
    """

    class Sparse(schema):  # type: ignore[valid-type,misc]
        def model_dump(self, **options: Any) -> dict[str, Any]:
            dumped: dict[str, Any] = _given(super().model_dump(**options))
            return dumped

    Sparse.__name__ = Sparse.__qualname__ = schema.__name__
    return Sparse


def _given(value: Any) -> Any:
    """Return a value without the members that are None, at any depth."""
    if isinstance(value, Mapping):
        return {name: _given(one) for name, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list) else value
