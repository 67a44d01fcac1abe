"""Functions and methods that are not what they look like: decorated, half async, generators.

Each either runs as it does unguarded, with the arguments that were decided on, or is refused where
it is guarded or called.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, Tool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from agentguard import ConfigError, Denied
from agentguard_langchain import bind_ahead, guard_tools


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return wrapper


class Single(BaseModel):
    x: int


# --- decorated ----------------------------------------------------------------------------------


@passing_on
def double(x: int, times: int = 2) -> str:
    """Double."""
    return str(x * times)


@passing_on
def thread(x: int, config: RunnableConfig) -> str:
    """Tell the thread."""
    return f"{x} {config['configurable']['thread_id']}"


class Decorated(BaseTool):
    name: str = "double"
    description: str = "Double."

    @passing_on
    def _run(self, x: int, times: int = 2, run_manager: Any = None) -> str:
        return f"{x * times} {run_manager is not None}"

    @passing_on
    async def _arun(self, x: int, times: int = 2, run_manager: Any = None) -> str:
        return f"{x * times} {run_manager is not None}"


@pytest.mark.parametrize("made", [lambda: tool(double), Decorated], ids=["function", "class"])
async def test_a_decorator_that_passes_on_changes_nothing(made, limited):
    plain, (guarded,) = made(), guard_tools([made()], limited.agent)
    assert convert_to_openai_tool(guarded) == convert_to_openai_tool(plain)
    assert guarded.description == "Double."
    expected = plain.invoke({"x": 3})
    assert guarded.invoke({"x": 3}) == await guarded.ainvoke({"x": 3}) == expected
    for refused in ({"x": 30}, {"x": 30, "times": 1}):
        with pytest.raises(Denied):
            guarded.invoke(refused)
    first, second, *_rest = limited.log.calls()
    assert first.values == {"x": 3, "times": 2}
    assert first.encoded == second.encoded == bind_ahead(guarded, {"x": 3}).encoded


def test_the_config_gets_through_a_decorator(limited):
    (guarded,) = guard_tools([thread], limited.agent)
    assert guarded.invoke({"x": 1}, {"configurable": {"thread_id": "t1"}}) == "1 t1"
    (logged,) = limited.log.calls()
    assert (logged.values, logged.predicate["unbound"]) == ({"x": 1}, ["config"])


def test_an_argument_that_a_decorator_puts_in_front_is_not_decided_on_as_another(limited):
    @with_session
    def search(x: int, path: str = "tmp") -> str:
        return path

    made = StructuredTool(name="s", description="S.", func=search, args_schema=Single)
    (guarded,) = guard_tools([made], limited.agent)
    for given in ("1", {"x": 1}):  # a text comes by position
        with pytest.raises((Denied, TypeError)):
            guarded.invoke(given)
    assert [call.values for call in limited.log.calls()] == [None, {"x": 1}]


def test_the_one_input_of_a_tool_needs_a_name(limited):
    with pytest.raises(ConfigError, match="make it a StructuredTool") as caught:
        guard_tools([Tool("double", double, "Double.")], limited.agent)
    assert caught.value.code == "tool.unguardable"
    (guarded,) = guard_tools([Tool("double", lambda x: double(x=3), "Double.")], limited.agent)
    with pytest.raises(ConfigError, match="make it a StructuredTool"):
        guarded.func = double  # type: ignore[attr-defined]
    made = StructuredTool.from_function(double)
    assert guard_tools([made], limited.agent)[0].invoke({"x": 3}) == "6"


# --- half async ---------------------------------------------------------------------------------


class HalfAsync(BaseTool):
    name: str = "half"
    description: str = "Add."

    def _run(self, x: int) -> str:
        return f"{x} sync"

    async def _help(self, x: int) -> str:
        await asyncio.sleep(0)
        return f"{x} async"

    def _arun(self, x: int) -> Any:
        return self._help(x)


class HalfDecorated(HalfAsync):
    @passing_on
    async def _arun(self, x: int) -> Any:
        return f"{x} async"


@pytest.mark.parametrize("kind", [HalfAsync, HalfDecorated])
async def test_what_arun_returns_is_awaited_whoever_made_it(kind, limited):
    (guarded,) = guard_tools([kind()], limited.agent)
    assert await guarded.ainvoke({"x": 1}) == await kind().ainvoke({"x": 1}) == "1 async"
    assert guarded.invoke({"x": 1}) == "1 sync"
    with pytest.raises(Denied):
        await guarded.ainvoke({"x": 30})
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([guarded]))
    graph.add_edge(START, "tools")
    call: Any = {"type": "tool_call", "name": "half", "id": "c1", "args": {"x": 2}}
    state = await graph.compile().ainvoke({"messages": [AIMessage("", tool_calls=[call])]})
    assert state["messages"][-1].content == "2 async"
    assert [call.outcome for call in limited.log.calls()] == ["ok", "ok", None, "ok"]


async def test_a_coroutine_may_be_made_by_any_function(limited):
    async def add(x: int) -> str:
        return f"{x} async"

    made = StructuredTool(
        name="add", description="Add.", args_schema=Single, coroutine=passing_on(add)
    )
    (guarded,) = guard_tools([made], limited.agent)
    assert await guarded.ainvoke({"x": 1}) == "1 async"
    with pytest.raises(Denied):
        await guarded.ainvoke({"x": 30})


async def test_a_sync_function_that_returns_a_coroutine_is_refused(limited):
    ran = []

    async def add(x: int) -> str:
        ran.append(x)
        return str(x)

    def starts(x: int) -> Any:
        """Begin something."""
        return asyncio.ensure_future(add(x))

    returns, begins = passing_on(add), starts
    sync = StructuredTool.from_function(returns, name="add", description="Add.")
    (guarded,) = guard_tools([sync], limited.agent)
    refused = "tool add returned a coroutine, which was not run"
    with pytest.raises(ConfigError, match=refused):
        await guarded.ainvoke({"x": 1})
    with pytest.raises(ConfigError, match=refused) as caught:
        guarded.invoke({"x": 1})
    assert (caught.value.code, ran) == ("tool.async", [])
    (begun,) = guard_tools([begins], limited.agent)
    with pytest.raises(ConfigError, match="tool starts returned an awaitable"):
        begun.invoke({"x": 2})
    await asyncio.sleep(0)
    assert [call.outcome for call in limited.log.calls()] == ["error", "error", "unknown"]
    fixed = StructuredTool.from_function(coroutine=add, name="add", description="Add.")
    assert await guard_tools([fixed], limited.agent)[0].ainvoke({"x": 3}) == "3"
    assert ran == [2, 3]


# --- generators ---------------------------------------------------------------------------------


def count(x: int) -> Any:
    """Count."""
    yield from range(x)


async def acount(x: int) -> Any:
    """Count."""
    for number in range(x):
        yield number


class Counter:
    def __call__(self, x: int) -> Any:
        yield from range(x)


class Counts(BaseTool):
    name: str = "count"
    description: str = "Count."

    def _run(self, x: int) -> Any:
        yield from range(x)


class ACounts(BaseTool):
    name: str = "count"
    description: str = "Count."

    def _run(self, x: int) -> Any:
        return [*range(x)]

    async def _arun(self, x: int) -> Any:
        for number in range(x):
            yield number


def structured(function: Any) -> BaseTool:
    return StructuredTool(name="count", description="C.", func=function, args_schema=Single)


@pytest.mark.parametrize(
    ("made", "place"),
    [
        (lambda: tool(count), "the func of tool count"),
        (lambda: tool(acount), "the func of tool acount"),
        (lambda: structured(functools.partial(count)), "the func of tool count"),
        (lambda: structured(Counter()), "the func of tool count"),
        (Counts, r"Counts\._run"),
        (ACounts, r"ACounts\._arun"),
    ],
)
def test_a_generator_is_refused_when_it_is_guarded(limited, made, place):
    with pytest.raises(ConfigError, match=f"{place} is a generator: .* return a list") as caught:
        guard_tools([made()], limited.agent)
    assert caught.value.code == "tool.generator"
    listing = structured(lambda x: [*range(x)])
    assert guard_tools([listing], limited.agent)[0].invoke({"x": 2}) == [0, 1]


@pytest.mark.parametrize("function", [count, acount])
async def test_a_generator_in_disguise_is_refused_at_the_call(limited, function):
    made = StructuredTool(
        name="count", description="C.", args_schema=Single, func=passing_on(function),
        coroutine=passing_on(function),
    )  # fmt: skip
    (guarded,) = guard_tools([made], limited.agent)
    with pytest.raises(ConfigError, match="tool count returned a generator"):
        guarded.invoke({"x": 2})
    with pytest.raises(ConfigError, match="tool count returned a generator"):
        await guarded.ainvoke({"x": 2})
    assert [call.outcome for call in limited.log.calls()] == ["error", "error"]


# --- classes that watch their subclasses --------------------------------------------------------


REGISTRY: dict[str, type] = {}


class Registered(BaseTool):
    """Keeps its subclasses, and asks for a keyword where one is made."""

    name: str = "registered"
    description: str = "D."

    def __init_subclass__(cls, *, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        REGISTRY[kind] = cls

    @classmethod
    def __pydantic_init_subclass__(cls, *, kind: str, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        REGISTRY[f"pydantic {kind}"] = cls

    def _run(self, x: int) -> str:
        return f"ran with {x}"


class Kept(Registered, kind="kept"):
    pass


def test_no_class_hears_of_the_guarded_one(limited):
    (guarded,) = guard_tools([Kept()], limited.agent)
    assert {"kept": Kept, "pydantic kept": Kept} == REGISTRY
    assert isinstance(guarded, Kept)
    assert guarded.invoke({"x": 1}) == REGISTRY["kept"]().invoke({"x": 1}) == "ran with 1"
    with pytest.raises(Denied):
        guarded.invoke({"x": 30})
