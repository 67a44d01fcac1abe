"""Ways around the gate: each is refused what the policy refuses, and allowed what it allows."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import threading
import types
from typing import Annotated, Any

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool
from pydantic import BaseModel, Field

from agentguard import ConfigError, Denied
from agentguard_langchain import guard_tools


def crewai_like(tool):
    """Convert a tool the way another framework does: take its function and its schema."""
    return types.SimpleNamespace(name=tool.name, func=tool.func, schema=tool.args_schema)


def setting(tool, **fields):
    for name, value in fields.items():
        setattr(tool, name, value)
    return tool


# Each takes the guarded tool, the raw function and x.
SYNC_WAYS = {
    "invoke": lambda t, f, x: t.invoke({"x": x}),
    "run": lambda t, f, x: t.run({"x": x}),
    "batch": lambda t, f, x: t.batch([{"x": x}]),
    "stream": lambda t, f, x: list(t.stream({"x": x})),
    "func": lambda t, f, x: t.func(x=x),
    "func-positional": lambda t, f, x: t.func(x),
    "func-unwrapped": lambda t, f, x: inspect.unwrap(t.func)(x=x),
    "_run": lambda t, f, x: t._run(x=x, config={}),
    "_run-of-the-class": lambda t, f, x: StructuredTool._run(t, x=x, config={}),
    "run-of-the-class": lambda t, f, x: StructuredTool.run(t, {"x": x}),
    "invoke-of-the-class": lambda t, f, x: BaseTool.invoke(t, {"x": x}),
    "model_copy": lambda t, f, x: t.model_copy().invoke({"x": x}),
    "model_copy-func": lambda t, f, x: t.model_copy(deep=True).func(x=x),
    "model_copy-update": lambda t, f, x: t.model_copy(update={"func": f}).func(x=x),
    "copy": lambda t, f, x: copy.copy(t).func(x=x),
    "deepcopy": lambda t, f, x: copy.deepcopy(t).invoke({"x": x}),
    "assigned": lambda t, f, x: setting(t, func=f).func(x=x),
    "assigned-run": lambda t, f, x: setting(t, func=f).invoke({"x": x}),
    "assigned-object": lambda t, f, x: setting(t, func=functools.partial(f)).func(x=x),
    "dict": lambda t, f, x: (t.__dict__.update(func=f), t.invoke({"x": x})),
    "rewrapped": lambda t, f, x: StructuredTool.from_function(t.func).invoke({"x": x}),
    "converted": lambda t, f, x: crewai_like(t).func(x=x),
    "with_config": lambda t, f, x: t.with_config(tags=["a"]).invoke({"x": x}),
    "with_retry": lambda t, f, x: t.with_retry(stop_after_attempt=1).invoke({"x": x}),
    "piped": lambda t, f, x: (RunnableLambda(lambda x: {"x": x}) | t).invoke(x),
}
ASYNC_WAYS = {
    "ainvoke": lambda t, f, x: t.ainvoke({"x": x}),
    "arun": lambda t, f, x: t.arun({"x": x}),
    "abatch": lambda t, f, x: t.abatch([{"x": x}]),
    "coroutine": lambda t, f, x: t.coroutine(x=x),
    "_arun": lambda t, f, x: t._arun(x=x, config={}),
    "_arun-of-the-class": lambda t, f, x: StructuredTool._arun(t, x=x, config={}),
    "_arun-of-the-base": lambda t, f, x: BaseTool._arun(t, x=x, config={}),
    "model_copy-update": lambda t, f, x: t.model_copy(update={"coroutine": f}).coroutine(x=x),
    "assigned": lambda t, f, x: setting(t, coroutine=f).ainvoke({"x": x}),
    "assigned-none": lambda t, f, x: setting(t, coroutine=None).ainvoke({"x": x}),
}


@pytest.mark.parametrize("way", SYNC_WAYS)
def test_ways_in(counted, limited, way):
    for x, expected in ((3, "allow"), (30, "deny")):
        (guarded,) = guard_tools([counted.tool], limited.agent)
        if expected == "deny":
            with pytest.raises(Denied):
                SYNC_WAYS[way](guarded, counted.function, x)
        else:
            SYNC_WAYS[way](guarded, counted.function, x)
        assert counted.runs == [3]
        assert limited.log.calls()[-1].decision == expected
    assert len(limited.log.calls()) == 2


@pytest.mark.parametrize("way", ASYNC_WAYS)
async def test_async_ways_in(counted, limited, way):
    async def raw(x):
        counted.runs.append(x)

    for x, expected in ((3, "allow"), (30, "deny")):
        (guarded,) = guard_tools([counted.tool], limited.agent)
        if expected == "deny":
            with pytest.raises(Denied):
                await ASYNC_WAYS[way](guarded, raw, x)
        else:
            await ASYNC_WAYS[way](guarded, raw, x)
        assert counted.runs == [3]
        assert limited.log.calls()[-1].decision == expected
    assert len(limited.log.calls()) == 2


def test_no_attribute_leads_to_the_original(counted, limited):
    guarded: Any = guard_tools([counted.tool], limited.agent)[0]
    for gate in (guarded.func, guarded.coroutine):
        assert not hasattr(gate, "__wrapped__")
        assert inspect.unwrap(gate) is gate
        assert not [v for v in vars(gate).values() if callable(v) and v is not gate.__signature__]
        assert gate.__name__ in ("count", "acount")
    reachable = [*vars(guarded).values(), *(guarded.__pydantic_private__ or {}).values()]
    assert counted.function not in reachable


# --- tool classes -------------------------------------------------------------------------------


class Counting(BaseTool):
    """Sync only."""

    name: str = "counting"
    description: str = "Count."
    runs: list[int] = Field(default_factory=list)

    def _run(self, x: int) -> str:
        self.runs.append(x)
        return f"ran with {x}"


class CountingBoth(Counting):
    """The async way goes through the sync one."""

    async def _arun(self, x: int) -> str:
        return self._run(x)


class CountingApart(Counting):
    """The async way is another one."""

    async def _arun(self, x: int) -> str:
        self.runs.append(x)
        return f"ran with {x}"


class CountingStructured(StructuredTool):
    """Only the async way is the class's own."""

    runs: list[int] = Field(default_factory=list)

    async def _arun(self, *args, config: RunnableConfig, run_manager=None, **kwargs):
        return await super()._arun(*args, config=config, run_manager=run_manager, **kwargs)


