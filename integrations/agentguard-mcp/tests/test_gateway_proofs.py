"""A gateway that asks for proofs: it is the server that a proof names, and takes the proof away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gateway_scene import CODE, LIMIT, code_of, command, gateway, settings, shown, until

from agentguard import Decision
from agentguard.proof import prove_call
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import Proofs

AUDIENCE = "mcp:files"


@pytest.fixture
def agents():
    """The guard of the agents that call, a domain of its own."""
    made = RecordedGuard.make(agents={"clerk": {"max_scope": ["files:read", "files:write"]}})
    yield made
    made.require_sound()
    made.guard.close()


@pytest.fixture
def recorded():
    """The guard of the gateway."""
    made = RecordedGuard.make(tools={"fail": {"requires": ["files:write"]}})
    yield made
    made.require_sound()
    made.guard.close()


@pytest.fixture
def given(agents, tmp_path):
    trust = (agents.guard.trust.dumps(),)
    return settings(proofs=Proofs(AUDIENCE, tmp_path / "proofs.sqlite", trust))


async def proved(agents, tool="echo", text="a", *, user="user:alice", audience=AUDIENCE):
    """Return the parameters of a call with a proof, as an agent's client sends them."""
    params = {"name": tool, "arguments": {"text": text}}
    send = agents.guard.tool(name="send")(lambda: prove_call(audience, "tools/call", params))
    terms = {"scope": ["files:read"], "audience": [audience], "task_id": "T-1"}
    with agents.guard.delegate(user, **terms):
        return await agents.guard.new_agent("clerk").acall(send)


async def test_a_proved_call_is_decided_for_its_caller_and_the_server_gets_no_token(
    agents, recorded, given
):
    recorded.decide = lambda call: (
        Decision.allow() if call["caller"]["principal"] == "user:alice" else Decision.deny()
    )
    async with gateway(recorded, given) as client:
        params = await proved(agents)
        allowed = (await client.ask("tools/call", params))["result"]
        assert shown(allowed)["params"] == {"name": "echo", "arguments": {"text": "a"}}
        denied = await client.ask("tools/call", await proved(agents, user="user:eve"))
        assert code_of(denied["result"]) == "policy.denied"
        beyond = await client.ask("tools/call", await proved(agents, "fail"))
        assert code_of(beyond["result"]) == "scope.exceeded"
    first = recorded.calls()[0]
    assert (first.principal, first.predicate["task_id"]) == ("user:alice", "T-1")
    assert recorded.policy_inputs[0]["delegation"]["via"] == "service:clerk@ephemeral.invalid"
    assert recorded.outcomes() == ["ok"]


async def test_a_call_without_a_proof_of_its_own_does_not_run(agents, recorded, given, ran):
    served = settings(proofs=given.proofs, options={"ran": str(ran)})
    params = await proved(agents)
    changed = {**params, "arguments": {"text": "b"}}
    elsewhere = await proved(agents, audience="mcp:other")
    bare = {name: value for name, value in params.items() if name != "_meta"}
    async with gateway(recorded, served) as client:
        for refused in (bare, changed, elsewhere, {**params, "requestState": "x"}):
            code = code_of((await client.ask("tools/call", refused))["result"])
            assert code.partition(".")[0] in ("proof", "token"), code
        assert shown((await client.ask("tools/call", params))["result"])["text"] == "a"
        assert code_of((await client.ask("tools/call", params))["result"]) == "proof.used"
        read = await client.ask("resources/read", {"uri": "x"})
        assert read["error"]["data"][CODE].startswith("proof.")
    assert ran.read_text() == "echo a\n"
    async with gateway(recorded, served) as client:  # another gateway, with the same store
        assert code_of((await client.ask("tools/call", params))["result"]) == "proof.used"
        again = await proved(agents)
        assert shown((await client.ask("tools/call", again))["result"])["text"] == "a"


async def test_two_callers_with_the_same_call_each_have_a_call_of_their_own(
    agents, recorded, given
):
    async with gateway(recorded, given) as client:
        for number, user in enumerate(("user:alice", "user:bob")):
            client.send("tools/call", await proved(agents, user=user), id=number)
        for _answer in range(2):
            assert shown((await client.next())["result"])["text"] == "a"
    assert sorted(call.principal for call in recorded.calls()) == ["user:alice", "user:bob"]


class Revocations:
    """The revocations of the callers' domain, as a receiver asks for them."""

    def __init__(self):
        self.reason = None

    def refusal(self, names):
        """Return the same answer for all names; raise what was given in the place of one."""
        if isinstance(self.reason, Exception):
            raise self.reason
        return self.reason


async def test_an_agent_that_is_revoked_in_the_gateways_own_domain_is_refused(tmp_path):
    own = RecordedGuard.make(agents={"assistant": {"max_scope": ["files:read"]}, "clerk": {}})
    revocations = Revocations()
    proofs = Proofs(AUDIENCE, tmp_path / "proofs.sqlite", revocations=revocations)
    async with gateway(own, settings(proofs=proofs)) as client:
        revocations.reason = ("delegation.revoked", "somebody has revoked the agent")
        refused = (await client.ask("tools/call", await proved(own)))["result"]
        assert code_of(refused) == "delegation.revoked"
        revocations.reason = None  # the twin
        assert not (await client.ask("tools/call", await proved(own)))["result"]["isError"]
    own.guard.close()


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (("delegation.revoked", "somebody has revoked the agent"), "delegation.revoked"),
        (RuntimeError("the file can't be read"), "proof.unavailable"),
        (None, None),
    ],
    ids=["revoked", "unreadable", "allowed"],
)
async def test_a_caller_who_is_revoked_while_a_call_waits_for_its_approval_runs_nothing(
    agents, recorded, given, tmp_path, reason, code
):
    ran, revocations = tmp_path / "ran", Revocations()
    recorded.decide = lambda _call: Decision.require_approval()
    proofs = replace(given.proofs, revocations=revocations)
    served = replace(given, wait=LIMIT, command=command(ran=str(ran)), proofs=proofs)
    async with gateway(recorded, served) as client:
        client.send("tools/call", await proved(agents), id="a")
        await until(recorded.guard.approvals.pending)
        revocations.reason = reason
        recorded.approve()
        result = (await client.answer("a"))["result"]
        if code is None:
            assert shown(result)["text"] == "a"
        else:
            assert code_of(result) == code
    assert ran.exists() is (code is None)
