"""One tool call of a guarded agent: what it binds, what refuses it, and how often it runs.

Both ways of calling tools are looked at: natively CrewAI runs ``tool.run``, in text ``tool._run``.
That all is as it was where nothing is refused stands in ``test_crewai_parity.py``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal as Money
from enum import Enum, IntEnum
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from crewai import Crew, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.hooks import (
    register_after_tool_call_hook,
    register_before_tool_call_hook,
    unregister_after_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.tool_failure import (
    ToolExecutionFailedError,
    ToolFailure,
    ToolFailurePolicy,
    ToolFailureReason,
)
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from agentguard import ApprovalPending, ConfigError, Decision, Denied, PolicyError
from agentguard.adapters import Arguments
from agentguard_crewai import guard_agent, guard_crew

CHAIN = ("user:alice", "crew:report", "lead")


class Bench:
    """A guard, and crews of one agent, ``lead``, that work under it, lent by Alice."""

    def __init__(self, way: Any, made: Any, signed: Any) -> None:
        self.way = way
        self.made = made
        self._signed = signed
        self.agent: Any = None

    def run(self, tools: list[Any], *steps: Any, scope=("a", "b"), **options: Any) -> Any:
        """Return what came of the one task of a crew, whose model goes through these steps."""
        self.agent = self.way.agent("Lead", *steps, "done", tools=tools, **options)
        crew = guard_crew(self.way.crew(self.agent), self.made.guard)
        with self.made.guard.delegate("user:alice", scope=scope, via="crew:report"):
            return crew.kickoff().tasks_output[0]

    @property
    def calls(self) -> list[Any]:
        calls = self._signed(self.made.guard)
        assert {(call.agent, call.chain, call.scope) for call in calls} <= {("lead", CHAIN, ("a",))}
        return calls

    @property
    def made_calls(self) -> list[tuple[str, str, str, str | None]]:
        return [(call.tool, call.decision, call.code, call.outcome) for call in self.calls]

    def only(self, allowed: Callable[[Any], bool], *reasons: str) -> None:
        """Let the policy allow this, and deny all else for these reasons."""
        self.made.decide = lambda given: (
            Decision.allow() if allowed(given) else Decision.deny(*reasons)
        )


def bench_of(way, recorded, signed, **tables):
    return Bench(way, recorded(agents={"lead": {"max_scope": ["a"]}}, **tables), signed)


@pytest.fixture
def bench(way, recorded, signed):
    """A bench in each of both ways."""
    return bench_of(way, recorded, signed)


@pytest.fixture
def make_bench(way, recorded, signed):
    """Makes a bench with more in its configuration."""
    return lambda **tables: bench_of(way, recorded, signed, **tables)


class Probe:
    """Tools of which each run is noted, with what it received."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        ran = self.ran

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            ran.append(path)
            return f"the content of {path}"

        class ReadFile(BaseTool):
            name: str = "read_file"
            description: str = "Read a file."

            def _run(self, path: str) -> str:
                ran.append(path)
                return f"the content of {path}"

        @tool("read_file")
        async def awaited(path: str) -> str:
            """Read a file."""
            await asyncio.sleep(0)
            ran.append(path)
            return f"the content of {path}"

        class Awaited(BaseTool):
            name: str = "read_file"
            description: str = "Read a file."

            async def _run(self, path: str) -> str:
                await asyncio.sleep(0)
                ran.append(path)
                return f"the content of {path}"

        self.kinds: dict[str, Any] = {
            "function": read_file,
            "class": ReadFile(),
            "coroutine function": awaited,
            "async class": Awaited(),
        }
        self.read_file: Any = read_file


@pytest.fixture
def probe():
    """Tools that note when they run."""
    return Probe()


KINDS = ("function", "class", "coroutine function", "async class")


# --- a denial ------------------------------------------------------------------------------------


