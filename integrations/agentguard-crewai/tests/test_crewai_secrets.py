"""A tool of a crew gets a secret while its call runs, and a tool that is not named gets none."""

from __future__ import annotations

from crewai import Agent, Crew, Task
from crewai.tools import tool

from agentguard import Decision, Guard, secret
from agentguard.audit.entry import parse_entry
from agentguard_crewai import guard_crew
from agentguard_crewai.testing import scripted_model


@tool
def deploy(version: str) -> str:
    """Deploy a version."""
    return f"{version} is live, with {len(secret('TOKEN'))} characters"


@tool
def search(text: str) -> str:
    """Search for a text."""
    return secret("TOKEN") + text


def kicked_off(guard, name, **arguments):
    model = scripted_model((name, arguments), "Done.")
    releaser = Agent(
        role="Releaser", goal="Release", backstory="Careful.", llm=model, tools=[deploy, search]
    )
    task = Task(description="Release.", expected_output="A line.", agent=releaser)
    output = guard_crew(Crew(agents=[releaser], tasks=[task]), guard).kickoff()
    return str(output.tasks_output[0].messages)


def released(guard):
    parsed = [parse_entry(body) for _index, body in guard.reader().entries(0)]
    return [entry.members["tool"] for entry in parsed if entry.kind == "secret"]


def test_a_tool_of_a_crew_gets_its_secret_and_another_gets_none(monkeypatch):
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", "hunter2-4711")
    tables = {"secrets": {"TOKEN": {"env": "AGENTGUARD_TEST_TOKEN", "tools": ["deploy"]}}}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        assert "1.2 is live, with 12 characters" in kicked_off(guard, "deploy", version="1.2")
        assert released(guard) == ["deploy"]
        refused = kicked_off(guard, "search", text="!")
        assert "the secret TOKEN is not for the tool search" in refused
        assert "hunter2" not in refused
        assert released(guard) == ["deploy"]
        assert guard.verify().ok
