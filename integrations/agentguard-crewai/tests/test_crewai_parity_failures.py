"""Failures look the same in a guarded crew as in an unguarded one.

One difference is meant: a tool that raises runs once, also where CrewAI runs it up to six times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from crewai import Crew, Task
from crewai.tools import BaseTool, tool
from crewai.tools.tool_failure import ToolFailure, ToolFailurePolicy
from crewai_parity import HOW, Verbatim, reader


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("k"), ValueError("")])
def test_a_tool_that_raises_looks_the_same_and_runs_once(same, way, how, error):
    ran: list[str] = []

    def build(watch):
        @tool
        def fail(path: str) -> str:
            """Fail."""
            ran.append(path)
            raise error

        return way.crew(watch.agent(way, "Lead", ("fail", {"path": "a"}), "done", tools=[fail]))

    run = same(build, how)
    # six times unguarded in text, and once guarded
    assert len(ran) == (1 if way.native else 6) + 1
    assert run.made == [("lead", "fail", "error")]
    assert run.said(f"{error}".strip(chr(39)))
    assert "tool_usage_error" in run.seen["types"]


def test_a_class_of_tools_that_raises_looks_the_same_and_runs_once(same, way):
    ran: list[str] = []

    def build(watch):
        class Fail(BaseTool):
            name: str = "Fail Fast"
            description: str = "Fails."

            def _run(self, path: str) -> str:
                ran.append(path)
                raise OSError(2, "no such thing")

        steps = ("fail_fast", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[Fail()]))

    run = same(build, HOW["kickoff"])
    assert len(ran) == (1 if way.native else 6) + 1
    assert run.made == [("lead", "fail_fast", "error")]


def test_an_unknown_tool_looks_the_same(same, way, how):
    def build(watch):
        steps = ("no_such_thing", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, how)
    assert run.made == []


MALFORMED: dict[str, Mapping[str, Any]] = {
    "missing": {},
    "of another type": {"path": "a", "limit": "many"},
    "coerced": {"path": "a", "limit": "5"},
    "unknown": {"path": "a", "colour": "red"},
    "only unknown": {"colour": "red"},
    "null": {"path": None},
}


@pytest.mark.parametrize("given", MALFORMED)
def test_malformed_arguments_look_the_same(same, way, given):
    def build(watch):
        steps = ("read_file", MALFORMED[given]), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    # what does not pass the tool's schema is no call of the tool
    ran = given in ("coerced", "unknown")
    assert run.made == [("lead", "read_file", "ok")] * ran


@pytest.mark.parametrize("given", ["{oops", "[1, 2]", "7", "", "null"])
def test_arguments_that_are_no_object_look_the_same(same, way, given):
    def build(watch):
        said: Any = f"Thought: go on.\nAction: read_file\nAction Input: {given}\n"
        if way.native:
            called = {"name": "read_file", "arguments": given}
            said = [{"id": "c", "type": "function", "function": called}]
        steps = Verbatim(said), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert run.made == []


def test_a_spent_limit_looks_the_same(same, way, how):
    def build(watch):
        steps = [("read_file", {"path": p}) for p in "abc"]
        tools = [reader(watch, max_usage_count=2)]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=tools))

    run = same(build, how)
    # in text CrewAI counts each use twice, so that the limit comes sooner: unguarded as well
    assert len(run.made) == (2 if way.native else 1)
    assert run.said("usage limit")


def test_a_limit_counts_for_the_tool_that_agents_share(same, way):
    def build(watch):
        shared = reader(watch, max_usage_count=2)
        steps = [("read_file", {"path": p}) for p in "abc"]
        lead = watch.agent(way, "Lead", *steps[:2], "done", tools=[shared])
        writer = watch.agent(way, "Writer", *steps, "done", tools=[shared])
        return way.crew(lead, writer)

    run = same(build, HOW["kickoff"])
    assert {agent for agent, _, _ in run.made} == {"lead", "writer"}


@pytest.mark.parametrize("policy", list(ToolFailurePolicy))
@pytest.mark.parametrize("at", ["tool", "task", "agent", "crew"])
def test_a_failure_is_taken_alike(same, way, policy, at):
    def build(watch):
        @tool
        def post(channel: str) -> Any:
            """Post."""
            return ToolFailure(message="there is no such channel", code="channel_not_found")

        options: dict[str, Any] = {"tool_failure_policy": policy}
        if at == "tool":
            post.tool_failure_policy = policy
        more = options if at == "agent" else {}
        steps = ("post", {"channel": "c"}), "done"
        agent = watch.agent(way, "Lead", *steps, tools=[post], **more)
        more = options if at == "task" else {}
        task = Task(description="a task", expected_output="words", agent=agent, **more)
        more = options if at == "crew" else {}
        return Crew(agents=[agent], tasks=[task], **more)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "post", "ok")]
    assert ("tool_failure_detected" in run.seen["types"]) == (policy != "ignore")
    assert ("ToolExecutionFailedError" in str(run.seen["result"])) == (policy == "raise")


def test_the_same_call_over_and_over_is_stopped_alike(same, native):
    def build(watch):
        steps = [("read_file", {"path": "a"})] * 9
        return native.crew(watch.agent(native, "Lead", *steps, "done", tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert "not making progress" in str(run.seen["result"])


def test_a_repeated_call_in_text_is_answered_alike(same, text):
    def build(watch):
        steps = [("read_file", {"path": "a"})] * 3
        return text.crew(watch.agent(text, "Lead", *steps, "done", tools=[reader(watch)]))

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("reusing the same input")


def test_a_model_that_fails_is_asked_again_alike(same, native):
    def build(watch):
        call = "read_file", {"path": "a"}
        steps = call, RuntimeError("the line is busy"), call, "done"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert "agent_execution_error" in run.seen["types"]


def test_a_model_that_keeps_failing_ends_the_crew_alike(same, native):
    def build(watch):
        steps = [RuntimeError("the line is busy")] * 9
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert "the line is busy" in str(run.seen["result"])
    assert "crew_kickoff_failed" in run.seen["types"]


def test_too_many_steps_end_alike(same, way):
    def build(watch):
        steps = [("read_file", {"path": p}) for p in "abcdef"]
        tools = [reader(watch)]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=tools, max_iter=3))

    run = same(build, HOW["kickoff"])
    assert set(run.made) == {("lead", "read_file", "ok")}
