"""Agents and tools whose spans are looked at, and what reads the exported spans.

The tests ``test_crewai_traces_*.py`` share these. The fixture is in ``conftest.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from crewai import Crew, Task
from crewai.tools import tool

from agentguard import Decision
from agentguard_crewai import (
    guard_crew,
)

AGENTS = {
    name: {"max_scope": ["read", "pay"], "authority": "own"}
    for name in ("lead", "hand", "crew-manager")
}
READ: Any = ("read_file", {"path": "plan"})


def hands(by: str = "delegate_work_to_coworker") -> Any:
    what = "question" if by.startswith("ask") else "task"
    return (by, {what: "do it", "context": "none", "coworker": "Hand"})


def task_of(agent: Any, **options: Any) -> Task:
    return Task(description="a task", expected_output="words", agent=agent, **options)


class TracedTeam:
    """A guard that keeps a secret and asks before anybody pays, and tools."""

    def __init__(self, made):
        self.made = made
        self.guard = made.guard
        made.decide = self.decide

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            return f"what stands in {path}"

        @tool
        def pay(to: str) -> str:
            """Pay somebody."""
            return f"paid {to}"

        @tool
        def break_it() -> str:
            """Break."""
            raise LookupError("nothing is there")

        self.tools = [read_file, pay, break_it]

    @staticmethod
    def decide(document):
        if "secret" in str(document["args"]):
            return Decision.deny("it is secret")
        pays = document["action"] == "pay"
        return Decision.require_approval() if pays else Decision.allow()

    def alice(self):
        return self.guard.delegate("user:alice", scope=["read", "pay"], via="crew:report")

    def agent(self, way, role, *said, **options):
        return way.agent(role, *said, **{"tools": self.tools, "max_retry_limit": 0, **options})

    def crew(self, way, *said, **options):
        crew = way.crew(self.agent(way, "Lead", *said), name="report")
        return guard_crew(crew, self.guard, **options)

    def pair(self, way, said, hand_said, **options):
        """A crew whose only task is its lead's, who may hand work on."""
        lead = self.agent(way, "Lead", *said, allow_delegation=True)
        hand = self.agent(way, "Hand", *hand_said)
        crew = Crew(name="report", agents=[lead, hand], tasks=[task_of(lead)])
        return guard_crew(crew, self.guard, **options)


def tree(text: str) -> list[str]:
    return text.strip("\n").splitlines()


ONE = tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool read_file
""")


def one_trace(spans) -> str:
    """The only trace that was exported."""
    (trace_id,) = {span.context.trace_id for span in spans.all()}
    return f"{trace_id:032x}"


AGENT_WAYS = {
    "kickoff": lambda agent: agent.kickoff("go on"),
    "kickoff_async": lambda agent: asyncio.run(agent.kickoff_async("go on")),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("go on")),
}
