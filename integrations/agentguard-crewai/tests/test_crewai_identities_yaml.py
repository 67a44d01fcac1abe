"""Identities that the YAML of a crew gives to its agents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.project import (
    CrewBase,
    agent,
    crew,
    load_crew,
    task,
)
from crewai_identities import (
    CALL,
    RESEARCHER,
    WRITER,
    base_of,
    begun,
    guard_with,
    look,
    one_of,
    who,
)

from agentguard import ConfigError
from agentguard_crewai import guard_agent, guard_crew, guard_crewbase


def test_an_identity_in_the_yaml_is_honoured(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "writer", "researcher")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "writer"]


def test_it_is_honoured_as_text_in_the_file_stands(native, recorded, signed, write_yaml):
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
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml({}, text))))
    team.crew().kickoff(inputs={"topic": "bees"})
    assert who(signed(made.guard)) == ["sleuth", "writer"]


@pytest.mark.parametrize("key", ["identty", "Identity", "identity ", "idenity", "name_of_agent"])
def test_a_typo_in_the_key_is_an_error(native, recorded, signed, write_yaml, key):
    made = guard_with(recorded, "sleuth", "writer", "researcher")
    paths = write_yaml({"researcher": {**RESEARCHER, key: "sleuth"}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    with pytest.raises(ConfigError) as refused:
        team.crew()
    told = str(refused.value)
    assert told.startswith(f"{paths[0]}: researcher.{key}: CrewAI does not know this key")
    if key != "name_of_agent":
        assert "identity is close to it" in told
    assert signed(made.guard) == []


def test_all_keys_that_crewai_knows_are_taken(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "researcher", "writer")
    known = {"max_iter": 9, "verbose": False, "allow_delegation": False, "max_rpm": 100}
    paths = write_yaml({"researcher": {**RESEARCHER, **known}, "writer": WRITER})
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


def test_a_key_of_the_agents_own_class_is_taken(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth")
    paths = write_yaml({"researcher": {**RESEARCHER, "budget": 3, "identity": "sleuth"}})
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


def test_an_identity_that_is_not_configured_is_an_error(native, strict, write_yaml):
    guard = strict("researcher", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "nobody"}, "writer": WRITER})
    team = begun(guard_crewbase(guard)(base_of(native, paths)))
    with pytest.raises(ConfigError, match=r"there is no \[agents.nobody\]; known agents"):
        team.crew()


@pytest.mark.parametrize("identity", [5, True, ["sleuth"], {"name": "sleuth"}, "", None])
def test_an_identity_of_another_type_is_an_error(native, recorded, write_yaml, identity):
    made = guard_with(recorded, "sleuth", "researcher", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": identity}, "writer": WRITER})
    team = begun(guard_crewbase(made.guard)(base_of(native, paths)))
    with pytest.raises(ConfigError, match=r"researcher.identity: expected the name of an agent"):
        team.crew()


def test_an_entry_may_have_another_name_than_its_method(native, recorded, signed, write_yaml):
    made = guard_with(recorded, "sleuth", "scribe")
    paths = write_yaml(
        {
            "first": {**RESEARCHER, "identity": "sleuth"},
            "second": {**WRITER, "identity": "scribe"},
        }
    )
    team = begun(guard_crewbase(made.guard)(base_of(native, paths, ("first", "second"))))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["sleuth", "scribe"]


def test_an_agent_is_who_the_entry_says_that_it_was_made_from(native, recorded, signed, write_yaml):
    # each method takes the entry that has the other's name
    made = guard_with(recorded, "sleuth", "scribe")
    paths = write_yaml(
        {
            "researcher": {**RESEARCHER, "identity": "sleuth"},
            "writer": {**WRITER, "identity": "scribe"},
        }
    )
    team = begun(guard_crewbase(made.guard)(base_of(native, paths, ("writer", "researcher"))))
    assert [one.role for one in team.crew().agents] == ["Writer", "Researcher"]
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["scribe", "sleuth"]


def test_an_agent_whose_method_changes_the_entry_is_who_it_says(
    native, recorded, signed, write_yaml
):
    made = guard_with(recorded, "sleuth", "writer")
    paths = write_yaml({"researcher": {**RESEARCHER, "identity": "sleuth"}, "writer": WRITER})

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


def test_an_identity_that_no_agent_has_is_an_error(native, recorded, write_yaml):
    made = guard_with(recorded, "researcher", "writer", "sleuth")
    unused = {"role": "Other", "goal": "g", "backstory": "b"}
    agents = {"researcher": RESEARCHER, "writer": WRITER, "unused": unused}
    begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents)))).crew()
    agents["unused"] = {**unused, "identity": "sleuth"}
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents))))
    with pytest.raises(ConfigError, match=r"unused.identity: no agent of the crew is made from"):
        team.crew()


def test_two_entries_that_are_alike_and_differ_in_identity_are_an_error(
    native, recorded, write_yaml
):
    made = guard_with(recorded, "sleuth", "spy", "writer")
    agents = {
        "one": {**RESEARCHER, "identity": "sleuth"},
        "other": {**RESEARCHER, "identity": "spy"},
        "writer": WRITER,
    }
    taken = ("one", "writer")
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents), taken)))
    with pytest.raises(ConfigError, match="gives it another identity: sleuth, and spy"):
        team.crew()
    agents["other"]["identity"] = "sleuth"
    begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents), taken))).crew()


def test_an_entry_that_nobody_uses_gives_its_identity_to_none_that_is_alike(
    native, recorded, signed, write_yaml
):
    made = guard_with(recorded, "researcher", "spy", "writer")
    agents = {"researcher": RESEARCHER, "unused": RESEARCHER, "writer": WRITER}
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents))))
    team.crew().kickoff()
    assert who(signed(made.guard)) == ["researcher", "writer"]
    agents["unused"] = {**RESEARCHER, "identity": "spy"}
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents))))
    with pytest.raises(ConfigError, match=r"unused.identity: no agent of the crew is made from"):
        team.crew()


def test_two_agents_of_alike_entries_have_their_own_identities(
    native, recorded, signed, write_yaml
):
    made = guard_with(recorded, "sleuth", "spy")
    agents = {
        "researcher": {**RESEARCHER, "identity": "sleuth"},
        "writer": {**RESEARCHER, "identity": "spy"},
    }
    team = begun(guard_crewbase(made.guard)(base_of(native, write_yaml(agents))))
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
