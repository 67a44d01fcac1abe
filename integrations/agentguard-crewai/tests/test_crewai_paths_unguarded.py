"""Agents and crews that are not guarded, or by another guard: they do not run in a guarded crew."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from crewai import Agent, Crew, Process
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.lite_agent import LiteAgent
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tools import BaseTool
from crewai_files import AGENTS, BOTH, CREW_WAYS, PLAN, Reads, codes, task_of

from agentguard import ConfigError
from agentguard_crewai import guard_agent, guard_crew

SLIPS = {
    "agents": lambda crew, agent: crew.agents.append(agent),
    "task": lambda crew, agent: setattr(crew.tasks[0], "agent", agent),
    "another-task": lambda crew, agent: crew.tasks.append(task_of(agent)),
    "manager": lambda crew, agent: setattr(crew, "manager_agent", agent),
}


@pytest.mark.parametrize("begin", CREW_WAYS)
@pytest.mark.parametrize("slip", SLIPS)
def test_an_unguarded_agent_that_slips_in_aborts_the_crew(file_team, native, slip, begin):
    crew = guard_crew(native.crew(file_team.lead(native)), file_team.guard)
    SLIPS[slip](crew, native.agent("Hand", *BOTH, "done", tools=[file_team.read_file]))
    with file_team.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded") as aborted:
        CREW_WAYS[begin](crew)
    assert aborted.value.code == "agent.unguarded"
    assert (file_team.ran, file_team.calls()) == ([], [])


LATE = {
    "before-kickoff": lambda crew, put: crew.before_kickoff_callbacks.append(put),
    "task-callback": lambda crew, put: setattr(crew.tasks[0], "callback", put),
}


@pytest.mark.parametrize("begin", ["kickoff", "kickoff_async", "akickoff"])
@pytest.mark.parametrize("late", LATE)
def test_an_unguarded_agent_that_a_callback_puts_in_does_not_run(file_team, native, late, begin):
    lead = file_team.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead), task_of(lead)]), file_team.guard)
    hand = native.agent("Hand", *BOTH, "done", tools=[file_team.read_file])

    def put(given: Any) -> Any:
        crew.tasks[1].agent = hand
        return given

    LATE[late](crew, put)
    with file_team.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded"):
        CREW_WAYS[begin](crew)
    file_team.require_both()  # the first task's calls, and no other


def test_a_replay_with_an_unguarded_agent_is_aborted(file_team, native):
    lead = file_team.lead(native)
    crew = guard_crew(native.crew(lead), file_team.guard)
    file_team.kickoff(crew)
    crew.tasks[0].agent = native.agent("Hand", *BOTH, "done", tools=[file_team.read_file])
    with file_team.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded"):
        crew.replay(str(crew.tasks[0].id))
    file_team.require_both()


def asks(coworker):
    return ("delegate_work_to_coworker", {"task": "t", "context": "c", "coworker": coworker})


@pytest.mark.parametrize("guarded_crew", [True, False], ids=["guarded-crew", "unguarded-crew"])
def test_an_unguarded_coworker_is_given_no_work(file_team, native, guarded_crew):
    lead = file_team.lead(native, PLAN, asks("Hand"), "done", allow_delegation=True)
    hand = native.agent("Hand", *BOTH, "done", tools=[file_team.read_file])
    if guarded_crew:
        crew = guard_crew(native.crew(lead), file_team.guard)
        crew.before_kickoff_callbacks.append(lambda _given: crew.agents.append(hand))
    else:
        guard_agent(lead, file_team.guard)
        crew = Crew(agents=[lead, hand], tasks=[task_of(lead)])
    output = file_team.kickoff(crew)
    assert codes(output) == [["agent.unguarded"]]
    assert (file_team.ran, len(hand.llm.steps)) == (["plan"], 3)
    assert [(c.agent, c.tool, c.outcome or c.code) for c in file_team.calls()] == [
        ("lead", "read_file", "ok"),
        ("lead", "delegate_work_to_coworker", "agent.unguarded"),
    ]


def test_a_manager_that_the_crew_makes_is_guarded_each_time(file_team, native):
    hand = native.agent("Hand", *BOTH, "done", *BOTH, "done", tools=[file_team.read_file])
    manager = native.model(asks("Hand"), "done", asks("Hand"), "done")
    crew = Crew(
        agents=[hand], tasks=[task_of(hand)], process=Process.hierarchical, manager_llm=manager
    )
    guard_crew(crew, file_team.guard)
    assert crew.manager_agent is None
    for _time in range(2):
        file_team.kickoff(crew)
        assert file_team.ran == ["plan"]
        file_team.ran.clear()
        crew.tasks[0].agent = hand  # CrewAI has put the manager in its place
    told = [(c.agent, c.tool, c.outcome or c.code, c.chain[2:]) for c in file_team.calls()]
    assert (
        told
        == [
            ("crew-manager", "delegate_work_to_coworker", "ok", ("crew-manager",)),
            ("hand", "read_file", "ok", ("crew-manager", "hand")),
            ("hand", "read_file", "policy.denied", ("crew-manager", "hand")),
        ]
        * 2
    )


def test_an_agent_of_another_guard_is_an_error(file_team, recorded, native):
    other = recorded(agents=AGENTS)
    lead, hand = file_team.lead(native), native.agent("Hand", "done")
    guard_agent(hand, other.guard)
    with pytest.raises(ConfigError, match="already guarded") as refused:
        guard_crew(native.crew(lead, hand), file_team.guard)
    assert refused.value.code == "agent.guarded"
    with pytest.raises(ConfigError, match="already guarded"):
        guard_agent(hand, file_team.guard)
    with pytest.raises(ConfigError, match="already guarded"):
        guard_agent(hand, other.guard, name="lead")
    assert guard_agent(hand, other.guard) is hand
    assert guard_agent(hand, other.guard, name="hand") is hand


def test_a_crew_of_another_guard_is_an_error(file_team, recorded, native):
    other = recorded(agents=AGENTS)
    crew = guard_crew(native.crew(file_team.lead(native)), file_team.guard)
    with pytest.raises(ConfigError, match="already guarded") as refused:
        guard_crew(crew, other.guard)
    assert refused.value.code == "agent.guarded"
    assert guard_crew(crew, file_team.guard) is crew
    file_team.kickoff(crew)
    file_team.require_both()


def test_a_crew_keeps_its_guard_whoever_is_put_into_it(file_team, recorded, native):
    other = recorded(agents=AGENTS)
    crew = guard_crew(native.crew(file_team.lead(native)), file_team.guard)
    hand = guard_agent(native.agent("Hand", "done"), other.guard)
    crew.agents[:], crew.tasks[0].agent = [hand], hand
    with pytest.raises(ConfigError, match=r"the crew .* is already guarded"):
        guard_crew(crew, other.guard)


class Foreign(BaseAgent):
    """An agent that runs its tools by itself, as those of other frameworks do."""

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        raise AssertionError

    async def aexecute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        raise AssertionError

    def create_agent_executor(self, tools: Any = None) -> None:
        raise AssertionError

    def get_delegation_tools(self, agents: Any) -> list[BaseTool]:
        return []

    def get_platform_tools(self, apps: Any) -> list[BaseTool]:
        return []

    def get_mcp_tools(self, mcps: Any) -> list[BaseTool]:
        return []


def test_an_agent_that_runs_its_tools_by_itself_is_not_guarded(file_team, native):
    foreign: Any = Foreign(role="Hand", goal="g", backstory="b")
    with pytest.raises(ConfigError, match="runs its tools by itself") as refused:
        guard_agent(foreign, file_team.guard)
    assert refused.value.code == "agent.unguardable"
    with pytest.raises(ConfigError, match="runs its tools by itself"):
        guard_crew(Crew(agents=[file_team.lead(native), foreign], tasks=[]), file_team.guard)


@pytest.mark.parametrize("method", ["execute_task", "aexecute_task", "kickoff", "kickoff_async"])
def test_an_agent_that_is_put_to_work_in_another_way_is_not_guarded(file_team, native, method):
    lead = file_team.lead(native)
    object.__setattr__(lead, method, lambda *_args, **_kwargs: "done")  # as Agent(a2a=...) does
    with pytest.raises(ConfigError, match=f"its {method} was replaced") as refused:
        guard_agent(lead, file_team.guard)
    assert refused.value.code == "agent.unguardable"


class PastTheGuard(Agent):
    """A class of agents that gives its executor a tool of its own, at the end."""

    def create_agent_executor(self, tools: Any = None, task: Any = None) -> None:
        super().create_agent_executor(tools, task)
        executor: Any = self.agent_executor
        executor.original_tools = [*executor.original_tools, Reads(name="other")]
        executor.tools = [*executor.tools, executor.original_tools[-1].to_structured_tool()]


def test_a_class_of_agents_that_adds_tools_past_the_guard_does_not_run(file_team, native):
    llm = native.model(("other", {"path": "plan"}), "done")
    lead = PastTheGuard(role="Lead", goal="g", backstory="b", llm=llm, tools=[file_team.read_file])
    crew = guard_crew(native.crew(lead), file_team.guard)
    with file_team.alice(), pytest.raises(ConfigError, match="past the guard") as refused:
        crew.kickoff()
    assert refused.value.code == "tool.unguarded"
    assert file_team.calls() == []


@pytest.mark.filterwarnings("ignore:LiteAgent is deprecated:FutureWarning")
def test_what_is_no_agent_of_a_crew_is_not_guarded(file_team, native):
    lite: Any = LiteAgent(role="Hand", goal="g", backstory="b", llm=native.model())
    with pytest.raises(ConfigError, match="expected a CrewAI agent"):
        guard_agent(lite, file_team.guard)


RESTORED = {
    "kickoff": lambda crew, _agent, config: crew.kickoff(from_checkpoint=config),
    "kickoff-positional": lambda crew, _agent, config: crew.kickoff(None, None, config),
    "kickoff_async": lambda crew, _agent, config: asyncio.run(
        crew.kickoff_async(from_checkpoint=config)
    ),
    "akickoff": lambda crew, _agent, config: asyncio.run(crew.akickoff(from_checkpoint=config)),
    "agent": lambda _crew, agent, config: agent.kickoff("go on", from_checkpoint=config),
    "agent-positional": lambda _crew, agent, config: agent.kickoff("go on", None, None, config),
    "agent-kickoff_async": lambda _crew, agent, config: asyncio.run(
        agent.kickoff_async("go on", from_checkpoint=config)
    ),
    "agent-akickoff": lambda _crew, agent, config: asyncio.run(
        agent.akickoff("go on", from_checkpoint=config)
    ),
}


@pytest.mark.parametrize("begin", RESTORED)
def test_what_is_restored_from_a_checkpoint_is_not_run(file_team, native, tmp_path, begin):
    lead = file_team.lead(native, tools=[Reads()])
    crew = guard_crew(native.crew(lead), file_team.guard)
    kept = CheckpointConfig(location=str(tmp_path), on_events=["task_completed"])
    with file_team.alice():
        crew.kickoff(from_checkpoint=kept)
    before = file_team.calls()
    (written,) = tmp_path.rglob("*.json")
    config = CheckpointConfig(location=str(tmp_path), restore_from=str(written))
    with file_team.alice(), pytest.raises(ConfigError, match="a checkpoint holds no identities"):
        RESTORED[begin](crew, lead, config)
    assert file_team.calls() == before


def test_a_checkpoint_tells_nothing_of_identities_and_is_guarded_anew(file_team, native, tmp_path):
    lead = file_team.lead(native, tools=[Reads()])
    kept = CheckpointConfig(location=str(tmp_path), on_events=["task_completed"])
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard), from_checkpoint=kept)
    (written,) = tmp_path.rglob("*.json")
    text = written.read_text()
    assert "Lead" in text
    thumbprint = file_team.calls()[0].instance.rpartition("/")[2]
    assert not [word for word in ("_agentguard", "spiffe", thumbprint) if word in text]
    config = CheckpointConfig(location=str(tmp_path), restore_from=str(written))
    # it leaves what it has restored in the context
    crew = contextvars.copy_context().run(Crew.from_checkpoint, config)
    assert type(crew) is Crew
    assert type(crew.agents[0]) is Agent
    guard_crew(crew, file_team.guard)
    again: Any = crew.agents[0]
    again.llm = native.model(*BOTH, "done")
    with file_team.alice():
        again.kickoff("go on")
    assert len({call.instance for call in file_team.calls()}) == 2
