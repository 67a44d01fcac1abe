"""Agents that look, and guards with certain names: for the tests of who the members of a crew are.

The tests ``test_crewai_identities_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

from typing import Any

from crewai import Agent, Crew, Task
from crewai.project import (
    CrewBase,
    agent,
    crew,
    task,
)
from crewai.tools import tool

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


def who(calls: list[Any]) -> list[str]:
    """Whose keys signed the looks, by name."""
    assert {call.chain for call in calls} <= {()}
    return [call.agent for call in calls if call.tool == "look"]


def instances(calls: list[Any]) -> list[str]:
    return [call.instance for call in calls if call.tool == "look"]


ALIVE: list[Any] = []
"""CrewAI memoises the agents of an instance by its ``id()``: none of a test is to be had again."""


RESEARCHER = {"role": "Researcher", "goal": "find out", "backstory": "curious"}
WRITER = {"role": "Writer", "goal": "write", "backstory": "wordy"}


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
