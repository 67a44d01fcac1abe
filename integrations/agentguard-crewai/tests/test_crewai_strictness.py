"""A process that refuses agents with tools that nobody has guarded, and lets all others work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crewai import Agent as CrewAgent
from crewai import Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.lite_agent import LiteAgent
from crewai.tools import tool
from pydantic import Field

from agentguard import ConfigError
from agentguard_crewai import guard_agent, guard_crew, refuse_unguarded

READ = ("read_file", {"path": "notes"})


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def read(ran) -> Any:
    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        ran.append(path)
        return f"the content of {path}"

    return read_file


@pytest.fixture
def strict(monkeypatch) -> None:
    """A process that refuses; CrewAI's classes are as they were when the test is over."""
    for kind, name in (
        (CrewAgent, "_add_skill_loader_tool"),
        (Task, "_execute_core"),
        (Task, "_aexecute_core"),
        (LiteAgent, "_execute_core"),
    ):
        monkeypatch.setattr(kind, name, getattr(kind, name))
    refuse_unguarded()
    refuse_unguarded()


def task(agent: Any = None, **options: Any) -> Task:
    return Task(description="a task", expected_output="words", agent=agent, **options)


WAYS = {
    "kickoff": lambda crew: crew.kickoff(),
    "kickoff_async": lambda crew: asyncio.run(crew.kickoff_async()),
    "akickoff": lambda crew: asyncio.run(crew.akickoff()),
    "for_each": lambda crew: crew.kickoff_for_each([{}]),
    "agent": lambda crew: crew.agents[0].kickoff("go"),
    "agent_akickoff": lambda crew: asyncio.run(crew.agents[0].akickoff("go")),
    "task": lambda crew: crew.tasks[0].execute_sync(),
    "execute_task": lambda crew: crew.agents[0].execute_task(crew.tasks[0]),
}
EVERY = pytest.mark.parametrize("begin", WAYS.values(), ids=WAYS)


@EVERY
def test_an_unguarded_agent_with_tools_does_not_work(strict, native, read, ran, begin):
    crew = native.crew(native.agent("Lead", READ, "done", tools=[read], max_retry_limit=0))
    with pytest.raises(ConfigError, match="is not guarded, and this process refuses") as raised:
        begin(crew)
    assert raised.value.code == "agent.unguarded"
    assert ran == []


@EVERY
def test_a_guarded_one_does(strict, native, recorded, read, ran, begin):
    crew = native.crew(native.agent("Lead", READ, "done", tools=[read]))
    begin(guard_crew(crew, recorded().guard))
    assert ran == ["notes"]


def test_without_that_an_unguarded_one_does(native, read, ran):
    native.crew(native.agent("Lead", READ, "done", tools=[read])).kickoff()
    assert ran == ["notes"]


def test_the_tools_of_a_task_and_of_handing_over_count(strict, native, read):
    lead, other = native.agent("Lead", READ, "done"), native.agent("Other")
    with pytest.raises(ConfigError, match="is not guarded"):
        native.crew(lead, tasks=[task(lead, tools=[read])]).kickoff()
    lead = native.agent("Lead", "done", allow_delegation=True)
    with pytest.raises(ConfigError, match="is not guarded"):
        native.crew(lead, other, tasks=[task(lead)]).kickoff()


def test_the_manager_that_an_unguarded_crew_makes_is_refused(strict, native, read, ran):
    worker = native.agent("Worker", READ, "done", tools=[read])
    options = {"process": Process.hierarchical, "manager_llm": native.model("done")}
    with pytest.raises(ConfigError, match="is not guarded"):
        Crew(agents=[worker], tasks=[task()], **options).kickoff()
    assert ran == []


def test_an_agent_without_tools_works_as_ever(strict, native):
    assert native.crew(native.agent("Lead", "done")).kickoff().raw == "done"


def test_a_guarded_crew_may_have_a_planner(strict, native, recorded, read, ran):
    planned = native.model(
        '{"list_of_plans_per_task": [{"task_number": 1, "task": "", "plan": "p"}]}'
    )
    lead = native.agent("Lead", READ, "done", tools=[read])
    crew = native.crew(lead, planning=True, planning_llm=planned)
    assert guard_crew(crew, recorded().guard).kickoff().raw == "done"
    assert ran == ["notes"]


class Foreign(BaseAgent):
    """An agent that runs tools by itself."""

    done: list[str] = Field(default_factory=list)
    function_calling_llm: Any = None
    step_callback: Any = None
    allow_code_execution: bool = False
    multimodal: bool = False

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        self.done.append("something")
        return "done"

    async def aexecute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        return self.execute_task(task)

    def create_agent_executor(self, tools: Any = None) -> None: ...

    def get_delegation_tools(self, agents: Any) -> list[Any]:
        return []

    def get_platform_tools(self, apps: Any) -> list[Any]:
        return []

    def get_mcp_tools(self, mcps: Any) -> list[Any]:
        return []


@pytest.mark.parametrize("name", ["kickoff", "akickoff"])
def test_an_agent_that_runs_tools_by_itself_is_refused(strict, name):
    foreign = Foreign(role="Foreign", goal="g", backstory="b")
    crew = Crew(agents=[foreign], tasks=[task(foreign)])
    with pytest.raises(ConfigError, match="which runs its tools by itself, is not guarded"):
        WAYS[name](crew)
    assert foreign.done == []


@pytest.mark.filterwarnings("ignore:LiteAgent is deprecated")
def test_so_is_a_lite_agent(strict, native, read, ran):
    given = {"goal": "g", "backstory": "b", "llm": native.model(READ, "done")}
    with pytest.raises(ConfigError, match="is not guarded"):
        LiteAgent(role="Lite", tools=[read], **given).kickoff("go")
    assert ran == []


def test_an_agent_that_was_guarded_by_itself_works(strict, native, recorded, read, ran):
    lead = guard_agent(native.agent("Lead", READ, "done", tools=[read]), recorded().guard)
    lead.kickoff("go")
    assert ran == ["notes"]
