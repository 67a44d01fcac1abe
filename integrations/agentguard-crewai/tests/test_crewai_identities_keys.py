"""A key for each member of a crew: of copies, of two crews, and of managers."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from crewai import Crew, Process, Task
from crewai_identities import CALL, guard_with, instances, one_of, who

from agentguard import ConfigError, Guard, StorageError
from agentguard.audit.kinds import parse_entry
from agentguard_crewai import guard_agent, guard_crew

# --- a key for each ------------------------------------------------------------------------------


def test_each_member_has_a_key_of_its_own(native, recorded, signed):
    made = guard_with(recorded, "lead", "writer")
    members = [one_of(native, role) for role in ("Lead", "Writer", "Lead")]
    guard_crew(native.crew(*members), made.guard).kickoff()
    calls = signed(made.guard)
    assert who(calls) == ["lead", "writer", "lead"]
    assert len(set(instances(calls))) == 3


def test_an_agent_with_two_tasks_is_one(native, recorded, signed):
    made = guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    tasks = [Task(description=d, expected_output="words", agent=member) for d in "ab"]
    guard_crew(Crew(agents=[member], tasks=tasks), made.guard).kickoff()
    calls = signed(made.guard)
    assert who(calls) == ["lead"] * 2
    assert len(set(instances(calls))) == 1


def test_an_agent_that_only_a_task_has_is_guarded(native, recorded, signed):
    made = guard_with(recorded, "lead", "hidden")
    lead, hidden = one_of(native, "Lead"), one_of(native, "Hidden")
    tasks = [Task(description="a", expected_output="words", agent=one) for one in (lead, hidden)]
    guard_crew(Crew(agents=[lead], tasks=tasks), made.guard).kickoff()
    assert who(signed(made.guard)) == ["lead", "hidden"]


def test_an_agent_in_two_crews_is_one(native, recorded, signed):
    made = guard_with(recorded, "lead")
    member = one_of(native, "Lead")
    for _ in range(2):
        guard_crew(native.crew(member), made.guard).kickoff()
    assert len(set(instances(signed(made.guard)))) == 1


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": lambda one: one.copy(),
    "model_copy": lambda one: one.model_copy(),
    "copy.copy": copy.copy,
    "a copy of a copy": lambda one: one.copy().copy(),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_an_agent_is_another_instance_of_the_same_name(native, recorded, signed, how):
    made = guard_with(recorded, "sleuth")
    member = guard_agent(one_of(native, "Lead"), made.guard, name="sleuth")
    copied = COPIES[how](member)
    assert type(copied) is type(member)
    for one in (member, copied, member):
        one.llm.steps = [CALL, "done"]
        one.kickoff("look")
    calls = signed(made.guard)
    assert who(calls) == ["sleuth"] * 3
    first, second, third = instances(calls)
    assert first == third != second


def test_a_guarded_agent_is_not_pickled(native, recorded):
    made = guard_with(recorded, "lead")
    member = guard_agent(one_of(native, "Lead"), made.guard)
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
        pickle.dumps(member)


def test_a_copy_of_a_crew_has_instances_of_its_own(native, recorded, signed):
    made = guard_with(recorded, "sleuth", "writer")
    lead = guard_agent(one_of(native, "Lead"), made.guard, name="sleuth")
    crew = guard_crew(native.crew(lead, one_of(native, "Writer")), made.guard)
    copied = crew.copy()
    for member in copied.agents:
        member.llm.steps = [CALL, "done"]
    for one in (crew, copied):
        one.kickoff()
    calls = signed(made.guard)
    assert who(calls) == ["sleuth", "writer"] * 2
    assert len(set(instances(calls))) == 4


def test_each_run_for_an_input_has_instances_of_its_own(native, recorded, signed):
    made = guard_with(recorded, "sleuth")
    member = guard_agent(one_of(native, "Lead"), made.guard, name="sleuth")
    crew = guard_crew(native.crew(member), made.guard)
    crew.kickoff_for_each([{"n": "1"}, {"n": "2"}])
    crew.kickoff()
    calls = signed(made.guard)
    assert who(calls) == ["sleuth"] * 3
    assert len(set(instances(calls))) == 3


# --- managers ------------------------------------------------------------------------------------


HANDED = ("delegate_work_to_coworker", {"task": "look", "context": "c", "coworker": "Writer"})


def hierarchical(way: Any, **options: Any) -> Crew:
    job = Task(description="a task", expected_output="words")
    writer = one_of(way, "Writer")
    return Crew(agents=[writer], tasks=[job], process=Process.hierarchical, **options)


def kinds_in(guard: Guard) -> list[str]:
    """The entries of a guard's log, by their kinds."""
    with closing(guard.reader()) as reader:
        return [parse_entry(body).kind for _index, body in reader.entries()]


def test_a_crew_of_which_one_can_not_be_guarded_leaves_nothing_on_record(native, strict):
    guard = strict("lead", "writer")
    for role, why in (("!!!", "makes no name"), ("Nobody", "there is no")):
        crew = native.crew(one_of(native, "Lead"), one_of(native, role))
        with pytest.raises(ConfigError, match=why):
            guard_crew(crew, guard)
        assert "identity" not in kinds_in(guard)
    guard_crew(native.crew(one_of(native, "Lead"), one_of(native, "Writer")), guard)
    assert kinds_in(guard).count("identity") == 2


