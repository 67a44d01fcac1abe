"""The guard of a server, without an SDK and without a server: JSON-RPC values in, results out."""

from __future__ import annotations

from typing import Any

import pytest
from call_scene import AUDIENCE, CallScene

from agentguard import Decision, Requirement
from agentguard.proof import prove_call
from agentguard.testing import RecordedGuard
from agentguard_mcp.messages import RefusedRequestError
from agentguard_mcp.params import MODERN
from agentguard_mcp.request_guard import RequestGuard, ToolDescription, current_caller

LIST = "mcp:tools/list"


class Server:
    """A guard of a server that has one tool, and what has run."""

    def __init__(
        self,
        scene: CallScene,
        *,
        filter_list: bool = False,
        rounds: tuple[str, ...] = (),
        **tables: Any,
    ) -> None:
        self.scene = scene
        self.log = RecordedGuard.make(**tables)
        self.runs: list[str] = []
        self.revision = MODERN
        self.requests = RequestGuard(
            self.log.guard,
            scene.receiver,
            agent="mcp-server",
            server="pay",
            lists_for_all=True,
            filter_list=filter_list,
            rounds=rounds,
        )

    async def answer(self, params: Any, method: str = "tools/call", result: Any = None) -> Any:
        async def describe(_name: str, _listed: object) -> ToolDescription:
            return ToolDescription("Pays.", {"type": "object", "properties": {"cents": {}}})

        async def run() -> Any:
            caller = current_caller()
            self.runs.append("nobody" if caller is None else caller.principal)
            if isinstance(result, Exception):
                raise result
            return {"content": []} if result is None else result

        return await self.requests.answer(method, params, describe, run, revision=self.revision)

    async def refused(self, params: Any, method: str = "tools/call") -> str:
        with pytest.raises(RefusedRequestError) as caught:
            await self.answer(params, method)
        return caught.value.code


@pytest.fixture
def server(tmp_path):
    scene = CallScene(tmp_path)
    server = Server(scene)
    with scene.guard, server.log.guard:
        yield server


def params(cents=3, name="pay"):
    return {"name": name, "arguments": {"cents": cents}}


async def test_a_verified_call_is_decided_and_run(server):
    server.log.decide = lambda given: (
        Decision.allow() if given["args"]["cents"] < 10 else Decision.deny("too large")
    )
    assert await server.answer(server.scene.prove(params())) == {"content": []}
    assert await server.refused(server.scene.prove(params(30))) == "policy.denied"
    assert server.runs == ["user:alice"]
    assert current_caller() is None
    first, _second = server.log.policy_inputs
    assert first["caller"]["principal"] == first["delegation"]["subject"] == "user:alice"
    assert first["delegation"]["via"] == "service:payer@ephemeral.invalid"
    assert [call.decision for call in server.log.calls()] == ["allow", "deny"]


async def test_a_call_that_waits_has_the_id_of_its_request_and_runs_once(server):
    server.log.decide = lambda _given: Decision.require_approval(Requirement())
    with pytest.raises(RefusedRequestError) as caught:
        await server.answer(server.scene.prove(params()))
    assert caught.value.code == "approval.pending"
    (request,) = server.log.guard.approvals.pending()
    assert caught.value.request_id == request.request_id
    assert request.principal == "user:alice"
    server.log.approve()
    assert await server.refused(server.scene.prove(params(4))) == "approval.pending"
    await server.answer(server.scene.prove(params()))
    assert await server.refused(server.scene.prove(params())) == "approval.pending"
    assert server.runs == ["user:alice"]


async def test_a_request_that_is_not_verified_is_refused_and_not_logged(server):
    proved = server.scene.prove(params())
    assert await server.refused(params()) == "proof.missing"
    assert await server.refused({**proved, "name": "refund"}) == "proof.request"
    await server.answer(proved)
    assert await server.refused(proved) == "proof.used"
    assert len(server.log.calls()) == len(server.runs) == 1


async def test_what_the_tool_raises_is_raised_and_logged_as_an_error(server):
    with pytest.raises(KeyError):
        await server.answer(server.scene.prove(params()), result=KeyError("broken"))
    failed = {"content": [], "isError": True}
    assert await server.answer(server.scene.prove(params()), result=failed) == failed
    assert await server.answer(server.scene.prove(params())) == {"content": []}
    assert server.log.outcomes() == ["error", "error", "ok"]


async def test_calls_of_one_chain_are_under_one_delegation_of_the_server(server):
    made = []
    begin = server.log.guard.delegate
    server.log.guard.delegate = lambda *given, **more: made.append(1) or begin(*given, **more)
    for proved in proofs_for(server.scene, "user:alice", number=2):
        await server.answer(proved)
    assert len(made) == 1
    await server.answer(server.scene.prove(params()))
    assert len(made) == 2


def proofs_for(scene, user, *, number=1):
    """Return requests with proofs, which one agent makes for a user."""
    made: list[dict[str, Any]] = []
    tool = scene.guard.tool(name="pay")(
        lambda: made.append(prove_call(AUDIENCE, "tools/call", params()))
    )
    with scene.guard.delegate(user, scope=["payments:write"], audience=[AUDIENCE]):
        agent = scene.guard.new_agent("payer")
        for _ in range(number):
            agent.call(tool)
    return made


