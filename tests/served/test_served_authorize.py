"""``Agent.authorize`` through a guard server: the server decides, signs and records."""

from __future__ import annotations

import asyncio

import pytest
from served_place import founded_place

from agentguard import verify_evaluation


@pytest.fixture(scope="module")
def shared(programs):
    """A server for the tests that only ask it."""
    with founded_place(programs) as place:
        place.start()
        yield place


@pytest.fixture
def guard(shared):
    return shared.connect()


def tool_of(guard, name="note", **options):
    @guard.tool(name=name, **options)
    def tool(text):
        raise AssertionError("an evaluation runs no tool")

    return tool


@pytest.mark.parametrize(
    ("name", "outcome", "code"),
    [
        ("note", "allow", ""),
        ("pay", "approval", "approval.required"),
        ("drop", "deny", "policy.denied"),
    ],
)
def test_the_server_decides_signs_and_records(shared, guard, name, outcome, code):
    agent = guard.new_agent("clerk")
    got = agent.authorize(tool_of(guard, name), "x")
    assert (got.decision.outcome, got.code) == (outcome, code)
    read = verify_evaluation(got.statement, guard.trust)
    assert (read.evaluated.agent, read.evaluated.tool.name, read.evaluated.decision) == (
        agent.id,
        name,
        outcome,
    )
    assert (len(got.salt), read.evaluated.client) == (32, None)
    assert [entry.kind for entry in shared.entries()][-1] == "evaluation"
    assert shared.calls() == []
    assert list(guard.approvals.pending()) == []
    assert shared.verify().ok


def test_the_async_twin_asks_the_server_too(guard):
    agent = guard.new_agent("clerk")
    got = asyncio.run(agent.aauthorize(tool_of(guard), "x"))
    assert got.allowed
    assert verify_evaluation(got.statement, guard.trust).evaluated.agent == agent.id


def test_the_application_s_facts_count(guard):
    agent = guard.new_agent("clerk")
    for balance, outcome in ((500, "allow"), (5, "deny")):
        facts = {"facts": lambda _, of=balance: {"balance": of}, "gives": ["balance"]}
        tool = tool_of(guard, "balance", **facts)
        assert agent.authorize(tool, "x").decision.outcome == outcome


def test_a_delegation_of_the_server_is_named(shared, guard):
    agent = guard.new_agent("clerk").under(guard.delegate("user:alice", scope=["read"]))
    read = verify_evaluation(agent.authorize(tool_of(guard), "x").statement, guard.trust)
    assert read.evaluated.principal == "user:alice"
    assert shared.verify().ok


def test_without_the_server_every_evaluation_is_a_refusal(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), tool_of(guard)
    assert agent.authorize(tool, "x").allowed
    place.stop()
    refused = agent.authorize(tool, "x")
    assert (refused.decision.outcome, refused.code) == ("deny", "server.unreachable")
    assert (refused.entry, refused.statement) == (None, None)
