"""A guarded tool's call ahead of execution: the arguments it would bind, and the decision.

Nothing here runs a tool, and no call is signed or recorded. A credential that is due is renewed, as
by a call, and the renewal is on record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.messages import ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from agentguard import Agent, ConfigError, Decision, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard_langchain.binding import ReceivedArguments
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.guarded_call import GuardedCall, current
from agentguard_langchain.guarded_tool import GuardedTool
from agentguard_langchain.schemas import schema_ahead
from agentguard_langchain.tool_state import entrance_of, shape_of

_CALL_ID: Final = "the id of a call that is not made yet"
"""Stands for the call's id; no other code has this very object."""

_RUNTIME: Final[ToolRuntime[Any, Any]] = ToolRuntime(
    state=None,
    context=None,
    config={},
    stream_writer=lambda _chunk: None,
    tool_call_id=None,
    store=None,
)
"""Stands for the runtime of a run: no runtime is bound."""

_CODEC: Final = ToolResults()
"""Ahead of a call no result is read: any codec will do."""

Input = str | Mapping[str, Any] | ToolCall
"""What ``invoke`` of a tool takes: a string, arguments, or a model's tool call."""


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
    call = GuardedCall(shadow)
    with current(call):
        # an injected tool_call_id is asked for, and left out of what is bound
        raw = tool_input if isinstance(tool_input, str) else dict(tool_input)
        args, kwargs = shadow._to_args_and_kwargs(raw, _CALL_ID)  # noqa: SLF001
    received = ReceivedArguments(args, kwargs, call.factory_made, _CALL_ID, call.framework_objects)
    return entrance.bind(shape, received)


def evaluate(tool: BaseTool, tool_input: Input, config: RunnableConfig | None = None) -> Decision:
    """Return the decision that ``tool.invoke(tool_input, config)`` would get, and run no tool.

    Raises ``ConfigError`` for a tool that is not guarded.
    """
    agent, invocation, options = _evaluation(tool, tool_input, config)
    return adapters.evaluate(agent, invocation, options)


async def aevaluate(
    tool: BaseTool, tool_input: Input, config: RunnableConfig | None = None
) -> Decision:
    """Return the decision that ``tool.ainvoke`` would get: the async twin of ``evaluate``.

    For an event loop, and for tools with a coroutine function as ``facts``. Raises
    ``ConfigError`` for a tool that is not guarded.
    """
    agent, invocation, options = _evaluation(tool, tool_input, config)
    return await adapters.aevaluate(agent, invocation, options)


def _evaluation(
    tool: BaseTool, tool_input: Input, config: RunnableConfig | None
) -> tuple[Agent, Invocation, CallOptions]:
    """Return the agent as it would make the call, the call, and its options."""
    guarded = _guarded(tool)
    raw, call_id = _arguments_and_id(tool_input)
    call = GuardedCall(guarded, call_id, config)
    agent = call.acting_agent(() if isinstance(raw, str) else raw.values())
    # a call without an id gets its number when it is made
    site = call.site(lambda: f"{guarded.name}#ahead")
    invocation = _invocation(guarded, raw, site)
    return agent, invocation, options_at(call.task, invocation)


def invocation_in_node(tool: BaseTool, call: ToolCall, site: CallSite) -> Invocation:
    """Bind a call that a ToolNode will make, which will put the runtime into the arguments.

    Raises ``ConfigError`` for a tool that is not guarded.
    """
    guarded = _guarded(tool)
    name = shape_of(guarded).runtime
    args = call["args"] if name is None else {**call["args"], name: _RUNTIME}
    return _invocation(guarded, args, site)


def options_at(task: GraphTask, invocation: Invocation) -> CallOptions:
    """Return the options of a call in ``task``, with a codec if the journal will have the call."""
    return CallOptions(codec=_CODEC if task.recurs(invocation.site) else None)


def _invocation(guarded: GuardedTool, raw: str | Mapping[str, Any], site: CallSite) -> Invocation:
    return Invocation.bind(shape_of(guarded).spec, lambda: bind_ahead(guarded, raw), site)


def _arguments_and_id(tool_input: Input) -> tuple[str | Mapping[str, Any], str | None]:
    if not isinstance(tool_input, str) and tool_input.get("type") == "tool_call":
        tool_call = cast("ToolCall", tool_input)
        return tool_call["args"], tool_call["id"]
    return cast("str | Mapping[str, Any]", tool_input), None


def _guarded(tool: BaseTool) -> GuardedTool:
    if not isinstance(tool, GuardedTool):
        raise ConfigError(f"tool {tool.name} is not guarded: pass what guard_tools returned")
    return tool
