"""Copies of guarded agents, crews and tools: some are instances of their own, some are refused."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
from crewai import Crew
from crewai.tools import tool
from crewai_files import BOTH, CHAIN, PLAN, SECRET, Knowing, plan_of, task_of

from agentguard import ConfigError
from agentguard_crewai import guard_agent, guard_crew

COPIES = {
    "copy": lambda agent: agent.copy(),
    "model_copy": lambda agent: agent.model_copy(),
    "copy.copy": copy.copy,
}


@pytest.mark.parametrize("planning", [False, True], ids=["", "planning"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_an_agent_is_another_instance(file_team, native, how, planning):
    steps: tuple[Any, ...] = (*BOTH, "done")
    options = {}
    if planning:
        steps = (*BOTH, "the first is done", "done")
        options["planning_config"] = plan_of(native, ("first", ()), times=2)
    lead = guard_agent(file_team.lead(native, *steps, *steps, **options), file_team.guard)
    with file_team.alice():
        Crew(agents=[lead], tasks=[task_of(lead)]).kickoff()
        copied = COPIES[how](lead)
        if planning and how == "copy":  # CrewAI writes the settings down, without their model
            copied.planning_config = plan_of(native, ("first", ()))
        Crew(agents=[copied], tasks=[task_of(copied)]).kickoff()
    file_team.require_both(times=2)
    first, second, third, fourth = (call.instance for call in file_team.calls())
    assert first == second
    assert third == fourth != first


@pytest.mark.parametrize("how", [copy.deepcopy, lambda agent: agent.model_copy(deep=True)])
def test_a_deep_copy_of_an_agent_is_another_instance(file_team, native, how):
    lead: Any = guard_agent(
        file_team.lead(native, tools=[]), file_team.guard
    )  # CrewAI can't copy tools deeply
    copied = how(lead)
    for agent in (lead, copied):
        agent.tools = [file_team.read_file]
        agent.llm = native.model(*BOTH, "done")
        with file_team.alice():
            agent.kickoff("go on")
    file_team.require_both(times=2)
    assert len({call.instance for call in file_team.calls()}) == 2


@pytest.mark.parametrize("how", ["model_copy", "copy.copy"])
def test_an_agent_and_its_copy_can_be_at_work_at_once(file_team, native, how):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        file_team.ran.append(path)
        return path

    llm = Knowing(model="knowing", scripts={"": [PLAN, SECRET, "done"]})
    lead: Any = guard_agent(file_team.lead(native, llm=llm, tools=[read_file]), file_team.guard)
    lead.create_agent_executor()  # which is not the copy's
    with file_team.alice():
        copied = COPIES[how](lead)
        tasks = [task_of(one, async_execution=True) for one in (lead, copied)]
        for waiting in [task.execute_async() for task in tasks]:
            waiting.result(timeout=120)
    file_team.require_both(times=2)
    assert len({call.instance for call in file_team.calls()}) == 2


def test_a_tool_that_another_agent_was_guarded_with_is_the_own_of_who_calls_it(file_team, native):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    lead.create_agent_executor()
    hand = native.agent("Hand", *BOTH, "done", tools=lead.agent_executor.original_tools)
    file_team.kickoff(guard_crew(native.crew(hand), file_team.guard))
    file_team.require_both(agent="hand", chain=(*CHAIN[:2], "hand"))


def test_what_is_made_from_the_class_of_a_guarded_agent_has_no_identity(file_team, native):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    made = type(lead)(role="Lead", goal="g", backstory="b", llm=lead.llm, tools=lead.tools)
    with file_team.alice(), pytest.raises(ConfigError, match="'Lead' is not guarded") as refused:
        made.kickoff("go on")
    assert refused.value.code == "agent.unguarded"
    assert (file_team.ran, file_team.calls()) == ([], [])
    with file_team.alice():
        lead.kickoff("go on")
    file_team.require_both()


def test_what_is_made_from_the_class_of_a_guarded_crew_has_no_guard(file_team, native):
    lead = file_team.lead(native)
    crew: Any = guard_crew(native.crew(lead), file_team.guard)
    made = type(crew)(agents=[lead], tasks=[task_of(lead)])
    with file_team.alice(), pytest.raises(ConfigError, match=r"the crew .* is not guarded"):
        made.kickoff()
    assert (file_team.ran, file_team.calls()) == ([], [])


def test_a_guarded_agent_is_not_pickled(file_team, native):
    lead = guard_agent(file_team.lead(native), file_team.guard)
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(lead)


@pytest.mark.parametrize(
    "how",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda one: one.model_copy()],
    ids=["copy", "deepcopy", "pickle", "model_copy"],
)
def test_a_guarded_tool_is_not_copied(file_team, native, how):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    with pytest.raises(TypeError, match="take the original"):
        how(guarded)


def test_what_is_made_from_the_class_of_a_guarded_tool_does_not_run(file_team, native):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    fields = ("name", "description", "args_schema", "func")
    made = type(guarded)(**{name: getattr(guarded, name) for name in fields})
    enters: list[Any] = [
        lambda: made.run(path="plan"),
        lambda: made._run(path="plan"),
        lambda: made.func("plan"),
        lambda: made.to_structured_tool().invoke({"path": "plan"}),
    ]
    for enter in enters:
        with file_team.alice(), pytest.raises(ConfigError, match="did not run"):
            enter()
    assert file_team.ran == []
