"""Classes of crews (``@CrewBase``): guarded once, above and below, and inherited."""

from __future__ import annotations

from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.project import (
    CrewBase,
    after_kickoff,
    agent,
    before_kickoff,
    crew,
    llm,
    task,
)
from crewai.project import tool as crew_tool
from crewai_identities import (
    CALL,
    RESEARCHER,
    WRITER,
    base_of,
    begun,
    guard_with,
    instances,
    look,
    who,
)

from agentguard import ConfigError
from agentguard_crewai import guard_crew, guard_crewbase

crew_method = crew  # where a class has several


@pytest.mark.parametrize("below", [True, False])
def test_it_guards_above_and_below_crew_base(native, recorded, signed, write_yaml, below):
    made = guard_with(recorded, "sleuth")
    paths = write_yaml({"lead": {**RESEARCHER, "identity": "sleuth"}})

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


def test_a_crew_of_a_class_is_guarded_once(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "researcher", "writer")
    paths = write_yaml({"researcher": RESEARCHER, "writer": WRITER})
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


def test_a_class_is_guarded_once(native, recorded, signed, write_yaml):
    made, other = guard_with(recorded, "researcher", "writer"), guard_with(recorded, "writer")
    paths = write_yaml({"researcher": RESEARCHER, "writer": WRITER})
    kind = guard_crewbase(made.guard)(guard_crewbase(made.guard)(base_of(native, paths)))
    begun(kind).crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
    with pytest.raises(ConfigError, match="already guarded"):
        begun(guard_crewbase(other.guard)(kind)).crew()


def test_hooks_and_parts_of_the_class_are_what_they_were(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth")
    seen: list[Any] = []
    entry = {**RESEARCHER, "role": "{kind} Researcher", "identity": "sleuth"}
    paths = write_yaml({"lead": {**entry, "llm": "scripted", "tools": ["looking"]}})

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


def test_a_class_may_have_several_crews_and_arguments(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
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


def test_an_agent_that_is_made_by_a_coroutine_is_who_the_yaml_says(
    native, recorded, signed, write_yaml
):
    made = guard_with(recorded, "sleuth")
    paths = write_yaml({"lead": {**RESEARCHER, "identity": "sleuth"}})

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


def test_a_class_that_inherits_a_guarded_crew_is_guarded(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
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


def test_a_crew_that_a_class_inherits_can_be_guarded(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
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


def test_an_agent_that_a_class_inherits_is_who_the_yaml_says(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
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


def test_no_attribute_of_a_guarded_class_leads_past_the_guard(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "researcher", "writer")
    paths = write_yaml({"researcher": RESEARCHER, "writer": WRITER})
    kind = guard_crewbase(made.guard)(base_of(native, paths))
    assert not hasattr(kind.crew, "__wrapped__")
    begun(kind).crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
