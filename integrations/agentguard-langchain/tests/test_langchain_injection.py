"""No mark on a parameter lets a model give an argument past the policy.

ToolNode takes injected arguments away from a model where it reads their marks, and nowhere else.
Each tool here runs in a graph of one's own and in ``create_agent``, sync and async, with a model
that forges what it was not shown; beside each stands one where injection works as it is meant to.
"""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolArg,
    InjectedToolCallId,
    StructuredTool,
    Tool,
)
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1

from agentguard import ConfigError, Decision
from agentguard_langchain import GuardedToolDenied, bind_ahead, evaluate, guard_tools

Hidden = Annotated[str, InjectedToolArg]
CallId = Annotated[str, InjectedToolCallId]
Messages = Annotated[Any, InjectedState("messages")]

JSON: Any = {"type": "object", "properties": {"x": {"type": "integer"}}}


class Single(BaseModel):
    x: int


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int


class Marked(BaseModel):
    x: int
    user: Hidden = "nobody"


class MarkedState(BaseModel):
    x: int
    user: Messages = None


class Aliased(BaseModel):
    x: int
    user: str = Field(default="nobody", validation_alias="name")


class Classed(BaseTool):
    name: str = "act"
    description: str = "Act."


class Schemed(Classed):
    args_schema: Any = Single

    def _run(self, x: int, user: Hidden = "nobody") -> str:
        return f"{x} as {user}"


class ByJson(Schemed):
    args_schema: Any = JSON


class ByOpen(Schemed):
    args_schema: Any = Open


class ByMarked(Schemed):
    args_schema: Any = Marked


class ByMarkedState(Classed):
    args_schema: Any = MarkedState

    def _run(self, x: int, user: Any = None) -> str:
        return f"{x} as {user if isinstance(user, str) else 'nobody'}"


class Inferred(Classed):
    def _run(self, x: int, user: Hidden = "nobody") -> str:
        return f"{x} as {user}"


class ByState(Classed):
    args_schema: Any = Single

    def _run(self, x: int, user: Messages = "nobody") -> str:
        return f"{x} as {user}"


class ByRuntime(Classed):
    args_schema: Any = Single

    def _run(self, x: int, user: ToolRuntime = "nobody") -> str:  # type: ignore[assignment]
        return f"{x} as {user}"


class NamedRuntime(Classed):
    args_schema: Any = Single

    def _run(self, x: int, runtime: ToolRuntime = "nobody") -> str:  # type: ignore[assignment]
        return f"{x} as {runtime}"


class ByCallId(Classed):
    args_schema: Any = Single

    def _run(self, x: int, user: CallId = "nobody") -> str:
        return f"{x} as {user}"


class NamedCallId(Classed):
    args_schema: Any = Single

    def _run(self, x: int, tool_call_id: CallId = "nobody") -> str:
        return f"{x} as {tool_call_id}"


class OnlyArun(Classed):
    def _run(self, x: int, **more: Any) -> str:
        return f"{x} as {more.get('user', 'nobody')}"

    async def _arun(self, x: int, user: Hidden = "nobody") -> str:
        return f"{x} as {user}"


class Layered(StructuredTool):
    """One that marks the parameter in the method around its function."""

    def _run(self, *args: Any, config: RunnableConfig, user: Hidden = "nobody", **more: Any) -> Any:
        return f"{super()._run(*args, config=config, **more)} as {user}"


def act(x: int, user: str = "nobody") -> str:
    """Act."""
    return f"{x} as {user}"


async def aact(x: int, user: str = "nobody") -> str:
    """Act."""
    return f"{x} as {user}"


def marked(x: int, user: Hidden = "nobody") -> str:
    """Act."""
    return f"{x} as {user}"


async def amarked(x: int, user: Hidden = "nobody") -> str:
    """Act."""
    return f"{x} as {user}"


def structured(func: Any, coroutine: Any, schema: Any, kind: Any = StructuredTool) -> BaseTool:
    made: BaseTool = kind(
        name="act", description="Act.", func=func, coroutine=coroutine, args_schema=schema
    )
    return made


# What a model forges under a name that ToolNode leaves to it.
FORGEABLE: dict[str, tuple[BaseTool, str]] = {
    "schema": (Schemed(), "user"),
    "json": (ByJson(), "user"),
    "extra": (ByOpen(), "user"),
    "state": (ByState(), "user"),
    "runtime": (ByRuntime(), "user"),
    "named-runtime": (NamedRuntime(), "runtime"),
    "call-id": (ByCallId(), "user"),
    "named-call-id": (NamedCallId(), "tool_call_id"),
    "arun": (OnlyArun(), "user"),
    "coroutine-json": (structured(act, amarked, JSON), "user"),
    "coroutine-extra": (structured(act, amarked, Open), "user"),
    "alias": (structured(marked, amarked, Aliased), "name"),
    "method-around": (structured(lambda x: x, None, Open, Layered), "user"),
}

