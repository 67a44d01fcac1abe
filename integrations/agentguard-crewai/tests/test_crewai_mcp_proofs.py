"""A crew's calls of an MCP server carry a proof of their caller (``agentguard_mcp.crewai``).

The server is one of the SDK 1, over HTTP, in a thread; a few tests have a scripted server on
stdio. ``test_crewai_mcp_gateway.py`` has a gateway that asks for proofs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import closing
from typing import Any

import gateway_scene
import pytest
import uvicorn
from call_scene import AUDIENCE, CallScene
from crewai.mcp import MCPServerHTTP, MCPServerSSE, MCPServerStdio
from mcp.server.fastmcp import FastMCP
from tool_servers import in_call

from agentguard import ConfigError, Decision, Guard, ProofError, UnguardedCallError
from agentguard.audit.kinds import parse_entry
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
        self.may_answer = threading.Event()
        made = FastMCP("announced", stateless_http=True, json_response=True, log_level="CRITICAL")
        made.tool()(self.pay)
        self._apps = {"/mcp": made.streamable_http_app(), "/sse": made.sse_app()}
        bound = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{bound.getsockname()[1]}"
        self.url = f"{self.root}/mcp"
        config = uvicorn.Config(self._noting, log_level="critical", interface="asgi3")
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, args=([bound],), daemon=True).start()
        while not self._server.started:
            time.sleep(0.005)

    def pay(self, cents: int, note: str | None = None) -> str:
        """Pay."""
        self.ran.append(cents)
        self.may_answer.wait()
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

        is_sse = scope.get("path", "").startswith(("/sse", "/messages"))
        await self._apps["/sse" if is_sse else "/mcp"](scope, noted, send)

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
    payments.may_answer.set()
    yield payments
    payments.may_answer.set()


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
        found = [parse_entry(body) for _index, body in reader.entries()]
    return [one for one in found if one.kind == kind]


def authorizations(scene):
    return list(entries(scene, "call"))


def outcomes(scene):
    return [one.status for one in entries(scene, "outcome")]


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


@pytest.mark.parametrize("note", [{}, {"note": None}, {"note": "x"}])
def test_what_is_decided_is_what_the_server_gets(tmp_path, server, native, note):
    """CrewAI puts None where a model gave nothing, and such an argument is not sent."""
    decided = []

    def decide(call):
        decided.append(dict(call["args"]))
        return Decision.allow()

    tools = server_tools(MCPServerHTTP(url=server.url), AUDIENCE)
    with Guard.ephemeral(decide) as guard:
        kicked_off(CallScene(tmp_path, guard), native, tools, {"cents": 3, **note})
    expected = {"cents": 3, **{name: one for name, one in note.items() if one is not None}}
    assert decided == [expected]
    assert [params["arguments"] for params in server.sent] == [expected]


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
    server.may_answer.clear()
    kicked_off(scene, native, tools, {"cents": 3})
    assert len(server.sent) == 1
    assert outcomes(scene) == ["unknown"]


def on_stdio(**options):
    """Return what CrewAI is told of the scripted server."""
    command = gateway_scene.command(**options)
    return MCPServerStdio(command=command[0], args=list(command[1:]), env={"SHOP": "1"})


@pytest.mark.parametrize("kind", ["sse", "stdio"])
def test_each_transport_carries_the_proof(scene, server, native, kind):
    """The twin of streamable HTTP is the first test; the scripted server says what it was sent."""
    if kind == "sse":
        tools = server_tools(MCPServerSSE(url=f"{server.root}/sse"), AUDIENCE)
        kicked_off(scene, native, tools, {"cents": 3})
        (sent,) = server.sent
    else:
        (echo, *_others) = server_tools(on_stdio(), AUDIENCE)
        answer = in_call(scene.guard, lambda: echo.run(text="a"), audience=[AUDIENCE])
        sent = json.loads(answer)["params"]
        assert "SHOP" in json.loads(answer)["environment"]
    assert scene.receiver.verify("tools/call", sent).principal == "user:alice"


@pytest.mark.parametrize(("tool", "ended"), [("crash", "unknown"), ("fail", "ok")])
def test_a_call_whose_server_ends_is_in_doubt(scene, native, tmp_path, tool, ended):
    ran = tmp_path / "ran"
    tools = server_tools(on_stdio(ran=str(ran)), AUDIENCE)
    chosen = [one for one in tools if one.name == f"payments_{tool}"]
    kicked_off(scene, native, chosen, {"text": "a"})
    assert ran.read_text().splitlines().count(f"{tool} a") == 1
    assert outcomes(scene) == [ended]


def test_a_server_that_opens_no_session_gets_no_call(scene, native, monkeypatch):
    config = on_stdio()
    tools = server_tools(config, AUDIENCE)
    monkeypatch.setattr("agentguard_mcp.crewai.CONNECT_TIMEOUT", 0.2)
    config.command, config.args = "sh", ["-c", "cat >/dev/null"]
    output = kicked_off(scene, native, tools, {"text": "a"})
    (failed,) = output.tasks_output[0].tool_failures
    assert "the call was not sent" in failed.failure.message
    assert outcomes(scene) == ["error"]


async def test_a_crew_on_an_event_loop_proves_its_calls(scene, server, native):
    tools = await asyncio.to_thread(server_tools, MCPServerHTTP(url=server.url), AUDIENCE)
    steps = [("payments_pay", {"cents": cents}) for cents in (3, 13)]
    crew = native.crew(native.agent("Payer", *steps, "done", tools=tools))
    with scene.guard.delegate("user:alice", scope=["payments:write"], audience=[AUDIENCE]):
        output = await guard_crew(crew, scene.guard).akickoff()
    assert server.ran == [3, 13]
    (failed,) = output.tasks_output[0].tool_failures
    assert "no such account" in failed.failure.message


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
        (MCPServerStdio(command="true"), "mcp:", "a server needs a name"),
    ],
    ids=["url", "audience", "name"],
)
def test_a_mistake_is_named(given, audience, what):
    with pytest.raises(ConfigError, match=what):
        server_tools(given, audience)


def test_a_server_without_tools_is_named(server):
    config = MCPServerHTTP(url=server.url, tool_filter=lambda _tool: False)
    with pytest.raises(ConfigError, match="lists no tools"):
        server_tools(config, AUDIENCE)
