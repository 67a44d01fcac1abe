"""Tasks, coworkers, managers, streams and replays are the same in a crew that is guarded."""

from __future__ import annotations

from typing import Any

import pytest
from crewai import Crew, Process, Task
from crewai.tasks.conditional_task import ConditionalTask
from crewai_parity import HOW, Counter, Report, reader


def test_outputs_of_a_shape_are_the_same(same, native):
    def build(watch):
        said = '{"title": "t", "pages": 2}'
        steps = ("read_file", {"path": "a"}), said, said
        one = watch.agent(native, "Lead", *steps, *[said] * 3, tools=[reader(watch)])
        two = watch.agent(native, "Writer", said, said, said)
        tasks = [
            Task(description="one", expected_output="x", agent=one, output_pydantic=Report),
            Task(description="two", expected_output="x", agent=two, output_json=Report),
        ]
        return Crew(agents=[one, two], tasks=tasks)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "read_file", "ok")]
    (result,) = run.seen["result"]
    assert "Report" in str(result)


def test_context_and_conditions_are_the_same(same, native):
    def build(watch):
        tools = [reader(watch)]
        lead = watch.agent(native, "Lead", ("read_file", {"path": "a"}), "found bees", tools=tools)
        writer = watch.agent(
            native, "Writer", ("read_file", {"path": "b"}), "ok", "end", tools=tools
        )
        first = Task(description="find", expected_output="x", agent=lead)

        def conditional(what: str) -> ConditionalTask:
            return ConditionalTask(
                description=f"only for {what}",
                expected_output="x",
                agent=writer,
                condition=lambda output: what in output.raw,
            )

        last = Task(description="end", expected_output="x", agent=writer, context=[first])
        tasks = [first, conditional("wasps"), conditional("bees"), last]
        if not tasks[1].condition:
            raise AssertionError
        return Crew(agents=[lead, writer], tasks=tasks)

    run = same(build, HOW["akickoff"])
    assert run.seen["result"]
    assert ("lead", "read_file", "ok") in run.made
    assert run.said("found bees")


def test_asynchronous_tasks_are_the_same(same, native, how):
    def build(watch):
        lead = watch.agent(
            native, "Lead", ("read_file", {"path": "a"}), "one", tools=[reader(watch)]
        )
        writer = watch.agent(native, "Writer", ("read_file", {"path": "b"}), "two")
        tasks = [
            Task(description="x", expected_output="x", agent=lead, async_execution=True),
            Task(description="y", expected_output="y", agent=writer, tools=[reader(watch)]),
        ]
        tasks[1].context = [tasks[0]]
        return Crew(agents=[lead, writer], tasks=tasks)

    # a thread of its own emits events beside those of the crew
    run = same(build, how, but=("events", "types", "messages"))
    assert run.made == [("lead", "read_file", "ok"), ("writer", "read_file", "ok")]


def test_an_agent_with_two_tasks_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "one", ("count_things", {}), "two"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        tasks = [
            Task(description="x", expected_output="x", agent=lead),
            Task(description="y", expected_output="y", agent=lead, tools=[Counter()]),
        ]
        return Crew(agents=[lead], tasks=tasks)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "read_file", "ok"), ("lead", "count_things", "ok")]


def test_a_time_limit_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        tools = [reader(watch)]
        return native.crew(watch.agent(native, "Lead", *steps, tools=tools, max_execution_time=60))

    assert same(build, HOW["akickoff"]).made == [("lead", "read_file", "ok")]


def test_work_handed_to_a_coworker_is_the_same(same, native, how):
    def build(watch):
        handed = {"task": "write", "context": "c", "coworker": "Writer"}
        steps = ("delegate_work_to_coworker", handed), "done"
        lead = watch.agent(native, "Lead", *steps, allow_delegation=True)
        asked = ("read_file", {"path": "a"}), "written"
        writer = watch.agent(native, "Writer", *asked, tools=[reader(watch)])
        task = Task(description="a task", expected_output="words", agent=lead)
        return Crew(agents=[lead, writer], tasks=[task])

    chains = {("lead",), ("lead", "writer")}
    run = same(build, how, chains=chains)
    assert sorted(run.made) == [
        ("lead", "delegate_work_to_coworker", "ok"),
        ("writer", "read_file", "ok"),
    ]
    assert run.said("written")


def test_a_question_to_nobody_is_answered_alike(same, way, how):
    def build(watch):
        asked = {"question": "why?", "context": "c", "coworker": "Nobody"}
        steps = ("ask_question_to_coworker", asked), "done"
        lead = watch.agent(way, "Lead", *steps, allow_delegation=True)
        task = Task(description="a task", expected_output="words", agent=lead)
        return Crew(agents=[lead, watch.agent(way, "Writer", "unasked")], tasks=[task])

    run = same(build, how)
    assert run.made == [("lead", "ask_question_to_coworker", "ok")]


@pytest.mark.parametrize("manager", ["made", "given"])
def test_a_hierarchical_crew_is_the_same(same, native, how, manager):
    def build(watch):
        handed = {"task": "write", "context": "c", "coworker": "Writer"}
        steps = ("delegate_work_to_coworker", handed), "done"
        asked = ("read_file", {"path": "a"}), "written"
        writer = watch.agent(native, "Writer", *asked, tools=[reader(watch)])
        task = Task(description="a task", expected_output="words")
        options: dict[str, Any] = {"manager_llm": watch.model(native, *steps)}
        if manager == "given":
            options = {"manager_agent": watch.agent(native, "Boss", *steps, allow_delegation=True)}
        return Crew(agents=[writer], tasks=[task], process=Process.hierarchical, **options)

    boss = "crew-manager" if manager == "made" else "boss"
    run = same(build, how, chains={(boss,), (boss, "writer")})
    assert sorted(run.made) == sorted(
        [(boss, "delegate_work_to_coworker", "ok"), ("writer", "read_file", "ok")]
    )


def test_inputs_are_filled_in_alike(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        lead.goal, lead.backstory = "know all about {topic}", "you are {mood}"
        task = Task(description="about {topic}", expected_output="{topic}", agent=lead)
        return Crew(agents=[lead], tasks=[task])

    given = {"topic": "bees", "mood": "curious"}
    run = same(build, lambda crew: crew.kickoff(inputs=given))
    assert run.said("know all about bees")
    assert run.made == [("lead", "read_file", "ok")]


def test_a_stream_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        return native.crew(lead, stream=True)

    def run(crew):
        output = crew.kickoff()
        return [[chunk.content for chunk in output], output.result]

    # CrewAI runs it in a thread, whose events begin anew
    assert same(build, run, but=("events", "types")).made == [("lead", "read_file", "ok")]


def test_a_replay_is_the_same(same, native):
    def build(watch):
        tools = [reader(watch)]
        lead = watch.agent(native, "Lead", ("read_file", {"path": "a"}), "found", tools=tools)
        steps = ("read_file", {"path": "b"}), "one", ("read_file", {"path": "c"}), "two"
        writer = watch.agent(native, "Writer", *steps, tools=tools)
        tasks = [
            Task(description=what, expected_output="words", agent=agent)
            for what, agent in (("find", lead), ("write", writer))
        ]
        return Crew(agents=[lead, writer], tasks=tasks)

    run = same(build, lambda crew: [crew.kickoff(), crew.replay(str(crew.tasks[1].id))])
    assert [agent for agent, _, _ in run.made] == ["lead", "writer", "writer"]
    assert "two" in str(run.seen["result"])


def test_a_limit_of_requests_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)], max_rpm=1000))

    assert same(build, HOW["kickoff"]).made == [("lead", "read_file", "ok")]