TEXT = (
    "Denied: read_file was not run. Reason: it is secret. "
    "Do not retry: repeating the same call will not help."
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_denied_call_is_a_failure_with_its_reason_and_code(bench, probe, kind):
    bench.only(lambda given: given["args"]["path"] != "secret", "it is secret")
    steps = ("read_file", {"path": "secret"}), ("read_file", {"path": "plain"})
    output = bench.run([probe.kinds[kind]], *steps)
    assert output.raw == "done"
    assert probe.ran == ["plain"]
    (failed,) = output.tool_failures
    assert failed.failure == ToolFailure(
        message=TEXT,
        reason=ToolFailureReason.TOOL_REPORTED,
        code="policy.denied",
        retryable=False,
        details={"reason": "it is secret"},
    )
    assert (failed.tool_name, failed.tool_args) == ("read_file", {"path": "secret"})
    assert (failed.agent_role, failed.task_name) == ("Lead", "a task")
    read = str(output.messages)
    assert read.count(f"{TEXT} (code: policy.denied)") == 1
    assert "the content of plain" in read
    assert "the content of secret" not in read
    assert bench.made_calls == [
        ("read_file", "deny", "policy.denied", None),
        ("read_file", "allow", "", "ok"),
    ]


def test_several_reasons_are_told_and_none_is_made_up(bench, probe):
    bench.only(lambda _given: False, "it is secret", "it is late")
    output = bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert "Reason: it is late; it is secret. " in output.tool_failures[0].message
    bench.only(lambda _given: False)
    output = bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert "Reason: no rule of the policy allows this call. " in output.tool_failures[0].message
    assert probe.ran == []


def test_a_denial_raises_where_failures_are_to(bench, probe):
    bench.only(lambda given: given["args"]["path"] != "secret", "it is secret")
    options = {"tool_failure_policy": ToolFailurePolicy.RAISE}
    with pytest.raises(ToolExecutionFailedError, match="it is secret") as raised:
        bench.run([probe.read_file], ("read_file", {"path": "secret"}), **options)
    assert raised.value.record.failure.code == "policy.denied"
    assert bench.run([probe.read_file], ("read_file", {"path": "a"}), **options).raw == "done"
    assert probe.ran == ["a"]


def test_a_model_reads_a_denial_also_where_failures_are_ignored(bench, probe):
    bench.only(lambda _given: False, "it is secret")
    options = {"tool_failure_policy": ToolFailurePolicy.IGNORE}
    output = bench.run([probe.read_file], ("read_file", {"path": "secret"}), **options)
    assert output.tool_failures == []
    assert TEXT in str(output.messages)
    assert [call.decision for call in bench.calls] == ["deny"]


def test_a_denial_is_no_final_answer(bench):
    ran = []

    @tool(result_as_answer=True)
    def read_file(path: str) -> str:
        """Read a file."""
        ran.append(path)
        return f"the content of {path}"

    bench.only(lambda given: given["args"]["path"] != "secret", "it is secret")
    steps = ("read_file", {"path": "secret"}), ("read_file", {"path": "a"})
    output = bench.run([read_file], *steps)
    assert output.raw.strip() == "the content of a"
    assert ran == ["a"]


def test_a_denial_is_not_kept_for_a_later_call(bench, probe):
    bench.only(lambda given: given["action"] == "open_up", "it is closed")

    @tool
    def open_up() -> str:
        """Open."""
        bench.only(lambda _given: True)
        return "open"

    call = "read_file", {"path": "a"}
    output = bench.run([probe.read_file, open_up], call, ("open_up", {}), call, cache=True)
    assert probe.ran == ["a"]
    assert "the content of a" in str(output.messages)
    assert [(tool, decision) for tool, decision, *_ in bench.made_calls] == [
        ("read_file", "deny"),
        ("open_up", "allow"),
        ("read_file", "allow"),
    ]


@pytest.mark.parametrize("kind", ["function", "class"])
def test_a_denied_call_looks_to_hooks_like_a_failed_one(bench, probe, kind):
    seen = []

    def after(context):
        seen.append((context.tool_result, context.raw_tool_result))
        return "all is well"

    bench.only(lambda _given: False, "it is secret")
    register_after_tool_call_hook(after)
    try:
        output = bench.run([probe.kinds[kind]], ("read_file", {"path": "a"}))
    finally:
        unregister_after_tool_call_hook(after)
    ((told, raw),) = seen
    assert told == f"{TEXT} (code: policy.denied)"
    assert isinstance(raw, ToolFailure)
    # a hook has its say about the text, and none about what has failed
    assert [one.failure.code for one in output.tool_failures] == ["policy.denied"]


def test_no_hook_gets_a_denied_call_through(bench, probe):
    def before(context):
        context.tool_input["path"] = "secret"
        return True

    bench.only(lambda given: given["args"]["path"] != "secret", "it is secret")
    register_before_tool_call_hook(before)
    try:
        output = bench.run([probe.read_file], ("read_file", {"path": "plain"}))
    finally:
        unregister_before_tool_call_hook(before)
    assert probe.ran == []
    (call,) = bench.calls
    assert call.arguments == {"path": "secret"}
    assert output.tool_failures[0].failure.code == "policy.denied"
    assert bench.run([probe.read_file], ("read_file", {"path": "plain"})).raw == "done"
    assert probe.ran == ["plain"]


def test_a_model_that_insists_is_stopped(native, recorded, signed, probe):
    bench = bench_of(native, recorded, signed)
    bench.only(lambda _given: False, "it is secret")
    with pytest.raises(ToolExecutionFailedError, match="not making progress"):
        bench.run([probe.read_file], *[("read_file", {"path": "a"})] * 9)
    assert probe.ran == []
    assert {call.decision for call in bench.calls} == {"deny"}


def test_of_several_calls_at_once_only_the_denied_is_missing(native, recorded, signed, probe):
    bench = bench_of(native, recorded, signed)
    bench.only(lambda given: given["args"]["path"] != "b", "it is secret")
    output = bench.run([probe.read_file], [("read_file", {"path": p}) for p in "abc"])
    assert sorted(probe.ran) == ["a", "c"]
    assert [one.tool_args for one in output.tool_failures] == [{"path": "b"}]
    assert sorted((call.arguments["path"], call.decision) for call in bench.calls) == [
        ("a", "allow"),
        ("b", "deny"),
        ("c", "allow"),
    ]


def test_a_denial_of_an_agent_by_itself_is_told_as_that_of_a_crew(way, recorded, signed, probe):
    made = recorded(agents={"lead": {"max_scope": ["a"]}})
    bench = Bench(way, made, signed)
    bench.only(lambda given: given["args"]["path"] != "secret", "it is secret")
    steps = ("read_file", {"path": "secret"}), ("read_file", {"path": "a"}), "done"
    lead: Any = guard_agent(way.agent("Lead", *steps, tools=[probe.read_file]), made.guard)
    with made.guard.delegate("user:alice", scope=["a"], via="crew:report"):
        output = lead.kickoff("read them")
    assert probe.ran == ["a"]
    (failed,) = output.tool_failures
    assert (failed.failure.message, failed.failure.code) == (TEXT, "policy.denied")
    assert str(output.messages).count(TEXT) == 1
    assert [call.decision for call in bench.calls] == ["deny", "allow"]


# --- what can't be decided or recorded does not run ----------------------------------------------


def test_a_policy_that_fails_denies(bench, probe):
    def broken(given):
        if given["args"]["path"] == "secret":
            raise RuntimeError("hunter2")
        return Decision.allow()

    bench.made.decide = broken
    steps = ("read_file", {"path": "secret"}), ("read_file", {"path": "a"})
    output = bench.run([probe.read_file], *steps)
    assert probe.ran == ["a"]
    assert [one.failure.code for one in output.tool_failures] == ["policy.error"]
    assert "hunter2" not in str(output.messages)
    assert [(call.decision, call.code) for call in bench.calls] == [
        ("deny", "policy.error"),
        ("allow", ""),
    ]


def test_a_policy_that_answers_nothing_denies(bench, probe):
    bench.made.decide = lambda _given: None
    output = bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert probe.ran == []
    assert output.tool_failures[0].failure.code == "policy.error"


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_guard_runs_nothing(way, recorded, probe, kind):
    made = recorded(agents={"lead": {"authority": "own"}})
    steps = [("read_file", {"path": path}) for path in "ab"]
    closing = []

    @tool
    def close() -> str:
        """Close."""
        closing.append(made.guard.close())
        return "closed"

    tools = [probe.kinds[kind], close]
    lead = way.agent("Lead", steps[0], ("close", {}), steps[1], "done", tools=tools)
    output = guard_crew(way.crew(lead), made.guard).kickoff().tasks_output[0]
    assert closing == [None]
    assert probe.ran == ["a"]
    assert output.tool_failures[-1].failure.code.startswith("storage.")
    assert "read_file was not run" in output.tool_failures[-1].message


def test_without_a_delegation_an_agent_that_needs_one_is_denied(way, recorded, signed, probe):
    made = recorded(agents={"lead": {"max_scope": ["a"]}})
    lead = way.agent("Lead", ("read_file", {"path": "a"}), "done", tools=[probe.read_file])
    output = guard_crew(way.crew(lead), made.guard).kickoff().tasks_output[0]
    assert probe.ran == []
    assert output.tool_failures[0].failure.code == "delegation.missing"
    (call,) = signed(made.guard)
    assert (call.agent, call.decision, call.chain) == ("lead", "deny", ())


def test_past_the_calls_that_were_lent_nothing_runs(way, recorded, signed, probe):
    made = recorded(agents={"lead": {"max_scope": ["a"]}})
    steps = [("read_file", {"path": path}) for path in "ab"]
    lead = way.agent("Lead", *steps, "done", tools=[probe.read_file])
    crew = guard_crew(way.crew(lead), made.guard)
    with made.guard.delegate("user:alice", scope=["a"], via="crew:report", max_calls=1):
        output = crew.kickoff().tasks_output[0]
    assert probe.ran == ["a"]
    assert [one.failure.code for one in output.tool_failures] == ["calls.exceeded"]
    assert [(call.decision, call.chain) for call in signed(made.guard)] == [
        ("allow", CHAIN),
        ("deny", CHAIN),
    ]


def test_a_missing_scope_is_denied_before_the_policy_is_asked(make_bench, probe):
    bench = make_bench(tools={"read_file": {"requires": ["b"]}})
    output = bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert output.tool_failures[0].failure.code == "scope.exceeded"
    assert (probe.ran, bench.made.asked) == ([], [])
    bench = make_bench(tools={"read_file": {"requires": ["a"]}})
    bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert probe.ran == ["a"]


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


# --- tools in tools ------------------------------------------------------------------------------


def test_an_agent_that_a_tool_kicks_off_acts_for_whoever_called_the_tool(
    way, recorded, signed, probe
):
    made = recorded(agents={"lead": {"max_scope": ["a"]}, "writer": {"max_scope": ["a"]}})
    writer = way.agent("Writer", ("read_file", {"path": "b"}), "written", tools=[probe.read_file])
    guard_agent(writer, made.guard)

    @tool
    def ask_writer(about: str) -> str:
        """Ask the writer."""
        return str(writer.kickoff(about).raw)

    steps = ("ask_writer", {"about": "bees"}), ("read_file", {"path": "a"}), "done"
    lead = way.agent("Lead", *steps, tools=[ask_writer, probe.read_file])
    crew = guard_crew(way.crew(lead), made.guard)
    with made.guard.delegate("user:alice", scope=["a"], via="crew:report"):
        output = crew.kickoff()
    assert "written" in str(output.tasks_output[0].messages)
    assert probe.ran == ["b", "a"]
    assert sorted((call.tool, call.chain) for call in signed(made.guard)) == [
        ("ask_writer", CHAIN),
        ("read_file", CHAIN),
        ("read_file", (*CHAIN, "writer")),
    ]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_tool_in_a_tool_is_the_applications_own_affair_unless_it_is_an_agents(
    bench, probe, guarded
):
    @tool
    def read_both(one: str, other: str) -> str:
        """Read two files."""
        return probe.read_file.run(path=one) + probe.read_file.run(path=other)

    steps = ("read_both", {"one": "a", "other": "b"})
    output = bench.run([read_both, *([probe.read_file] if guarded else [])], steps)
    assert probe.ran == ([] if guarded else ["a", "b"])
    assert ("the content of athe content of b" in str(output.messages)) is not guarded
    assert bench.made_calls == [("read_both", "allow", "", "error" if guarded else "ok")]


# --- what a tool returns -------------------------------------------------------------------------


def generated(ran):
    yield ran.append("begun")


async def agenerated(ran):
    ran.append("begun")
    yield


@pytest.mark.parametrize("made", [generated, agenerated])
@pytest.mark.parametrize("kind", ["function", "class"])
def test_a_result_whose_effects_are_still_to_come_is_refused(bench, made, kind):
    ran: list[str] = []

    @tool
    def look(at: str) -> Any:
        """Look."""
        return made(ran)

    class Look(BaseTool):
        name: str = "look"
        description: str = "Look."

        def _run(self, at: str) -> Any:
            return made(ran)

    output = bench.run([look if kind == "function" else Look()], ("look", {"at": "a"}))
    assert ran == []
    (failed,) = output.tool_failures
    assert "return a finished result instead" in failed.failure.message
    assert bench.made_calls == [("look", "allow", "", "error")]


def test_a_coroutine_that_a_plain_function_returns_runs_in_the_call(bench):
    ran: list[str] = []

    async def later(at):
        await asyncio.sleep(0)
        ran.append(at)
        raise OSError("too late")

    @tool
    def look(at: str) -> Any:
        """Look."""
        return later(at)

    output = bench.run([look], ("look", {"at": "a"}))
    assert ran == ["a"]
    assert output.tool_failures[0].failure.code == "OSError"
    # the outcome is that of the coroutine
    assert bench.made_calls == [("look", "allow", "", "error")]


# --- functions of every kind ---------------------------------------------------------------------


class Pathed(BaseModel):
    path: str


class Holder:
    def method(self, path: str) -> str:
        return f"read {path}"

    def __call__(self, path: str) -> str:
        return f"read {path}"

    @classmethod
    def of_class(cls, path: str) -> str:
        return f"read {path}"


class AsyncHolder:
    async def __call__(self, path: str) -> str:
        await asyncio.sleep(0)
        return f"read {path}"


def written(prefix: str, path: str) -> str:
    return f"{prefix} {path}"


async def awritten(prefix: str, path: str) -> str:
    await asyncio.sleep(0)
    return f"{prefix} {path}"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lambda": lambda path: f"read {path}",
    "partial": functools.partial(written, "read"),
    "async partial": functools.partial(awritten, "read"),
    "bound method": Holder().method,
    "class method": Holder.of_class,
    "callable object": Holder(),
    "async callable object": AsyncHolder(),
    # Python can't tell the signature of these
    "builtin method": "read {path}".format,
    "builtin class": dict,
    "any names": lambda **given: f"read {given['path']}",
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_tool_may_be_any_kind_of_function(bench, kind):
    made = Tool(name="read_it", description="Reads.", func=FUNCTIONS[kind], args_schema=Pathed)
    bench.only(lambda given: given["args"] == {"path": "a"}, "it is secret")
    steps = ("read_it", {"path": "secret"}), ("read_it", {"path": "a"})
    output = bench.run([made], *steps)
    assert [one.failure.code for one in output.tool_failures] == ["policy.denied"]
    assert ("read a" in str(output.messages)) or kind == "builtin class"
    assert [call.outcome for call in bench.calls] == [None, "ok"]


# --- arguments -----------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Street(BaseModel):
    name: str
    number: int = 1


class Address(BaseModel):
    street: Street
    tags: set[str] = Field(default_factory=set)


class Typed(BaseModel):
    address: Address
    addresses: list[Address] = []
    colour: Colour
    size: Size = Size.SMALL
    on: date
    at: datetime
    lasts: timedelta = timedelta(hours=1)
    price: Money = Money("1.50")
    id: UUID
    pair: tuple[int, str] = (1, "a")
    kind: Literal["x", "y"] = "x"
    either: int | str = 3
    file: Path = Path("a/b")
    maybe: float | None = None
    more: dict[str, Any] = {}


TYPED = {
    "address": {"street": {"name": "Main"}, "tags": ["b", "a"]},
    "addresses": [{"street": {"name": "Side", "number": 2}}],
    "colour": "red",
    "on": "2026-01-02",
    "at": "2026-01-02T03:04:05Z",
    "id": "12345678-1234-5678-1234-567812345678",
    "more": {"a": [1, {"b": None}]},
}


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    source: str = Field(alias="from")
    target: str = Field(validation_alias="to")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    path: str


class Changed(BaseModel):
    path: str
    limit: Annotated[int, Field(ge=1)] = 5

    @field_validator("path")
    @classmethod
    def resolved(cls, path: str) -> str:
        return path.replace("..", "")

    @model_validator(mode="after")
    def bounded(self) -> Changed:
        self.limit = min(self.limit, 10)
        return self


class Made(BaseModel):
    path: str
    names: list[str] = Field(default_factory=lambda: ["made"])


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_enum_values=True, str_strip_whitespace=True)

    colour: Colour
    path: str