def structured(runs):
    def note(x: int) -> str:
        """Note."""
        runs.append(x)
        return f"ran with {x}"

    return CountingStructured.from_function(note, runs=runs)


CLASSES = {
    "sync": lambda runs: Counting.model_construct(runs=runs),
    "both": lambda runs: CountingBoth.model_construct(runs=runs),
    "apart": lambda runs: CountingApart.model_construct(runs=runs),
    "structured": structured,
}


def stock(tool):
    """Return what LangChain passes beside the arguments."""
    return {"config": {}} if isinstance(tool, StructuredTool) else {}


CLASS_WAYS = {
    "invoke": lambda t, x: t.invoke({"x": x}),
    "ainvoke": lambda t, x: t.ainvoke({"x": x}),
    "_run": lambda t, x: t._run(x=x, **stock(t)),
    "_arun": lambda t, x: t._arun(x=x, **stock(t)),
    "copy": lambda t, x: copy.copy(t)._run(x=x, **stock(t)),
}


@pytest.mark.parametrize("way", CLASS_WAYS)
@pytest.mark.parametrize("make_tool", CLASSES.values(), ids=CLASSES)
async def test_tool_classes_are_gated_once_in_every_way(limited, make_tool, way):
    runs: list[int] = []
    (guarded,) = guard_tools([make_tool(runs)], limited.agent)

    async def go(x):
        result = CLASS_WAYS[way](guarded, x)
        return await result if inspect.isawaitable(result) else result

    assert await go(3) == "ran with 3"
    with pytest.raises(Denied):
        await go(30)
    assert runs == [3]
    logged = limited.log.calls()
    assert [(c.decision, c.values) for c in logged] == [("allow", {"x": 3}), ("deny", {"x": 30})]


