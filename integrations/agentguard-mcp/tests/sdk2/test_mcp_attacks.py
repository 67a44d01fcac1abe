"""What a thief, a gateway or a hostile client tries with proved requests over MCP.

Each refused request has its allowed twin.
"""

from __future__ import annotations

import asyncio
import copy

import pytest
from mcp import Client, MCPError
from mcp.client._memory import InMemoryTransport
from mcp.server.mcpserver import Context, MCPServer
from mcp_scene import AUDIENCE, Scene, code_of, exchange
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from agentguard.proof import CallReceiver
from agentguard_mcp import guard_server, guard_transport


@pytest.fixture
async def stolen(scene, mode):
    """The parameters of a proved call that never came to the server."""
    return await scene.capture("pay", {"cents": 3}, mode)


async def test_a_replayed_proof_is_refused_by_each_worker_and_after_a_restart(scene, stolen):
    assert code_of(await exchange(scene.server, stolen)) is None
    for server in (scene.server, scene.new_server("sdk"), scene.new_server("fastmcp")):
        assert code_of(await exchange(server, stolen)) == "proof.used"
    assert scene.runs == [(3, "user:alice")]


async def test_two_workers_that_get_one_proof_at_once_run_the_call_once(scene, stolen):
    workers = [scene.server, *(scene.new_server("sdk") for _ in range(3))]
    answers = await asyncio.gather(*(exchange(worker, stolen) for worker in workers))
    assert sorted(str(code_of(answer)) for answer in answers) == ["None", *["proof.used"] * 3]
    assert scene.runs == [(3, "user:alice")]


async def test_a_request_that_is_sent_again_has_a_fresh_proof(scene, mode):
    async with scene.connect(mode) as client:
        same = {"request_id": "x"}
        results = [
            await scene.within(lambda: client.call_tool("pay", {"cents": 3}, meta=dict(same)))
            for _ in range(2)
        ]
    assert [code_of(result) for result in results] == [None, None]
    assert len(scene.runs) == 2


async def test_another_server_refuses_the_proof(scene, stolen):
    other = scene.new_server("sdk", audience="mcp:other")
    assert code_of(await exchange(other, stolen)) == "token.audience"
    assert code_of(await exchange(scene.server, stolen)) is None


async def test_a_server_in_the_same_audience_refuses_the_proof_of_its_neighbour(make):
    scene = make("sdk")
    params = await scene.capture("pay", {"cents": 3}, audience=[AUDIENCE, "mcp:other"])
    other = scene.new_server("sdk", audience="mcp:other")
    assert code_of(await exchange(other, params)) == "proof.audience"
    assert code_of(await exchange(scene.server, params)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"cents": 9}},
        {"arguments": {"cents": 3, "more": 1}},
        {"arguments": None},
        {"name": "look"},
        {"requestState": "other"},
        {"inputResponses": {}},
    ],
    ids="-".join,
)
async def test_changed_parameters_are_refused(scene, stolen, change):
    assert code_of(await exchange(scene.server, {**stolen, **change})) == "proof.request"
    assert code_of(await exchange(scene.server, stolen)) is None


@pytest.mark.parametrize(
    "change",
    [{"fastmcp": {"version": "1"}}, {"io.example/x": 1}],
    ids=["fastmcp", "other"],
)
async def test_an_added_member_of_meta_is_refused_and_a_trace_is_not(scene, stolen, change):
    changed = copy.deepcopy(stolen)
    changed["_meta"].update(change)
    assert code_of(await exchange(scene.server, changed)) == "proof.request"
    traced = copy.deepcopy(stolen)
    traced["_meta"]["traceparent"] = f"00-{'1' * 32}-{'2' * 16}-01"
    assert code_of(await exchange(scene.server, traced)) is None


async def test_a_removed_version_of_a_tool_is_refused(make):
    scene = make("fastmcp")
    meta = {"fastmcp": {"version": "1.0"}}
    params = await scene.capture("pay", {"cents": 3}, meta=meta)
    without = copy.deepcopy(params)
    del without["_meta"]["fastmcp"]
    assert code_of(await exchange(scene.server, without)) == "proof.request"


@pytest.mark.parametrize("member", ["token", "credential", "chain", "proof"])
async def test_a_stolen_token_without_a_proof_is_refused(scene, stolen, member):
    without = copy.deepcopy(stolen)
    del without["_meta"][f"dev.agentguard/{member}"]
    assert code_of(await exchange(scene.server, without)) == "proof.missing"
    other = await scene.capture("pay", {"cents": 4}, agent="other", user="user:bob")
    mixed = copy.deepcopy(stolen)
    mixed["_meta"][f"dev.agentguard/{member}"] = other["_meta"][f"dev.agentguard/{member}"]
    assert str(code_of(await exchange(scene.server, mixed))).startswith(("proof.", "token.", "sig"))
    assert code_of(await exchange(scene.server, stolen)) is None


async def test_a_proof_for_one_method_is_none_for_another(scene, stolen):
    as_prompt = await exchange(scene.server, stolen, "prompts/get")
    assert code_of(as_prompt) == "proof.request"
    assert code_of(await exchange(scene.server, stolen)) is None


