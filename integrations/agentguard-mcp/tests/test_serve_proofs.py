"""A gateway over HTTP that asks for proofs of calls: replays, and tokens for others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from gateway_scene import code_of, command, settings, shown
from http_scene import call_of, messages, served, single

from agentguard.proof import prove_call
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import Proofs

AUDIENCE = "https://mcp.acme.example/mcp"


@pytest.fixture
def agents():
    """The guard of the agents that call, a domain of its own."""
    made = RecordedGuard.make(agents={"clerk": {"max_scope": ["files:read"]}})
    yield made
    made.require_sound()
    made.guard.close()


@pytest.fixture
def given(agents, tmp_path):
    trust = (agents.guard.trust.dumps(),)
    return settings(proofs=Proofs(AUDIENCE, tmp_path / "proofs.sqlite", trust))


async def proved(agents, text="a", *, user="user:alice", audience=AUDIENCE, params=None):
    """Return the parameters of a call with a proof, as an agent's client sends them."""
    given = params or {"name": "echo", "arguments": {"text": text}}
    send = agents.guard.tool(name="send")(lambda: prove_call(audience, "tools/call", given))
    with agents.guard.delegate(user, scope=["files:read"], audience=[audience]):
        return await agents.guard.new_agent("clerk").acall(send)


async def test_a_proof_counts_once_in_all_sessions_and_eras(agents, recorded, given):
    async with served(recorded, given) as gateway:
        first, second = await gateway.caller().begin(), await gateway.caller().begin()
        params = await proved(agents)
        allowed = (await first.ask("tools/call", params))["result"]
        assert shown(allowed)["params"] == {"name": "echo", "arguments": {"text": "a"}}
        again = (await second.ask("tools/call", params))["result"]
        assert code_of(again) == "proof.used"
        message, headers = single("tools/call", {"name": "echo", "arguments": {"text": "b"}})
        whole = {**message, "params": await proved(agents, params=message["params"])}
        once = await gateway.caller().post(whole, **headers)
        assert shown(once.json()["result"])["text"] == "b"
        twice = await gateway.caller().post(whole, **headers)
        assert (twice.status_code, code_of(twice.json()["result"])) == (200, "proof.used")
    assert recorded.outcomes() == ["ok", "ok"]
    assert {call.principal for call in recorded.calls()} >= {"user:alice"}


async def test_a_call_without_a_token_that_counts_gets_status_401(agents, recorded, given):
    async with served(recorded, given) as gateway:
        client = await gateway.caller().begin()
        bare = {"name": "echo", "arguments": {"text": "a"}}
        elsewhere = await proved(agents, audience="https://other.example/mcp")
        for params in (bare, elsewhere):
            message = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
            refused = await client.post(message)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Agentguard-Call-Proof ")
            assert code_of(refused.json()["result"]) in ("proof.missing", "token.audience")
        listed = await client.ask("tools/list")  # a list needs no proof
        assert listed["result"]["tools"]
        for method in ("completion/complete", "resources/subscribe", "subscriptions/listen"):
            unproved = {"jsonrpc": "2.0", "id": 6, "method": method, "params": {}}
            assert (await client.post(unproved)).status_code == 403
            message, headers = single(method)
            assert (await gateway.caller().post(message, **headers)).status_code == 403
        allowed = (await client.ask("tools/call", await proved(agents)))["result"]
        assert shown(allowed)["text"] == "a"
    assert [call.code for call in recorded.calls()][:2] == ["proof.missing", "token.audience"]


async def test_a_proof_of_other_arguments_does_not_count(agents, recorded, given):
    async with served(recorded, given) as gateway:
        client = await gateway.caller().begin()
        params = await proved(agents)
        changed = {**params, "arguments": {"text": "b"}}
        refused = (await client.ask("tools/call", changed))["result"]
        assert code_of(refused) == "proof.request"
        assert shown((await client.ask("tools/call", params))["result"])["text"] == "a"


async def test_calls_without_a_proof_take_no_call_away_and_ask_the_server_for_nothing(
    agents, recorded, given, tmp_path
):
    lists = tmp_path / "lists"
    limited = replace(given, calls_per_minute=2, command=command(lists=str(lists)))
    async with served(recorded, limited) as gateway:
        client = await gateway.caller().begin()
        for text in "abc":
            assert (await client.post(call_of("echo", text))).status_code == 401
        assert not lists.exists()
        for text in "de":
            allowed = (await client.ask("tools/call", await proved(agents, text)))["result"]
            assert shown(allowed)["text"] == text
        beyond = (await client.ask("tools/call", await proved(agents, "f")))["result"]
        assert code_of(beyond) == "calls.rate"
    assert recorded.outcomes() == ["ok", "ok"]
    assert [call.principal for call in recorded.calls()][:3] == ["agent:assistant"] * 3


@pytest.mark.parametrize("is_proved", [True, False], ids=["proofs", "one-caller"])
async def test_no_caller_reads_what_the_server_logs_for_another(agents, recorded, given, is_proved):
    line = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "of whom?"}}
    chosen = replace(
        given if is_proved else settings(),
        command=command(before={"tools/call": [json.dumps(line)]}),
    )
    meta = {"io.modelcontextprotocol/logLevel": "debug"}
    params = {"name": "echo", "arguments": {"text": "a"}}
    message, headers = single("tools/call", params, meta=meta)
    if is_proved:
        message["params"] = await proved(agents, params=message["params"])
    async with served(recorded, chosen) as gateway:
        said = messages(await gateway.caller().post(message, **headers))
    assert shown(said[-1]["result"])["text"] == "a"
    assert [one.get("method") for one in said[:-1]] == ([] if is_proved else [line["method"]])
