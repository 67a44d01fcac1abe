"""The guard of a graph that is built by hand: an approval node, a tool node, and the edge between.

The three belong together. The approval node asks people, once a turn. The edge gives each call a
task of its own, so that no call gets another call's answer. The tool node enforces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool
from langgraph.graph import END
from langgraph.prebuilt import ToolNode
from langgraph.runtime import get_runtime
from langgraph.types import Send

from agentguard import Agent, ConfigError
from agentguard_langchain.answers import AnsweredBy
from agentguard_langchain.approval_step import ApprovalStep
from agentguard_langchain.enforcement import Enforcement
from agentguard_langchain.tool_state import OnDeny
from agentguard_langchain.toolset import RunDelegationSource, Toolset
from agentguard_langchain.turn import last_turn, messages_of

Tools = Sequence[BaseTool | Callable[..., Any]]


def guard_approval_node(
    tools: Tools,
    agent: Agent | str,
    *,
    delegation: RunDelegationSource | None = None,
    answered_by: AnsweredBy | None = None,
    messages_key: str = "messages",
) -> Runnable[Any, Any]:
    """Return the node between the model and its tools: one pause for the calls that need people.

    No record keeps for whom a run was begun: put the delegation in force around the ``invoke`` that
    resumes the run, or pass ``delegation``. The arguments are those of ``GuardMiddleware``. Raises
    ``ConfigError``.
    """
    toolset = _toolset(tools, agent, delegation, "return", answered_by)
    step = ApprovalStep(toolset, messages_key=messages_key)

    def guard_approval(state: Any) -> None:
        step.run(state, get_runtime())

    async def aguard_approval(state: Any) -> None:
        await step.arun(state, get_runtime())

    return RunnableLambda(guard_approval, aguard_approval, name="guard_approval")


def guard_tool_node(
    tools: Tools,
    agent: Agent | str,
    *,
    delegation: RunDelegationSource | None = None,
    on_deny: OnDeny = "return",
    answered_by: AnsweredBy | None = None,
    parallel_subagents: bool = True,
    messages_key: str = "messages",
    **options: Any,
) -> ToolNode:
    """Return the node that runs tools behind their guard; ``options`` are those of ``ToolNode``.

    ``wrap_tool_call`` and ``awrap_tool_call`` are the guard's own. Lead to the node by
    ``guard_edge``: in one task with other calls, a call that needs people and has no approval yet
    is refused (``approval.pending``). Raises ``ConfigError``.
    """
    reserved = sorted({"wrap_tool_call", "awrap_tool_call"} & options.keys())
    if reserved:
        message = (
            f"guard_tool_node: {' and '.join(reserved)} is the guard's own: wrap the tool before "
            "the tool is guarded, or put a middleware before GuardMiddleware in create_agent"
        )
        raise ConfigError(message)
    toolset = _toolset(tools, agent, delegation, on_deny, answered_by)
    enforcement = Enforcement(toolset, None, messages_key, parallel_subagents)
    return ToolNode(
        toolset.tools,
        messages_key=messages_key,
        wrap_tool_call=enforcement.around,
        awrap_tool_call=enforcement.aaround,
        **options,
    )


def guard_edge(
    tools: str = "tools", otherwise: str = END, *, messages_key: str = "messages"
) -> Callable[[Any], list[Send] | str]:
    """Return the edge that sends each open call to the node ``tools``, in a task of its own.

    Without an open call, the edge leads to ``otherwise``. For instance:
    ``add_conditional_edges("approval", guard_edge("tools"), ["tools", END])``.
    """

    def send_calls(state: Any) -> list[Send] | str:
        turn = last_turn(messages_of(state, messages_key))
        calls = [] if turn is None else [c for c in turn.calls if c["id"] not in turn.answered]
        return [Send(tools, [call]) for call in calls] or otherwise

    return send_calls


def _toolset(
    tools: Tools,
    agent: Agent | str,
    delegation: RunDelegationSource | None,
    on_deny: OnDeny,
    answered_by: AnsweredBy | None,
) -> Toolset:
    toolset = Toolset(agent, delegation, on_deny, answered_by)
    toolset.fix_tools(tools)
    return toolset