# What ToolNode takes away from a model.
TAKEN_AWAY: dict[str, BaseTool] = {
    "schema": ByMarked(),
    "schema-state": ByMarkedState(),
    "inferred": Inferred(),
    "function": StructuredTool.from_function(marked, amarked, name="act"),
    "function-json": structured(marked, amarked, JSON),
    "function-alone": structured(marked, aact, JSON),
    "coroutine-alone": structured(None, amarked, JSON),
    "unmarked-function": structured(act, aact, Marked),
}


def no_root(call: Any) -> Decision:
    return Decision.deny("no root") if "root" in str(call["args"]) else Decision.allow()


@pytest.fixture
def wary(make):
    """A guard that denies calls with ``root`` in an argument."""
    return make(no_root)


def graph_of(model: Any, tools: list[BaseTool]) -> Any:
    def think(state: Any) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges(
        "think", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END]
    )
    graph.add_edge("tools", "think")
    return graph.compile()


@pytest.fixture(params=[(b, s) for b in (graph_of, create_agent) for s in ("sync", "async")],
                ids=lambda way: f"{way[0].__name__}-{way[1]}")  # fmt: skip
def answer(request, scripted):
    """Let a model call ``act`` with arguments; return the status and content of the answer."""
    build, sync = request.param

    async def _answer(tool: BaseTool, args: Any) -> tuple[str, str]:
        graph = build(scripted([("act", args)], "done"), [tool])
        ask: Any = {"messages": [HumanMessage("act")]}
        sync_too = getattr(tool, "func", act) is not None
        state = graph.invoke(ask) if sync == "sync" and sync_too else await graph.ainvoke(ask)
        message = state["messages"][-2]
        return message.status, message.content

    return _answer


@pytest.mark.parametrize("kind", FORGEABLE)
async def test_what_a_model_forges_is_decided_on(answer, wary, kind):
    tool, name = FORGEABLE[kind]
    (guarded,) = guard_tools([tool], wary.agent)
    status, content = await answer(guarded, {"x": 1, name: "root"})
    assert (status, "no root" in content) == ("error", True)
    forged, given = {"x": 1, name: "carol"}, await answer(guarded, {"x": 1, name: "carol"})
    assert given == ("success", "1 as carol")
    await answer(guarded, {"x": 1})
    denied, allowed, plain = wary.log.calls()
    assert [call.decision for call in (denied, allowed, plain)] == ["deny", "allow", "allow"]
    named = "user" if name == "name" else name
    assert (denied.values[named], allowed.values[named]) == ("root", "carol")
    assert named not in plain.values or plain.values[named] == "nobody"
    assert bind_ahead(guarded, forged).encoded == allowed.encoded
    assert bind_ahead(guarded, {"x": 1}).encoded == plain.encoded


@pytest.mark.parametrize("kind", TAKEN_AWAY)
async def test_what_tool_node_takes_away_is_not_bound(answer, wary, kind):
    (guarded,) = guard_tools([TAKEN_AWAY[kind]], wary.agent)
    assert await answer(guarded, {"x": 1, "user": "root"}) == ("success", "1 as nobody")
    (logged,) = wary.log.calls()
    assert (logged.values, logged.predicate["unbound"]) == ({"x": 1}, ["user"])
    assert bind_ahead(guarded, {"x": 1}).encoded == logged.encoded


@pytest.mark.parametrize("kind", ["function-json", "schema"])
async def test_the_unguarded_tool_agrees(answer, kind):
    """ToolNode itself takes away, and leaves, what these tests say."""
    assert await answer(TAKEN_AWAY[kind], {"x": 1, "user": "root"}) == ("success", "1 as nobody")
    tool, name = FORGEABLE["schema"]
    assert await answer(tool, {"x": 1, name: "root"}) == ("success", "1 as root")


async def test_a_call_id_that_langchain_fills_in_is_not_bound(answer, wary):
    (guarded,) = guard_tools([NamedCallId()], wary.agent)
    assert await answer(guarded, {"x": 1}) == ("success", "1 as call1")
    (logged,) = wary.log.calls()
    assert (logged.values, logged.predicate["unbound"]) == ({"x": 1}, ["tool_call_id"])
    assert bind_ahead(guarded, {"x": 1}).encoded == logged.encoded
    assert evaluate(guarded, {"x": 1}).allowed
    assert not evaluate(guarded, {"x": 1, "tool_call_id": "root"}).allowed