class Nothing(BaseModel):
    pass


SCHEMAS: dict[str, tuple[type[BaseModel], dict[str, Any], dict[str, Any] | None]] = {
    "all types": (Typed, TYPED, None),
    "aliases": (Aliased, {"from": "a", "to": "b"}, {"source": "a", "target": "b"}),
    "validators": (Changed, {"path": "../a", "limit": 99}, {"path": "/a", "limit": 10}),
    "a default factory": (Made, {"path": "a"}, {"path": "a", "names": ["made"]}),
    "options": (Frozen, {"colour": "red", "path": " a "}, {"colour": "red", "path": "a"}),
    "coercion": (Changed, {"path": "a", "limit": "7"}, {"path": "a", "limit": 7}),
    "left out": (Open, {"path": "a"}, {"path": "a"}),
    "nothing": (Nothing, {}, {}),
}


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("made", ["function", "class"])
def test_what_is_bound_is_what_the_tool_receives(bench, kind, made):
    schema, given, expected = SCHEMAS[kind]
    received: list[Any] = []

    class Probed(BaseTool):
        name: str = "probe"
        description: str = "Probe."

        def _run(self, **given: Any) -> str:
            received.append(given)
            return "probed"

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = (
        Probed(args_schema=schema)
        if made == "class"
        else Tool(name="probe", description="Probe.", func=function, args_schema=schema)
    )
    bench.run([one], ("probe", given))
    (got,) = received
    if expected is not None:
        assert got == expected
    bound = Arguments.of(got)
    (call,) = bench.calls
    assert call.arguments == dict(bound.values)
    assert bench.made.asked[0]["args"] == dict(bound.values)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_both_ways_bind_the_same(native, text, recorded, signed, kind):
    schema, given, _ = SCHEMAS[kind]
    bound = []
    for way in (native, text):
        bench = bench_of(way, recorded, signed)
        one = Tool(name="probe", description="P.", func=lambda **_: "ok", args_schema=schema)
        bench.run([one], ("probe", given))
        bound += [call.arguments for call in bench.calls]
    assert bound[0] == bound[1]
    assert set(bound[0]) == set(schema.model_fields)


