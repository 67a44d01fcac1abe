"""No public function hands out the block whose delegation is in force: a tool could end the block.

An adapter learns who the owner of a narrowing is. It gets nothing with which the narrowing ends.
"""

from __future__ import annotations

import pytest

from agentguard import Agent, Decision, Delegation, Denied, Guard, adapters

SCOPES = {"agents": {"low": {"max_scope": ["a:read", "a:pay"]}}}


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow(), config=SCOPES) as opened:
        yield opened


def narrowing(owner: object) -> adapters.Narrowing:
    def lessen(delegation: object) -> object:
        assert isinstance(delegation, Delegation)
        return delegation.narrowed(scope=["a:read"])

    return adapters.Narrowing(lessen, owner)


def test_what_a_tool_gets_from_the_adapters_ends_no_block(guard):
    low = guard.new_agent("low")
    pay = guard.tool(name="pay", requires=["a:pay"])(lambda: "paid")
    found: list[object] = []

    def look() -> str:
        found.extend((adapters.narrowing_owner(), adapters.nested_calls()))
        with pytest.raises(Denied) as caught:
            low.call(pay)
        return caught.value.code

    read = guard.tool(name="read", requires=["a:read"])(look)
    with guard.delegate("user:alice", scope=["a:read", "a:pay"]):
        block = narrowing(low)
        block.begin()
        try:
            found.append(adapters.narrowing_owner())
            assert low.call(read) == "scope.exceeded"
        finally:
            block.end()
        assert low.call(pay) == "paid"  # the twin: outside the block there is more
    assert not any(hasattr(one, "end") for one in found)
    assert not hasattr(adapters, "innermost_block")


def test_an_owner_is_that_of_the_nearest_block_alone(guard):
    agent: Agent = guard.new_agent("low")
    owners: list[object] = []
    look = guard.tool(name="look")(lambda: owners.append(adapters.narrowing_owner()))
    assert adapters.narrowing_owner() is None
    with guard.delegate("user:alice", scope=["a:read"]) as lent:
        assert adapters.narrowing_owner() is None
        block = narrowing(agent)
        block.begin()
        assert adapters.narrowing_owner() is agent
        agent.call(look)  # which runs as itself
        with lent.narrowed(scope=["a:read"]):
            assert adapters.narrowing_owner() is None
        assert adapters.narrowing_owner() is agent
        block.end()
        assert adapters.narrowing_owner() is None
    assert owners == [None]
