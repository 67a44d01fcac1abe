"""Guarded tools of each kind of function, their results, tools in tools, and the original tool."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.tool_failure import (
    ToolFailure,
)
from crewai_probes import CHAIN, Pathed

from agentguard_crewai import guard_agent, guard_crew

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