def test_members_that_a_schema_lets_in_are_bound_where_the_tool_gets_them(bench):
    received: list[Any] = []

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = Tool(name="probe", description="Probe.", func=function, args_schema=Open)
    bench.run([one], ("probe", {"path": "a", "colour": "red"}))
    (call,) = bench.calls
    assert [call.arguments] == received  # in text CrewAI leaves out what the schema does not name
    assert call.arguments.get("colour") == ("red" if bench.way.native else None)


def test_a_tool_without_a_schema_binds_what_it_receives(native, recorded, signed):
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = Tool(name="probe", description="Probe.", func=function)
    bench.run([one], ("probe", {"path": "a", "$tag": [1]}))
    assert received == [{"path": "a", "$tag": [1]}]
    (call,) = bench.calls
    assert call.arguments == {"path": "a", "$$tag": [1]}


class Opaque:
    """What nobody can write down."""


UNENCODABLE: dict[str, Any] = {
    "an object": Opaque(),
    "a function": len,
    "no number": float("nan"),
    "a secret": SecretStr("hunter2"),
    "deep inside": [{"a": (Opaque(),)}],
}


@pytest.mark.parametrize("kind", UNENCODABLE)
def test_an_argument_that_can_not_be_written_down_refuses_the_call(bench, kind):
    ran: list[Any] = []

    def keep(**given: Any) -> str:
        ran.append(given["path"])
        return "kept"

    class Kept(BaseModel):
        path: str
        token: Any = Field(default_factory=lambda: UNENCODABLE[kind])

    one = Tool(name="keep", description="Keep.", func=keep, args_schema=Kept)
    steps = ("keep", {"path": "a"}), ("keep", {"path": "b", "token": "plain"})
    output = bench.run([one], *steps)
    assert ran == ["b"]
    assert [one.failure.code for one in output.tool_failures] == ["arguments.unencodable"]
    assert "hunter2" not in str(output.messages)
    assert [(call.decision, call.code) for call in bench.calls] == [
        ("deny", "arguments.unencodable"),
        ("allow", ""),
    ]
    assert len(bench.made.asked) == 1


