"""To whom work may be handed on (``[delegation]``), and tools' other names (``[aliases]``)."""

from __future__ import annotations

from contextlib import closing

import pytest

from agentguard import ConfigError, DelegationError, Denied, Guard, adapters, current_delegation
from agentguard.testing import RecordedGuard

AGENTS = {"lead": {"max_scope": ["a", "b"]}, "hand": {"max_scope": ["a"]}, "other": {}}


def made(**tables):
    return RecordedGuard.make(**{"agents": AGENTS, **tables})


def handed_on(recorded, to):
    """Let the lead's tool call a tool as ``to``; return what that raises, None for nothing."""
    guard: Guard = recorded.guard
    lead, hand = guard.new_agent("lead"), guard.new_agent(to)
    raised = []

    @guard.tool
    def work() -> list[str]:
        delegation = current_delegation()
        assert delegation is not None
        return list(delegation.members)

    @guard.tool
    def hand_on() -> object:
        try:
            return hand.call(work)
        except Denied as denied:
            raised.append(denied.code)
            return None

    with guard.delegate("user:alice", scope=["a", "b"], via="crew:report"):
        members = lead.call(hand_on)
    if members is not None:
        assert members == ["user:alice", "crew:report", lead.id, hand.id]
    recorded.require_sound()
    return raised[0] if raised else None


@pytest.mark.parametrize(
    ("table", "refused"),
    [
        (None, None),
        ({"lead": ["hand"]}, None),
        ({"lead": ["other"]}, "delegation.delegatee"),
        ({"other": ["hand"]}, "delegation.delegatee"),
        ({}, "delegation.delegatee"),
    ],
    ids=["no-table", "listed", "another-is-listed", "by-another-only", "empty-table"],
)
def test_work_is_handed_on_where_the_configuration_lets_it(table, refused):
    recorded = made(**({} if table is None else {"delegation": table}))
    assert handed_on(recorded, "hand") == refused


def test_an_agent_hands_on_to_another_instance_of_itself():
    assert handed_on(made(delegation={}), "lead") is None


def test_the_application_is_not_bound_by_what_agents_may_hand_on():
    recorded: RecordedGuard = made(delegation={})
    hand = recorded.guard.new_agent("hand")

    @recorded.guard.tool
    def work() -> str:
        return "done"

    with recorded.guard.delegate("user:alice", scope=["a"]):
        assert hand.call(work) == "done"


def test_an_adapter_hands_work_on_before_any_of_it_is_done():
    recorded = made(delegation={"lead": ["hand"]})
    guard: Guard = recorded.guard
    lead, hand, other = map(guard.new_agent, ("lead", "hand", "other"))
    adapters.require_delegator(hand, lead)
    with pytest.raises(DelegationError, match="lead may not delegate to other") as refused:
        adapters.require_delegator(other, lead)
    assert refused.value.code == "delegation.delegatee"

    @guard.tool
    def hand_on() -> None:
        adapters.take_over(hand, lead)
        with pytest.raises(Denied) as denied:
            adapters.take_over(other, lead)
        assert denied.value.code == "delegation.delegatee"

    with guard.delegate("user:alice", scope=["a"]):
        lead.call(hand_on)
    with closing(guard.reader()) as reader:
        chains = [e for e in reader.entries() if b'"kind":"delegation"' in e[1]]
    assert len(chains) == 2  # to the lead, and to the hand that made no call


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"delegation": {"lead": ["nobody"]}}, "delegation.lead: 'nobody' is not one of"),
        ({"delegation": {"nobody": ["lead"]}}, "delegation.nobody: 'nobody' is not one of"),
        ({"delegation": {"lead": "hand"}}, "expected a list of strings"),
        ({"aliases": {"a_tool": "x", "b_tool": "x"}}, "a name of no other tool"),
        ({"aliases": {"a_tool": "b_tool", "b_tool": "c"}}, "a name of no other tool"),
        ({"aliases": {"a_tool": ""}}, "aliases.a_tool: expected a string that is not empty"),
        ({"aliases": {"a_tool": 1}}, "expected a string"),
    ],
)
def test_a_mistake_in_these_tables_is_an_error(tables, message):
    with pytest.raises(ConfigError, match=message):
        made(**tables)


def test_a_tool_that_comes_with_the_alias_of_another_is_an_error():
    recorded: RecordedGuard = made(aliases={"mcp_docs_example_com_search": "search"})
    with pytest.raises(ConfigError, match="which is another one's alias"):

        @recorded.guard.tool
        def search(query: str) -> str:
            return query


def test_a_tool_with_an_alias_is_known_by_it():
    recorded: RecordedGuard = made(
        agents={"worker": {"authority": "own", "max_scope": ["web:read"]}},
        aliases={"mcp_docs_example_com_search": "search"},
        tools={"search": {"requires": ["web:read"], "resource": "web:{query}"}},
    )
    worker = recorded.guard.new_agent("worker")

    @recorded.guard.tool(name="mcp_docs_example_com_search")
    def find(query: str) -> str:
        return query

    assert worker.call(find, query="x") == "x"
    (asked,) = recorded.policy_inputs
    assert (asked["action"], asked["tool"]["name"]) == ("search", "search")
    assert asked["resource"] == "web:x"
