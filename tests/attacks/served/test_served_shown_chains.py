"""A chain is no secret: a client that shows another's chain puts no denial on record as proved."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agentguard.audit.kinds.evaluation import EvaluationEntry
from agentguard.delegation import verification
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical

NOTE = canonical.dumps({"text": "x"})
TERMS = {"scope": ["read"], "via": None, "task_id": None, "expires_in": 60, "max_depth": 4,
         "max_calls": None, "audience": None}  # fmt: skip


def lent(client, subject, **terms):
    """Return a new delegation's id, and its chain as each receiver of a proof has it."""
    answer = client.got("delegate", subject=subject, **{**TERMS, **terms})
    return answer.header["id"], stored(client, answer.blobs[0])


def stored(client, encoded):
    trust = TrustDocument.loads(client.greeting["trust"].encode())
    loaded = canonical.loads_object(encoded)
    return verification.from_json(loaded, trust, at=int(time.time()) + 1).dumps().decode()


def accepted(client, agent):
    """Return the chain that an agent of a client has accepted, as its tools' proofs show it."""
    named = {"id": lent(client, "user:alice")[0], "scope": ["read"]}
    answer = client.call(client.agent(agent), client.tool("note"), NOTE, delegation=named)
    assert answer.header["step"] == "run"
    return stored(client, answer.blobs[0])


def denial(client, place, agent, shown, **members: Any):
    """Have a call refused under what is shown; return for whom the log has the denial."""
    named = {"code": "hop.expired", "message": "it is over", "delegation": shown, **members}
    before = len(place.calls())
    answer = client.call(client.agent(agent), client.tool("note"), NOTE, delegation=named)
    assert answer.header["step"] == "denied"
    (call,) = place.calls()[before:]
    return call.principal, call.is_proved, call.refused_chain is not None


@pytest.mark.parametrize("code", ["hop.expired", "policy.denied", "", "x" * 100])
def test_a_chain_of_another_client_proves_no_denial(mallory, victim, place, code):
    _id, chain = lent(victim, "user:alice")
    assert denial(mallory, place, "mole", chain, code=code) == ("user:alice", False, False)
    assert denial(victim, place, "clerk", chain, code=code) == ("user:alice", True, True)
    assert place.verify().ok


def test_a_chain_of_another_clients_agent_proves_no_denial(mallory, victim, place):
    chain = accepted(victim, "helper")
    tokens = {"subject_token": chain, "via_token": chain}
    for shown in ({}, tokens, {"subject_token": ""}, {"subject_token": 5, "id": "x"}):
        assert denial(mallory, place, "mole", chain, **shown) == ("user:alice", False, False)
    assert denial(victim, place, "helper", chain) == ("user:alice", True, True)
    assert place.verify().ok


def test_a_client_that_may_vouch_proves_a_denial_with_a_chain_of_an_earlier_session(
    intrude, victim, place
):
    chain = accepted(victim, "helper")
    later = intrude(victim.uid)
    assert denial(later, place, "helper", chain) == ("user:alice", True, True)


def test_an_evaluation_is_proved_for_nobody_by_a_chain_of_another_client(mallory, victim, place):
    _id, chain = lent(victim, "user:alice")
    named = {"code": "hop.expired", "message": "it is over", "delegation": chain}
    for client, agent in ((mallory, "mole"), (victim, "clerk")):
        asked = client.agent(agent), client.tool("note")
        client.call(*asked, NOTE, delegation=named, op="evaluation")
    logged = [one for one in place.entries() if isinstance(one, EvaluationEntry)]
    said = [(one.evaluated.principal, one.is_proved) for one in logged]
    assert said == [("user:alice", False), ("user:alice", True)]
    assert place.verify().ok