def test_arguments_that_are_too_large_refuse_the_call(bench):
    received: list[Any] = []

    class Long(BaseModel):
        path: str

        @field_validator("path")
        @classmethod
        def repeated(cls, path: str) -> str:
            return path * 1000

    def keep(path: str) -> str:
        received.append(path)
        return "kept"

    one = Tool(name="keep", description="Keep.", func=keep, args_schema=Long)
    output = bench.run([one], ("keep", {"path": "x" * 300}), ("keep", {"path": "x"}))
    assert received == ["x" * 1000]
    assert [one.failure.code for one in output.tool_failures] == ["arguments.too_large"]
    assert [call.code for call in bench.calls] == ["arguments.too_large", ""]


def test_an_argument_plays_no_identity(bench):
    received: list[Any] = []

    @tool
    def spoof(agent: str, delegation: str, approval: str, context: str) -> str:
        """Spoof."""
        received.append([agent, delegation, approval, context])
        return "spoofed"

    given = {"agent": "root", "delegation": "user:root", "approval": "yes", "context": "c"}
    bench.run([spoof], ("spoof", given))
    (document,) = bench.made.asked
    assert document["agent"]["name"] == "lead"
    assert document["delegation"]["subject"] == "user:alice"
    assert "approval" not in document
    assert document["args"] == given
    assert received == [list(given.values())]


