"""Who the members of a crew are: names from roles, from code and from YAML, and a key for each.

Each test asks the log, in which every call is signed by the instance that made it. Who may hand
work on to whom stands elsewhere.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
import yaml
from crewai import Agent, Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.project import (
    CrewBase,
    after_kickoff,
    agent,
    before_kickoff,
    crew,
    llm,
    load_crew,
    task,
)
from crewai.project import tool as crew_tool
from crewai.tools import tool

from agentguard import ApprovalPending, ConfigError, Decision, Guard, StorageError
from agentguard.audit.entry import parse_entry
from agentguard.domain import config, domain
from agentguard_crewai import guard_agent, guard_crew, guard_crewbase

CALL = ("look", {"at": "x"})


@tool
def look(at: str) -> str:
    """Look."""
    return f"nothing at {at}"


def one_of(way: Any, role: str, **options: Any) -> Agent:
    """An agent that looks once, as often as it is asked."""
    return way.agent(role, *[CALL, "done"] * 4, tools=[look], **options)


def guard_with(recorded: Any, *names: str) -> Any:
    """A guard with these agents, which act on their own authority."""
    return recorded(agents={name: {"authority": "own"} for name in names})


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """Makes a guard on the disk: it knows these agents and no others."""
    module: Any = ModuleType("crewai_identities_policy")
    module.decide = lambda _document: Decision.allow()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with ExitStack() as opened:

        def make(*names: str) -> Guard:
            folder = tmp_path / "guard"
            folder.mkdir()
            path = folder / "agentguard.toml"
            agents = "".join(f'[agents.{name}]\nauthority = "own"\n' for name in names)
            path.write_text(
                'trust_domain = "acme.example"\nstate = "state"\nanchor = "anchor"\n'
                f'[policy]\nengine = "function"\npath = "{module.__name__}:decide"\n{agents}',
                "utf-8",
            )
            domain.found(config.load(path), b"of this test", now=datetime.now(UTC))
            return opened.enter_context(Guard.open(path, passphrase=b"of this test"))

        yield make


def who(calls: list[Any]) -> list[str]:
    """Whose keys signed the looks, by name."""
    assert {call.chain for call in calls} <= {()}
    return [call.agent for call in calls if call.tool == "look"]


def instances(calls: list[Any]) -> list[str]:
    return [call.instance for call in calls if call.tool == "look"]


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
        shards = [*reader.shards()]
        return [parse_entry(body).kind for shard in shards for _at, body in reader.entries(shard)]


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


# --- names from YAML -----------------------------------------------------------------------------


crew_method = crew  # where a class has several
ALIVE: list[Any] = []
"""CrewAI memoises the agents of an instance by its ``id()``: none of a test is to be had again."""

RESEARCHER = {"role": "Researcher", "goal": "find out", "backstory": "curious"}
WRITER = {"role": "Writer", "goal": "write", "backstory": "wordy"}


@pytest.fixture
def files(tmp_path):
    """Writes agents.yaml and tasks.yaml; returns their paths."""

    def write(agents: dict[str, Any], text: str | None = None) -> tuple[str, str]:
        tasks = {
            "research": {"description": "find", "expected_output": "facts"},
            "writing": {"description": "write", "expected_output": "words"},
        }
        paths = tmp_path / "agents.yaml", tmp_path / "tasks.yaml"
        paths[0].write_text(text if text is not None else yaml.safe_dump(agents), "utf-8")
        paths[1].write_text(yaml.safe_dump(tasks), "utf-8")
        return str(paths[0]), str(paths[1])

    return write


def base_of(way: Any, paths: tuple[str, str], taken: tuple[str, str] = ("researcher", "writer")):
    """A ``@CrewBase`` whose methods make agents from these entries of the YAML."""

    @CrewBase
    class Team:
        agents_config = paths[0]
        tasks_config = paths[1]

        @agent
        def researcher(self) -> Agent:
            given = self.agents_config[taken[0]]
            return Agent(config=given, llm=way.model(*[CALL, "done"] * 4), tools=[look])

        @agent
        def writer(self) -> Agent:
            given = self.agents_config[taken[1]]
            return Agent(config=given, llm=way.model(*[CALL, "done"] * 4), tools=[look])

        @task
        def research(self) -> Task:
            return Task(config=self.tasks_config["research"], agent=self.researcher())

        @task
        def writing(self) -> Task:
            return Task(config=self.tasks_config["writing"], agent=self.writer())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    return Team


def begun(kind: Any, *args: Any) -> Any:
    made = kind(*args)
    ALIVE.append(made)
    return made


def test_an_identity_in_the_yaml_is_honoured(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer", "researcher")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]


def test_it_is_honoured_as_text_in_the_file_stands(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    text = """
# who we are
researcher:
  role: >
    {topic} Researcher
  goal: find out about {topic}
  backstory: >
    You are
    curious.
  identity: sleuth   # as in [agents.sleuth]
