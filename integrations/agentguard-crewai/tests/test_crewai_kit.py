"""The kit that every adapter has to pass: by a crew's tools themselves, and by crews in both ways.

What CrewAI is given in the place of an exception is raised again as what it was, for the kit.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crewai.tools import tool
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason

from agentguard import ApprovalPending, Decision, Denied, Guard
from agentguard.testing import AdapterTests, Probe, RecordedGuard
from agentguard_crewai import guard_agent
from agentguard_crewai.agents import assign_identity
from agentguard_crewai.identity import GuardOptions, Identity


class _Kit(AdapterTests):
    """An agent of a crew, which is the kit's instance and has its function for a tool."""

    guard: Guard

    @pytest.fixture(autouse=True)
    def _ways(self, native, text):
        self.native, self.text = native, text

    @pytest.fixture
    def recorded(self):
        agents = {"worker": {"authority": "own"}, "lent": {"max_scope": ["repo:read"]}}
        recorded = RecordedGuard.make(agents=agents)
        self.guard = recorded.guard
        with recorded.guard:
            yield recorded
            recorded.require_sound()

    def member(self, way, agent, function, *steps):
        member = way.agent("A member", *steps, tools=[tool(function)])
        guard_agent(member, self.guard, name=agent.name, on_approval="pause")
        assign_identity(member, Identity(agent, GuardOptions.of(self.guard, "pause", None)))
        return member


def _raised(failure: ToolFailure) -> Exception:
    if failure.reason is ToolFailureReason.EXCEPTION:
        return {"FileNotFoundError": FileNotFoundError}[failure.code or ""](failure.message)
    return Denied(Decision.refusal(failure.details["reason"], code=failure.code))


class TestTool(_Kit):
    """The tool that an executor is given, run as CrewAI runs it natively."""

    def guarded(self, agent, function):
        member = self.member(self.native, agent, function)
        member.create_agent_executor()
        return member.agent_executor.original_tools[0]

    def call(self, agent, function, arguments):
        try:
            result = self.guarded(agent, function).run(**arguments)
        except BaseException as error:
            pending = getattr(error, "pending", None)
            if isinstance(pending, ApprovalPending):
                raise pending from None
            raise
        if isinstance(result, ToolFailure):
            raise _raised(result)
        return result

    async def acall(self, agent, function, arguments):
        return await asyncio.to_thread(self.call, agent, function, arguments)


class _Crew(_Kit):
    """A crew whose model calls the function once, and then says that it is done."""

    def steps(self, function, arguments):
        return (function.__name__, arguments), "done"

    def result(self, member, output) -> Any:
        for failed in output.tasks_output[0].tool_failures:
            raise _raised(failed.failure)
        return [*member.llm.heard, *member.tools_results]

    def call(self, agent, function, arguments):
        member = self.member(self.way, agent, function, *self.steps(function, arguments))
        return self.result(member, self.way.crew(member).kickoff())

    async def acall(self, agent, function, arguments):
        member = self.member(self.way, agent, function, *self.steps(function, arguments))
        return self.result(member, await self.way.crew(member).akickoff())

    def test_an_argument_that_can_not_be_written_down_refuses_the_call(self, recorded, agent):
        """Half a character is all that a model can give which is none: it writes JSON."""
        probe = Probe()
        with pytest.raises(Denied) as denied:
            self.call(agent, probe.keep, {"value": "\ud800"})
        assert (denied.value.code, probe.ran) == ("arguments.unencodable", [])
        assert [call.decision for call in recorded.calls()] == ["deny"]
        assert recorded.policy_inputs == []


class TestNativeCrew(_Crew):
    @property
    def way(self):
        return self.native


class TestTextCrew(_Crew):
    @property
    def way(self):
        return self.text
