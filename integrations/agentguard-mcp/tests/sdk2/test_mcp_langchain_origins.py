"""A tool of ``langchain.mcp`` comes from the server that the application's configuration names."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from fastmcp import Client, FastMCP
from fastmcp.client.group import ClientGroup
from http_serving import listening, serving
from langchain.mcp import MCPAdapter
from mcp.client._memory import InMemoryTransport

from agentguard import ProofError
from agentguard.testing import RecordedGuard
from agentguard_langchain import guard_tools
from agentguard_mcp.fastmcp import GuardedTransport

UNNAMED = "langchain.mcp.tools:as_langchain_tool.<locals>.call_tool"
DENIED = "[tool.changed]"


def server_of(name: str, *tools: str) -> FastMCP:
    """Return a server that announces ``name``, with tools that say where they ran."""
    server = FastMCP(name)
    for tool in tools:
        server.tool(name=tool)(lambda: f"{name} ran")
    return server


class Desk:
    """A guard that lets ``tool`` come from one origin only, and what its agent has called."""

    def __init__(self, tool: str, origin: str) -> None:
        self.made = RecordedGuard.make(
            agents={"clerk": {"authority": "own"}}, tools={tool: {"origin": origin}}
        )

    async def call(self, adapter: MCPAdapter, tool: str) -> str:
        """Call the guarded tool of an adapter, and return the answer as text."""
        agent = self.made.guard.new_agent("clerk")
        guarded = {one.name: one for one in guard_tools(await adapter.list_tools(), agent)}
        call = {"name": tool, "args": {}, "id": "c1", "type": "tool_call"}
        return str((await guarded[tool].ainvoke(call)).content)

    def origins(self) -> list[str]:
        return [call.predicate["tool"]["origin"] for call in self.made.calls()]


@pytest.fixture
def desk():
    with contextlib.ExitStack() as stack:

        def make(tool: str, origin: str) -> Desk:
            made = Desk(tool, origin)
            stack.callback(made.made.guard.close)
            return made

        yield make


async def test_a_group_tells_the_tools_of_its_servers_apart(desk):
    servers = {name: Client(server_of(name, "log")) for name in ("git", "files")}
    adapter = MCPAdapter(ClientGroup(servers))
    pinned = desk("git_log", "mcp:git")
    assert "git ran" in await pinned.call(adapter, "git_log")
    assert "files ran" in await pinned.call(adapter, "files_log")
    assert pinned.origins() == ["mcp:git", "mcp:files"]


async def test_a_server_that_announces_the_name_of_another_server_gets_no_origin_of_it(desk):
    """Nothing but the announced name stands in the metadata of a tool."""
    pinned = desk("git_log", "mcp:git")
    hostile = MCPAdapter(Client(server_of("git", "git_log")))
    (tool,) = await hostile.list_tools()
    assert tool.metadata["mcp"]["server"]["name"] == "git"
    assert DENIED in await pinned.call(hostile, "git_log")
    renamed = MCPAdapter(ClientGroup({"evil": Client(server_of("git", "git_log"))}))
    assert "git ran" in await pinned.call(renamed, "evil_git_log")
    named = MCPAdapter(ClientGroup({"git": Client(server_of("any", "log"))}))
    assert "any ran" in await pinned.call(named, "git_log")
    assert pinned.origins() == [UNNAMED, "mcp:evil", "mcp:git"]


async def test_a_tool_whose_name_fits_two_servers_has_no_origin(desk):
    """The server ``a`` could later list a tool ``b_log``, and take the name over."""
    servers = {"a": Client(server_of("a", "log")), "a_b": Client(server_of("a_b", "log"))}
    adapter = MCPAdapter(ClientGroup(servers))
    pinned = desk("a_b_log", "mcp:a_b")
    assert DENIED in await pinned.call(adapter, "a_b_log")
    assert "a ran" in await pinned.call(adapter, "a_log")
    assert pinned.origins() == [UNNAMED, "mcp:a"]


async def test_an_audience_that_is_a_url_names_the_server(desk):
    """The twin with ``mcp:files`` stands in ``test_mcp_langchain.py``."""
    audience = "https://git.example/mcp"
    server = server_of("any", "log")
    pinned = desk("log", f"mcp:{audience}")
    transport = GuardedTransport(lambda: InMemoryTransport(server._mcp_server), audience)
    with pytest.raises(ProofError, match="only a call under a delegation"):
        await pinned.call(MCPAdapter(transport), "log")
    assert pinned.origins() == [f"mcp:{audience}"]


async def test_a_configuration_or_a_url_names_the_server(desk):
    bound, url = listening()
    other, second = listening()
    with (
        serving(server_of("any", "log").http_app(), bound),
        serving(server_of("git", "log").http_app(), other),
    ):
        one: Any = {"mcpServers": {"git": {"url": url}}}
        two: Any = {"mcpServers": {"git": {"url": url}, "files": {"url": second}}}
        for target, tool, origin in (
            (url, "log", f"mcp:{url}"),
            (f"{url}?token=secret", "log", UNNAMED),
            (one, "log", "mcp:git"),
            (two, "git_log", "mcp:git"),
            (two, "files_log", "mcp:files"),
        ):
            pinned = desk(tool, origin)
            assert "ran" in await pinned.call(MCPAdapter(target), tool)
            assert pinned.origins() == [origin]
