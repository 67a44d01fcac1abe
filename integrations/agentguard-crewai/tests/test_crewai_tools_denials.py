"""Calls of a guarded agent's tool that are denied, or cannot be decided or recorded: none runs.

Both ways of calling are tested: CrewAI runs ``tool.run`` natively, and ``tool._run`` in text.
"""

from __future__ import annotations

from typing import Any

import pytest
from crewai.hooks import (
    register_after_tool_call_hook,
    register_before_tool_call_hook,
    unregister_after_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai.tools import tool
from crewai.tools.tool_failure import (
    ToolExecutionFailedError,
    ToolFailure,
    ToolFailurePolicy,
    ToolFailureReason,
)
from crewai_probes import CHAIN, KINDS, Bench, bench_of

from agentguard import Decision
from agentguard_crewai import guard_agent, guard_crew

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
    assert (probe.ran, bench.made.policy_inputs) == ([], [])
    bench = make_bench(tools={"read_file": {"requires": ["a"]}})
    bench.run([probe.read_file], ("read_file", {"path": "a"}))
    assert probe.ran == ["a"]