def test_a_tool_that_calls_itself_asks_each_time(limited):
    runs = []

    def count(x: int) -> str:
        """Count up by threes."""
        runs.append(x)
        ways = {
            "func": lambda: guarded.func(x=x + 3),
            "invoke": lambda: guarded.invoke({"x": x + 3}),
        }
        return ways["func" if len(runs) % 2 else "invoke"]()

    guarded: Any = guard_tools([StructuredTool.from_function(count)], limited.agent)[0]
    with pytest.raises(Denied):
        guarded.invoke({"type": "tool_call", "id": "c1", "name": "count", "args": {"x": 1}})
    assert runs == [1, 4, 7]
    logged = limited.log.calls()
    assert sorted(c.values["x"] for c in logged) == [1, 4, 7, 10]
    assert len({c.predicate["call_site"] for c in logged}) == 4


def test_a_class_that_calls_itself_by_invoke_asks_each_time(limited):
    class Climbing(Counting):
        def _run(self, x: int) -> str:
            self.runs.append(x)
            return self.invoke({"x": x + 4})

    runs: list[int] = []
    (guarded,) = guard_tools([Climbing.model_construct(runs=runs)], limited.agent)
    with pytest.raises(Denied):
        guarded.invoke({"x": 1})
    assert runs == [1, 5, 9]


def test_the_leave_to_pass_ends_with_the_call(limited):
    """Work that a tool leaves behind keeps its context, and not the leave to pass."""
    left = []

    class Leaving(Counting):
        def _run(self, x: int) -> str:
            self.runs.append(x)
            left.append(contextvars.copy_context())
            return self._again(x)

        def _again(self, x: int) -> str:
            return f"ran with {x}"

    runs: list[int] = []
    (guarded,) = guard_tools([Leaving.model_construct(runs=runs)], limited.agent)
    assert guarded.invoke({"x": 1}) == "ran with 1"
    with pytest.raises(Denied):
        left[0].run(guarded._run, 30)
    assert runs == [1]
    assert left[0].run(guarded._run, 2) == "ran with 2"
    assert [c.values["x"] for c in limited.log.calls()] == [1, 30, 2]


async def test_a_call_can_be_closed_from_another_context(limited):
    class Endless(Counting):
        async def _arun(self, x: int) -> str:
            self.runs.append(x)
            await asyncio.Event().wait()
            return "never"

    runs: list[int] = []
    (guarded,) = guard_tools([Endless.model_construct(runs=runs)], limited.agent)
    context, way = contextvars.copy_context(), guarded._arun(x=1)
    while not runs:  # what a task does, but in a context of our own
        waited_for = context.run(way.send, None)
        if not runs:
            waited_for._asyncio_future_blocking = False
            await asyncio.wait([waited_for])
    way.close()
    (logged,) = limited.log.calls()
    assert (runs, logged.outcome) == ([1], "unknown")


def test_threads_do_not_lend_each_other_a_pass(limited):
    started, go_on = threading.Event(), threading.Event()

    class Waiting(Counting):
        def _run(self, x: int) -> str:
            self.runs.append(x)
            started.set()
            assert go_on.wait(120)
            return f"ran with {x}"

    runs: list[int] = []
    (guarded,) = guard_tools([Waiting.model_construct(runs=runs)], limited.agent)
    worker = threading.Thread(target=guarded.invoke, args=({"x": 1},))
    worker.start()
    assert started.wait(120)
    with pytest.raises(Denied):
        guarded._run(x=30)
    go_on.set()
    worker.join()
    assert runs == [1]


async def test_tasks_do_not_lend_each_other_a_pass(limited):
    both = asyncio.Event()

    class Together(Counting):
        async def _arun(self, x: int) -> str:
            self.runs.append(x)
            if len(self.runs) == 2:
                both.set()
            await asyncio.wait_for(both.wait(), 120)
            return f"ran with {x}"

    runs: list[int] = []
    (guarded,) = guard_tools([Together.model_construct(runs=runs)], limited.agent)
    results = await asyncio.gather(
        *(guarded._arun(x=x) for x in (1, 30, 2, 40)), return_exceptions=True
    )
    assert [isinstance(result, Denied) for result in results] == [False, True, False, True]
    assert runs == [1, 2]


