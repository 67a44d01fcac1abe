"""A client that makes a call again, as some frameworks do by themselves, does not run it twice."""

from __future__ import annotations

from gateway_scene import CODE, LIMIT, code_of, gateway, settings, shown, until

from agentguard import Decision

AGAIN = "The tool did not run again"


async def test_a_call_right_after_its_cancellation_is_in_doubt_and_does_not_run_again(
    recorded, ran
):
    params = {"name": "slow", "arguments": {"text": "a"}}
    given = settings(options={"ran": str(ran), "extra": ["slow"]})
    async with gateway(recorded, given) as client:
        client.send("tools/call", params, id=1)
        await until(ran.exists)
        client.send("notifications/cancelled", {"requestId": 1})
        client.send("tools/call", params, id=2)
        client.send("tools/call", {**params, "arguments": {"text": "b"}}, id=3)
        assert code_of((await client.answer(2))["result"]) == "tool.in_doubt"
        assert shown((await client.answer(3))["result"])["text"] == "b"  # another call
        assert code_of(await client.call("slow", "a")) == "tool.in_doubt"
    assert [line for line in ran.read_text().splitlines() if "slow" in line] == ["slow a", "slow b"]
    assert recorded.outcomes() == ["unknown", "ok"]


async def test_a_call_whose_answer_did_not_come_in_time_does_not_run_again_at_once(
    recorded, ran, monkeypatch
):
    given = settings(options={"ran": str(ran)}, timeout=0.2)
    async with gateway(recorded, given) as client:
        await client.awake()
        assert code_of(await client.call("hang", "a")) == "tool.timeout"
        assert code_of(await client.call("hang", "a")) == "tool.in_doubt"
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("hang", "a")) == "tool.in_doubt"
        monkeypatch.setattr("agentguard_mcp.gateway.executions.KEPT", 0.0)
        assert code_of(await client.call("hang", "b")) == "tool.timeout"
        assert code_of(await client.call("hang", "b")) == "tool.timeout"  # a call of its own
    assert ran.read_text().count("hang b") == 2
    assert ran.read_text().count("hang a") == 1


async def test_a_resource_that_was_not_read_in_time_may_be_read_again(recorded):
    given = settings(options={"silent": ["resources/read"]}, timeout=0.1)
    async with gateway(recorded, given) as client:
        await client.awake()
        for _try in range(2):
            answer = await client.ask("resources/read", {"uri": "file:///a"})
            assert answer["error"]["data"] == {CODE: "tool.timeout"}
    assert recorded.outcomes() == ["unknown", "unknown"]


async def test_a_slow_answer_counts_for_the_same_call_right_after_it_and_the_client_is_told(
    recorded, ran, monkeypatch
):
    monkeypatch.setattr("agentguard_mcp.gateway.executions.SLOW", 0.0)
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        first = await client.call("echo", "a")
        assert len(first["content"]) == 1
        again = await client.call("echo", "a")
        assert (again["isError"], again["content"][0]) == (False, first["content"][0])
        assert AGAIN in again["content"][1]["text"]
        monkeypatch.setattr("agentguard_mcp.gateway.executions.SLOW", LIMIT)
        assert shown(await client.call("echo", "b"))["text"] == "b"
        assert len((await client.call("echo", "b"))["content"]) == 1  # a quick call is a new one
        monkeypatch.setattr("agentguard_mcp.gateway.executions.SLOW", 0.0)
        assert len((await client.call("echo", "a"))["content"]) == 1  # the client has moved on
        monkeypatch.setattr("agentguard_mcp.gateway.executions.KEPT", 0.0)
        assert len((await client.call("echo", "c"))["content"]) == 1
        assert len((await client.call("echo", "c"))["content"]) == 1  # the answer is too old
    expected = ["echo a", "echo b", "echo b", "echo a", "echo c", "echo c"]
    assert ran.read_text().splitlines() == expected
    assert recorded.outcomes() == ["ok"] * 6


async def test_a_call_that_was_refused_or_waits_is_decided_anew_each_time(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.executions.SLOW", 0.0)
    recorded.decide = lambda call: (
        Decision.deny() if call["args"]["text"] == "bad" else Decision.require_approval()
    )
    async with gateway(recorded) as client:
        assert code_of(await client.call("echo", "bad")) == "policy.denied"
        assert code_of(await client.call("echo", "a")) == "approval.pending"
        recorded.approve()
        assert shown(await client.call("echo", "a"))["text"] == "a"
        recorded.decide = lambda _call: Decision.allow()
        assert shown(await client.call("echo", "bad"))["text"] == "bad"
