"""Errors that a guarded tool raises by itself, and how often the tool runs then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from crewai import Crew, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import BaseTool, tool
from crewai.tools.tool_failure import (
    ToolFailureReason,
)
from crewai_probes import CHAIN, KINDS

from agentguard import ApprovalPending, ConfigError, Decision, Denied, PolicyError
from agentguard_crewai import guard_crew

# --- what the tool itself raises -----------------------------------------------------------------


OWN: dict[str, Callable[[], Exception]] = {
    "a denial": lambda: Denied(Decision.deny("the bank says no")),
    "an error of agentguard": lambda: PolicyError("the bank says no"),
    "a mistake": lambda: ConfigError("the bank says no"),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("kind", ["function", "async"])
def test_an_error_of_agentguard_in_the_tool_is_the_tools(bench, own, kind):
    ran = []
    error = OWN[own]()

    @tool
    def pay(cents: int) -> str:
        """Pay."""
        ran.append(cents)
        raise error

    @tool("pay")
    async def apay(cents: int) -> str:
        """Pay."""
        await asyncio.sleep(0)
        ran.append(cents)
        raise error

    output = bench.run([pay if kind == "function" else apay], ("pay", {"cents": 5}))
    assert ran == [5]
    (failed,) = output.tool_failures
    assert failed.failure.reason is ToolFailureReason.EXCEPTION
    assert failed.failure.code == type(error).__name__
    assert "the bank says no" in failed.failure.message
    # the call was made, and failed: nobody has denied it
    assert "was not run" not in str(output.messages)
    assert bench.made_calls == [("pay", "allow", "", "error")]


@pytest.mark.parametrize("on_approval", ["wait", "pause"])
def test_a_call_that_waits_in_the_tool_does_not_stop_the_crew(way, recorded, signed, on_approval):
    made = recorded(agents={"lead": {"authority": "own"}, "bank": {"authority": "own"}})
    made.decide = lambda given: (
        Decision.require_approval() if given["agent"]["name"] == "bank" else Decision.allow()
    )
    bank, ran = made.guard.new_agent("bank"), []

    @made.guard.tool
    def transfer(cents: int) -> str:
        ran.append(cents)
        return "transferred"

    @tool
    def pay(cents: int) -> str:
        """Pay."""
        return bank.call(transfer, cents)

    lead = way.agent("Lead", ("pay", {"cents": 5}), "done", tools=[pay])
    options = {"on_approval": on_approval, "timeout": 120 if on_approval == "wait" else None}
    output = guard_crew(way.crew(lead), made.guard, **options).kickoff().tasks_output[0]
    assert ran == []
    assert output.tool_failures[0].failure.code == ApprovalPending.__name__
    (outer,) = signed(made.guard)
    assert (outer.agent, outer.tool, outer.decision) == ("lead", "pay", "allow")
    assert outer.outcome == "error"
    (waiting,) = made.guard.approvals.pending()
    assert waiting.tool == "transfer"


def test_an_interrupted_tool_interrupts_the_crew(bench):
    ran = []

    @tool
    def wait(seconds: int) -> str:
        """Wait."""
        ran.append(seconds)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run([wait], ("wait", {"seconds": 1}))
    assert ran == [1]
    (call,) = bench.calls
    assert (call.decision, call.outcome) == ("allow", "unknown")


# --- how often it runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tool_that_raises_runs_once_and_is_recorded_once(bench, kind):
    ran = []

    def fail(path):
        ran.append(path)
        raise OSError("the disk is full")

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        return fail(path)

    class ReadFile(BaseTool):
        name: str = "read_file"
        description: str = "Read a file."

        def _run(self, path: str) -> str:
            return fail(path)

    @tool("read_file")
    async def awaited(path: str) -> str:
        """Read a file."""
        return fail(path)

    class Awaited(BaseTool):
        name: str = "read_file"
        description: str = "Read a file."

        async def _run(self, path: str) -> str:
            return fail(path)

    tools = dict(zip(KINDS, [read_file, ReadFile(), awaited, Awaited()], strict=True))
    output = bench.run([tools[kind]], ("read_file", {"path": "a"}))
    assert ran == ["a"]
    assert bench.made_calls == [("read_file", "allow", "", "error")]
    (failed,) = output.tool_failures
    assert (failed.failure.code, failed.failure.message) == ("OSError", "the disk is full")


def flaky(ran: list[Any], times: int) -> Any:
    """A tool that fails so many times."""

    @tool
    def fetch(url: str) -> str:
        """Fetch."""
        ran.append(url)
        if len(ran) <= times:
            raise OSError(f"failed {len(ran)}")
        return f"fetched {url}"

    return fetch


def test_a_tool_that_failed_runs_again_when_the_model_calls_again(bench):
    ran: list[str] = []
    call = "fetch", {"url": "u"}
    output = bench.run([flaky(ran, 2)], call, call, call)
    assert ran == ["u", "u", "u"]
    assert "fetched u" in str(output.messages)
    assert [outcome for *_, outcome in bench.made_calls] == ["error", "error", "ok"]


def test_each_failure_is_told_as_it_was(bench):
    ran: list[str] = []
    output = bench.run([flaky(ran, 2)], *[("fetch", {"url": u}) for u in "abc"])
    assert ran == ["a", "b", "c"]
    assert [one.failure.message for one in output.tool_failures] == ["failed 1", "failed 2"]


def test_a_failure_of_one_tool_is_none_of_another(bench, probe):
    ran: list[str] = []
    steps = ("fetch", {"url": "u"}), ("read_file", {"path": "a"}), ("fetch", {"url": "u"})
    output = bench.run([flaky(ran, 1), probe.read_file], *steps)
    assert (ran, probe.ran) == (["u", "u"], ["a"])
    assert "fetched u" in str(output.messages)


def test_a_tool_that_failed_in_a_planners_step_runs_again_in_it(bench, native):
    # the calls of one step are made in one context
    step = {"step_number": 1, "description": "fetch", "tool_to_use": None, "depends_on": []}
    said = json.dumps({"plan": "a plan", "ready": True, "steps": [step]})
    planner = native.model(said)
    planning = PlanningConfig(reasoning_effort="low", max_attempts=1, llm=planner)
    ran: list[str] = []
    call = "fetch", {"url": "u"}
    bench.run([flaky(ran, 2)], call, call, call, "it is fetched", planning_config=planning)
    assert planner.steps == []
    assert ran == ["u", "u", "u"]
    assert [outcome for *_, outcome in bench.made_calls] == ["error", "error", "ok"]


def test_a_failure_of_one_agent_is_none_of_another(way, recorded, signed):
    made = recorded(agents={"lead": {"authority": "own"}, "writer": {"authority": "own"}})
    ran: list[str] = []
    shared = flaky(ran, 1)
    one, other = (
        way.agent(role, ("fetch", {"url": "u"}), "done", tools=[shared])
        for role in ("Lead", "Writer")
    )
    output = guard_crew(way.crew(one, other), made.guard).kickoff()
    assert ran == ["u", "u"]
    assert [len(task.tool_failures) for task in output.tasks_output] == [1, 0]
    assert [(call.agent, call.outcome) for call in signed(made.guard)] == [
        ("lead", "error"),
        ("writer", "ok"),
    ]


def test_a_failure_of_a_coworker_is_none_of_whoever_asked(way, recorded, signed):
    made = recorded(agents={"lead": {"max_scope": ["a"]}, "writer": {"max_scope": ["a"]}})
    ran: list[str] = []
    shared = flaky(ran, 1)
    handed = {"task": "fetch", "context": "c", "coworker": "Writer"}
    steps = ("delegate_work_to_coworker", handed), ("fetch", {"url": "u"}), "done"
    lead = way.agent("Lead", *steps, tools=[shared], allow_delegation=True)
    writer = way.agent("Writer", ("fetch", {"url": "u"}), "written", tools=[shared])
    task = Task(description="a task", expected_output="words", agent=lead)
    crew = guard_crew(Crew(agents=[lead, writer], tasks=[task]), made.guard)
    with made.guard.delegate("user:alice", scope=["a"], via="crew:report"):
        crew.kickoff()
    assert ran == ["u", "u"]
    assert sorted((call.tool, call.chain, call.outcome) for call in signed(made.guard)) == [
        ("delegate_work_to_coworker", CHAIN, "ok"),
        ("fetch", CHAIN, "ok"),
        ("fetch", (*CHAIN, "writer"), "error"),
    ]


def test_a_coworker_that_calls_natively_tries_again_below_one_that_writes_text(
    text, native, recorded, signed
):
    made = recorded(agents={"lead": {"max_scope": ["a"]}, "writer": {"max_scope": ["a"]}})
    ran: list[str] = []
    handed = {"task": "fetch", "context": "c", "coworker": "Writer"}
    steps = ("delegate_work_to_coworker", handed), "done"
    lead = text.agent("Lead", *steps, allow_delegation=True)
    call = "fetch", {"url": "u"}
    writer = native.agent("Writer", call, call, "written", tools=[flaky(ran, 1)])
    task = Task(description="a task", expected_output="words", agent=lead)
    crew = guard_crew(Crew(agents=[lead, writer], tasks=[task]), made.guard)
    with made.guard.delegate("user:alice", scope=["a"], via="crew:report"):
        crew.kickoff()
    assert ran == ["u", "u"]
    assert sorted((call.tool, call.chain, call.outcome) for call in signed(made.guard)) == [
        ("delegate_work_to_coworker", CHAIN, "ok"),
        ("fetch", (*CHAIN, "writer"), "error"),
        ("fetch", (*CHAIN, "writer"), "ok"),
    ]