writer:
  role: Writer
  goal: write
  backstory: wordy
  identity: 'writer'
"""
    team = begun(guard_crewbase(made.guard)(base_of(native, files({}, text))))
    team.crew().kickoff(inputs={"topic": "bees"})
    assert who(signed(made.guard)) == ["sleuth", "writer"]


@pytest.mark.parametrize("key", ["identty", "Identity", "identity ", "idenity", "name_of_agent"])
def test_a_typo_in_the_key_is_an_error(native, recorded, signed, files, key):
    made = guard_with(recorded, "sleuth", "writer", "researcher")
    paths = files({"researcher": {**RESEARCHER, key: "sleuth"}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    with pytest.raises(ConfigError) as refused:
        team.crew()
    told = str(refused.value)
    assert told.startswith(f"{paths[0]}: researcher.{key}: CrewAI does not know this key")
    if key != "name_of_agent":
        assert "identity is close to it" in told
    assert signed(made.guard) == []


def test_all_keys_that_crewai_knows_are_taken(native, recorded, signed, files):
    made = guard_with(recorded, "researcher", "writer")
    known = {"max_iter": 9, "verbose": False, "allow_delegation": False, "max_rpm": 100}
    paths = files({"researcher": {**RESEARCHER, **known}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    team.crew().kickoff()
    assert team.researcher().max_iter == 9
    assert who(signed(made.guard)) == ["researcher", "writer"]


class Budgeted(Agent):
    """An agent with a field of its own."""

    budget: int = 0


def budgeted(native: Any, paths: tuple[str, str], kind: type[Agent]) -> Any:
    @CrewBase
    class Team:
        agents_config = paths[0]
        tasks_config = paths[1]

        @agent
        def researcher(self) -> Agent:
            given = self.agents_config["researcher"]
            return kind(config=given, llm=native.model(CALL, "done"), tools=[look])

        @task
        def research(self) -> Task:
            return Task(config=self.tasks_config["research"], agent=self.researcher())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    return Team


def test_a_key_of_the_agents_own_class_is_taken(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth")
    paths = files({"researcher": {**RESEARCHER, "budget": 3, "identity": "sleuth"}})
    team = begun(guard_crewbase(made.guard)(budgeted(native, paths, Budgeted)))
    team.crew().kickoff()
    assert team.researcher().budget == 3
    assert who(signed(made.guard)) == ["sleuth"]
    with pytest.raises(ConfigError, match=r"researcher\.budget: CrewAI does not know this key"):
        begun(guard_crewbase(made.guard)(budgeted(native, paths, Agent))).crew()


@pytest.mark.filterwarnings("ignore")  # of what CrewAI says of its own files
def test_a_crew_of_json_files_is_guarded_once_it_is_loaded(native, recorded, signed, tmp_path):
    told = {**RESEARCHER, "llm": "openai/gpt-4.1-mini"}
    task = {"name": "t", "description": "d", "expected_output": "e", "agent": "researcher"}
    (tmp_path / "agents").mkdir()
    path = tmp_path / "crew.jsonc"
    path.write_text(json.dumps({"name": "news", "agents": ["researcher"], "tasks": [task]}))

    def load(**more: str) -> Crew:
        (tmp_path / "agents" / "researcher.jsonc").write_text(json.dumps({**told, **more}))
        loaded, _inputs = load_crew(path)
        return loaded  # type: ignore[no-any-return]

    with pytest.raises(Exception, match=r"unsupported field.* identity"):
        load(identity="sleuth")
    team, made = load(), guard_with(recorded, "sleuth")
    member: Any = team.agents[0]
    member.llm, member.tools = native.model(CALL, "done"), [look]
    guard_agent(member, made.guard, name="sleuth")
    guard_crew(team, made.guard).kickoff()
    assert who(signed(made.guard)) == ["sleuth"]


def test_an_identity_that_is_not_configured_is_an_error(native, strict, files):
    guard = strict("researcher", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "nobody"}, "writer": WRITER})
    team = begun(guard_crewbase(guard)(base_of(native, paths)))
    with pytest.raises(ConfigError, match=r"there is no \[agents.nobody\]; known agents"):
        team.crew()


@pytest.mark.parametrize("identity", [5, True, ["sleuth"], {"name": "sleuth"}, "", None])
def test_an_identity_of_another_type_is_an_error(native, recorded, files, identity):
    made = guard_with(recorded, "sleuth", "researcher", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": identity}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    with pytest.raises(ConfigError, match=r"researcher.identity: expected the name of an agent"):
        team.crew()


def test_an_entry_may_have_another_name_than_its_method(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "scribe")
    paths = files(
        {
            "first": {**RESEARCHER, "identity": "sleuth"},
            "second": {**WRITER, "identity": "scribe"},
        }
    )
    team = begun(guard_crewbase(made.guard)(base_of(native, paths, ("first", "second"))))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "scribe"]


def test_an_agent_is_who_the_entry_says_that_it_was_made_from(native, recorded, signed, files):
    # each method takes the entry that has the other's name
    made = guard_with(recorded, "sleuth", "scribe")
    paths = files(
        {
            "researcher": {**RESEARCHER, "identity": "sleuth"},
            "writer": {**WRITER, "identity": "scribe"},
        }
    )
    team = begun(guard_crewbase(made.guard)(base_of(native, paths, ("writer", "researcher"))))
    assert [one.role for one in team.crew().agents] == ["Writer", "Researcher"]
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["scribe", "sleuth"]


def test_an_agent_whose_method_changes_the_entry_is_who_it_says(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})

    @CrewBase
    class Changed:
        agents_config, tasks_config = paths

        @agent
        def researcher(self) -> Agent:
            options = {"llm": native.model(CALL, "done"), "tools": [look], "goal": "another goal"}
            return Agent(config=self.agents_config["researcher"], **options)

        @task
        def research(self) -> Task:
            return Task(config=self.tasks_config["research"], agent=self.researcher())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    begun(guard_crewbase(made.guard)(Changed)).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth"]


def test_an_identity_that_no_agent_has_is_an_error(native, recorded, files):
    made = guard_with(recorded, "researcher", "writer", "sleuth")
    unused = {"role": "Other", "goal": "g", "backstory": "b"}
    agents = {"researcher": RESEARCHER, "writer": WRITER, "unused": unused}
    begun(guard_crewbase(made.guard)(base_of(native, files(agents)))).crew()
    agents["unused"] = {**unused, "identity": "sleuth"}
    team = begun(guard_crewbase(made.guard)(base_of(native, files(agents))))
    with pytest.raises(ConfigError, match=r"unused.identity: no agent of the crew is made from"):
        team.crew()


def test_two_entries_that_are_alike_and_differ_in_identity_are_an_error(native, recorded, files):
    made = guard_with(recorded, "sleuth", "spy", "writer")
    agents = {
        "one": {**RESEARCHER, "identity": "sleuth"},
        "other": {**RESEARCHER, "identity": "spy"},
        "writer": WRITER,
    }
    taken = ("one", "writer")
    team = begun(guard_crewbase(made.guard)(base_of(native, files(agents), taken)))
    with pytest.raises(ConfigError, match="gives it another identity: sleuth, and spy"):
        team.crew()
    agents["other"]["identity"] = "sleuth"
    begun(guard_crewbase(made.guard)(base_of(native, files(agents), taken))).crew()


def test_an_entry_that_nobody_uses_gives_its_identity_to_none_that_is_alike(
    native, recorded, signed, files
):
    made = guard_with(recorded, "researcher", "spy", "writer")
    agents = {"researcher": RESEARCHER, "unused": RESEARCHER, "writer": WRITER}
    team = begun(guard_crewbase(made.guard)(base_of(native, files(agents))))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
    agents["unused"] = {**RESEARCHER, "identity": "spy"}
    team = begun(guard_crewbase(made.guard)(base_of(native, files(agents))))
    with pytest.raises(ConfigError, match=r"unused.identity: no agent of the crew is made from"):
        team.crew()


def test_two_agents_of_alike_entries_have_their_own_identities(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "spy")
    agents = {
        "researcher": {**RESEARCHER, "identity": "sleuth"},
        "writer": {**RESEARCHER, "identity": "spy"},
    }
    team = begun(guard_crewbase(made.guard)(base_of(native, files(agents))))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "spy"]


def test_without_a_file_agents_have_the_names_of_their_roles(native, recorded, signed, tmp_path):
    made = guard_with(recorded, "lead")

    @guard_crewbase(made.guard)
    @CrewBase
    class Team:
        agents_config = str(tmp_path / "none.yaml")
        tasks_config = str(tmp_path / "none.yaml")

        @agent
        def lead(self) -> Agent:
            return one_of(native, "Lead")

        @task
        def job(self) -> Task:
            return Task(description="a task", expected_output="words", agent=self.lead())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    begun(Team).crew().kickoff()
    assert who(signed(made.guard)) == ["lead"]


# --- classes of crews ----------------------------------------------------------------------------


@pytest.mark.parametrize("below", [True, False])
def test_it_guards_above_and_below_crew_base(native, recorded, signed, files, below):
    made = guard_with(recorded, "sleuth")
    paths = files({"lead": {**RESEARCHER, "identity": "sleuth"}})

    class Plain:
        agents_config, tasks_config = paths

        @agent
        def lead(self) -> Agent:
            given = self.agents_config["lead"]
            return Agent(config=given, llm=native.model(CALL, "done"), tools=[look])

        @task
        def job(self) -> Task:
            return Task(description="a task", expected_output="words", agent=self.lead())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    guarding = guard_crewbase(made.guard)
    kind = CrewBase(guarding(Plain)) if below else guarding(CrewBase(Plain))
    begun(kind).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth"]


def test_a_class_without_a_crew_is_an_error(recorded):
    made = guard_with(recorded, "lead")

    class Nothing:
        def crew(self) -> None:
            pass

    for given in (Nothing, CrewBase(Nothing)):
        with pytest.raises(ConfigError, match="Nothing has no method below @crew; put it above"):
            guard_crewbase(made.guard)(given)


def test_a_crew_of_a_class_is_guarded_once(native, recorded, signed, files):
    made = guard_with(recorded, "researcher", "writer")
    paths = files({"researcher": RESEARCHER, "writer": WRITER})
    kind = guard_crewbase(made.guard)(base_of(native, paths))
    team = begun(kind)
    assert team.crew() is team.crew()
    team.crew().cache = True
    guard_crew(team.crew(), made.guard)
    for _ in range(2):
        team.crew().kickoff()
    calls = signed(made.guard)
    assert who(calls) == ["researcher", "writer"] * 2
    assert len(set(instances(calls))) == 2
    # what an agent has in its cache, it has at the second kickoff, too
    kept = [member.tools_handler.cache._cache for member in team.crew().agents]
    assert [len(one) for one in kept] == [1, 1]
    # another instance has other members
    begun(kind).crew().kickoff()
    assert len(set(instances(signed(made.guard)))) == 4


def test_a_class_is_guarded_once(native, recorded, signed, files):
    made, other = guard_with(recorded, "researcher", "writer"), guard_with(recorded, "writer")
    paths = files({"researcher": RESEARCHER, "writer": WRITER})
    kind = guard_crewbase(made.guard)(guard_crewbase(made.guard)(base_of(native, paths)))
    begun(kind).crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
    with pytest.raises(ConfigError, match="already guarded"):
        begun(guard_crewbase(other.guard)(kind)).crew()


def test_hooks_and_parts_of_the_class_are_what_they_were(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth")
    seen: list[Any] = []
    entry = {**RESEARCHER, "role": "{kind} Researcher", "identity": "sleuth"}
    paths = files({"lead": {**entry, "llm": "scripted", "tools": ["looking"]}})

    @guard_crewbase(made.guard)
    @CrewBase
    class Team:
        """A team."""

        agents_config, tasks_config = paths

        @before_kickoff
        def prepared(self, inputs):
            seen.append(("before", dict(inputs or {})))
            return {**(inputs or {}), "kind": "Admin"}

        @after_kickoff
        def finished(self, output):
            seen.append(("after", output.raw))
            return output

        @llm
        def scripted(self):
            return native.model(CALL, "done")

        @crew_tool
        def looking(self):
            return look

        @agent
        def lead(self) -> Agent:
            return Agent(config=self.agents_config["lead"])

        @task
        def job(self) -> Task:
            return Task(description="about {kind}", expected_output="words", agent=self.lead())

        @crew
        def crew(self) -> Crew:
            """Make a crew."""
            return Crew(agents=self.agents, tasks=self.tasks)

    assert (Team.__name__, Team.__doc__, Team.crew.__doc__) == ("Team", "A team.", "Make a crew.")
    made_crew = begun(Team).crew()
    assert made_crew.name == "Team"
    made_crew.kickoff(inputs={"kind": "x"})
    assert seen == [("before", {"kind": "x"}), ("after", "done")]
    assert made_crew.agents[0].role == "Admin Researcher"
    assert who(signed(made.guard)) == ["sleuth"]


def test_a_class_may_have_several_crews_and_arguments(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    plain = base_of(native, paths)

    @CrewBase
    class Team:
        agents_config, tasks_config = paths
        researcher = plain.researcher
        writer = plain.writer
        research = plain.research
        writing = plain.writing

        @crew_method
        def crew(self, only: str = "") -> Crew:
            tasks = [one for one in self.tasks if only in one.description]
            return Crew(agents=self.agents, tasks=tasks)

        @crew_method
        def last(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks[-1:])

    team = begun(guard_crewbase(made.guard)(Team))
    team.crew(only="find").kickoff()
    team.last().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]


def test_an_agent_that_is_made_by_a_coroutine_is_who_the_yaml_says(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth")
    paths = files({"lead": {**RESEARCHER, "identity": "sleuth"}})

    @guard_crewbase(made.guard)
    @CrewBase
    class Team:
        agents_config, tasks_config = paths

        @agent
        async def lead(self) -> Agent:
            given = self.agents_config["lead"]
            return Agent(config=given, llm=native.model(CALL, "done"), tools=[look])

        @task
        async def job(self) -> Task:
            # CrewAI has run the coroutine
            return Task(description="a task", expected_output="words", agent=self.lead())

        @crew
        async def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    begun(Team).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth"]


def test_a_class_that_inherits_a_guarded_crew_is_guarded(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    plain = base_of(native, paths)
    parent = guard_crewbase(made.guard)(plain)

    @CrewBase
    class Child(parent):  # type: ignore[misc,valid-type]
        agents_config, tasks_config = paths
        # CrewAI asks the class itself for the methods of its agents and tasks
        researcher = plain.researcher
        writer = plain.writer
        research = plain.research
        writing = plain.writing

    begun(Child).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]


def test_a_crew_that_a_class_inherits_can_be_guarded(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    plain = base_of(native, paths)

    @guard_crewbase(made.guard)
    @CrewBase
    class Child(plain):  # type: ignore[misc,valid-type]
        agents_config, tasks_config = paths
        researcher = plain.researcher
        writer = plain.writer
        research = plain.research
        writing = plain.writing

    begun(Child).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]
    # the class that it inherits from is what it was
    assert type(begun(plain).crew()) is Crew


def test_an_agent_that_a_class_inherits_is_who_the_yaml_says(native, recorded, signed, files):
    made = guard_with(recorded, "sleuth", "writer")
    paths = files({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    plain = base_of(native, paths)

    @guard_crewbase(made.guard)
    @CrewBase
    class Child(plain):  # type: ignore[misc,valid-type]
        agents_config, tasks_config = paths

        @task
        def job(self) -> Task:
            # the agent's method is the parent's
            return Task(description="a task", expected_output="words", agent=self.researcher())

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    begun(Child).crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth"]


def test_no_attribute_of_a_guarded_class_leads_past_the_guard(native, recorded, signed, files):
    made = guard_with(recorded, "researcher", "writer")
    paths = files({"researcher": RESEARCHER, "writer": WRITER})
    kind = guard_crewbase(made.guard)(base_of(native, paths))
    assert not hasattr(kind.crew, "__wrapped__")
    begun(kind).crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
