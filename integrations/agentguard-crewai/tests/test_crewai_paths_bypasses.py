"""Attempts to reach a guarded tool past its gate: its attributes, hooks, callbacks and threads."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from crewai.hooks import (
    clear_all_tool_call_hooks,
    register_after_tool_call_hook,
    register_before_tool_call_hook,
)
from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool, to_langchain
from crewai.tools.tool_failure import ToolFailure
from crewai_files import BOTH, CHAIN, CREW_WAYS, KINDS, PLAN, REPLACED, codes, of_coroutine_function

from agentguard import UnguardedCallError
from agentguard_crewai import guard_agent, guard_crew


@pytest.fixture
def hooks():
    """Register hooks around the calls of all tools; none is left behind."""

    def register(before=None, after=None):
        if before is not None:
            register_before_tool_call_hook(before)
        if after is not None:
            register_after_tool_call_hook(after)

    yield register
    clear_all_tool_call_hooks()


def with_func(tool, function):
    tool.func = function
    return tool


# Each takes a guarded tool, its structured twin and a path.
WAYS_IN = {
    "run": lambda t, s, p: t.run(path=p),
    "run-positional": lambda t, s, p: t.run(p),
    "_run": lambda t, s, p: t._run(path=p),
    "_run-positional": lambda t, s, p: t._run(p),
    "structured": lambda t, s, p: s.invoke({"path": p}),
    "structured-text": lambda t, s, p: s.invoke(json.dumps({"path": p})),
    "structured-func": lambda t, s, p: s.func(path=p),
    "structured-_run": lambda t, s, p: s._run(p),
    "structured-copy": lambda t, s, p: s.model_copy().invoke({"path": p}),
    "structured-original": lambda t, s, p: s._original_tool.run(path=p),
    "structured-again": lambda t, s, p: t.to_structured_tool().invoke({"path": p}),
    "listed": lambda t, s, p: to_langchain([t])[0].invoke({"path": p}),
    "converted-structured": lambda t, s, p: Tool.from_langchain(s).run(path=p),
    "run-of-the-class": lambda t, s, p: BaseTool.run(t, path=p),
    "unwrapped": lambda t, s, p: inspect.unwrap(s.func)(path=p),
}
FUNCTION_WAYS_IN = {
    "func": lambda t, s, p: t.func(p),
    "func-unwrapped": lambda t, s, p: inspect.unwrap(t.func)(p),
    "run-of-the-class-of-functions": lambda t, s, p: Tool.run(t, path=p),
    "_run-of-the-class-of-functions": lambda t, s, p: Tool._run(t, path=p),
    "converted": lambda t, s, p: Tool.from_langchain(t).run(path=p),
    "assigned": lambda t, s, p: with_func(t, vars(t)["func"]).run(path=p),
}


@pytest.mark.parametrize(
    ("kind", "enter"),
    [
        *[(kind, enter) for kind in ("function", "class") for enter in WAYS_IN],
        *[("class-with-run", enter) for enter in WAYS_IN if enter != "run-positional"],
        *[("function", enter) for enter in FUNCTION_WAYS_IN],
    ],
)
def test_the_ways_into_a_tool_that_an_executor_has(file_team, native, kind, enter):
    lead: Any = guard_agent(file_team.lead(native, tools=[KINDS[kind](file_team)]), file_team.guard)
    file_team.ran = getattr(lead.tools[0], "ran", file_team.ran)
    lead.create_agent_executor()
    (guarded,), (structured,) = lead.agent_executor.original_tools, lead.agent_executor.tools
    way_in = {**WAYS_IN, **FUNCTION_WAYS_IN}[enter]
    with file_team.alice():
        assert way_in(guarded, structured, "plan") == "the content of plan"
        refused = way_in(guarded, structured, "secret")
    assert isinstance(refused, ToolFailure)
    assert refused.code == "policy.denied"
    file_team.require_both()


@pytest.mark.parametrize("enter", ["arun", "_arun"])
async def test_the_async_ways_into_a_tool(file_team, native, enter):
    lead: Any = guard_agent(
        file_team.lead(native, tools=[of_coroutine_function(file_team)]), file_team.guard
    )
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    with file_team.alice():
        assert await getattr(guarded, enter)(path="plan") == "plan"
        assert (await getattr(guarded, enter)(path="secret")).code == "policy.denied"
    file_team.require_both()


async def test_a_thread_of_crewais_own_that_has_lost_the_context_widens_nothing(file_team, native):
    lead: Any = guard_agent(file_team.lead(native), file_team.guard)
    lead.create_agent_executor()
    (structured,) = lead.agent_executor.tools
    with file_team.alice():
        assert (await structured.ainvoke({"path": "plan"})).code == "delegation.missing"
    assert (file_team.ran, [call.chain for call in file_team.calls()]) == ([], [()])


def test_no_attribute_of_a_gated_function_leads_past_it(file_team, native):
    lead: Any = guard_agent(file_team.lead(native, tools=[file_team.read_file]), file_team.guard)
    lead.create_agent_executor()
    (guarded,), (structured,) = lead.agent_executor.original_tools, lead.agent_executor.tools
    for function in (guarded.func, structured.func, guarded.run, guarded._run):
        assert not hasattr(function, "__wrapped__")
    assert guarded.func.__name__ == file_team.read_file.func.__name__
    assert file_team.read_file.func not in vars(guarded.func).values()


def test_the_policy_sees_what_a_hook_made_of_the_arguments(file_team, way, hooks):
    def change(context: Any) -> None:
        context.tool_input["path"] = {"plan": "secret", "secret": "plan"}[
            context.tool_input["path"]
        ]

    hooks(before=change)
    output = file_team.kickoff(guard_crew(way.crew(file_team.lead(way)), file_team.guard))
    assert codes(output) == [["policy.denied"]]
    file_team.require_both()
    asked = [document["args"]["path"] for document in file_team.made.policy_inputs]
    assert asked == ["secret", "plan"]  # the model has asked for them the other way round


def test_a_hook_that_fails_lets_nothing_past_the_gate(file_team, way, hooks):
    def broken(_context: Any) -> None:
        raise RuntimeError

    hooks(before=broken, after=broken)
    file_team.kickoff(guard_crew(way.crew(file_team.lead(way)), file_team.guard))
    file_team.require_both()


def test_what_a_hook_has_blocked_is_no_call(file_team, way, hooks):
    hooks(before=lambda context: False if context.tool_input["path"] == "plan" else None)
    file_team.kickoff(guard_crew(way.crew(file_team.lead(way)), file_team.guard))
    assert (file_team.ran, file_team.story()) == (
        [],
        [("lead", "read_file", "secret", "policy.denied")],
    )


def test_a_hook_that_calls_the_tool_itself_is_gated(file_team, way, hooks):
    results = []

    def call(context: Any) -> None:
        if context.tool_input["path"] == "plan":
            results.append(context.tool.func(path="secret"))
            results.append(context.tool._original_tool.run(path="paper"))

    hooks(after=call)
    file_team.kickoff(guard_crew(way.crew(file_team.lead(way, PLAN, "done")), file_team.guard))
    assert [getattr(one, "code", one) for one in results] == [
        "policy.denied",
        "the content of paper",
    ]
    assert file_team.ran == ["plan", "paper"]
    assert {(call.agent, call.chain) for call in file_team.calls()} == {("lead", CHAIN)}


def test_a_hook_that_calls_the_tool_before_the_model_does_is_another_call(file_team, way, hooks):
    results = []

    def call(context: Any) -> None:
        results.append(context.tool.func(path="secret" if len(results) == 0 else "paper"))

    hooks(before=call)
    lead = file_team.lead(way, PLAN, ("read_file", {"path": "page"}), "done")
    output = file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    assert [getattr(one, "code", one) for one in results] == [
        "policy.denied",
        "the content of paper",
    ]
    assert codes(output) == [[]]
    assert file_team.ran == ["plan", "paper", "page"]
    assert {(call.agent, call.chain) for call in file_team.calls()} == {("lead", CHAIN)}


@pytest.mark.parametrize(("kind", "name"), REPLACED)
def test_what_a_hook_puts_in_the_place_of_a_way_in_is_gated(file_team, native, hooks, kind, name):
    made: Any = KINDS[kind](file_team)
    file_team.ran = getattr(made, "ran", file_team.ran)
    ran = file_team.ran

    def put(context: Any) -> None:
        held = context.tool._original_tool

        def instead(path: str) -> str:
            ran.append(path)
            return path

        object.__setattr__(held, name, instead)

    hooks(before=put)
    lead = file_team.lead(native, ("read_file", {"path": "paper"}), *BOTH, "done", tools=[made])
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert "secret" not in ran
    assert file_team.story() == [
        ("lead", "read_file", "paper", "ok"),
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file", "secret", "policy.denied"),
    ]


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_callback_gets_guarded_tools_of_the_executor(file_team, native, begin):
    found: list[Any] = []
    lead = file_team.lead(native, PLAN, "done")

    def look(_given: Any) -> None:
        executor: Any = lead.agent_executor
        if not found:
            found.append(executor.original_tools[0].run(path="secret"))
            found.append(executor.tools[0].invoke({"path": "secret"}))

    crew = guard_crew(native.crew(lead), file_team.guard)
    crew.tasks[0].callback = look
    with file_team.alice():
        CREW_WAYS[begin](crew)
    assert [one.code for one in found] == ["policy.denied"] * 2
    assert file_team.ran == ["plan"]
    assert [call.chain for call in file_team.calls()] == [CHAIN] * 3


def test_the_tool_that_was_given_stays_the_object_that_it_was_and_runs_for_its_agent_alone(
    file_team, native
):
    lead = file_team.lead(native)
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert lead.tools == [file_team.read_file]
    assert isinstance(file_team.read_file, Tool)
    with pytest.raises(UnguardedCallError):
        file_team.read_file.run(path="secret")
    assert len(file_team.calls()) == 2