def test_where_a_role_names_no_table_the_ways_out_are_named(native, strict):
    guard = strict("analyst")
    with pytest.raises(ConfigError, match=r"there is no \[agents.senior-analyst\]") as refused:
        guard_crew(native.crew(one_of(native, "Senior Analyst")), guard)
    for way_out in ("add [agents.senior-analyst]", "name=...", "identity: in agents.yaml"):
        assert way_out in str(refused.value)
    with pytest.raises(ConfigError, match=r"there is no \[agents.boss\]") as refused:
        guard_agent(one_of(native, "Senior Analyst"), guard, name="boss")
    assert "role: add" not in str(refused.value)
    guard_crew(native.crew(guard_agent(one_of(native, "It"), guard, name="analyst")), guard)


@pytest.mark.parametrize(
    "begin",
    [
        lambda crew: crew.kickoff(),
        lambda crew: asyncio.run(crew.kickoff_async()),
        lambda crew: asyncio.run(crew.akickoff()),
        lambda crew: crew.agents[0].kickoff("go on"),
        lambda crew: asyncio.run(crew.agents[0].kickoff_async("go on")),
    ],
    ids=["kickoff", "kickoff_async", "akickoff", "agent", "agent_async"],
)
def test_with_a_closed_guard_nothing_is_kicked_off(native, strict, begin):
    crew = guard_crew(native.crew(one_of(native, "Lead")), guard := strict("lead"))
    guard.close()
    lead: Any = crew.agents[0]
    with pytest.raises(StorageError, match="the guard is closed: open it again") as refused:
        begin(crew)
    assert refused.value.code == "storage.closed"
    assert lead.llm.heard == []


def managed(calls: list[Any]) -> list[tuple[str, str]]:
    return sorted((call.agent, call.tool) for call in calls)


def test_the_manager_that_a_crew_makes_is_the_crew_manager(native, recorded, signed):
    made = guard_with(recorded, "writer", "crew-manager")
    crew = hierarchical(native, manager_llm=native.model(*[HANDED, "done"] * 2))
    guard_crew(crew, made.guard)
    for _ in range(2):
        crew.kickoff()
    calls = signed(made.guard)
    assert managed(calls) == sorted(
        [("crew-manager", "delegate_work_to_coworker"), ("writer", "look")] * 2
    )
    assert len({call.instance for call in calls}) == 2  # it is made once


def test_without_a_table_for_the_manager_nothing_runs(native, strict, signed):
    guard = strict("writer")
    crew = hierarchical(native, manager_llm=native.model(HANDED, "done"), name="news")
    before = kinds_in(guard)
    with pytest.raises(ConfigError, match=r"there is no \[agents.crew-manager\]") as refused:
        guard_crew(crew, guard)
    assert refused.value.code == "agent.unknown"
    assert "the manager that the crew 'news' makes for itself is crew-manager" in str(refused.value)
    assert kinds_in(guard) == before
    crew.manager_agent = native.agent("Writer", "done", allow_delegation=True)
    guard_crew(crew, guard)


@pytest.mark.parametrize("name", [None, "chief"])
def test_a_manager_that_is_given_is_who_it_is(native, recorded, signed, name):
    made = guard_with(recorded, "writer", "boss", "chief")
    boss = native.agent("Boss", HANDED, "done", allow_delegation=True)
    if name is not None:
        guard_agent(boss, made.guard, name=name)
    guard_crew(hierarchical(native, manager_agent=boss), made.guard).kickoff()
    assert managed(signed(made.guard)) == sorted(
        [(name or "boss", "delegate_work_to_coworker"), ("writer", "look")]
    )


def test_a_copy_of_a_crew_has_a_manager_of_its_own(native, recorded, signed):
    made = guard_with(recorded, "writer", "boss")
    boss = native.agent("Boss", *[HANDED, "done"] * 3, allow_delegation=True)
    crew = guard_crew(hierarchical(native, manager_agent=boss), made.guard)
    crew.kickoff_for_each([{"n": "1"}, {"n": "2"}])
    calls = [call for call in signed(made.guard) if call.agent == "boss"]
    assert len(calls) == 2
    assert len({call.instance for call in calls}) == 2


def test_an_agent_that_comes_later_is_refused_until_it_is_guarded(native, recorded, signed):
    made = guard_with(recorded, "lead", "writer")
    crew = guard_crew(native.crew(one_of(native, "Lead")), made.guard)
    late = one_of(native, "Writer")
    crew.agents.append(late)
    crew.tasks.append(Task(description="b", expected_output="words", agent=late))
    with pytest.raises(ConfigError, match="'Writer' is not guarded: guard the crew once") as bad:
        crew.kickoff()
    assert bad.value.code == "agent.unguarded"
    assert signed(made.guard) == []
    guard_crew(crew, made.guard).kickoff()
    assert who(signed(made.guard)) == ["lead", "writer"]