class RuntimeState(Classed):
    """Where ToolNode supplies what it takes away: the state, the runtime, the config."""

    class Schema(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        x: int
        messages: Messages
        runtime: ToolRuntime

    args_schema: Any = Schema

    def _run(
        self,
        x: int,
        messages: list[Any],
        runtime: ToolRuntime,
        config: Annotated[RunnableConfig, InjectedToolArg],
    ) -> str:
        return f"{len(messages)} {runtime.tool_call_id} {config['configurable'] is not None}"


async def test_what_the_graph_supplies_arrives(answer, wary):
    (guarded,) = guard_tools([RuntimeState()], wary.agent)
    forged = dict.fromkeys(("messages", "runtime", "config"), "root")
    assert await answer(guarded, {"x": 1, **forged}) == ("success", "2 call1 True")
    (logged,) = wary.log.calls()
    assert logged.values == {"x": 1}
    assert logged.predicate["unbound"] == ["config", "messages", "runtime"]


def test_a_runtime_that_the_application_passes_is_not_bound(kinds, wary):
    runtime = kinds["runtime"].injected["runtime"]
    for tool, name in (FORGEABLE["runtime"], FORGEABLE["named-runtime"]):
        (guarded,) = guard_tools([tool], wary.agent)
        assert "ToolRuntime" in guarded.invoke({"x": 1, name: runtime})
        assert wary.log.calls()[-1].values == {"x": 1}


async def test_the_one_input_of_a_tool_is_nobodys_but_the_models(answer, wary):
    def only(user: Hidden) -> str:
        """Act."""
        return f"as {user}"

    (guarded,) = guard_tools([Tool("act", only, "Act.")], wary.agent)
    status, content = await answer(guarded, {"__arg1": "root"})
    assert (status, "no root" in content) == ("error", True)
    assert await answer(guarded, {"__arg1": "carol"}) == ("success", "as carol")
    assert [call.values for call in wary.log.calls()] == [{"user": "root"}, {"user": "carol"}]


def test_the_limit_a_loop_of_ones_own_takes_hidden_arguments_out_by_itself(wary):
    """What is not taken out reaches the tool, and nobody sees it; the page shows how to."""

    def act(x: int, user: Hidden = "nobody") -> str:
        """Act."""
        return f"{x} as {user}"

    guarded: Any = guard_tools([StructuredTool.from_function(act)], wary.agent)[0]
    call = {"type": "tool_call", "id": "c1", "name": "act", "args": {"x": 1, "user": "root"}}
    assert guarded.invoke(call).text == "1 as root"
    shown = {name: value for name, value in call["args"].items() if name in guarded.args}
    assert guarded.invoke({**call, "args": shown}).text == "1 as nobody"
    assert [logged.values for logged in wary.log.calls()] == [{"x": 1}, {"x": 1}]


def test_another_function_is_read_anew(wary):
    def unmarked(x: int, user: str = "nobody") -> str:
        return f"{x} as {user}"

    guarded: Any = guard_tools([structured(marked, None, JSON)], wary.agent)[0]
    forged = {"x": 1, "user": "root"}
    assert guarded.invoke(forged) == "1 as root"  # past any ToolNode: the application's own
    unmarked.__qualname__ = marked.__qualname__  # so that nothing but the marks is different
    guarded.func = unmarked
    with pytest.raises(GuardedToolDenied, match="no root"):
        guarded.invoke(forged)


class AliasedMark(BaseModel):
    x: int
    user: Hidden = Field(default="nobody", alias="name")


class ChoiceMark(BaseModel):
    x: int
    user: Hidden = Field(default="nobody", alias="user", validation_alias=AliasChoices("user", "u"))


class CamelMark(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    x: int
    user_name: Hidden = "nobody"


class OldMark(BaseModelV1):
    x: int
    user: Hidden = FieldV1("nobody", alias="name")


@pytest.mark.parametrize("schema", [AliasedMark, ChoiceMark, CamelMark, OldMark])
def test_an_injected_field_with_another_name_is_refused(wary, schema):
    with pytest.raises(ConfigError, match=rf"{schema.__name__}\.user.* has an alias") as caught:
        guard_tools([structured(act, None, schema)], wary.agent)
    assert caught.value.code == "tool.unguardable"
    assert guard_tools([structured(act, None, Marked)], wary.agent)
