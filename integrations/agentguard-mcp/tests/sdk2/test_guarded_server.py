"""A guarded server runs what a proved caller may, says why it refuses, and has both in its log."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastmcp import FastMCP
from fastmcp.utilities.tasks import TaskConfig
from mcp import Client, MCPError
from mcp.client._memory import InMemoryTransport
from mcp.server import Server
from mcp_scene import AUDIENCE, SCOPE, code_of, exchange, low
from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool
from pydantic import BaseModel, WithJsonSchema

from agentguard import ConfigError, Decision, Denied, UnguardedCallError
from agentguard.adapters import ToolSpec
from agentguard.proof import CallReceiver
from agentguard_mcp import guard_server, guard_transport


class Order(BaseModel):
    """A type of an argument, to which the schema of a tool refers."""

    cents: int


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_proved_call_runs_for_the_user_and_both_logs_have_it(scene, mode):
    async with scene.connect(mode) as client:
        result = await scene.call(client, "pay", {"cents": 3}, task_id="T-1")
    assert result.content[0].text == "paid 3 for user:alice"
    assert scene.runs == [(3, "user:alice")]
    (at_agent,), (at_server,) = scene.agents.calls(), scene.log.calls()
    assert (at_server.principal, at_server.tool, at_server.origin) == (
        "user:alice",
        "pay",
        "mcp:files",
    )
    evidence = scene.guard.prove(at_server.invocation_id)
    assert at_agent.invocation_sha256.encode() in evidence
    assert scene.log.outcomes() == ["ok"]


async def test_the_policy_reads_who_calls(make):
    scene = make("sdk")
    async with scene.connect() as client:
        await scene.call(client, "pay", {"cents": 3}, task_id="T-1")
    (given,) = scene.log.policy_inputs
    caller, delegation = given["caller"], given["delegation"]
    assert caller["principal"] == delegation["subject"] == "user:alice"
    assert caller["agent"].startswith("spiffe://ephemeral.invalid/agent/clerk/")
    assert (caller["assurance"], caller["task_id"]) == ("call", "T-1")
    assert delegation["via"] == "service:clerk@ephemeral.invalid"
    assert delegation["scope"] == SCOPE
    assert given["agent"]["name"] == "mcp-server"


async def test_a_call_that_the_policy_denies_does_not_run(scene, mode):
    async with scene.connect(mode) as client:
        denied = await scene.call(client, "pay", {"cents": 30})
        allowed = await scene.call(client, "pay", {"cents": 3})
    assert (denied.is_error, code_of(denied)) == (True, "policy.denied")
    assert "too large" in denied.content[0].text
    assert not allowed.is_error
    assert scene.runs == [(3, "user:alice")]
    assert [call.decision for call in scene.log.calls()] == ["deny", "allow"]


async def test_a_scope_that_was_not_lent_denies(scene):
    async with scene.connect() as client:
        denied = await scene.call(client, "pay", {"cents": 3}, scope=["files:read"])
        allowed = await scene.call(client, "pay", {"cents": 3})
    assert code_of(denied) == "scope.exceeded"
    assert not allowed.is_error


async def test_a_call_waits_for_the_approval_of_its_own_caller(scene, mode):
    async with scene.connect(mode) as client:
        pending = await scene.call(client, "pay", {"cents": 5})
        assert code_of(pending) == "approval.pending"
        request_id = pending.meta["dev.agentguard/request"]
        scene.approve(request_id)
        # the approval is for one user and one agent
        other_user = await scene.call(client, "pay", {"cents": 5}, user="user:bob")
        other_agent = await scene.call(client, "pay", {"cents": 5}, agent="other")
        assert code_of(other_user) == code_of(other_agent) == "approval.pending"
        done = await scene.call(client, "pay", {"cents": 5})
        again = await scene.call(client, "pay", {"cents": 5})
    assert not done.is_error
    assert code_of(again) == "approval.pending"
    assert scene.runs == [(5, "user:alice")]


async def test_resources_and_prompts_are_guarded(scene, mode):
    async with scene.connect(mode) as client:

        async def work():
            read = await client.read_resource("file:///a")
            return read, await client.get_prompt("ask", {"topic": "b"})

        read, prompt = await scene.within(work)
        assert read.contents[0].text == "the file a"
        assert prompt.messages[0].content.text == "about b"
        for send in (
            lambda: client.read_resource("file:///a"),
            lambda: client.get_prompt("ask", {"topic": "b"}),
        ):
            with pytest.raises(UnguardedCallError):
                await send()
    names = [call.tool for call in scene.log.calls()]
    assert names == ["mcp:resources/read", "mcp:prompts/get"]
    assert scene.runs == ["a", "b"]


async def test_a_denied_resource_is_an_error_with_the_code(make):
    scene = make(
        "sdk",
        lambda given: (
            Decision.deny("secret")
            if given["args"].get("uri") == "file:///secret"
            else Decision.allow()
        ),
    )
    async with scene.connect() as client:
        with pytest.raises(MCPError) as caught:
            await scene.within(lambda: client.read_resource("file:///secret"))
        assert caught.value.data == {"dev.agentguard/code": "policy.denied"}
        await scene.within(lambda: client.read_resource("file:///open"))
    assert scene.runs == ["open"]


async def test_a_client_without_proofs_runs_nothing(scene, mode):
    bare = InMemoryTransport(low(scene.server))
    async with Client(bare, mode=mode) as client:
        assert len((await client.list_tools()).tools) == 3
        result = await client.call_tool("pay", {"cents": 3})
        assert (result.is_error, code_of(result)) == (True, "proof.missing")
        for send in (
            lambda: client.read_resource("file:///a"),
            lambda: client.get_prompt("ask", {"topic": "b"}),
        ):
            with pytest.raises(MCPError) as caught:
                await send()
            assert caught.value.data["dev.agentguard/code"] == "proof.missing"
    assert scene.runs == []
    assert scene.log.calls() == []


async def test_a_client_sends_no_call_outside_of_a_guarded_call(scene, mode):
    async with scene.connect(mode) as client:
        with pytest.raises(UnguardedCallError):
            await client.call_tool("pay", {"cents": 3})
        await scene.call(client, "pay", {"cents": 3})  # the connection goes on
    assert scene.runs == [(3, "user:alice")]


async def test_a_list_with_a_proof_has_the_tools_of_the_scope(scene, mode):
    async with scene.connect(mode) as client:

        async def names(**more):
            listed = await scene.within(client.list_tools, **more)
            return {tool.name for tool in listed.tools}

        assert await names() == {"pay", "look", "fail"}
        assert await names(scope=["files:read"]) == {"look", "fail"}


async def test_a_list_may_need_a_proof(make):
    scene = make("sdk", lists_for_all=False)
    async with scene.connect() as client:
        with pytest.raises(MCPError) as caught:
            await client.list_tools()
        assert caught.value.data == {"dev.agentguard/code": "proof.missing"}
        listed = await scene.within(client.list_tools)
    assert len(listed.tools) == 3


async def test_a_tool_whose_schema_can_not_be_checked_is_in_no_list_and_does_not_run(scene, mode):
    @scene.server.tool()
    def lock(force: Annotated[bool, WithJsonSchema({"type": "flag"})]) -> None:
        scene.runs.append(("lock", force))

    @scene.server.tool()
    def bolt(force: bool) -> None:
        scene.runs.append(("bolt", force))

    async with scene.connect(mode) as client:
        for listed in (await client.list_tools(), await scene.within(client.list_tools)):
            assert {tool.name for tool in listed.tools} == {"pay", "look", "fail", "bolt"}
        refused = await scene.call(client, "lock", {"force": True})
        assert code_of(refused) == "tool.uncheckable"
        assert code_of(await scene.call(client, "bolt", {"force": True})) is None
    assert scene.runs == [("bolt", True)]
    assert [call.code for call in scene.log.calls()] == ["tool.uncheckable", ""]


async def test_a_list_of_fastmcp_leaves_out_a_tool_whose_reference_leads_elsewhere(make):
    scene = make("fastmcp")

    @scene.server.tool()
    def lock(force: Annotated[bool, WithJsonSchema({"$ref": "https://schemas.example/flag"})]):
        scene.runs.append(force)

    async with scene.connect("legacy") as client:
        for listed in (await client.list_tools(), await scene.within(client.list_tools)):
            assert {tool.name for tool in listed.tools} == {"pay", "look", "fail"}
        assert code_of(await scene.call(client, "lock", {"force": True})) == "tool.uncheckable"
    assert scene.runs == []


@pytest.mark.parametrize("code", [None, "tool.changed"])
async def test_one_pin_of_a_schema_with_a_reference_fits_the_list_and_the_call(make, code):
    async def order(first: Order, second: Order) -> int:
        return first.cents + second.cents

    schema = {} if code else FastMCP("files").add_tool(order).parameters
    pinned = ToolSpec("order", "", schema, "mcp:files").schema_sha256
    scene = make("fastmcp", tools={"order": {"schema": pinned}})
    scene.server.add_tool(order)
    async with scene.connect("legacy") as client:
        listed = await scene.within(client.list_tools)
        assert ("order" in {tool.name for tool in listed.tools}) is (code is None)
        cents = {"first": {"cents": 1}, "second": {"cents": 2}}
        assert code_of(await scene.call(client, "order", cents)) == code


@pytest.mark.parametrize("kind", ["sdk", "fastmcp"])
async def test_the_policy_says_which_tools_a_list_with_a_proof_has(make, kind):
    def policy(given):
        is_list = given["action"] == "mcp:tools/list"
        is_hidden = is_list and given["args"] != {"server": "files", "tool": "look"}
        return Decision.deny() if is_hidden else Decision.allow()

    scene = make(kind, policy=policy, filter_list=True)
    async with scene.connect() as client:
        listed = await scene.within(client.list_tools)
        tools = listed if isinstance(listed, list) else listed.tools
        assert [tool.name for tool in tools] == ["look"]
        await scene.call(client, "pay", {"cents": 3})  # not shown, and allowed
    assert scene.runs == [(3, "user:alice")]


async def test_a_tool_that_fails_has_failed_in_the_log(scene):
    async with scene.connect() as client:
        failed = await scene.call(client, "fail")
        await scene.call(client, "look")
    assert failed.is_error
    assert code_of(failed) is None
    assert scene.log.outcomes() == ["error", "ok"]


async def test_a_tool_that_is_not_there_is_refused_before_anything_is_logged(scene):
    async with scene.connect() as client:
        missing = await scene.call(client, "nothing")
    assert code_of(missing) == "tool.invalid"
    assert scene.log.calls() == []


@pytest.mark.parametrize("method", ["tasks/get", "tasks/list", "tasks/result", "tasks/cancel"])
async def test_tasks_are_refused(make, method):
    scene = make("sdk")
    refused = await exchange(scene.server, {"taskId": "1"}, method)
    assert code_of(refused) == "tool.unguarded"
    params = await scene.capture("pay", {"cents": 3})
    refused = await exchange(scene.server, {**params, "task": {"ttl": 1}})
    assert code_of(refused) == "tool.unguarded"
    assert code_of(await exchange(scene.server, params)) is None


async def test_an_unknown_method_needs_a_proof(make):
    scene = make("sdk")
    for method in ("completion/complete", "resources/subscribe", "x/y", "tools/Call"):
        assert code_of(await exchange(scene.server, {}, method)) == "proof.missing"
    assert "error" not in await exchange(scene.server, {}, "ping")


async def test_the_tool_does_not_get_the_tokens(make):
    scene = make("sdk")
    seen = []

    async def watch(ctx, call_next):
        if ctx.method == "tools/call":
            seen.append((ctx.params, ctx.meta))
        return await call_next(ctx)

    scene.server.middleware.append(watch)
    async with scene.connect() as client:
        await scene.call(client, "look", meta={"kept": 1})
    ((params, meta),) = seen
    assert params["_meta"]["kept"] == meta["kept"] == 1
    assert not any("dev.agentguard" in key for key in [*params["_meta"], *meta])


async def test_a_low_level_server_is_guarded(make):
    runs = []

    async def listed(_ctx, _params):
        tool = Tool(name="look", description="Looks.", input_schema={"type": "object"})
        return ListToolsResult(tools=[tool])

    async def called(_ctx, params):
        runs.append(params.name)
        return CallToolResult(content=[TextContent(type="text", text="seen")])

    server = Server("low", on_list_tools=listed, on_call_tool=called)
    scene = make("sdk")
    receiver = CallReceiver(AUDIENCE, scene.domain.trust, scene.new_store())
    guard_server(server, scene.guard, receiver)
    async with scene.connect(server=server) as client:
        result = await scene.call(client, "look")
    assert result.content[0].text == "seen"
    bare = await exchange(server, {"name": "look", "arguments": {}})
    assert code_of(bare) == "proof.missing"
    assert runs == ["look"]


async def test_a_call_within_a_tool_is_denied_to_the_tool(make):
    """A denial of the server's own tools inside the tool is no refusal of the request."""
    scene = make("sdk")

    @scene.guard.tool(name="inner")
    def inner(cents: int) -> None:
        raise AssertionError("denied")

    @scene.server.tool()
    def outer() -> str:
        """Calls another agent's tool."""
        with pytest.raises(Denied):
            scene.guard.new_agent("mcp-server").call(inner, 30)
        return "denied inside"

    async with scene.connect() as client:
        result = await scene.call(client, "outer")
    assert result.content[0].text == "denied inside"


def test_what_is_no_server_is_refused(make):
    scene = make("sdk")
    receiver = CallReceiver(AUDIENCE, scene.domain.trust, scene.new_store())
    with pytest.raises(ConfigError, match="guarded already"):
        guard_server(scene.server, scene.guard, receiver)
    for server in (object(), None, "files"):
        with pytest.raises(ConfigError, match="no server that can be guarded"):
            guard_server(server, scene.guard, receiver)
    for audience in ("", "a b", None):
        with pytest.raises(ConfigError):
            guard_transport(InMemoryTransport(scene.server), audience)
    with pytest.raises(ConfigError, match="no transport"):
        guard_transport(object(), AUDIENCE)


async def test_a_tool_that_can_run_as_a_task_is_refused(make):
    scene = make("fastmcp")
    tool = await scene.server.get_tool("pay")
    async with scene.connect() as client:
        tool.task_config = TaskConfig(mode="optional")
        refused = await scene.call(client, "pay", {"cents": 3})
        assert code_of(refused) == "tool.unguarded"
        tool.task_config = TaskConfig(mode="forbidden")
        assert code_of(await scene.call(client, "pay", {"cents": 3})) is None
    assert scene.runs == [(3, "user:alice")]
