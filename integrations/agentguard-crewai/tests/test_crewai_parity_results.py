"""Calls, their results and cached results are the same in a guarded crew as in an unguarded one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crewai import Task
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.tool_failure import ToolFailure
from crewai_parity import HOW, Counter, Report, Watch, reader

# --- a call, and what it returns -----------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_a_call_is_the_same(same, way, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW[how])
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("the content of a")
    assert run.seen["ran"] == [["list", "a", 3]]
    assert {"tool_usage_started", "tool_usage_finished"} <= set(run.seen["types"])


def test_several_calls_are_the_same(same, way, how):
    def build(watch):
        steps = [("read_file", {"path": p, "limit": 1}) for p in "abc"]
        counting = ("count_things", {"by": 2}), ("count_things", {"by": 3})
        tools = [reader(watch), Counter()]
        return way.crew(watch.agent(way, "Lead", *steps, *counting, "done", tools=tools))

    run = same(build, how)
    assert [tool for _, tool, _ in run.made] == ["read_file"] * 3 + ["count_things"] * 2
    # in text CrewAI counts a use twice, unguarded as well
    once = 1 if way.native else 2
    assert run.seen["counts"] == [
        ["list", "read_file", 3 * once, None],
        ["list", "Count Things", 2 * once, None],
    ]
    assert run.said("5")


def test_parallel_calls_of_one_step_are_the_same(same, native, how):
    def build(watch):
        step = [("read_file", {"path": "a"}), ("count_things", {"by": 4})]
        tools = [reader(watch), Counter()]
        return native.crew(watch.agent(native, "Lead", step, "done", tools=tools))

    # two threads emit events, in the order that the machine has for them
    run = same(build, how, but=("events", "types"))
    assert sorted(run.made) == [("lead", "count_things", "ok"), ("lead", "read_file", "ok")]


RETURNED: dict[str, Any] = {
    "none": None,
    "int": 7,
    "float": 0.5,
    "false": False,
    "empty": "",
    "list": [1, "b", None],
    "dict": {"a": [1]},
    "tuple": (1, 2),
    "bytes": b"b",
    "model": Report(title="t"),
    "failure": ToolFailure(message="it is closed", code="closed", details={"day": "sunday"}),
    "text of an error": "Error: it is closed",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_what_a_tool_returns_reaches_the_model_alike(same, way, returned):
    def build(watch):
        @tool
        def look(at: str) -> Any:
            """Look."""
            watch.note("ran", at)
            return RETURNED[returned]

        return way.crew(watch.agent(way, "Lead", ("look", {"at": "a"}), "done", tools=[look]))

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "look", "ok")]
    assert run.seen["ran"] == ["a"]


def test_a_result_schema_is_the_same(same, way, how):
    def build(watch):
        @tool(result_schema=Report)
        def report(title: str) -> Any:
            """Report."""
            return {"title": title, "pages": "3"}

        @tool
        def inferred(title: str) -> Report:
            """Report."""
            return Report(title=title)

        steps = ("report", {"title": "x"}), ("inferred", {"title": "y"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[report, inferred]))

    run = same(build, how)
    assert run.said('"pages":3')
    assert [tool for _, tool, _ in run.made] == ["report", "inferred"]


@pytest.mark.parametrize("path", ["run", "_run"])
def test_a_coroutine_is_awaited_alike(same, way, how, path):
    def build(watch):
        @tool
        async def fetch(url: str) -> str:
            """Fetch."""
            await asyncio.sleep(0)
            watch.note("ran", url)
            return f"fetched {url}"

        class Fetch(BaseTool):
            name: str = "fetch"
            description: str = "Fetch."

            async def _run(self, url: str) -> str:
                await asyncio.sleep(0)
                watch.note("ran", url)
                return f"fetched {url}"

        tools = [fetch if path == "run" else Fetch()]
        return way.crew(watch.agent(way, "Lead", ("fetch", {"url": "u"}), "done", tools=tools))

    run = same(build, how)
    assert run.made == [("lead", "fetch", "ok")]
    assert run.seen["ran"] == ["u"]
    assert run.said("fetched u")


class Duck:
    """No tool of CrewAI's, but one that it takes for that of another framework."""

    name = "quack_loudly"
    description = "Quacks."

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def func(self, times: int) -> str:
        self._watch.note("ran", times)
        return "quack " * times


