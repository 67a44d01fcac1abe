"""A look-up of facts knows whose call it is, and can change nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentguard import Decision, Denied, FactsInput, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry

ORDERS = {"A-1": "user:alice", "A-2": "user:bob"}


def owned(document: Any) -> Decision:
    """Allow what the order's owner asks for, as the look-up says."""
    return Decision.allow() if document["own"] else Decision.deny("policy.denied", "not theirs")


def own(call: FactsInput) -> dict[str, object]:
    return {"own": ORDERS[call["order"]] == call.principal}


async def own_later(call: FactsInput) -> dict[str, object]:
    await asyncio.sleep(0)
    return own(call)


def own_soon(call: FactsInput) -> Any:
    return own_later(call)


@pytest.fixture
def guard():
    with Guard.ephemeral(owned) as opened:
        yield opened


@pytest.mark.parametrize("facts", [own, own_later, own_soon])
async def test_the_policy_decides_by_whose_call_it_is(guard, facts):
    refund = guard.tool(name="refund", facts=facts, gives=["own"])(lambda order: order)
    agent = guard.new_agent("support")
    lent = agent.under(guard.delegate("user:alice", scope=["refund"], task_id="task-7"))

    assert await lent.acall(refund, "A-1") == "A-1"
    with pytest.raises(Denied, match="not theirs"):
        await lent.acall(refund, "A-2")
    if facts is own:
        assert lent.call(refund, "A-1") == "A-1"


def test_it_knows_the_agent_the_principal_and_the_task(guard):
    calls = []

    def look_up(call: FactsInput) -> dict[str, object]:
        calls.append(call)
        return {"own": True}

    refund = guard.tool(name="refund", facts=look_up, gives=["own"])(lambda order: order)
    agent = guard.new_agent("support")
    agent.under(guard.delegate("user:alice", scope=["refund"], task_id="task-7")).call(refund, "x")
    agent.call(refund, "x")
    lent, alone = calls
    assert dict(lent) == {"order": "x"}
    assert (lent.agent, lent.agent_id, lent.principal, lent.task_id) == (
        "support",
        agent.id,
        "user:alice",
        "task-7",
    )
    assert (alone.principal, alone.task_id) == ("agent:support", None)


def test_what_it_changes_changes_nothing_that_is_bound(guard):
    def hostile(call: FactsInput) -> dict[str, object]:
        call["order"]["id"] = "B-9"
        call["more"] = True
        call.principal, call.agent, call.task_id = "user:root", "root", "other"
        call.agent_id = "spiffe://other/agent/root/x"
        return {"own": True}

    documents = []

    def policy(document: Any) -> Decision:
        documents.append(document)
        return Decision.allow()

    with Guard.ephemeral(policy) as opened:
        lifted = {"bought": "order"}
        tool = opened.tool(name="refund", attributes=lifted, facts=hostile, gives=["own"])
        refund = tool(lambda order: order)
        agent = opened.new_agent("support")
        lent = opened.delegate("user:alice", scope=["refund"], task_id="task-7")
        assert agent.under(lent).call(refund, {"id": "A-1"}) == {"id": "A-1"}
        (document,) = documents
        assert document["args"] == {"order": {"id": "A-1"}}
        assert document["bought"] == {"id": "A-1"}
        assert (document["agent"]["name"], document["task_id"]) == ("support", "task-7")
        bodies = (body for _index, body in opened.reader().entries())
        (call,) = (e for e in map(parse_entry, bodies) if isinstance(e, CallEntry))
        said = call.predicate
        assert (said["principal"], said["task_id"], said["agent"]) == (
            "user:alice",
            "task-7",
            agent.id,
        )


@pytest.mark.parametrize(("size", "code"), [(3 << 20, ""), (20 << 20, "facts.too_large")])
def test_facts_that_no_row_of_the_log_can_hold_leave_a_denial_on_record(place, ran, size, code):
    with place.open() as guard:
        facts = {"more": "x" * size}
        tool = guard.tool(name="note", facts=lambda _call: facts, gives=["more"])(ran.append)
        agent = guard.new_agent("reader")
        if code:
            with pytest.raises(Denied) as caught:
                agent.call(tool, 1)
            assert caught.value.code == code
        else:
            agent.call(tool, 1)
    assert place.seen().codes == [("deny" if code else "allow", code)]
    assert ran == ([] if code else [1])
    assert place.examine().problems == ()