@pytest.mark.parametrize("name", ["self", "args", "kwargs", "function", "gate", "tool", "cls"])
def test_an_argument_may_have_any_name(native, recorded, signed, name):
    # CrewAI's own functions take `self` and `input`; what is bound here takes none by name
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []

    def keep(**given: Any) -> str:
        received.append(given)
        return "kept"

    one = Tool(name="keep", description="Keep.", func=keep)
    output = bench.run([one], ("keep", {name: "x"}))
    if name == "self":  # CrewAI's run can't be called so
        assert output.tool_failures[0].failure.reason is ToolFailureReason.EXCEPTION
        assert received == []
    else:
        assert received == [{name: "x"}]
        assert bench.calls[0].arguments == {name: "x"}


@pytest.mark.parametrize("change", [True, False])
def test_arguments_changed_after_the_decision_do_not_run(native, recorded, signed, change):
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []
    held: list[Any] = []

    def keep(**given: Any) -> str:
        received.append(given)
        return "kept"

    def hold(context):
        held.append(context.tool_input["paths"])

    def decide(_given):
        if change:
            held[0].append("secret")
        return Decision.allow()

    bench.made.decide = decide
    one = Tool(name="keep", description="Keep.", func=keep)
    register_before_tool_call_hook(hold)
    try:
        output = bench.run([one], ("keep", {"paths": ["a"]}))
    finally:
        unregister_before_tool_call_hook(hold)
    if change:
        assert received == []
        assert output.tool_failures[0].failure.code == "arguments.changed"
        assert bench.calls[0].outcome != "ok"
    else:
        assert received == [{"paths": ["a"]}]
        assert bench.calls[0].outcome == "ok"


