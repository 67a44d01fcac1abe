"""A guarded tool's call ahead of execution: what it would bind, and what the answer would be.

Nothing here runs a tool, and no call is signed or recorded. A credential that is due is renewed, as
by a call, and that is on record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.messages import ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from agentguard import Agent, Arguments, CallSite, ConfigError, Decision, Invocation
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.gated_functions import entrance_of, gate_of, shape_of
from agentguard_langchain.graph_task import Place
from agentguard_langchain.guarded_call import Call, current
from agentguard_langchain.guarded_tool import GuardedTool
from agentguard_langchain.schemas import schema_ahead

_CALL_ID: Final = "the id of a call that is not made yet"
"""What stands for the call's id; nobody else has this very object."""

_RUNTIME: Final[ToolRuntime[Any, Any]] = ToolRuntime(
    state=None,
    context=None,
    config={},
    stream_writer=lambda _chunk: None,
    tool_call_id=None,
    store=None,
)
"""What stands for the runtime of a run: no runtime is bound."""

_RESULTS: Final = ToolResults()
"""What a call has returned is not read ahead of it: any codec will do."""


def bind_ahead(tool: BaseTool, tool_input: str | Mapping[str, Any]) -> Arguments:
    """Bind raw arguments, as a model gave them, to the bytes that the call will have.

    Raises ``ConfigError`` for a tool that is not guarded, ``ArgumentsError``, and what the tool's
    schema raises for input that it rejects (records.md, "One call's bytes").
    """
    guarded = _guarded(tool)
    shape, entrance = shape_of(guarded), entrance_of(guarded)
    shadow = guarded
    schema = guarded.args_schema
    if schema is not None and not isinstance(schema, dict):
        ahead = schema_ahead(schema, entrance.injected(shape))
        shadow = guarded.model_copy(update={"args_schema": ahead})
    call = Call(shadow)
    with current(call):
        # an injected tool_call_id is asked for, and left out of what is bound
        raw = tool_input if isinstance(tool_input, str) else dict(tool_input)
        args, kwargs = shadow._to_args_and_kwargs(raw, _CALL_ID)  # noqa: SLF001
    known: dict[str, Any] = {"made": call.made, "call_id": _CALL_ID, "objects": call.objects}
    return entrance.bind(shape, args, kwargs, **known)


def evaluate(
    tool: BaseTool,
    tool_input: str | Mapping[str, Any] | ToolCall,
    config: RunnableConfig | None = None,
) -> Decision:
    """Return what the answer to ``tool.invoke(tool_input, config)`` would be, and run no tool.

    Raises ``ConfigError`` for a tool that is not guarded.
    """
    guarded = _guarded(tool)
    agent = _acting(guarded, tool_input, config)
    invocation = _invocation(guarded, tool_input, config)
    return agent.evaluate(invocation, codec=codec_at(Place.of(config), invocation))


async def aevaluate(
    tool: BaseTool,
    tool_input: str | Mapping[str, Any] | ToolCall,
    config: RunnableConfig | None = None,
) -> Decision:
    """Return what the answer to ``tool.ainvoke`` would be: the async twin of ``evaluate``.

    For an event loop, and for tools with a coroutine function as ``facts``. Raises
    ``ConfigError`` for a tool that is not guarded.
    """
    guarded = _guarded(tool)
    agent = _acting(guarded, tool_input, config)
    invocation = _invocation(guarded, tool_input, config)
    return await agent.aevaluate(invocation, codec=codec_at(Place.of(config), invocation))


def _invocation(
    guarded: GuardedTool,
    tool_input: str | Mapping[str, Any] | ToolCall,
    config: RunnableConfig | None,
) -> Invocation:
    _raw, call_id = _parts(tool_input)
    # a call without an id is numbered when it is made, not when somebody asks
    site = Call(guarded, call_id, config).site(lambda: f"{guarded.name}#ahead")
    return invocation_of(guarded, tool_input, site)


def invocation_in_node(tool: BaseTool, call: ToolCall, site: CallSite) -> Invocation:
    """Bind a call that a ToolNode will make, in which the runtime is the node's to give."""
    name = shape_of(_guarded(tool)).runtime
    args = call["args"] if name is None else {**call["args"], name: _RUNTIME}
    return invocation_of(tool, args, site)


def invocation_of(
    tool: BaseTool, tool_input: str | Mapping[str, Any] | ToolCall, site: CallSite
) -> Invocation:
    """Bind a call ahead of execution, at ``site``; raises ``ConfigError``."""
    guarded, (raw, _call_id) = _guarded(tool), _parts(tool_input)
    return Invocation.bind(shape_of(guarded).spec, lambda: bind_ahead(guarded, raw), site)


def codec_at(place: Place, invocation: Invocation) -> ToolResults | None:
    """Return a codec where the call, made at ``place``, will be kept in the journal."""
    return _RESULTS if place.recurs(invocation.site) else None


def _acting(
    guarded: GuardedTool,
    tool_input: str | Mapping[str, Any] | ToolCall,
    config: RunnableConfig | None,
) -> Agent:
    raw, call_id = _parts(tool_input)
    given = () if isinstance(raw, str) else raw.values()
    return gate_of(guarded).acting(Call(guarded, call_id, config), given)


def _parts(
    tool_input: str | Mapping[str, Any] | ToolCall,
) -> tuple[str | Mapping[str, Any], str | None]:
    """Return a call's arguments, and its id if it has one."""
    if not isinstance(tool_input, str) and tool_input.get("type") == "tool_call":
        tool_call = cast("ToolCall", tool_input)
        return tool_call["args"], tool_call["id"]
    return cast("str | Mapping[str, Any]", tool_input), None


def _guarded(tool: BaseTool) -> GuardedTool:
    if not isinstance(tool, GuardedTool):
        raise ConfigError(f"tool {tool.name} is not guarded: pass what guard_tools returned")
    return tool
