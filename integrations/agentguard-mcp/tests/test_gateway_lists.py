"""A list of tools that the policy filters: what it shows, and that it decides on no call."""

from __future__ import annotations

import json

from gateway_scene import code_of, gateway, settings, shown

from agentguard import Decision, Guard
from agentguard.proof import prove_call
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import Proofs

ALL = ["echo", "fail", "hang", "crash", "deaf", "ask"]
AUDIENCE = "mcp:files"
LIST = "mcp:tools/list"

REGO = """
package agent.authz

default allow := false

allow if {
    input.action == "mcp:tools/list"
    input.args.server == "files"
    input.args.tool in {"echo", "fail"}
}

allow if {
    input.action == "echo"
    input.args.text == "good"
}
"""


def lists(*names):
    """Return a policy that lets a client see the tools with these names, and allows each call."""
    return lambda call: (
        Decision.allow()
        if call["action"] != LIST or call["args"]["tool"] in names
        else Decision.deny("not to be seen")
    )


async def test_a_list_shows_the_tools_that_the_policy_lets_the_client_see(recorded):
    recorded.decide = lists("echo", "ask")
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert await client.tools() == ["echo", "ask"]
    assert [call["args"] for call in recorded.policy_inputs] == [
        {"server": "files", "tool": name} for name in sorted(ALL)
    ]
    assert recorded.calls() == []  # the log has no entry of a list


async def test_a_policy_that_the_configuration_does_not_ask_shows_all_tools(recorded):
    recorded.decide = lists("echo")
    async with gateway(recorded, settings()) as client:
        assert await client.tools() == ALL
    assert recorded.policy_inputs == []


async def test_the_log_of_the_program_says_that_a_policy_knows_no_lists(recorded, caplog):
    recorded.decide = lambda call: Decision.allow() if call["action"] == "echo" else Decision.deny()
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert await client.tools() == []
        said = "a list shows no tools: the policy allows mcp:tools/list for none"
        assert said in caplog.text
        caplog.clear()
        recorded.decide = lists("echo")
        assert await client.tools() == ["echo"]
        assert "shows no tools" not in caplog.text


async def test_a_list_decides_on_no_call(recorded):
    recorded.decide = lambda call: (
        Decision.allow()
        if (call["action"], call["args"].get("tool")) in [(LIST, "echo"), ("fail", None)]
        else Decision.deny()
    )
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert await client.tools() == ["echo"]
        assert code_of(await client.call("echo", "a")) == "policy.denied"  # shown, and refused
        hidden = await client.call("fail", "b")
        assert shown({**hidden, "isError": False})["text"] == "b"  # hidden, and allowed


async def test_a_client_can_not_make_the_call_that_a_list_asks_about(recorded):
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert code_of(await client.call(LIST)) == "tool.unknown"
        assert await client.tools() == ALL


async def test_a_list_does_not_show_a_tool_for_which_the_policy_fails_or_wants_a_person(recorded):
    def decide(call):
        answers = {"echo": Decision.allow(), "fail": Decision.require_approval()}
        return answers[call["args"]["tool"]]  # KeyError for the others

    recorded.decide = decide
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert await client.tools() == ["echo"]
    assert recorded.guard.approvals.pending() == []
    assert [entry.kind for entry in recorded._entries() if entry.kind == "request"] == []


async def test_the_policy_knows_a_listed_tool_by_its_name_in_calls():
    recorded = RecordedGuard.make(aliases={"files/ask": "question"})
    recorded.decide = lambda call: (
        Decision.allow()
        if call["action"] != LIST or call["args"]["tool"] in ("files/echo", "question")
        else Decision.deny()
    )
    async with gateway(recorded, settings(filter_list=True, prefix="files/")) as client:
        assert await client.tools() == ["echo", "ask"]
        await client.call("echo", "a")
    assert recorded.policy_inputs[-1]["action"] == "files/echo"
    recorded.guard.close()


async def test_rules_in_rego_filter_a_list(recorded, tmp_path):
    (tmp_path / "authz.rego").write_text(REGO)
    recorded.guard.close()
    recorded.guard = Guard.ephemeral(tmp_path)
    async with gateway(recorded, settings(filter_list=True)) as client:
        assert await client.tools() == ["echo", "fail"]
        assert code_of(await client.call("echo", "bad")) == "policy.denied"
        assert shown(await client.call("echo", "good"))["text"] == "good"


async def test_each_page_of_a_list_is_filtered_and_an_error_passes(recorded):
    tool = {"description": "Says.", "inputSchema": {"type": "object"}}
    page = {"tools": [{**tool, "name": "a"}, {**tool, "name": "b"}], "cacheScope": "public"}
    answers = [
        {"id": 1, "result": {**page, "nextCursor": "2"}},
        {"id": 2, "error": {"code": -1, "message": "no"}},
    ]
    recorded.decide = lists("b")
    lines = [json.dumps({"jsonrpc": "2.0", **one}) for one in answers]
    given = settings(filter_list=True, options={"before": {"tools/list": lines}})
    async with gateway(recorded, given) as client:
        client.send("tools/list", id=1)
        client.send("tools/list", id=2)
        both = {one["id"]: one for one in [await client.next(), await client.next()]}
    result = both[1]["result"]
    assert [one["name"] for one in result["tools"]] == ["b"]
    assert (result["nextCursor"], result["cacheScope"]) == ("2", "private")
    assert both[2]["error"] == {"code": -1, "message": "no"}


async def test_a_list_with_a_proof_is_that_of_its_caller_and_one_without_is_empty(
    recorded, tmp_path
):
    agents = RecordedGuard.make(agents={"clerk": {"max_scope": ["files:read"]}})
    proofs = Proofs(AUDIENCE, tmp_path / "proofs.sqlite", (agents.guard.trust.dumps(),))
    recorded.decide = lambda call: (
        Decision.allow() if call["caller"]["principal"] == "user:alice" else Decision.deny()
    )
    send = agents.guard.tool(name="send")(lambda: prove_call(AUDIENCE, "tools/list", {}))

    async def listed(client, user):
        with agents.guard.delegate(user, scope=["files:read"], audience=[AUDIENCE]):
            params = await agents.guard.new_agent("clerk").acall(send)
        return [one["name"] for one in (await client.ask("tools/list", params))["result"]["tools"]]

    async with gateway(recorded, settings(filter_list=True, proofs=proofs)) as client:
        assert await listed(client, "user:alice") == ALL
        assert await listed(client, "user:eve") == []
        assert await client.tools() == []
    agents.guard.close()