async def test_a_user_whom_the_server_does_not_know_is_refused(tmp_path):
    scene = CallScene(tmp_path)
    roles = {"payer": {"scope": ["payments:write"]}}
    principals = {"user:alice": {"roles": ["payer"]}}
    server = Server(
        scene, roles=roles, principals=principals, agents={"mcp-server": {"max_scope": []}}
    )
    with scene.guard, server.log.guard:
        await server.answer(scene.prove(params()))
        (strange,) = proofs_for(scene, "user:mallory")
        assert await server.refused(strange) == "principal.unknown"
    assert server.runs == ["user:alice"]


async def test_a_list_has_the_tools_of_the_callers_scope(tmp_path):
    scene = CallScene(tmp_path)
    tables = {"refund": {"requires": ["refunds:write"]}, "stolen": {"origin": "mcp:other"}}
    server = Server(scene, tools=tables)
    tools = [{"name": name, "inputSchema": {}} for name in ("pay", *tables)]
    listed = {"tools": tools, "cacheScope": "public"}
    with scene.guard, server.log.guard:
        assert await server.answer({}, "tools/list", listed) == listed
        malformed = await server.answer({}, "tools/list", {"tools": [*tools, 7]})
        assert malformed == {"tools": tools}
        proved = scene.prove({}, method="tools/list")
        seen = await server.answer(proved, "tools/list", listed)
        assert [tool["name"] for tool in seen["tools"]] == ["pay"]
        assert seen["cacheScope"] == "private"
        assert await server.refused(proved, "tools/list") == "proof.used"


@pytest.mark.parametrize("filter_list", [True, False])
async def test_the_policy_says_which_tools_a_caller_sees_where_the_server_asks(
    tmp_path, filter_list
):
    scene = CallScene(tmp_path)
    server = Server(scene, filter_list=filter_list)
    server.log.decide = lambda given: (
        Decision.allow()
        if (given["action"], given["args"]) == (LIST, {"server": "pay", "tool": "pay"})
        and given["caller"]["principal"] == "user:alice"
        else Decision.require_approval()
    )
    listed = {"tools": [{"name": name, "inputSchema": {}} for name in ("pay", "refund")]}
    with scene.guard, server.log.guard:
        proved = scene.prove({}, method="tools/list")
        seen = await server.answer(proved, "tools/list", listed)
        assert [tool["name"] for tool in seen["tools"]] == ["pay", "refund"][: 2 - filter_list]
        assert server.log.guard.approvals.pending() == []
        assert server.log.calls() == []
        assert len(server.log.policy_inputs) == 2 * filter_list


async def test_work_that_goes_on_in_the_background_has_an_unknown_outcome(server):
    proved = server.scene.prove(params())
    with pytest.raises(RefusedRequestError) as caught:
        await server.answer(proved, result={"resultType": "task", "taskId": "1"})
    assert caught.value.code == "tool.unguarded"
    for result in ({"resultType": "complete"}, {"resultType": "input_required"}):
        assert await server.answer(server.scene.prove(params()), result=result) == result
    assert server.log.outcomes() == ["unknown", "ok", "ok"]


@pytest.mark.parametrize(
    "method",
    ["tools/x\nINFO all is well", "x\x1b[2J", "x" * 100_000],
    ids=["line", "escape", "long"],
)
async def test_a_request_of_nobody_writes_no_line_of_its_own_into_the_log(server, caplog, method):
    assert (await server.refused(params(), method)).startswith("proof.")
    (said,) = [one.getMessage() for one in caplog.records if "was refused" in one.getMessage()]
    assert said.isprintable()
    assert len(said) < 600
    assert server.runs == []


# --- calls in several rounds ----------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"requestState": "s"}, {"inputResponses": {}}], ids=str)
@pytest.mark.parametrize("method", ["tools/call", "resources/read", "custom/run"])
async def test_a_further_round_needs_a_server_whose_policy_decides_on_it(tmp_path, method, more):
    scene = CallScene(tmp_path)
    base = params() if method == "tools/call" else {"uri": "file:///a"}

    async def ask(server):
        proved = scene.prove({**base, **more}, method=method)
        return await server.answer(proved, method)

    plain, knows, old = Server(scene), Server(scene, rounds=("pay", "mcp:*")), Server(scene)
    old.revision = "2025-11-25"
    with scene.guard, plain.log.guard, knows.log.guard, old.log.guard:
        for server, code in ((plain, "arguments.rounds"), (old, "arguments.invalid")):
            with pytest.raises(RefusedRequestError) as caught:
                await ask(server)
            assert caught.value.code == code
            assert [call.code for call in server.log.calls()] == [code]
        assert plain.runs == old.runs == []
        await ask(knows)
    (given,) = knows.log.policy_inputs
    assert given["args"]["$mcp"].keys() == more.keys()
    assert "requestState" not in given["args"]


async def test_a_key_of_agentguards_own_among_the_arguments_is_refused(server):
    code = "dev.agentguard/code"
    for arguments in ({"cents": {code: 1}}, {"cents": 3, code: 1}, {"cents": [[{code: 1}]]}):
        proved = server.scene.prove({"name": "pay", "arguments": arguments})
        assert await server.refused(proved) == "arguments.invalid"
    assert await server.answer(server.scene.prove(params())) == {"content": []}