@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "run", "arun", "stream", "__call__"])
def test_a_class_with_a_way_in_of_its_own_is_refused(limited, entry):
    def way(self, *_args, **_kwargs):
        return self.runs.append(0)

    with_way = type("WithWay", (Counting,), {entry: way, "__module__": __name__})
    with pytest.raises(ConfigError, match=rf"WithWay\.{entry} may do the tool's work past _run"):
        guard_tools([with_way()], limited.agent)
    guard_tools([Counting()], limited.agent)


@pytest.mark.parametrize("name", ["invoke", "ainvoke", "run", "arun", "stream", "_run", "_arun"])
def test_a_tool_with_a_way_in_of_its_own_is_refused(limited, name):
    traced = Counting()
    inner = getattr(traced, name)

    @functools.wraps(inner)
    def trace(*args, **kwargs):
        return inner(*args, **kwargs)  # bound to the original

    object.__setattr__(traced, name, trace)  # past pydantic, as a tracer does
    with pytest.raises(ConfigError, match=f"its {name} was replaced on the object") as caught:
        guard_tools([traced], limited.agent)
    assert caught.value.code == "tool.unguardable"


def test_what_traces_a_guarded_tool_stays_behind_the_guard(limited):
    (guarded,) = guard_tools([Counting()], limited.agent)
    inner, traced = guarded.invoke, []

    def trace(*args, **kwargs):
        traced.append(args)
        return inner(*args, **kwargs)

    object.__setattr__(guarded, "invoke", trace)
    assert guarded.invoke({"x": 1}) == "ran with 1"
    with pytest.raises(Denied):
        guarded.invoke({"x": 30})
    assert len(traced) == 2


def test_a_method_that_is_no_plain_method_is_refused(limited):
    class Static(Counting):
        @staticmethod
        def _run(x: int) -> str:
            return f"ran with {x}"

    with pytest.raises(ConfigError, match=r"Static\._run is no plain method"):
        guard_tools([Static()], limited.agent)


def test_a_forged_argument_reaches_the_policy(limited):
    """Names that frameworks use do not hide what a model sends under them."""

    def take(x: int, **more: object) -> str:
        """Take."""
        return str(more)

    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    made = StructuredTool(name="take", description="Take.", func=take, args_schema=schema)
    (guarded,) = guard_tools([made], limited.agent)
    forged = dict.fromkeys(("callbacks", "runtime", "config2", "state"), "forged")
    args = {"x": 1, **forged}
    guarded.invoke({"type": "tool_call", "id": "c1", "name": "take", "args": args})
    (logged,) = limited.log.calls()
    assert logged.values == args


def test_a_forged_runtime_reaches_the_policy(kinds, limited):
    (guarded,) = guard_tools([kinds["mcp"].make()], limited.agent)
    asyncio.run(guarded.ainvoke({"x": 1, "runtime": "forged"}))
    asyncio.run(guarded.ainvoke({"x": 1, **kinds["mcp"].injected}))
    forged, injected = limited.log.calls()
    assert forged.values == {"x": 1, "runtime": "forged"}
    assert injected.values == {"x": 1}


def test_a_visible_name_is_the_models_even_if_the_function_calls_it_injected(limited):
    class Seen(BaseModel):
        x: int
        user: str

    def act(x: int, user: Annotated[str, InjectedToolArg]) -> str:
        """Act."""
        return f"{user} {x}"

    made = StructuredTool.from_function(act, args_schema=Seen)
    (guarded,) = guard_tools([made], limited.agent)
    assert guarded.invoke({"x": 1, "user": "mallory"}) == "mallory 1"
    (logged,) = limited.log.calls()
    assert logged.values == {"x": 1, "user": "mallory"}
