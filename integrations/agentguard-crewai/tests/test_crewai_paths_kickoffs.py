"""The ways to begin an agent or a crew: each runs the agent's tools past the gate.

Kickoffs, streams, flows, guardrails, replays, training. How work is handed on is in
``test_crewai_delegation_hops.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from typing import Any

import pytest
from crewai import Crew, Task
from crewai.flow import Flow, listen, start
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tools import tool
from crewai_files import BOTH, CHAIN, CREW_WAYS, PLAN, SECRET, Knowing, codes, task_of

from agentguard import ConfigError
from agentguard_crewai import guard_agent, guard_crew


async def iterated(streaming):
    async for _chunk in streaming:
        pass
    return streaming.result


AGENT_WAYS = {
    "kickoff": lambda agent: agent.kickoff("go on"),
    "kickoff_async": lambda agent: asyncio.run(agent.kickoff_async("go on")),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("go on")),
    "message": lambda agent: agent.message("go on"),
    "execute_task": lambda agent: agent.execute_task(task_of(agent)),
    "aexecute_task": lambda agent: asyncio.run(agent.aexecute_task(task_of(agent))),
    "execute_sync": lambda agent: task_of(agent).execute_sync(),
    "execute_async": lambda agent: task_of(agent).execute_async().result(),
    "aexecute_sync": lambda agent: asyncio.run(task_of(agent).aexecute_sync()),
    "unguarded-crew": lambda agent: Crew(agents=[agent], tasks=[task_of(agent)]).kickoff(),
}


@pytest.mark.parametrize("begin", AGENT_WAYS)
def test_an_agent_without_a_guarded_crew(file_team, native, begin):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    with file_team.alice():
        AGENT_WAYS[begin](lead)
    file_team.require_both()
    assert not lead.llm.steps


async def test_an_agent_that_is_kicked_off_on_an_event_loop(file_team, native):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    with file_team.alice():
        begun = lead.kickoff("go on")  # CrewAI returns a coroutine there
        assert inspect.iscoroutine(begun)
        assert (await begun).raw == "done"
    file_team.require_both()


@pytest.mark.parametrize("begin", CREW_WAYS)
def test_the_ways_to_begin_a_crew(file_team, native, begin):
    llm = Knowing(model="knowing", native=True, scripts={"": [*BOTH, "done"]})
    crew = guard_crew(native.crew(file_team.lead(native, llm=llm)), file_team.guard)
    with file_team.alice():
        outputs = CREW_WAYS[begin](crew)
    assert [(output.raw, codes(output)) for output in outputs] == [
        ("done", [["policy.denied"]])
    ] * len(outputs)
    file_team.require_both(times=len(outputs))
    # each copy of the crew has an instance of its own, and the crew itself made no call then
    assert len({call.instance for call in file_team.calls()}) == len(outputs)
    with file_team.alice():
        crew.kickoff()
    instances = {call.instance for call in file_team.calls()}
    assert len(instances) == len(outputs) + (len(outputs) > 1)


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_tasks_that_are_executed_at_once(file_team, native, begin):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        file_team.ran.append(path)
        return path

    lead = file_team.lead(native, tools=[read_file])
    hand = native.agent("Hand", *BOTH, "done", tools=[read_file])
    last = native.agent("Crew manager", "done")
    tasks = [task_of(one, async_execution=True) for one in (lead, hand)]
    crew = guard_crew(
        Crew(agents=[lead, hand, last], tasks=[*tasks, task_of(last)]), file_team.guard
    )
    with file_team.alice():
        output = CREW_WAYS[begin](crew)[0]
    assert codes(output) == [["policy.denied"], ["policy.denied"], []]
    assert file_team.ran == ["plan", "plan"]
    for agent in ("lead", "hand"):
        own = [call for call in file_team.calls() if call.agent == agent]
        assert [call.outcome or call.code for call in own] == ["ok", "policy.denied"]
        assert {call.chain for call in own} == {("user:alice", "crew:report", agent)}


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_an_agent_with_a_limit_of_its_time(file_team, native, begin):
    crew = guard_crew(native.crew(file_team.lead(native, max_execution_time=60)), file_team.guard)
    with file_team.alice():
        CREW_WAYS[begin](crew)
    file_team.require_both()


STREAMS = {
    "kickoff": lambda crew: [list(streaming := crew.kickoff()), streaming.result][1],
    "kickoff_async": lambda crew: asyncio.run(streamed(crew.kickoff_async)),
    "akickoff": lambda crew: asyncio.run(streamed(crew.akickoff)),
}


async def streamed(begin):
    return await iterated(await begin())


@pytest.mark.parametrize("begin", STREAMS)
def test_a_crew_that_streams(file_team, native, begin):
    lead = file_team.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead)], stream=True), file_team.guard)
    with file_team.alice():
        output = STREAMS[begin](crew)
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    file_team.require_both()


def test_a_stream_that_is_read_after_the_block_does_not_run(file_team, native):
    lead = file_team.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead)], stream=True), file_team.guard)
    with file_team.alice():
        streaming: Any = crew.kickoff()
    with pytest.raises(ConfigError, match="read it in the block that kicked it off") as refused:
        list(streaming)  # only now it would run
    assert refused.value.code == "crew.elsewhere"
    assert (file_team.ran, file_team.calls()) == ([], [])


def flow_of(sync, begin):
    """A flow whose first method begins what the test does."""
    if sync:

        class Sync(Flow[Any]):
            """Its methods run in threads."""

            @start()
            def first(self) -> Any:
                return begin()

            @listen(first)
            def second(self, result: Any) -> Any:
                return result

        return Sync(suppress_flow_events=True)

    class Async(Flow[Any]):
        """Its methods run on the loop."""

        @start()
        async def first(self) -> Any:
            return await begin()

        @listen(first)
        async def second(self, result: Any) -> Any:
            return result

    return Async(suppress_flow_events=True)


FLOWS = {
    "crew": (True, lambda crew, _agent: crew.kickoff()),
    "agent": (True, lambda _crew, agent: agent.kickoff("go on")),
    "crew-akickoff": (False, lambda crew, _agent: crew.akickoff()),
    "crew-kickoff_async": (False, lambda crew, _agent: crew.kickoff_async()),
    "agent-kickoff": (False, lambda _crew, agent: agent.kickoff("go on")),
    "agent-akickoff": (False, lambda _crew, agent: agent.akickoff("go on")),
}


@pytest.mark.parametrize("begin", FLOWS)
def test_inside_of_a_flow(file_team, native, begin):
    sync, started = FLOWS[begin]
    lead = file_team.lead(native)
    crew = guard_crew(native.crew(lead), file_team.guard)
    with file_team.alice():
        output = flow_of(sync, lambda: started(crew, lead)).kickoff()
    assert output.raw == "done"
    file_team.require_both()


def test_a_second_try_after_a_guardrail(file_team, native):
    tries = []

    def once(_output):
        tries.append(len(file_team.calls()))
        return (len(tries) > 1, "not yet" if len(tries) == 1 else "done")

    lead = file_team.lead(native, PLAN, "first", SECRET, "second")
    task = task_of(lead, guardrail=once)
    file_team.kickoff(guard_crew(Crew(agents=[lead], tasks=[task]), file_team.guard))
    assert tries == [1, 2]
    file_team.require_both()


def test_a_second_try_of_an_agent_by_itself_after_a_guardrail(file_team, native):
    tries = []

    def once(_output):
        tries.append(len(file_team.calls()))
        return (len(tries) > 1, "not yet" if len(tries) == 1 else "done")

    lead: Any = guard_agent(
        file_team.lead(native, PLAN, "one", SECRET, "two", guardrail=once), file_team.guard
    )
    with file_team.alice():
        lead.kickoff("go on")
    assert tries == [1, 2]
    file_team.require_both()


def test_a_second_try_after_what_a_person_said_of_the_answer(file_team, native, monkeypatch):
    said = iter(["read the other one, too", ""])
    monkeypatch.setattr("builtins.input", lambda *_prompt: next(said))
    lead = file_team.lead(native, PLAN, "first", SECRET, "second")
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead, human_input=True)]), file_team.guard)
    assert file_team.kickoff(crew).raw == "second"
    file_team.require_both()


def test_a_task_on_a_condition(file_team, native):
    lead = file_team.lead(native, PLAN, "first", SECRET, "second")
    tasks = [
        task_of(lead),
        *(
            ConditionalTask(
                description="on a condition",
                expected_output="words",
                agent=lead,
                condition=lambda _output, met=met: met,
            )
            for met in (False, True)
        ),
    ]
    file_team.kickoff(guard_crew(Crew(agents=[lead], tasks=tasks), file_team.guard))
    file_team.require_both()


def test_a_crew_whose_tasks_are_planned_first(file_team, native):
    plan = {"list_of_plans_per_task": [{"task_number": 1, "task": "a task", "plan": "read both"}]}
    planner = native.model(*[json.dumps(plan)] * 2)
    lead = file_team.lead(native)
    crew = Crew(agents=[lead], tasks=[task_of(lead)], planning=True, planning_llm=planner)
    file_team.kickoff(guard_crew(crew, file_team.guard))
    assert "read both" in crew.tasks[0].description
    file_team.require_both()


def test_a_model_of_its_own_that_picks_the_tools(file_team, text, native):
    picks = [
        json.dumps({"tool_name": "read_file", "arguments": {"path": path}})
        for path in ("plan", "secret")
    ]
    picking = native.model(*picks)
    unheard = ("look into it", {})  # CrewAI asks the other model which tool is meant
    lead = file_team.lead(text, unheard, unheard, "done", function_calling_llm=picking)
    file_team.kickoff(guard_crew(text.crew(lead), file_team.guard))
    assert len(picking.heard) == len(picks)
    file_team.require_both()


def test_a_second_try_after_an_error_of_the_model(file_team, native):
    lead = file_team.lead(native, PLAN, ValueError("the model is away"), SECRET, "done")
    output = file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert output.raw == "done"
    file_team.require_both()


def test_a_run_that_is_replayed(file_team, native):
    lead = file_team.lead(native, PLAN, "first", SECRET, "second", PLAN, SECRET, "again")
    tasks = [Task(description=f"task {at}", expected_output="words", agent=lead) for at in range(2)]
    crew = guard_crew(Crew(agents=[lead], tasks=tasks), file_team.guard)
    file_team.kickoff(crew)
    file_team.require_both()
    with file_team.guard.delegate("user:bob", scope=["read"], via="crew:report"):
        assert crew.replay(str(crew.tasks[1].id)).raw == "again"
    chains = [call.chain for call in file_team.calls()]
    assert chains == [CHAIN, CHAIN, ("user:bob", *CHAIN[1:]), ("user:bob", *CHAIN[1:])]
    assert file_team.ran == ["plan", "plan"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """CrewAI writes what it has trained into the folder that it runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_prompt: "better, please")
    return tmp_path


def test_a_crew_that_is_trained(file_team, native, elsewhere):
    learned = json.dumps({"suggestions": ["read"], "quality": 5, "final_summary": "good"})
    lead = file_team.lead(native, *BOTH, "done", "better", learned, learned)
    crew = guard_crew(native.crew(lead), file_team.guard)
    with file_team.alice():
        crew.train(1, str(elsewhere / "trained.pkl"))
    file_team.require_both()


def test_a_crew_that_is_tested(file_team, native, elsewhere):
    crew = guard_crew(native.crew(file_team.lead(native)), file_team.guard)
    with file_team.alice():
        crew.test(1, native.model(*[json.dumps({"quality": 5})] * 2))
    file_team.require_both()
