"""The kit that every adapter has to pass, with a crew whose model calls tools in both ways."""

from __future__ import annotations

import asyncio

import pytest
from crewai.tools import tool
from crewai.tools.tool_failure import ToolFailureReason

from agentguard import Decision, Denied
from agentguard.testing import AdapterTests, RecordedGuard
from agentguard_crewai import guard_crew, resumable


def raised(failure):
    """What the kit expects to be raised, of what CrewAI was given in its place."""
    if failure.reason is ToolFailureReason.EXCEPTION:
        kind = {"FileNotFoundError": FileNotFoundError}.get(failure.code, RuntimeError)
        return kind(failure.message)
    return Denied(Decision.refused(failure.details["reason"], code=failure.code))


class TestNothing:
    def test_it(self, way, recorded, signed):
        made = recorded(agents={"lead": {"max_scope": ["a"]}})

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            return f"the content of {path}"

        lead = way.agent("Lead", ("read_file", {"path": "a"}), "done", tools=[read_file])
        crew = guard_crew(way.crew(lead), made.guard)
        with made.guard.delegate("user:alice", scope=["a", "b"], via="crew:report"):
            assert crew.kickoff().raw == "done"
        (call,) = signed(made.guard)
        assert (call.agent, call.tool, call.decision, call.outcome) == ("lead", "read_file", "allow", "ok")
        assert call.chain == ("user:alice", "crew:report", "lead")
        assert call.scope == ("a",)
