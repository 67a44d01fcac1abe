"""The tools of a real MCP server through langchain-mcp-adapters.

The server runs in this process, at the other end of streams in memory; in one test it is a process.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import Any, cast

import files_server as files_server_program
import pytest
from files_server import files_server
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from agentguard import Decision, Requirement
from agentguard.testing import RecordedGuard
from agentguard_langchain import GuardedToolDenied, guard_tools
from agentguard_langchain.tool_state import shape_of

CONFIG: Any = {"configurable": {"thread_id": "t1"}}


def policy(document):
    args = document["args"]
    if document["action"] == "count_lines":
        return Decision.allow()
    if args["path"].startswith("/etc"):
        return Decision.deny("not there")
    if args["path"] == "prod":
        return Decision.require_approval(Requirement("prod needs a person"))
    return Decision.allow()


class Files:
    """The server's tools, what it has written, and a guard."""

    def __init__(self, inbox, folder, tools):
        self.inbox = inbox
        self.tools = tools
        self._written = folder / "written"

    @property
    def written(self):
        return self._written.read_text() if self._written.exists() else ""

    def calls(self):
        return [(c.agent, c.tool, c.code or c.decision, c.values) for c in self.inbox.log.calls()]


@pytest.fixture
def serving(people, tmp_path):
    """A session with the server; it ends in the task that has begun it, as anyio wants it."""

    @asynccontextmanager
    async def _serving():
        async with create_connected_server_and_client_session(files_server(tmp_path)) as session:
            tools = await load_mcp_tools(session, server_name="files")
            yield Files(people(policy=policy), tmp_path, tools)

    return _serving


async def test_a_tool_of_a_server_is_bound_signed_and_decided(serving):
    async with serving() as files:
        write, count = guard_tools(files.tools, files.inbox.agent)
        assert shape_of(cast("Any", write)).spec.origin == "mcp:files"
        answer = await write.ainvoke({"path": "a", "text": "x"})
        assert answer[0]["text"] == "wrote a"
        with pytest.raises(GuardedToolDenied, match="not there"):
            await write.ainvoke({"path": "/etc/passwd", "text": "x"})
        call = {"name": "count_lines", "args": {"path": "abc"}, "id": "1", "type": "tool_call"}
        counted = await count.ainvoke(call)
        assert counted.artifact["structured_content"] == {"lines": 3}
    agent = files.inbox.agent.id
    assert files.calls() == [
        (agent, "write_file", "allow", {"path": "a", "text": "x"}),
        (agent, "write_file", "policy.denied", {"path": "/etc/passwd", "text": "x"}),
        (agent, "count_lines", "allow", {"path": "abc"}),
    ]
    assert files.written == "a=x;"


async def test_an_agent_with_the_tools_of_a_server_waits_for_people(serving):
    async with serving() as files:
        inbox = files.inbox
        graph = inbox.graph(tools=files.tools)
        calls = [
            ("write_file", {"path": path, "text": "x"}) for path in ("prod", "/etc/passwd", "a")
        ]
        paused = await graph.ainvoke(inbox.asking(*calls), CONFIG)
        (pause,) = paused["__interrupt__"]
        assert [action["args"]["path"] for action in pause.value["action_requests"]] == ["prod"]
        assert files.written == ""
        inbox.approve()
        state = await graph.ainvoke(None, CONFIG)
    texts = [message.text for message in state["messages"] if message.type == "tool"]
    assert [texts[0], texts[2]] == ["wrote prod", "wrote a"]
    assert "not there [policy.denied]" in texts[1]
    assert sorted(files.written.split(";")) == ["", "a=x", "prod=x"]
    assert inbox.guard.verify().ok


async def test_a_call_of_a_server_is_made_once_and_its_artifact_comes_back(serving):
    async with serving() as files:
        inbox = files.inbox
        graph = inbox.graph(tools=files.tools)
        calls = [("write_file", {"path": "a", "text": "x"}), ("count_lines", {"path": "abc"})]
        first = await graph.ainvoke(inbox.asking(*calls), CONFIG)
        old = [one.config async for one in graph.aget_state_history(CONFIG) if "tools" in one.next]
        again = await graph.ainvoke(None, old[-1])
    for state in (first, again):
        artifacts = [m.artifact for m in state["messages"] if m.type == "tool"]
        assert artifacts[1]["structured_content"] == {"lines": 3}
    assert files.written == "a=x;"


async def test_a_delegation_reaches_a_servers_tool(serving):
    async with serving() as files:
        inbox = files.inbox
        (write, _count) = guard_tools(files.tools, inbox.agent)
        with inbox.guard.delegate("user:alice", scope=["pay"]):
            await write.ainvoke({"path": "a", "text": "x"})
    assert [call.predicate["principal"] for call in inbox.log.calls()] == ["user:alice"]


async def test_two_servers_with_a_tool_of_one_name_are_told_apart():
    """The application's name for a server counts, and not the name that a server announces."""
    made = RecordedGuard.make(
        agents={"clerk": {"authority": "own"}}, tools={"log": {"origin": "mcp:git"}}
    )
    answers = []
    for named in ("git", "files", None):
        server = FastMCP("git")
        server.add_tool(lambda: "ran", name="log", description="Logs.")
        async with create_connected_server_and_client_session(server) as session:
            tools = await load_mcp_tools(session, server_name=named)
            (tool,) = guard_tools(tools, made.guard.new_agent("clerk"))
            call = {"name": "log", "args": {}, "id": "c1", "type": "tool_call"}
            answers.append(str((await tool.ainvoke(call)).content))
    assert "ran" in answers[0]
    assert ["[tool.changed]" in answer for answer in answers] == [False, True, True]
    origins = [call.predicate["tool"]["origin"] for call in made.calls()]
    assert origins[:2] == ["mcp:git", "mcp:files"]
    assert not origins[2].startswith("mcp:")
    made.guard.close()


@pytest.mark.slow("the server as people run it: a process for the tools, and one for each call")
async def test_the_tools_of_a_client_begin_a_session_for_each_call(people, tmp_path):
    connection: Any = {
        "transport": "stdio",
        "command": sys.executable,
        "args": [files_server_program.__file__],
        "cwd": str(tmp_path),
    }
    client = MultiServerMCPClient({"files": connection})
    files = Files(people(policy=policy), tmp_path, await client.get_tools())
    graph = files.inbox.graph(tools=files.tools)
    calls = [("write_file", {"path": path, "text": "x"}) for path in ("/etc/passwd", "a")]
    await graph.ainvoke(files.inbox.asking(*calls), CONFIG)
    agent = files.inbox.agent
    assert sorted(call[:3] for call in files.calls()) == [
        (agent.id, "write_file", "allow"),
        (agent.id, "write_file", "policy.denied"),
    ]
    assert files.written == "a=x;"
    (write,) = [tool for tool in guard_tools(files.tools, agent) if tool.name == "write_file"]
    assert shape_of(cast("Any", write)).spec.origin == "mcp:files"
