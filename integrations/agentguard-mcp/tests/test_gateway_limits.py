"""The limits of a gateway: what is refused beyond them, and what does not count."""

from __future__ import annotations

from contextlib import suppress

from gateway_scene import CODE, code_of, gateway, settings, shown, until

from agentguard import Decision
from agentguard_mcp.gateway.limits import MINUTE, Limits


async def test_a_call_beyond_the_limit_of_a_minute_does_not_reach_the_server(recorded, ran):
    given = settings(calls_per_minute=2, options={"ran": str(ran)})
    async with gateway(recorded, given) as client:
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert "result" in await client.ask("resources/read", {"uri": "b"})
        refused = await client.call("echo", "c")
        assert code_of(refused) == "calls.rate"
        assert refused["content"][0]["text"].startswith("Not now: echo was not run.")
        read = await client.ask("resources/read", {"uri": "d"})
        assert read["error"]["data"] == {CODE: "calls.rate"}
        assert "echo" in await client.tools()  # a list is no call
    assert ran.read_text() == "echo a\nresources/read b\n"
    assert len(recorded.policy_inputs) == 2
    assert [one.code for one in recorded.calls()] == ["", "", "calls.rate", "calls.rate"]


async def test_a_call_beyond_those_under_way_is_refused_until_one_has_an_answer(recorded, ran):
    given = settings(calls_at_once=1, options={"ran": str(ran)})
    async with gateway(recorded, given) as client:
        client.send("tools/call", {"name": "hang"}, id="first")
        await until(ran.exists)
        assert code_of(await client.call("echo", "a")) == "calls.simultaneous"
        client.send("notifications/cancelled", {"requestId": "first"})
        for text in ("b", "c"):
            assert shown(await client.call("echo", text))["text"] == text
    assert recorded.outcomes() == ["unknown", "ok", "ok"]


async def test_a_call_that_the_policy_denies_counts(recorded):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"]["text"] == "bad" else Decision.allow()
    )
    async with gateway(recorded, settings(calls_per_minute=2)) as client:
        assert code_of(await client.call("echo", "bad")) == "policy.denied"
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("echo", "b")) == "calls.rate"


async def test_without_limits_all_calls_are_made(recorded):
    async with gateway(recorded) as client:
        for number in range(20):
            assert shown(await client.call("echo", str(number)))["text"] == str(number)


def test_a_call_is_forgotten_after_a_minute_and_a_refused_one_at_once():
    now = 0.0
    limits = Limits(settings(calls_per_minute=2), clock=lambda: now)

    def code():
        with limits.counted() as refusal:
            return refusal and refusal.code

    assert [code(), code(), code()] == [None, None, "calls.rate"]
    now = MINUTE - 1
    assert [code() for _call in range(100)] == ["calls.rate"] * 100
    now = MINUTE
    assert [code(), code(), code()] == [None, None, "calls.rate"]
    assert len(limits._begun) == 2


def test_a_call_that_fails_is_no_longer_under_way():
    limits = Limits(settings(calls_at_once=1))
    for _call in range(3):
        with suppress(OSError), limits.counted() as refusal:
            assert refusal is None
            raise OSError
    with limits.counted(), limits.counted() as refusal:
        assert refusal is not None
        assert refusal.may_pass_later
