"""Agents by themselves, copies, later runs and representations are the same as without a guard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tools import BaseTool
from crewai_parity import NAMES, Counter, Report, Watch, dumped, reader

from agentguard_crewai import guard_agent, guard_crew

# --- agents by themselves ------------------------------------------------------------------------


ALONE: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda agent: agent.kickoff("do it"),
    "kickoff_async": lambda agent: asyncio.run(agent.kickoff_async("do it")),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("do it")),
    "messages": lambda agent: agent.kickoff(
        [{"role": "user", "content": "hello"}, {"role": "user", "content": "do it"}]
    ),
    "a shape": lambda agent: agent.kickoff("do it", response_format=Report),
}


@pytest.mark.parametrize("alone", ALONE)
def test_an_agent_by_itself_is_the_same(same, native, alone):
    def build(watch):
        said = '{"title": "t", "pages": 2}' if alone == "a shape" else "done"
        steps = ("read_file", {"path": "a"}), *[said] * 3
        return watch.agent(native, "Lead", *steps, tools=[reader(watch)])

    run = same(build, ALONE[alone], guarded=guard_agent)
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("the content of a")
    assert "lite_agent_execution_completed" in run.seen["types"]


def test_the_guardrail_of_an_agent_has_the_same_say(same, native):
    def build(watch):
        def checked(output):
            watch.note("guardrail", output.raw)
            return "better" in output.raw, output.raw

        call = "read_file", {"path": "a"}
        steps = call, "bad", call, "better"
        return watch.agent(native, "Lead", *steps, tools=[reader(watch)], guardrail=checked)

    run = same(build, ALONE["kickoff"], guarded=guard_agent)
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert run.seen["guardrail"] == ["bad", "better"]


# --- copies, and runs of one crew after another --------------------------------------------------


def test_a_second_run_of_a_crew_is_the_same(same, native, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "one", ("read_file", {"path": "a"}), "two"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]), cache=True)

    run = same(build, lambda crew: [how(crew), how(crew)])
    assert run.made == [("lead", "read_file", "ok")] * 2


EACH: dict[str, Callable[[Any, Any], Any]] = {
    "kickoff_for_each": lambda crew, given: crew.kickoff_for_each(given),
    "kickoff_for_each_async": lambda crew, given: asyncio.run(crew.kickoff_for_each_async(given)),
    "akickoff_for_each": lambda crew, given: asyncio.run(crew.akickoff_for_each(given)),
}


@pytest.mark.parametrize("each", EACH)
def test_a_run_for_each_input_is_the_same(same, native, each):
    def build(watch):
        class Each(BaseTool):
            name: str = "Look Up"
            description: str = "Looks up."

            def _run(self, word: str) -> str:
                return f"found {word}"

        # a model whose answers depend on what it reads: the runs may be at the same time
        plain: Any = type(native.model())

        class Model(plain):
            def call(self, messages, *args, **kwargs):
                asked = str(messages)
                word = "bees" if "about bees" in asked else "wasps"
                known = f"found {word}" in asked
                self.steps[:] = [f"all of {word}" if known else ("look_up", {"word": word})]
                return plain.call(self, messages, *args, **kwargs)

        llm = Model(model="scripted", native=True)
        lead = watch.agent(native, "Lead", llm=llm, tools=[Each()])
        task = Task(description="about {topic}", expected_output="words", agent=lead)
        return Crew(agents=[lead], tasks=[task])

    given = [{"topic": "bees"}, {"topic": "wasps"}]
    but = () if each == "kickoff_for_each" else ("events", "types", "counts", "reprs")
    run = same(build, lambda crew: [one.raw for one in EACH[each](crew, given)], but=but)
    assert run.seen["result"] == [["list", "all of bees", "all of wasps"]]
    assert run.made == [("lead", "look_up", "ok")] * 2
    # each copy is an instance with a key of its own
    assert len({call.instance for call in run.calls}) == 2


def test_a_copied_crew_is_the_same(same, native, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        writer = watch.agent(native, "Writer", "written")
        return native.crew(lead, writer, cache=True, name="copied")

    run = same(build, lambda crew: how(crew.copy()))
    assert run.made == [("lead", "read_file", "ok")]


# --- what can be looked at -----------------------------------------------------------------------


def looked_at(way) -> Callable[[Watch], Crew]:
    def build(watch):
        steps = ("count_things", {"by": 6}), "done"
        tools = [Counter(max_usage_count=3)]  # a function has no JSON
        lead = watch.agent(way, "Lead", *steps, tools=tools, cache=True)
        return way.crew(lead, watch.agent(way, "Writer", "written"), cache=True, name="looked at")

    return build


def dumps(crew: Crew) -> list[Any]:
    """All ways in which Python, pydantic and CrewAI write a crew down."""
    one = crew.agents[0]
    crewless = {"crew", "agents", "tasks"}
    return [
        *(repr(x) for x in (crew, one, *one.tools, *crew.tasks)),
        *(str(x) for x in (crew, one, *one.tools, *crew.tasks)),
        one.model_dump(exclude=crewless),
        one.model_dump(mode="json"),
        one.model_dump_json(),
        *(dumped(x) for x in one.tools),
        crew.model_dump(exclude=crewless),
        crew.model_dump_json(),
        [type(x).__name__ for x in (crew, one, *one.tools)],
        [type(x).__qualname__ for x in (crew, one, *one.tools)],
        [type(x).__module__ for x in (crew, one, *one.tools)],
        [type(x).__doc__ for x in (crew, one, *one.tools)],
        [sorted(type(x).model_fields) for x in (crew, one, *one.tools)],
        [x.tool_type for x in one.tools],
        [x.formatted_description for x in one.tools],
    ]


def test_it_is_written_down_as_it_was(same, native):
    same(looked_at(native), lambda crew: [dumps(crew), crew.kickoff().raw, dumps(crew)])


def test_no_key_and_no_identity_is_written_down(native, recorded, tmp_path):
    made = recorded(agents={name: {"max_scope": ["a"]} for name in NAMES})
    crew = guard_crew(looked_at(native)(Watch()), made.guard)
    crew.checkpoint = CheckpointConfig(location=str(tmp_path), on_events=["*"])
    with made.guard.delegate("user:alice", scope=["a"]):
        written = str(dumps(crew))
        assert crew.kickoff().raw == "written"
        written += str(dumps(crew))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    written += "".join(path.read_text() for path in files)
    assert "count_things" in written
    for secret in ("agentguard", "spiffe:", "_agentguard", "guarded ", "Identity", "user:alice"):
        assert secret not in written.replace("agentguard-crewai", "")
    for call in made.calls():
        assert call.agent.rsplit("/", 1)[-1] not in written


def test_the_classes_are_what_they_were(native, recorded):
    made = recorded(agents={name: {} for name in NAMES})

    class Special(Agent):
        pass

    class Team(Crew):
        pass

    one = Special(role="Lead", goal="g", backstory="b", llm=native.model("done"), tools=[Counter()])
    task = Task(description="a task", expected_output="words", agent=one)
    crew = guard_crew(Team(agents=[one], tasks=[task]), made.guard)
    assert isinstance(crew, Team)
    assert isinstance(one, Special)
    assert crew.agents == [one]
    assert task.agent is one
    one.create_agent_executor()
    (shown,) = one.agent_executor.original_tools
    assert isinstance(shown, Counter)
    assert isinstance(one.tools[0], Counter)  # what the application holds looks as it did
    assert type(one.tools[0]).__qualname__ == Counter.__qualname__
    assert shown == one.tools[0] or shown.model_dump() == one.tools[0].model_dump()
