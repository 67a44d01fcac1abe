"""A tool of a crew gets a secret while its call runs, and a tool that is not named gets none."""

from __future__ import annotations

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import tool

from agentguard import Decision, Guard, secret
from agentguard.audit.kinds import parse_entry
from agentguard_crewai import guard_crew
from agentguard_crewai.testing import scripted_model


@tool
def deploy(version: str) -> str:
    """Deploy a version."""
    return f"{version} is live, with {len(secret('TOKEN'))} characters"


@tool
def leak(raises: bool) -> str:
    """Return the token, or raise it."""
    if raises:
        raise ValueError(f"refused for {secret('TOKEN')}")
    return f"deployed with {secret('TOKEN')}"


@tool
def search(text: str) -> str:
    """Search for a text."""
    return secret("TOKEN") + text


def kicked_off(guard, name, **arguments):
    model = scripted_model((name, arguments), "Done.")
    releaser = Agent(
        role="Releaser",
        goal="Release",
        backstory="Careful.",
        llm=model,
        tools=[deploy, leak, search],
    )
    task = Task(description="Release.", expected_output="A line.", agent=releaser)
    output = guard_crew(Crew(agents=[releaser], tasks=[task]), guard).kickoff()
    return str(output.tasks_output[0].messages)


def released(guard):
    parsed = [parse_entry(body) for _index, body in guard.reader().entries()]
    return [entry.members["tool"] for entry in parsed if entry.kind == "secret"]


def test_a_tool_of_a_crew_gets_its_secret_and_another_gets_none(monkeypatch):
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", "hunter2-4711")
    tables = {"secrets": {"TOKEN": {"env": "AGENTGUARD_TEST_TOKEN", "tools": ["deploy", "leak"]}}}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        assert "1.2 is live, with 12 characters" in kicked_off(guard, "deploy", version="1.2")
        assert released(guard) == ["deploy"]
        refused = kicked_off(guard, "search", text="!")
        assert "the secret TOKEN is not for the tool search" in refused
        assert "hunter2" not in refused
        assert released(guard) == ["deploy"]
        assert guard.verify().ok


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_model_of_a_crew_sees_no_secret_unless_the_configuration_says_so(monkeypatch, raises):
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", "hunter2-4711")
    tables = {"secrets": {"TOKEN": {"env": "AGENTGUARD_TEST_TOKEN", "tools": ["leak"]}}}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        seen = kicked_off(guard, "leak", raises=raises)
    assert "[a secret was here]" in seen
    assert "hunter2" not in seen
    shows = {"releaser": {"authority": "own", "conceals_secrets": False}}
    with Guard.ephemeral(lambda _: Decision.allow(), config={**tables, "agents": shows}) as guard:
        assert "hunter2-4711" in kicked_off(guard, "leak", raises=raises)  # the twin