# --- what the configuration says of a tool -------------------------------------------------------


def test_the_configuration_names_resource_and_attributes(make_bench, probe):
    table = {"resource": "file:{path}", "attributes": {"where": "path"}, "requires": ["a"]}
    bench = make_bench(tools={"read_file": table})
    bench.only(lambda given: given["where"] == "a" and given["resource"] == "file:a", "no")
    steps = ("read_file", {"path": "b"}), ("read_file", {"path": "a"})
    bench.run([probe.read_file], *steps)
    assert probe.ran == ["a"]
    assert [document["resource"] for document in bench.made.asked] == ["file:b", "file:a"]


def test_facts_are_looked_up_with_what_is_bound(make_bench, probe, monkeypatch):
    module: Any = ModuleType("crewai_facts")
    module.asked = []

    def facts(values):
        module.asked.append(dict(values))
        if values["path"] == "lost":
            raise RuntimeError("hunter2")
        return {"size": len(values["path"])}

    module.facts = facts
    monkeypatch.setitem(sys.modules, "crewai_facts", module)
    bench = make_bench(tools={"read_file": {"facts": "crewai_facts:facts"}})
    bench.only(lambda given: given["size"] < 3, "it is too long")
    steps = [("read_file", {"path": path}) for path in ("ab", "long", "lost")]
    output = bench.run([probe.read_file], *steps)
    assert probe.ran == ["ab"]
    assert module.asked == [{"path": "ab"}, {"path": "long"}, {"path": "lost"}]
    assert [one.failure.code for one in output.tool_failures] == ["policy.denied", "facts.failed"]
    assert "hunter2" not in str(output.messages)


def test_what_is_redacted_is_not_kept(make_bench):
    received = []

    @tool
    def login(user: str, password: str) -> str:
        """Log in."""
        received.append(password)
        return "a token"

    bench = make_bench(redact={"login": ["/args/password", "/result"]})
    output = bench.run([login], ("login", {"user": "ada", "password": "hunter2"}))
    assert received == ["hunter2"]
    assert "a token" in str(output.messages)
    assert bench.made.asked[0]["args"]["password"] == "hunter2"
    (call,) = bench.calls
    assert call.arguments == {"user": "ada", "password": {"$redacted": True}}


