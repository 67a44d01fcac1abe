"""The delegation under which a guarded tool's call is made.

The first of these counts: the delegation of ``agent.under``, the delegation that an enclosing
guarded call hands on, the result of the ``delegation`` function of ``guard_tools``, and the
delegation in force in the context. In a sub-agent, the sub-agent's scope narrows each of them
(``subagent.py``). A failure refuses the call, on record: no wider authority takes its place.
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

from agentguard import (
    Agent,
    AgentguardError,
    Delegation,
    DelegationError,
    Denied,
    current_delegation,
)
from agentguard.adapters import (
    is_inside_delegating_call,
    narrowed_here,
    narrowing_owner,
    refusing_agent,
)

DelegationSource = Callable[[ToolRuntime[Any, Any] | None], Delegation | None]
"""Returns the delegation under which a call is made; None for the one in force in the context.

The argument is the tool's runtime, None outside a graph. The function is called for each call, on
the event loop where the tool is async: it should return quickly.
"""


def acting_agent(
    agent: Agent,
    source: DelegationSource | None,
    runtime: Callable[[], ToolRuntime[Any, Any] | None],
) -> Agent:
    """Return ``agent`` as it makes a call here: under its delegation, or refusing each call."""
    try:
        delegation = _call_delegation(agent, source, runtime)
        return agent if delegation is None else agent.under(narrowed(delegation))
    except GraphBubbleUp:
        raise
    except Exception as error:  # noqa: BLE001  the application's function may raise anything
        return refusing_agent(agent, delegation_error(error))


def _call_delegation(
    agent: Agent,
    source: DelegationSource | None,
    runtime: Callable[[], ToolRuntime[Any, Any] | None],
) -> Delegation | None:
    """Return the delegation of a call; None where the core looks up the one in force."""
    require_subagent(agent)
    if agent.delegation is not None:
        return agent.delegation
    if source is None or is_inside_delegating_call():
        return None
    return source(runtime())


def require_subagent(agent: Agent) -> None:
    """Raise ``DelegationError`` (``agent.mismatch``) in the sub-agent of another agent."""
    subagent = narrowing_owner()
    if isinstance(subagent, Agent) and subagent.id != agent.id:
        name = subagent.name
        message = (
            f"the tool is guarded for {agent.id}, and the sub-agent that runs here is "
            f"{subagent.id}: guard the original tool for {name}, or put guard_subagent "
            f"around the part of {name} that is {agent.name}'s"
        )
        raise DelegationError(message, code="agent.mismatch", delegation=_of_call(agent))


def _of_call(agent: Agent) -> Delegation | None:
    """Return the delegation of ``agent``, or the one in force here, for a call that is refused."""
    if agent.delegation is not None:
        return agent.delegation
    try:
        return current_delegation()
    except DelegationError:
        return None


def narrowed(result: object) -> Delegation:
    """Return the result of a delegation function, narrowed to the scope that is in force here.

    Raises ``DelegationError`` (``delegation.failed``) for a result that is no ``Delegation``.
    """
    delegation = narrowed_here(result) if isinstance(result, Delegation) else result
    if isinstance(delegation, Delegation):
        return delegation
    if inspect.iscoroutine(delegation):
        delegation.close()
    kind = type(delegation).__name__
    message = f"the delegation function returned a {kind}, not a Delegation or None"
    raise DelegationError(message, code="delegation.failed")


def delegation_error(error: Exception) -> DelegationError:
    """Return the reason for which a call is refused whose delegation could not be determined."""
    if isinstance(error, DelegationError):
        return error
    if isinstance(error, AgentguardError):
        reason = error.reason if isinstance(error, Denied) else str(error)
        return DelegationError(reason, code=error.code, delegation=error.delegation)
    # the text of the error may tell secrets
    message = f"the delegation function failed ({type(error).__name__})"
    return DelegationError(message, code="delegation.failed")


def runtime_of(
    arguments: Iterable[object], config: RunnableConfig | None, call_id: str | None
) -> ToolRuntime[Any, Any] | None:
    """Return the runtime of a call: the one among its arguments, or else one made of the graph's.

    LangGraph injects a runtime only where a tool asks for one. The runtime that is made here has no
    ``state``. Returns None outside a graph.
    """
    injected = next((value for value in arguments if isinstance(value, ToolRuntime)), None)
    if injected is not None:
        return injected
    try:
        graph_runtime: Runtime[Any] | None = get_runtime()
    except (RuntimeError, KeyError):  # LangChain runs nothing here
        return None
    if graph_runtime is None:  # a chain, but no graph
        return None
    shared: Mapping[str, Any] = {
        field.name: getattr(graph_runtime, field.name)
        for field in fields(ToolRuntime)
        if hasattr(graph_runtime, field.name)
    }
    own = {"state": None, "config": ensure_config(config), "tool_call_id": call_id}
    return ToolRuntime(**{**shared, **own})
