"""A call in several rounds: what it brings beside its arguments is decided, approved and signed.

The server of these tests is as naive as a server may be: whoever sends ``requestState`` or
``inputResponses`` says by them what it does. So no policy may be passed by them.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest
from gateway_scene import code_of, gateway, settings, shown
from http_scene import MODERN, messages, served

from agentguard import Decision

STANDARD = "io.modelcontextprotocol/"
META = {f"{STANDARD}protocolVersion": MODERN, f"{STANDARD}clientCapabilities": {}}
STATE = '{"to": "mallory"}'
ANSWERS = {"how_much": {"action": "accept", "content": {"amount": 1_000_000}}}
ROUNDS = [{"requestState": STATE}, {"inputResponses": ANSWERS}, {"inputResponses": {}}]
CALLS = {
    "tools/call": {"name": "echo", "arguments": {"text": "bob"}},
    "resources/read": {"uri": "file:///bob"},
    "prompts/get": {"name": "bob"},
}
SHA256 = sha256(STATE.encode()).hexdigest()


def beside(call):
    return call["args"].get("$mcp")


def code(answer):
    """Return the reason code of a refused request, None for one that has run."""
    if "error" in answer:
        return answer["error"]["data"]["dev.agentguard/code"]
    return code_of(answer["result"]) if answer["result"].get("isError") else None


# --- without a policy that knows of rounds --------------------------------------------------------


@pytest.mark.parametrize("more", ROUNDS, ids=["state", "responses", "empty"])
@pytest.mark.parametrize("method", CALLS)
async def test_a_policy_that_knows_no_rounds_is_passed_by_none(recorded, ran, method, more):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"].get("text") == "mallory" else Decision.allow()
    )
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        call = {**CALLS[method], "_meta": META}
        assert code(await client.ask(method, {**call, **more})) == "arguments.rounds"
        assert not ran.exists()
        assert code(await client.ask(method, call)) is None
    first, second = recorded.calls()
    assert (first.code, first.decision, second.decision) == ("arguments.rounds", "deny", "allow")


@pytest.mark.parametrize("more", ROUNDS, ids=["state", "responses", "empty"])
async def test_a_client_of_an_older_revision_has_no_rounds(recorded, ran, more):
    """Also not one that has begun a session, and then says that it speaks the newest revision."""
    given = settings(options={"ran": str(ran)}, rounds=("*",))
    for meta in (
        {},
        {f"{STANDARD}protocolVersion": "2025-11-25"},
        {f"{STANDARD}protocolVersion": 7},
    ):
        async with gateway(recorded, given) as client:
            call = {**CALLS["tools/call"], "_meta": meta}
            assert code(await client.ask("tools/call", {**call, **more})) == "arguments.invalid"
    assert not ran.exists()
    async with gateway(recorded, given) as client:
        call = {**CALLS["tools/call"], "_meta": META, **more}
        assert code(await client.ask("tools/call", call)) is None
        await client.ask("initialize", {"protocolVersion": "2025-11-25"})
        assert code(await client.ask("tools/call", call)) == "arguments.invalid"
    assert ran.read_text() == "echo bob\n"


async def test_a_session_over_http_has_no_rounds_and_a_request_of_the_newest_revision_has(
    recorded,
):
    async with served(recorded, settings(rounds=("*",))) as server:
        caller = server.caller()
        answer = await caller.single("tools/call", {**CALLS["tools/call"], **ROUNDS[0]})
        assert shown(messages(answer)[-1]["result"])["params"]["requestState"] == STATE
        await caller.begin()
        answer = await caller.ask("tools/call", {**CALLS["tools/call"], **ROUNDS[0]})
        assert code(answer) == "arguments.invalid"
    assert beside(recorded.policy_inputs[0])["requestState"]["text"] == STATE


async def test_over_http_a_policy_that_knows_no_rounds_is_passed_by_none(recorded, ran):
    async with served(recorded, settings(options={"ran": str(ran)})) as server:
        caller = server.caller()
        for more in ROUNDS:
            answer = await caller.single("tools/call", {**CALLS["tools/call"], **more})
            assert code(messages(answer)[-1]) == "arguments.rounds"
        assert not ran.exists()
        answer = await caller.single("tools/call", CALLS["tools/call"])
        assert code(messages(answer)[-1]) is None


async def test_rounds_are_for_the_tools_and_methods_that_the_settings_name(recorded):
    given = settings(rounds=("ec*", "mcp:prompts/get"), options={"extra": ["other"]})
    async with gateway(recorded, given) as client:
        for method, changes, expected in (
            ("tools/call", {}, None),
            ("tools/call", {"name": "other"}, "arguments.rounds"),
            ("prompts/get", {}, None),
            ("prompts/get", {"name": "echo"}, None),
            ("resources/read", {}, "arguments.rounds"),
        ):
            call = {**CALLS[method], **changes, "_meta": META, **ROUNDS[0]}
            assert code(await client.ask(method, call)) == expected


# --- with one that decides on them ----------------------------------------------------------------


async def test_the_policy_decides_on_what_a_round_brings(recorded, ran):
    def decide(call):
        responses = (beside(call) or {}).get("inputResponses", {})
        amount = responses.get("how_much", {}).get("content", {}).get("amount", 0)
        return Decision.allow() if amount <= 100 else Decision.deny("too large")

    recorded.decide = decide
    small = {"how_much": {"action": "accept", "content": {"amount": 7}}}
    async with gateway(recorded, settings(options={"ran": str(ran)}, rounds=("echo",))) as client:
        call = {**CALLS["tools/call"], "_meta": META, "requestState": STATE}
        large = await client.ask("tools/call", {**call, "inputResponses": ANSWERS})
        assert code(large) == "policy.denied"
        assert not ran.exists()
        allowed = await client.ask("tools/call", {**call, "inputResponses": small})
        assert shown(allowed["result"])["params"]["inputResponses"] == small
    assert beside(recorded.policy_inputs[-1]) == {
        "inputResponses": small,
        "requestState": {"text": STATE, "sha256": SHA256},
    }


async def test_an_approval_is_for_the_round_that_people_have_seen(recorded, ran):
    recorded.decide = lambda _call: Decision.require_approval()
    given = settings(options={"ran": str(ran)}, rounds=("echo",))
    inbox = recorded.guard.approvals
    async with gateway(recorded, given) as client:
        call = {**CALLS["tools/call"], "_meta": META}
        second = {**call, "requestState": STATE, "inputResponses": ANSWERS}

        async def ask(params):
            return code(await client.ask("tools/call", params))

        assert await ask(call) == "approval.pending"
        recorded.approve()
        for changed in (
            second,
            {**call, "requestState": STATE},
            {**call, "inputResponses": ANSWERS},
        ):
            assert await ask(changed) == "approval.pending"
        assert not ran.exists()
        assert await ask(call) is None
        whole = {"inputResponses": ANSWERS, "requestState": {"text": STATE, "sha256": SHA256}}
        assert whole in [one.args["$mcp"] for one in inbox.pending()]
        recorded.approve()  # all three
        assert await ask({**second, "requestState": STATE + " "}) == "approval.pending"
        assert await ask(second) is None
        assert await ask(second) == "approval.pending"  # an approval is for one attempt
    assert ran.read_text() == "echo bob\n" * 2


async def test_no_argument_can_pass_for_what_a_round_brings(recorded):
    recorded.decide = lambda call: Decision.allow() if beside(call) else Decision.deny()
    forged = {"$mcp": {"requestState": {"text": STATE, "sha256": SHA256}}}
    async with gateway(recorded, settings(rounds=("*",), options={"schema": {}})) as client:
        call = {"name": "echo", "_meta": META}
        answer = await client.ask("tools/call", {**call, "arguments": forged})
        assert code(answer) == "policy.denied"
        assert code(await client.ask("tools/call", {**call, **ROUNDS[0]})) is None
    assert "$$mcp" in recorded.policy_inputs[0]["args"]


@pytest.mark.parametrize(
    "more", [{"requestState": {"to": "mallory"}}, {"requestState": None}, {"inputResponses": []}]
)
async def test_a_state_that_is_no_text_and_responses_that_are_no_object_are_refused(recorded, more):
    async with gateway(recorded, settings(rounds=("*",))) as client:
        call = {**CALLS["tools/call"], "_meta": META}
        assert (await client.ask("tools/call", {**call, **more}))["error"]["code"] == -32602
        assert code(await client.ask("tools/call", call)) is None


async def test_a_further_round_is_no_repetition_of_the_one_before(recorded, ran, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.executions.SLOW", 0.0)
    async with gateway(recorded, settings(options={"ran": str(ran)}, rounds=("*",))) as client:
        call = {**CALLS["tools/call"], "_meta": META}
        for more in ({}, ROUNDS[0], ROUNDS[1], ROUNDS[1]):
            assert code(await client.ask("tools/call", {**call, **more})) is None
            await asyncio.sleep(0)
    assert ran.read_text() == "echo bob\n" * 3  # the last one is a repetition