async def test_a_broken_store_refuses_every_call(make, tmp_path):
    scene = make("sdk")
    async with scene.connect() as client:
        await scene.call(client, "pay", {"cents": 3})
        for file in tmp_path.glob("proofs.sqlite*"):
            file.unlink()
        refused = await scene.call(client, "pay", {"cents": 3})
    assert code_of(refused) == "proof.unavailable"
    assert len(scene.runs) == 1


async def test_a_revocation_list_that_raises_refuses(make):
    scene = make("sdk")

    class Broken:
        def refusal(self, _names):
            raise RuntimeError("the file of the application's own")

    server = MCPServer("files")
    scene._add(server)
    receiver = CallReceiver(AUDIENCE, scene.domain.trust, scene.new_store(), revocations=Broken())
    guard_server(server, scene.guard, receiver)
    params = await scene.capture("pay", {"cents": 3})
    assert code_of(await exchange(server, params)) == "proof.unavailable"
    assert code_of(await exchange(scene.server, params)) is None


# --- calls in several rounds ----------------------------------------------------------------------


def asking_server(scene: Scene):
    """Add a tool that asks its client before it goes on, and return what the tool has seen."""
    seen: list[str | None] = []

    @scene.server.tool()
    async def ask_first(what: str, ctx: Context) -> str | InputRequiredResult:
        """Asks first."""
        request = ctx.request_context
        state = request.params.get("requestState")
        seen.append(state)
        if state is None:
            params = ElicitRequestFormParams(
                message="Sure?", requested_schema={"type": "object", "properties": {}}
            )
            ask = ElicitRequest(params=params)
            return InputRequiredResult(input_requests={"sure": ask}, request_state=f"for {what}")
        return f"did {what}"

    return seen


async def accept(_ctx, _params):
    return ElicitResult(action="accept", content={})


async def test_each_round_of_a_call_has_a_fresh_proof(make):
    scene = make("sdk", rounds=["ask_*"])
    seen = asking_server(scene)
    async with scene.connect(elicitation_callback=accept) as client:
        result = await scene.call(client, "ask_first", {"what": "it"})
    assert result.content[0].text == "did it"
    assert len(seen) == 2
    assert len({one.invocation_sha256 for one in scene.log.calls()}) == 2
    callers = [given["caller"]["invocation_sha256"] for given in scene.log.policy_inputs]
    assert len(set(callers)) == 1  # one authorised call of the agent


async def test_a_state_from_elsewhere_is_refused(make):
    """The state of another user, of another tool's arguments, and an altered one."""
    scene = make("sdk", rounds=["ask_*"])
    asking_server(scene)

    async def first(what, **more):
        """Begin a call, and return the state that the server hands out."""
        async with scene.connect() as client:
            ask = client.session.call_tool
            begun = await scene.within(
                lambda: ask("ask_first", {"what": what}, allow_input_required=True), **more
            )
        return begun.request_state

    async def go_on(state, what="it", **more):
        async with scene.connect() as client:
            ask = client.session.call_tool
            answers = {"sure": ElicitResult(action="accept", content={})}

            async def work():
                result = await ask(
                    "ask_first",
                    {"what": what},
                    input_responses=answers,
                    request_state=state,
                    allow_input_required=True,
                )
                return result.content[0].text

            try:
                return await scene.within(work, **more)
            except MCPError as error:
                return str(error.message)

    state = await first("it")
    refused = "Invalid or expired requestState"
    assert await go_on(state, user="user:bob") == refused
    assert await go_on(state, agent="other") == refused
    assert await go_on(state, "another thing") == refused
    assert await go_on(state[:-2] + "xx") == refused
    assert await go_on(state) == "did it"


async def test_a_client_that_is_guarded_twice_still_sends_one_proof(make):
    scene = make("sdk")
    once = guard_transport(InMemoryTransport(scene.server), AUDIENCE)
    async with Client(guard_transport(once, AUDIENCE)) as client:
        result = await scene.call(client, "pay", {"cents": 3})
    assert code_of(result) is None


# --- arguments that an SDK reads leniently --------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"force": "true"}, {"force": 1}, {"count": "3"}, {"count": True}, {"names": '["a"]'}],
    ids=["text", "number", "digits", "bool", "json"],
)
async def test_a_value_that_the_sdk_would_turn_into_another_is_refused(scene, mode, arguments):
    """The policy would decide on the text, and the tool would get the value."""
    got = []

    @scene.server.tool()
    def do(force: bool = False, count: int = 5, names: list[str] | None = None) -> str:
        """Does."""
        got.append((force, count, names))
        return "done"

    async with scene.connect(mode) as client:
        refused = await scene.call(client, "do", arguments)
        assert code_of(refused) == "arguments.invalid"
        allowed = await scene.call(client, "do", {"force": True, "names": ["a"]})
        assert code_of(allowed) is None
    assert got == [(True, 5, ["a"])]
    assert scene.log.policy_inputs[-1]["args"] == {"force": True, "count": 5, "names": ["a"]}
    first, _second = scene.log.calls()
    assert first.code == "arguments.invalid"
