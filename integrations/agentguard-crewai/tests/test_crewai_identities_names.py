"""The names of a crew's members: from their roles, or given; inputs choose nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from crewai_identities import guard_with, one_of, who

from agentguard import ConfigError, Decision
from agentguard_crewai import guard_agent, guard_crew

# --- names from roles ----------------------------------------------------------------------------


ROLES = {
    "Lead": "lead",
    "Senior Writer": "senior-writer",
    "  Senior\n  Writer\t": "senior-writer",
    "R&D / Lead": "r-d-lead",
    "UPPER_case": "upper-case",
    "-- a -- b --": "a-b",
    "Ingénieur": "ingenieur",
    "Agent 007": "agent-007",
    "\uff41 \uff42": "a-b",  # of full width
    "{topic} Researcher": "topic-researcher",
}


@pytest.mark.parametrize("role", ROLES)
def test_an_agent_has_the_name_of_its_role(native, recorded, signed, role):
    made = guard_with(recorded, ROLES[role])
    guard_crew(native.crew(one_of(native, role)), made.guard).kickoff(inputs={"topic": "bees"})
    assert who(signed(made.guard)) == [ROLES[role]]


@pytest.mark.parametrize("role", ["研究员", "!!!", "   "])
def test_a_role_that_makes_no_name_needs_one(native, recorded, signed, role):
    made = guard_with(recorded, "reader")
    member = one_of(native, role)
    crew = native.crew(member)
    with pytest.raises(ConfigError, match=r"makes no name: give the agent one, with guard_agent"):
        guard_crew(crew, made.guard)
    guard_agent(member, made.guard, name="reader")
    guard_crew(crew, made.guard).kickoff()
    assert who(signed(made.guard)) == ["reader"]


def test_an_unknown_name_is_an_error_that_says_which_are_known(native, strict, signed):
    guard = strict("writer", "editor")
    with pytest.raises(ConfigError) as refused:
        guard_crew(native.crew(one_of(native, "Lead")), guard)
    assert "there is no [agents.lead]; known agents: editor, writer" in str(refused.value)
    assert refused.value.code == "agent.unknown"
    with pytest.raises(ConfigError, match=r"there is no \[agents.nobody\]"):
        guard_agent(one_of(native, "Writer"), guard, name="nobody")
    guard_crew(native.crew(one_of(native, "Writer")), guard).kickoff()
    assert who(signed(guard)) == ["writer"]


def test_a_name_is_taken_as_it_is(native, strict):
    guard = strict("lead")
    for name in ("", 5, "Lead", "lead "):
        with pytest.raises(ConfigError, match=r"there is no \[agents\."):
            guard_agent(one_of(native, "Lead"), guard, name=name)


# --- inputs choose nobody ------------------------------------------------------------------------


RUNS: dict[str, Callable[[Any, dict[str, str]], Any]] = {
    "kickoff": lambda crew, given: crew.kickoff(inputs=given),
    "kickoff_for_each": lambda crew, given: crew.kickoff_for_each([given, given]),
    "a copy": lambda crew, given: crew.copy().kickoff(inputs=given),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("role", ["{kind} Writer", "{kind}"])
def test_inputs_do_not_choose_who_an_agent_is(native, recorded, signed, run, role):
    name = "kind-writer" if "Writer" in role else "kind"
    made = guard_with(recorded, name, "admin-writer", "admin")
    made.decide = lambda document: (
        Decision.deny("only admins")
        if not document["agent"]["name"].startswith("admin")
        else Decision.allow()
    )
    member = one_of(native, role)
    crew = guard_crew(native.crew(member), made.guard)
    for _ in range(2):  # the second time the role has been filled in already
        RUNS[run](crew, {"kind": "Admin"})
    calls = signed(made.guard)
    assert set(who(calls)) == {name}
    assert {call.decision for call in calls} == {"deny"}
    if run == "kickoff":
        assert member.role == role.replace("{kind}", "Admin")


def test_a_role_that_was_filled_in_before_does_not_count_either(native, recorded, signed):
    made = guard_with(recorded, "kind-writer", "admin-writer")
    crew = native.crew(one_of(native, "{kind} Writer"))
    crew.kickoff(inputs={"kind": "Admin"})
    guard_crew(crew, made.guard).kickoff(inputs={"kind": "Admin"})
    assert who(signed(made.guard)) == ["kind-writer"]


@pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
def test_a_hook_before_the_kickoff_does_not_choose_who_an_agent_is(native, recorded, signed):
    made = guard_with(recorded, "kind-writer", "admin-writer")

    def hook(inputs):
        crew.agents[0].role = "Admin Writer"
        return {**(inputs or {}), "kind": "Admin"}

    crew = native.crew(one_of(native, "{kind} Writer"), before_kickoff_callbacks=[hook])
    guard_crew(crew, made.guard).kickoff(inputs={"kind": "x"})
    assert who(signed(made.guard)) == ["kind-writer"]


def test_agents_whose_roles_make_one_name_are_told(native, recorded, caplog):
    made = guard_with(recorded, "lead", "writer", "editor")
    crew = native.crew(one_of(native, "Lead"), one_of(native, "Writer"), one_of(native, "WRITER "))
    for _ in range(2):  # the second time nothing is new
        guard_crew(crew, made.guard)
    (record,) = [one for one in caplog.records if one.name == "agentguard"]
    assert "2 agents" in record.getMessage()
    assert "'Writer', 'WRITER '" in record.getMessage()
    caplog.clear()
    editor = guard_agent(one_of(native, "Writer"), made.guard, name="editor")
    guard_crew(native.crew(one_of(native, "Writer"), editor), made.guard)
    assert not [one for one in caplog.records if one.name == "agentguard"]


# --- a name that is given ------------------------------------------------------------------------


def test_a_name_that_is_given_counts(native, recorded, signed):
    made = guard_with(recorded, "sleuth", "writer")
    lead, writer = one_of(native, "Lead"), one_of(native, "Writer")
    assert guard_agent(lead, made.guard, name="sleuth") is lead
    crew = native.crew(lead, writer)
    assert guard_crew(crew, made.guard) is crew
    crew.kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]


def test_another_name_for_the_same_agent_is_an_error(native, recorded, signed):
    made = guard_with(recorded, "lead", "sleuth")
    member = guard_agent(one_of(native, "Lead"), made.guard, name="sleuth")
    with pytest.raises(ConfigError, match="already guarded, as sleuth") as refused:
        guard_agent(member, made.guard, name="lead")
    assert refused.value.code == "agent.guarded"
    guard_agent(member, made.guard, name="sleuth")
    guard_agent(member, made.guard)
    member.kickoff("look")
    assert who(signed(made.guard)) == ["sleuth"]
