"""What can be guarded, and what guarding twice does: errors, terms and timeouts."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from crewai import Agent, Crew, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai_identities import guard_with, instances, one_of, who

from agentguard import ApprovalPending, ConfigError, Decision
from agentguard_crewai import guard_agent, guard_crew, guard_crewbase

# --- guarded once --------------------------------------------------------------------------------


def test_guarding_twice_changes_nothing(native, recorded, signed):
    made = guard_with(recorded, "lead", "writer")
    crew = native.crew(one_of(native, "Lead"), one_of(native, "Writer"), cache=True)
    guard_crew(crew, made.guard).kickoff()
    before = [type(one) for one in (crew, *crew.agents)]
    assert guard_crew(crew, made.guard) is crew
    assert [type(one) for one in (crew, *crew.agents)] == before
    crew.kickoff()
    first, second = instances(signed(made.guard))[:2], instances(signed(made.guard))[2:]
    assert first == second
    assert len(set(first)) == 2
    # what an agent has in its cache, it still has
    for member in crew.agents:
        assert member.tools_handler.cache is not None
        assert len(member.tools_handler.cache._cache) == 1
    guard_crew(crew, made.guard)
    assert [len(member.tools_handler.cache._cache) for member in crew.agents] == [1, 1]


def test_agents_of_another_guard_are_refused(native, recorded):
    one, other = guard_with(recorded, "lead"), guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    guard_agent(member, one.guard)
    for again in (
        lambda: guard_agent(member, other.guard),
        lambda: guard_crew(native.crew(member), other.guard),
    ):
        with pytest.raises(ConfigError, match="already guarded") as refused:
            again()
        assert refused.value.code == "agent.guarded"


def test_a_crew_of_another_guard_is_refused(native, recorded, signed):
    one, other = guard_with(recorded, "lead"), guard_with(recorded, "lead")
    crew = guard_crew(native.crew(one_of(native, "Lead"), name="team"), one.guard)
    with pytest.raises(ConfigError, match="the crew 'team' is already guarded"):
        guard_crew(crew, other.guard)
    crew.kickoff()
    assert who(signed(one.guard)) == ["lead"]
    assert signed(other.guard) == []


def test_a_crew_that_can_not_be_guarded_stays_as_it_was(native, strict, recorded, signed):
    guard, right = strict("lead"), guard_with(recorded, "lead", "writer")
    crew = native.crew(one_of(native, "Lead"), one_of(native, "Writer"))
    with pytest.raises(ConfigError, match=r"\[agents.writer\]"):
        guard_crew(crew, guard)
    assert [type(one) for one in (crew, *crew.agents)] == [Crew, Agent, Agent]
    guard_crew(crew, right.guard).kickoff()
    assert who(signed(right.guard)) == ["lead", "writer"]


def test_the_terms_of_the_crew_are_those_of_its_agents(native, recorded, signed):
    # an agent was given a name, and nothing was said of approvals
    made = guard_with(recorded, "sleuth")
    made.decide = lambda _document: Decision.require_approval()
    member = one_of(native, "Lead")
    guard_agent(member, made.guard, name="sleuth", timeout=0)
    crew = guard_crew(native.crew(member), made.guard, on_approval="pause")
    with pytest.raises(ApprovalPending):
        crew.kickoff()
    (request,) = made.guard.approvals.pending()
    assert request.agent_name == "sleuth"


# --- what can't be guarded -----------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "crew", Crew, object()])
def test_what_is_no_crew_is_an_error(recorded, given):
    made = guard_with(recorded, "lead")
    with pytest.raises(ConfigError, match="expected a CrewAI crew"):
        guard_crew(given, made.guard)
    with pytest.raises(ConfigError, match="expected a CrewAI agent"):
        guard_agent(given, made.guard)


@pytest.mark.parametrize("guard", [None, "guard", object()])
def test_what_is_no_guard_is_an_error(native, guard):
    member = one_of(native, "Lead")
    for guarding in (
        lambda: guard_agent(member, guard),
        lambda: guard_crew(native.crew(member), guard),
        lambda: guard_crewbase(guard),
    ):
        with pytest.raises(ConfigError, match=r"expected a Guard, as from Guard\.open"):
            guarding()
    assert type(member) is Agent


@pytest.mark.parametrize("on_approval", ["ask", "", None, True, ["wait"]])
def test_a_way_to_wait_that_is_none_is_an_error(native, recorded, on_approval):
    made = guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    for guarding in (
        lambda: guard_agent(member, made.guard, on_approval=on_approval),
        lambda: guard_crew(native.crew(member), made.guard, on_approval=on_approval),
        lambda: guard_crewbase(made.guard, on_approval=on_approval),
    ):
        with pytest.raises(ConfigError, match="expected 'wait' or 'pause'"):
            guarding()
    assert type(member) is Agent


@pytest.mark.parametrize(
    "timeout", ["30", [], True, -1, -0.1, math.nan, -math.inf, timedelta(seconds=-1), 1j]
)
def test_a_timeout_that_is_none_is_an_error(native, recorded, timeout):
    made = guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    for guarding in (
        lambda: guard_agent(member, made.guard, timeout=timeout),
        lambda: guard_crew(native.crew(member), made.guard, timeout=timeout),
        lambda: guard_crewbase(made.guard, timeout=timeout),
    ):
        with pytest.raises(ConfigError, match="timeout: expected"):
            guarding()
    assert type(member) is Agent


@pytest.mark.parametrize("timeout", [0, 30, timedelta(hours=1)])
def test_a_crew_that_pauses_takes_no_timeout(native, recorded, timeout):
    made = guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    for guarding in (
        lambda: guard_agent(member, made.guard, on_approval="pause", timeout=timeout),
        lambda: guard_crew(native.crew(member), made.guard, on_approval="pause", timeout=timeout),
        lambda: guard_crewbase(made.guard, on_approval="pause", timeout=timeout),
    ):
        with pytest.raises(ConfigError, match=r"timeout: .* waits for nobody"):
            guarding()
    assert type(member) is Agent
    guard_crew(native.crew(member), made.guard, on_approval="pause")


@pytest.mark.parametrize("timeout", [0, 0.5, 30, math.inf, timedelta(0), timedelta(hours=1)])
def test_any_other_timeout_is_taken(native, recorded, signed, timeout):
    made = guard_with(recorded, "lead")
    guard_crew(native.crew(one_of(native, "Lead")), made.guard, timeout=timeout).kickoff()
    assert who(signed(made.guard)) == ["lead"]


@pytest.mark.parametrize("timeout", [0.02, timedelta(milliseconds=20)])
def test_a_timeout_is_how_long_a_call_waits(native, recorded, timeout):
    made = guard_with(recorded, "lead")
    made.decide = lambda _document: Decision.require_approval()
    crew = guard_crew(native.crew(one_of(native, "Lead")), made.guard, timeout=timeout)
    output = crew.kickoff().tasks_output[0]
    assert [one.failure.code for one in output.tool_failures] == ["approval.pending"]


class Foreign(BaseAgent):
    """An agent that runs tools by itself, as adapters for other frameworks do."""

    def execute_task(self, task, context=None, tools=None):
        return "done"

    async def aexecute_task(self, task, context=None, tools=None):
        return "done"

    def create_agent_executor(self, tools=None):
        pass

    def get_delegation_tools(self, agents):
        return []

    def get_platform_tools(self, apps):
        return []

    def get_mcp_tools(self, mcps):
        return []

    def get_output_converter(self, llm, text, model, instructions):
        raise NotImplementedError


def test_an_agent_of_another_framework_is_an_error(recorded):
    made = guard_with(recorded, "lead")
    foreign = Foreign(role="Lead", goal="g", backstory="b")
    task = Task(description="a task", expected_output="words", agent=foreign)
    for guarding in (
        lambda: guard_agent(foreign, made.guard),
        lambda: guard_crew(Crew(agents=[foreign], tasks=[task]), made.guard),
    ):
        with pytest.raises(ConfigError, match="runs its tools by itself") as refused:
            guarding()
        assert refused.value.code == "agent.unguardable"