NAMES = {
    "Read File": "read_file",
    "ReadFile": "read_file",
    "read-file": "read_file",
    "HTTPReader": "http_reader",
    "Größe lesen": "groe_lesen",
    "lire l'été": "lire_lete",
    "x" * 80: "x" * 55 + "_" + sha256(b"x" * 80).hexdigest()[:8],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_is_known_by_the_name_that_models_have_for_it(bench, name):
    ran = []

    def read(path: str) -> str:
        ran.append(path)
        return "read"

    one = Tool(name=name, description="Read.", func=read, args_schema=Pathed)
    known = NAMES[name]
    bench.run([one], (known, {"path": "a"}))
    assert ran == ["a"]
    (call,) = bench.calls
    assert call.tool == known
    assert bench.made.asked[0]["tool"]["name"] == known


def test_a_tool_that_no_model_can_name_is_an_error_before_anything_runs(bench, probe):
    one = Tool(name="読む", description="Read.", func=len, args_schema=Pathed)
    with pytest.raises(ConfigError, match="a model calls a tool by a name of a-z"):
        bench.run([probe.read_file, one], ("read_file", {"path": "a"}))
    assert probe.ran == []


def test_of_two_tools_with_one_name_the_one_that_runs_is_on_record(bench):
    ran = []

    def one(path: str) -> str:
        ran.append(f"one {path}")
        return "from one"

    def other(path: str) -> str:
        ran.append(f"other {path}")
        return "from the other"

    class Longer(Pathed):
        limit: int = 3

    tools = [
        Tool(name="Read It", description="One.", func=one, args_schema=Pathed),
        Tool(
            name="read_it",
            description="Other.",
            func=lambda path, limit: other(path),
            args_schema=Longer,
        ),
    ]
    steps = [("read_it", {"path": "a"}), ("read_it_2", {"path": "b"})]
    bench.run(tools, *(steps if bench.way.native else steps[:1]))
    # in text CrewAI takes the first, natively it offers the other as `read_it_2`
    calls = bench.calls
    both = [("read_it", {"path": "a"}), ("read_it_2", {"path": "b", "limit": 3})]
    assert [(call.tool, call.arguments) for call in calls] == both[: len(ran)]
    assert ran == ["one a", "other b"][: 2 if bench.way.native else 1]
    assert len({document["tool"]["schema_sha256"] for document in bench.made.asked}) == len(ran)


# --- the tool that the application holds ---------------------------------------------------------


def test_the_applications_own_tool_stays_the_object_that_it_was(bench, probe):
    before = probe.read_file.model_dump()
    bench.only(lambda _given: False, "no")
    bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert probe.ran == []
    assert isinstance(probe.read_file, Tool)
    assert type(probe.read_file).__qualname__ == Tool.__qualname__
    assert bench.agent.tools == [probe.read_file]
    probe.read_file.reset_usage_count()
    assert probe.read_file.model_dump() == before


def test_no_way_into_a_guarded_tool_leads_past_the_gate(bench):
    ran = []

    class Both(BaseTool):
        name: str = "both"
        description: str = "Both."

        def _run(self, path: str) -> str:
            ran.append(path)
            return "ran"

        async def _arun(self, path: str) -> str:
            ran.append(path)
            return "ran"

    class Runs(Both):
        name: str = "runs"

        def run(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("run")
            return "ran"

        async def arun(self, *args: Any, **kwargs: Any) -> Any:
            ran.append("arun")
            return "ran"

    @tool
    def function(path: str) -> str:
        """A function."""
        ran.append(path)
        return "ran"

    @tool
    async def coroutine(path: str) -> str:
        """A coroutine function."""
        ran.append(path)
        return "ran"

    bench.only(lambda _given: False, "no")
    bench.run([Both(), Runs(), function, coroutine], ("both", {"path": "a"}))
    ways = 0
    for guarded in bench.agent.agent_executor.original_tools:
        structured = guarded.to_structured_tool()
        entries = [guarded.run, guarded._run, guarded.arun, structured.func]
        entries += [guarded._arun] if guarded.name in ("both", "runs", "coroutine") else []
        entries += [guarded.func] if isinstance(guarded, Tool) else []
        if guarded.name == "function":
            entries.remove(guarded.arun)  # CrewAI has none for a plain function
        for entry in entries:
            took = entry(path="x")
            took = asyncio.run(took) if asyncio.iscoroutine(took) else took
            assert isinstance(took, ToolFailure), (guarded.name, entry)
            assert not hasattr(entry, "__wrapped__")
            ways += 1
        assert isinstance(structured.invoke({"path": "x"}), ToolFailure)
    assert ways == 20
    assert ran == []
