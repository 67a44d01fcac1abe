"""The tools of real MCP servers, in processes of their own, as CrewAI finds and calls them.

A policy knows them by the names that the configuration gives them (``[aliases]``).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from crewai import Crew, Task
from crewai.mcp import MCPServerHTTP, MCPServerSSE, MCPServerStdio
from crewai.tools.mcp_tool_wrapper import MCPToolWrapper
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import create_model

from agentguard import Decision
from agentguard.adapters import ToolSpec
from agentguard.audit.kinds import parse_entry
from agentguard.signing.dsse import Envelope
from agentguard_crewai import guard_agent, guard_crew

AGENTS = {"lead": {"max_scope": ["read", "write"]}, "hand": {"max_scope": ["read"]}}
CHAIN = ("user:alice", "crew:report", "lead")
DEPRECATED = pytest.mark.filterwarnings(
    "ignore:Use `streamable_http_client` instead:DeprecationWarning"  # CrewAI does not yet
)
STDIO = pytest.mark.slow("CrewAI begins such a server anew for each call: a process each time")
SERVER = '''
import socket, sys
import uvicorn
from mcp.server.fastmcp import FastMCP

kind, written = sys.argv[1:]
server = FastMCP("files", log_level="CRITICAL", host="127.0.0.1")


@server.tool()
def write_file(path: str, text: str = "x") -> str:
    """Write a file."""
    with open(written, "a") as file:
        file.write(f"{path}={text};")
    if path == "full":
        raise ValueError("the disk is full")
    return f"wrote {path}"


if kind == "stdio":
    server.run(kind)
else:
    app = server.sse_app() if kind == "sse" else server.streamable_http_app()
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listening])
'''


class Server:
    """A server of one kind; ``config`` is how CrewAI reaches it, ``name`` what it calls it."""

    def __init__(self, kind, config, name, written):
        self.kind = kind
        self.config = config
        self.name = name
        self.tool = sanitize_tool_name(f"{name}_write_file")
        self._written = written

    def written(self):
        """What was written since this was asked for last."""
        text = self._written.read_text()
        self._written.write_text("")
        return text


@contextmanager
def begun(preloaded, folder, kind, path):
    """Begin a server that is reached over the network, and end it; yield its address and name."""
    process = preloaded.begin("server.py", kind, "written", cwd=folder)
    until = time.monotonic() + 120
    while not (port := (folder / "output").read_text()).endswith("\n"):
        assert time.monotonic() < until, "the server did not begin"
        time.sleep(0.01)
    port = port.strip()  # it listens there by now
    yield f"http://localhost:{port}/{path}", f"localhost:{port}_{path}"
    process.kill()
    process.wait()


def folder_of(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp(kind)
    (folder / "server.py").write_text(SERVER)
    (folder / "written").write_text("")
    return folder


@pytest.fixture(scope="module")
def sse(tmp_path_factory, preloaded):
    """A server that sends events."""
    folder = folder_of(tmp_path_factory, "sse")
    with begun(preloaded, folder, "sse", "sse") as (url, name):
        yield Server("sse", MCPServerSSE(url=url), name, folder / "written")


@pytest.fixture(scope="module")
def http(tmp_path_factory, preloaded):
    """A server with streamable HTTP."""
    folder = folder_of(tmp_path_factory, "http")
    with begun(preloaded, folder, "streamable-http", "mcp") as (url, name):
        yield Server("http", MCPServerHTTP(url=url), name, folder / "written")


@pytest.fixture
def stdio(tmp_path_factory, monkeypatch):
    """A server that CrewAI begins for each call."""
    folder = folder_of(tmp_path_factory, "stdio")
    monkeypatch.chdir(folder)
    # the name of the command is part of the tools' names
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    config = MCPServerStdio(command="python", args=["server.py", "stdio", "written"])
    return Server("stdio", config, "python_server.py_stdio_written", folder / "written")


@pytest.fixture
def server(request):
    """The server that a test is told to take."""
    return request.getfixturevalue(request.param)


class Desk:
    """A guard whose policy lets everything be written but a secret; it knows aliases."""

    def __init__(self, made, signed):
        self.made = made
        self.guard = made.guard
        self._signed = signed
        made.decide = lambda document: (
            Decision.deny("it is secret")
            if document["args"]["path"] == "secret"
            else Decision.allow()
        )

    def lend(self, *scope):
        return self.guard.delegate("user:alice", scope=scope or ["write"], via="crew:report")

    def kickoff(self, agent, *scope):
        crew = guard_crew(Crew(agents=[agent], tasks=[task_of(agent)]), self.guard)
        with self.lend(*scope):
            return crew.kickoff()

    def calls(self):
        return self._signed(self.guard)

    def story(self):
        return [(c.agent, c.tool, c.arguments["path"], c.outcome or c.code) for c in self.calls()]

    def digests(self):
        """The digests of the tools in the calls that were signed."""
        with closing(self.guard.reader()) as reader:
            read = [parse_entry(body) for _index, body in reader.entries()]
        payloads: list[Any] = [
            json.loads(Envelope.parse(one.members["invocation"], may_be_joint=True).payload)
            for one in read
            if one.kind == "call"
        ]
        return {payload["predicate"]["tool"]["digest"] for payload in payloads}


@pytest.fixture
def inbox(recorded, signed):
    """Makes a desk that knows the tool of a server as ``write_file``, and more tables."""

    def make(server, **tables):
        given = {"agents": AGENTS, "aliases": {server.tool: "write_file"}, **tables}
        return Desk(recorded(**given), signed)

    return make


def task_of(agent):
    return Task(description="a task", expected_output="words", agent=agent)


def writes(server, *paths):
    return [(server.tool, {"path": path}) for path in paths]


def failures(output):
    found = output.tasks_output[0].tool_failures
    return [(one.failure.reason.value, one.failure.code) for one in found]


BOTH = [("tool_reported", "policy.denied"), ("mcp_error", None)]


@STDIO
def test_a_tool_of_a_server_that_is_begun_for_each_call(inbox, stdio, native):
    inbox = inbox(stdio)
    steps = writes(stdio, "plan", "secret", "full")
    output = inbox.kickoff(native.agent("Lead", *steps, "done", mcps=[stdio.config]))
    assert (output.raw, failures(output)) == ("done", BOTH)
    assert inbox.story() == [
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
        ("lead", "write_file", "full", "ok"),  # it has answered, that it could not
    ]
    assert {(call.chain, call.scope) for call in inbox.calls()} == {(CHAIN, ("write",))}
    assert stdio.written() == "plan=x;full=x;"


def test_a_tool_of_a_server_that_sends_events(inbox, sse, way):
    inbox = inbox(sse)
    steps = writes(sse, "plan", "secret", "full")
    output = inbox.kickoff(way.agent("Lead", *steps, "done", mcps=[sse.config]))
    assert (output.raw, failures(output)) == ("done", BOTH)
    assert "the disk is full" in str(output.tasks_output[0].messages)
    assert inbox.story() == [
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
        ("lead", "write_file", "full", "ok"),
    ]
    assert {(call.chain, call.scope) for call in inbox.calls()} == {(CHAIN, ("write",))}
    assert sse.written() == "plan=x;full=x;"


@DEPRECATED
def test_a_tool_of_a_server_with_streamable_http(inbox, http, native):
    inbox = inbox(http)
    steps = writes(http, "plan", "secret")
    inbox.kickoff(native.agent("Lead", *steps, "done", mcps=[http.config]))
    # CrewAI leaves this transport in another task than it has entered it in, where wait_for of
    # Python 3.11 makes one, and takes that for an error of the call, which was made
    made = "ok" if sys.version_info >= (3, 12) else "error"
    assert inbox.story() == [
        ("lead", "write_file", "plan", made),
        ("lead", "write_file", "secret", "policy.denied"),
    ]
    assert {(call.chain, call.scope) for call in inbox.calls()} == {(CHAIN, ("write",))}
    assert http.written() == "plan=x;"


def test_the_policy_sees_what_the_server_is_sent(inbox, sse, native):
    inbox = inbox(sse)
    said = (sse.tool, {"path": "plan", "text": "é"})
    inbox.kickoff(native.agent("Lead", said, *writes(sse, "paper"), "done", mcps=[sse.config]))
    asked = [document["args"] for document in inbox.made.policy_inputs]
    assert asked == [{"path": "plan", "text": "é"}, {"path": "paper", "text": "x"}]
    assert [call.arguments for call in inbox.calls()] == asked
    assert sse.written() == "plan=é;paper=x;"


@pytest.mark.parametrize("server", ["sse", pytest.param("stdio", marks=STDIO)], indirect=True)
def test_where_a_tool_comes_from_is_part_of_what_is_signed(inbox, server, native):
    inbox = inbox(server)
    lead: Any = native.agent("Lead", *writes(server, "secret"), "done", mcps=[server.config])
    inbox.kickoff(lead)
    (found,) = lead.agent_executor.original_tools
    schema = found.args_schema.model_json_schema()
    origins = (f"mcp:{server.name}", "mcp:another", "crewai.tools.mcp_native_tool:MCPNativeTool")
    digests = [ToolSpec("write_file", "Write a file.", schema, one).digest for one in origins]
    assert inbox.digests() == {digests[0]}
    assert len(set(digests)) == len(origins)


def test_without_an_alias_the_policy_knows_a_tool_as_the_model_does(recorded, signed, sse, native):
    inbox = Desk(recorded(agents=AGENTS), signed)
    inbox.kickoff(native.agent("Lead", *writes(sse, "plan", "secret"), "done", mcps=[sse.config]))
    assert inbox.story() == [
        ("lead", sse.tool, "plan", "ok"),
        ("lead", sse.tool, "secret", "policy.denied"),
    ]
    assert {document["action"] for document in inbox.made.policy_inputs} == {sse.tool}
    assert sse.written() == "plan=x;"


LIMITS = {"write_file": {"requires": ["write"], "resource": "file:{path}"}}


def test_what_the_configuration_says_of_a_tool_is_said_by_its_alias(inbox, sse, native):
    inbox = inbox(sse, tools=LIMITS)
    output = inbox.kickoff(native.agent("Lead", *writes(sse, "plan"), "done", mcps=[sse.config]))
    assert failures(output) == []
    (document,) = inbox.made.policy_inputs
    assert (document["action"], document["resource"]) == ("write_file", "file:plan")
    assert inbox.story() == [("lead", "write_file", "plan", "ok")]
    assert sse.written() == "plan=x;"


@pytest.mark.parametrize("server", ["sse", pytest.param("stdio", marks=STDIO)], indirect=True)
def test_without_the_scope_that_it_requires_a_server_is_not_called(inbox, server, native):
    inbox = inbox(server, tools=LIMITS)
    steps = writes(server, "plan")
    output = inbox.kickoff(native.agent("Lead", *steps, "done", mcps=[server.config]), "read")
    assert failures(output) == [("tool_reported", "scope.exceeded")]
    assert inbox.made.policy_inputs == []
    assert inbox.story() == [("lead", "write_file", "plan", "scope.exceeded")]
    assert server.written() == ""


def test_without_a_delegation_a_server_is_not_called(inbox, sse, native):
    inbox = inbox(sse)
    lead = native.agent("Lead", *writes(sse, "plan"), "done", mcps=[sse.config])
    output = guard_crew(native.crew(lead), inbox.guard).kickoff()
    assert failures(output) == [("tool_reported", "delegation.missing")]
    assert (inbox.made.policy_inputs, sse.written()) == ([], "")


BEGIN = {
    "kickoff": lambda agent: agent.kickoff("go on"),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("go on")),
}


@pytest.mark.parametrize("begin", BEGIN)
def test_the_tools_of_a_server_of_an_agent_by_itself(inbox, sse, native, begin):
    inbox = inbox(sse)
    steps = writes(sse, "plan", "secret")
    lead = guard_agent(native.agent("Lead", *steps, "done", mcps=[sse.config]), inbox.guard)
    with inbox.lend():
        BEGIN[begin](lead)
    assert inbox.story() == [
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
    ]
    assert {call.chain for call in inbox.calls()} == {CHAIN}
    assert sse.written() == "plan=x;"


def test_a_tool_of_a_server_that_is_listed_anew_at_each_kickoff_is_one_tool(inbox, sse, native):
    inbox = inbox(sse)
    second = (f"{sse.tool}_2", {"path": "secret"}), (f"{sse.tool}_2", {"path": "paper"})
    steps = *writes(sse, "plan"), "done", *second, "done"
    lead = guard_agent(native.agent("Lead", *steps, mcps=[sse.config]), inbox.guard)
    with inbox.lend():
        lead.kickoff("go on")
        lead.kickoff("go on")
    assert inbox.story() == [
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
        ("lead", "write_file", "paper", "ok"),
    ]
    assert sse.written() == "plan=x;paper=x;"


def test_several_calls_of_a_server_at_once(inbox, sse, native):
    inbox = inbox(sse)
    steps = writes(sse, "plan", "secret", "paper")
    output = inbox.kickoff(native.agent("Lead", steps, "done", mcps=[sse.config]))
    assert failures(output) == [("tool_reported", "policy.denied")]
    assert sorted(inbox.story()) == [
        ("lead", "write_file", "paper", "ok"),
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
    ]
    assert {call.chain for call in inbox.calls()} == {CHAIN}
    assert sorted(sse.written().split(";")) == ["", "paper=x", "plan=x"]


def test_each_of_two_agents_calls_the_server_as_itself(inbox, sse, native):
    inbox = inbox(sse, tools=LIMITS)
    agents = [
        native.agent(role, *writes(sse, role), "done", mcps=[sse.config])
        for role in ("Lead", "Hand")
    ]
    crew = guard_crew(native.crew(*agents), inbox.guard)
    with inbox.lend("read", "write"):
        crew.kickoff()
    assert [(c.chain[-1], c.scope, c.outcome or c.code) for c in inbox.calls()] == [
        ("lead", ("read", "write"), "ok"),
        ("hand", ("read",), "scope.exceeded"),
    ]
    assert sse.written() == "Lead=x;"


@DEPRECATED
def test_a_tool_that_crewai_makes_of_an_address(inbox, http, native):
    inbox = inbox(http)
    schema = {"description": "Write a file.", "args_schema": create_model("Asked", path=(str, ...))}
    made = MCPToolWrapper({"url": http.config.url}, "write_file", schema, http.name)
    output = inbox.kickoff(
        native.agent("Lead", *writes(http, "plan", "secret"), "done", tools=[made])
    )
    assert failures(output) == [("tool_reported", "policy.denied")]
    assert "wrote plan" in str(output.tasks_output[0].messages)
    assert inbox.story() == [
        ("lead", "write_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
    ]
    assert http.written() == "plan=x;"
    json_schema = schema["args_schema"].model_json_schema()  # type: ignore[attr-defined]
    signed = ToolSpec("write_file", "Write a file.", json_schema, f"mcp:{http.name}").digest
    assert inbox.digests() == {signed}