def test_a_tool_of_another_framework_is_the_same(same, native):
    def build(watch):
        steps = ("quack_loudly", {"times": 2}), "done"
        return native.crew(
            watch.agent(native, "Lead", *steps, tools=[Tool.from_langchain(Duck(watch))])
        )

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "quack_loudly", "ok")]
    assert run.seen["ran"] == [2]


def test_a_result_as_answer_ends_the_task_alike(same, way, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "it is never asked for this"
        return way.crew(
            watch.agent(way, "Lead", *steps, tools=[reader(watch, result_as_answer=True)])
        )

    run = same(build, how)
    assert run.made == [("lead", "read_file", "ok")]
    assert "the content of a" in str(run.seen["result"])
    assert len(run.seen["messages"]) == 1


# --- caches --------------------------------------------------------------------------------------


def calls_of(paths: str) -> list[tuple[str, dict[str, str]]]:
    return [("read_file", {"path": path}) for path in paths]


@pytest.mark.parametrize("where", ["crew", "agent", "handler"])
def test_a_cached_result_of_the_same_agent_is_used_alike(same, way, how, where):
    def build(watch):
        options: dict[str, Any] = {"agent": {"cache": True}, "handler": {"cache_handler": None}}
        more = dict(options.get(where, {}))
        if where == "handler":
            more["cache_handler"] = CacheHandler()
        lead = watch.agent(way, "Lead", *calls_of("aba"), "done", tools=[reader(watch)], **more)
        return way.crew(lead, cache=where == "crew")

    run = same(build, how)
    # the third is a hit: the tool runs twice, and the call is on record
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b"]
    assert run.made == [("lead", "read_file", "ok")] * 3


@pytest.mark.parametrize("where", ["nowhere", "agent says no"])
def test_without_a_cache_the_tool_runs_alike(same, native, where):
    def build(watch):
        more = {"cache": False} if where == "agent says no" else {}
        lead = watch.agent(native, "Lead", *calls_of("aba"), "done", tools=[reader(watch)], **more)
        return native.crew(lead, cache=where != "nowhere")

    run = same(build, HOW["kickoff"])
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]


def test_an_agent_that_only_a_task_has_is_offered_no_cache_alike(same, native):
    def build(watch):
        lead = watch.agent(native, "Lead", "done")
        writer = watch.agent(native, "Writer", *calls_of("aba"), "done", tools=[reader(watch)])
        task = Task(description="a task", expected_output="words", agent=writer)
        return native.crew(lead, tasks=[task], cache=True)

    run = same(build, HOW["akickoff"])
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]


def test_a_cache_function_has_the_same_say(same, way, how):
    def build(watch):
        def cached(args, result):
            watch.note("asked", [args, result])
            return args["path"] != "a"

        read_file = reader(watch)
        read_file.cache_function = cached
        steps = calls_of("abab")
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=[read_file]), cache=True)

    run = same(build, how)
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]
    assert len(run.seen["asked"]) == 3


def test_a_failure_is_kept_in_no_cache_alike(same, way, how):
    def build(watch):
        said = iter([ToolFailure(message="busy"), "x", "free"])

        @tool
        def knock(at: str) -> Any:
            """Knock."""
            watch.note("ran", at)
            return next(said)

        steps = [("knock", {"at": at}) for at in "aba"]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=[knock]), cache=True)

    run = same(build, how)
    assert run.seen["ran"] == ["a", "b", "a"]
    assert run.said("free")
