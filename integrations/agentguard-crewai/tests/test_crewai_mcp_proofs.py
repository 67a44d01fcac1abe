"""A crew's calls of an MCP server carry a proof of their caller (``agentguard_mcp.crewai``).

The server is one of the SDK 1, over streamable HTTP, in a thread. ``test_crewai_mcp_gateway.py``
has a gateway that asks for proofs.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing
from typing import Any

import pytest
import uvicorn
from call_scene import AUDIENCE, CallScene
from crewai.mcp import MCPServerHTTP, MCPServerStdio
from mcp.server.fastmcp import FastMCP

from agentguard import ConfigError, ProofError, UnguardedCallError
from agentguard.audit.calls import read_authorization, read_outcome
from agentguard.audit.entry import parse_entry
from agentguard_crewai import guard_crew
from agentguard_mcp.crewai import server_tools

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use `streamable_http_client` instead:DeprecationWarning"  # CrewAI does not yet
)


class Payments:
    """A server, its URL, the calls that were sent to it, and the tools that ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.sent: list[dict[str, Any]] = []
        self.delay = 0.0
        made = FastMCP("announced", stateless_http=True, json_response=True, log_level="CRITICAL")
        made.tool()(self.pay)
        self._app = made.streamable_http_app()
        bound = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{bound.getsockname()[1]}/mcp"
        config = uvicorn.Config(self._noting, log_level="critical", interface="asgi3")
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, args=([bound],), daemon=True).start()
        while not self._server.started:
            time.sleep(0.005)

    def pay(self, cents: int, note: str | None = None) -> str:
        """Pay."""
        self.ran.append(cents)
        time.sleep(self.delay)
        if cents == 13:
            raise ValueError("no such account")
        return f"paid {cents}"

    async def _noting(self, scope: Any, receive: Any, send: Any) -> None:
        """Note each call of a tool, and answer as the server does."""

        async def noted() -> Any:
            message = await receive()
            body = json.loads(message.get("body") or "{}")
            if body.get("method") == "tools/call":
                self.sent.append(body["params"])
            return message

        await self._app(scope, noted, send)

    def close(self) -> None:
        self._server.should_exit = True


@pytest.fixture(scope="module")
def payments():
    made = Payments()
    yield made
    made.close()


@pytest.fixture
def server(payments):
    payments.ran.clear()
    payments.sent.clear()
    payments.delay = 0.0
    return payments


@pytest.fixture
def scene(tmp_path):
    made = CallScene(tmp_path)
    with made.guard:
        yield made


def kicked_off(scene, native, tools, *calls, audience=AUDIENCE):
    """Let a crew make these calls for alice, and return its output."""
    steps = [(tools[0].name, arguments) for arguments in calls]
    payer = native.agent("Payer", *steps, "done", tools=tools)
    crew = guard_crew(native.crew(payer), scene.guard)
    with scene.guard.delegate("user:alice", scope=["payments:write"], audience=[audience]):
        return crew.kickoff()


def entries(scene, kind):
    with closing(scene.guard.reader()) as reader:
        found = [parse_entry(body) for _index, body in reader.entries(0)]
    return [one for one in found if one.kind == kind]


def authorizations(scene):
    return [read_authorization(one) for one in entries(scene, "authorization")]


def outcomes(scene):
    return [read_outcome(one).status for one in entries(scene, "outcome")]


def test_each_call_of_a_crew_has_a_proof_of_its_own(scene, server, native):
    tools = server_tools(MCPServerHTTP(url=server.url), AUDIENCE)
    assert [one.name for one in tools] == ["payments_pay"]
    output = kicked_off(scene, native, tools, {"cents": 3}, {"cents": 4})
    assert (output.raw, server.ran) == ("done", [3, 4])
    callers = [scene.receiver.verify("tools/call", params) for params in server.sent]
    assert {one.principal for one in callers} == {"user:alice"}
    calls = authorizations(scene)
    assert [one.invocation_sha256 for one in callers] == [one.invocation_sha256 for one in calls]
    assert {one.predicate["tool"]["origin"] for one in calls} == {AUDIENCE}
    assert [params["arguments"] for params in server.sent] == [{"cents": 3}, {"cents": 4}]
    with pytest.raises(ProofError, match="used"):
        scene.receiver.verify("tools/call", server.sent[0])


def test_nothing_is_sent_without_a_guarded_call_nor_to_another_server(scene, server, native):
    config = MCPServerHTTP(url=server.url)
    tools = server_tools(config, AUDIENCE)
    with pytest.raises(UnguardedCallError):
        tools[0].run(cents=3)
    unguarded = native.agent("Payer", ("payments_pay", {"cents": 3}), "done", tools=tools)
    native.crew(unguarded).kickoff()
    kicked_off(scene, native, server_tools(config, "mcp:other"), {"cents": 3})
    assert (server.sent, server.ran) == ([], [])
    kicked_off(scene, native, server_tools(config, "mcp:other"), {"cents": 3}, audience="mcp:other")
    assert server.ran == [3]


def test_a_call_without_an_answer_in_time_is_sent_once_and_is_in_doubt(scene, server, native):
    """By itself, CrewAI's client sends a call that takes too long three times."""
    tools = server_tools(MCPServerHTTP(url=server.url), AUDIENCE, timeout=1)
    server.delay = 1.5
    kicked_off(scene, native, tools, {"cents": 3})
    assert server.ran == [3]
    assert outcomes(scene) == ["unknown"]


def test_a_failure_of_the_server_reaches_the_model(scene, server, native):
    tools = server_tools(MCPServerHTTP(url=server.url), AUDIENCE)
    output = kicked_off(scene, native, tools, {"cents": 13})
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason.value == "mcp_error"
    assert "no such account" in failed.failure.message
    assert server.ran == [13]


def test_the_application_names_a_server(scene, server, native):
    """The server announces another name, which counts nowhere."""
    tools = server_tools(MCPServerHTTP(url=server.url), server.url, name="shop")
    assert [one.name for one in tools] == ["shop_pay"]
    kicked_off(scene, native, tools, {"cents": 3}, audience=server.url)
    assert {one.predicate["tool"]["origin"] for one in authorizations(scene)} == {"mcp:shop"}


@pytest.mark.parametrize(
    ("given", "audience", "what"),
    [
        ("https://files.example/mcp", AUDIENCE, "is no server"),
        (MCPServerStdio(command="true"), "", "audience"),
    ],
    ids=["url", "audience"],
)
def test_a_mistake_is_named(given, audience, what):
    with pytest.raises(ConfigError, match=what):
        server_tools(given, audience)


def test_a_server_without_tools_is_named(server):
    config = MCPServerHTTP(url=server.url, tool_filter=lambda _tool: False)
    with pytest.raises(ConfigError, match="lists no tools"):
        server_tools(config, AUDIENCE)
