"""Under which delegation a guarded tool's call is made.

It is the first of: the one of ``agent.under``, what the guarded call hands on in which it is made,
what the ``delegation`` function of ``guard_tools`` returns, and what is in force in the context. In
a sub-agent each has no more than the sub-agent's scope (``subagent_scope.py``). What fails here
refuses the call, on record: nothing wider takes its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime, get_runtime

from agentguard import Agent, AgentguardError, Delegation, DelegationError, Denied
from agentguard.delegation import context
from agentguard_langchain.subagent_scope import SubagentScope

Lender = Callable[[ToolRuntime[Any, Any] | None], Delegation | None]
"""Says whose delegation a call is made under; None for what is in force in the context.

It is given the tool's runtime, None outside a graph, and is called for each call: on the event loop
where the tool is async, so it should be quick.
"""


def acting(
    agent: Agent, lender: Lender | None, runtime: Callable[[], ToolRuntime[Any, Any] | None]
) -> Agent:
    """Return ``agent`` as it makes a call here."""
    try:
        found = _found(agent, lender, runtime)
        return agent if found is None else agent.under(lessened(found))
    except GraphBubbleUp:
        raise
    except Exception as error:  # noqa: BLE001  the application's function may raise anything
        return agent.refusing(refusal(error))


def _found(
    agent: Agent, lender: Lender | None, runtime: Callable[[], ToolRuntime[Any, Any] | None]
) -> Delegation | None:
    """Return what the call is made under; None where that is for the core to look up."""
    require_extent(agent)
    if agent.delegation is not None:
        return agent.delegation
    if lender is None or context.is_lent_by_a_call():
        return None
    return lender(runtime())


def require_extent(agent: Agent) -> None:
    """Raise ``DelegationError`` (``agent.mismatch``) in the sub-agent of another agent."""
    nearest = context.innermost()
    if isinstance(nearest, SubagentScope) and nearest.is_nearest and nearest.agent.id != agent.id:
        whose = nearest.agent.name
        message = (
            f"the tool is guarded for {agent.id}, and the sub-agent that runs here is "
            f"{nearest.agent.id}: guard the original tool for {whose}, or put guard_subagent "
            f"around the part of {whose} that is {agent.name}'s"
        )
        raise DelegationError(message, code="agent.mismatch")


def lessened(found: object) -> Delegation:
    """Return what may be used here of what a function has returned; raises ``DelegationError``."""
    delegation = context.lessened(found) if isinstance(found, Delegation) else found
    if isinstance(delegation, Delegation):
        return delegation
    if inspect.iscoroutine(delegation):
        delegation.close()
    kind = type(delegation).__name__
    message = f"the delegation function returned a {kind}, not a Delegation or None"
    raise DelegationError(message, code="delegation.failed")


def refusal(error: Exception) -> DelegationError:
    """Return why a call is refused whose delegation could not be found out."""
    if isinstance(error, DelegationError):
        return error
    if isinstance(error, AgentguardError):
        reason = error.reason if isinstance(error, Denied) else str(error)
        return DelegationError(reason, code=error.code)
    # the error itself, which may tell secrets, stays out
    message = f"the delegation function failed ({type(error).__name__})"
    return DelegationError(message, code="delegation.failed")


def runtime_of(
    given: Iterable[object], config: RunnableConfig | None, call_id: str | None
) -> ToolRuntime[Any, Any] | None:
    """Return the runtime of a call: what was injected into it, or else what its graph knows.

    LangGraph injects one only where a tool asks for it; what is made here has no ``state``.
    """
    injected = next((value for value in given if isinstance(value, ToolRuntime)), None)
    if injected is not None:
        return injected
    try:
        running: Runtime[Any] | None = get_runtime()
    except (RuntimeError, KeyError):  # LangChain runs nothing here
        return None
    if running is None:  # a chain, but no graph
        return None
    known: Mapping[str, Any] = {
        field.name: getattr(running, field.name)
        for field in fields(ToolRuntime)
        if hasattr(running, field.name)
    }
    own = {"state": None, "config": ensure_config(config), "tool_call_id": call_id}
    return ToolRuntime(**{**known, **own})
