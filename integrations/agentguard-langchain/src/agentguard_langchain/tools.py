"""``guard_tools``: guards an agent's tools, and refuses what can't be guarded.

How a single tool is guarded stands in ``guarded_tool.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as make_tool

from agentguard import Agent, ConfigError, Delegation, Guard, adapters
from agentguard_langchain.delegation import DelegationSource
from agentguard_langchain.guarded_tool import GuardedTool, put_behind
from agentguard_langchain.tool_state import Gate, OnDeny, gate_of


def guard_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    agent: Agent | str,
    *,
    delegation: DelegationSource | None = None,
    on_deny: OnDeny = "return",
) -> list[BaseTool]:
    """Return the same tools, each call of which is bound, signed, decided and logged for ``agent``.

    ``agent`` is an ``Agent``, or the name of one: then the nearest ``agentguard.toml``, from the
    working directory upwards, says where it belongs, and a new instance is made. Plain functions
    become tools as ``langchain_core.tools.tool`` makes them. The tools that are passed in are left
    alone: hand only the returned ones to a model or a graph.

    ``delegation`` returns the ``Delegation`` under which a call is made, where no ``with
    guard.delegate(...)`` reaches: in a graph that is built at import, or hosted. Its argument is
    the call's ``ToolRuntime``, or None outside a graph. For the result None, the delegation in
    force in the context counts. An exception of the function refuses the call. Inside another
    guarded call, the delegation that that call hands on counts instead.

    A refused tool call is answered by a ``ToolMessage`` with ``status="error"``; with
    ``on_deny="raise"``, and for a call that is no tool call, ``GuardedToolDenied`` is raised.

    Raises ``ConfigError`` for what can't be guarded: a dictionary that the model's provider runs, a
    tool that is guarded for another agent, a class that does its work past ``_run``; and for a
    ``delegation`` that is no function, or without effect, as with ``agent.under(...)``.
    """
    require_on_deny(on_deny)
    given: object = tools
    if not isinstance(given, Sequence):
        raise ConfigError("guard_tools takes a list of tools: guard_tools([tool], agent)")
    for position, tool in enumerate(tools):
        _require_runnable(tool, position)
    owner = owner_of(agent)
    require_delegation_source(delegation, owner)
    gate = Gate(owner, on_deny, delegation)
    guarded = [guard_one(tool, gate) for tool in tools]
    adapters.check_tool_names(owner)
    return guarded


def owner_of(agent: Agent | str) -> Agent:
    """Return the agent, or make a new instance of the one of that name; raises ``ConfigError``."""
    owner: object = Guard.find().new_agent(agent) if isinstance(agent, str) else agent
    if isinstance(owner, Agent):
        return owner
    kind = type(agent).__name__
    raise ConfigError(f"agent: expected an Agent or the name of one, got a {kind}")


def guard_one(tool: BaseTool | Callable[..., Any], gate: Gate) -> BaseTool:
    """Return a tool behind ``gate``, or as it is if it is guarded for the same agent already."""
    if not isinstance(tool, BaseTool):
        return put_behind(make_tool(tool), gate)
    if not isinstance(tool, GuardedTool):
        return put_behind(tool, gate)
    present = gate_of(tool)
    if present.agent is not gate.agent:
        same = present.agent.id == gate.agent.id
        other = "under another delegation" if same else f"another instance than {gate.agent.id}"
        message = (
            f"tool {tool.name} is already guarded for {present.agent.id}, {other}: "
            "guard the original tool for each agent"
        )
        raise ConfigError(message, code="tool.guarded")
    if gate.delegation_source not in (None, present.delegation_source):
        message = (
            f"tool {tool.name} is already guarded with another delegation function: guard the "
            "original tool"
        )
        raise ConfigError(message, code="tool.guarded")
    if present.on_deny == gate.on_deny:
        return tool
    return put_behind(tool, Gate(gate.agent, gate.on_deny, present.delegation_source))


def require_on_deny(on_deny: object) -> None:
    """Raise ``ConfigError`` for anything else than "return" and "raise"."""
    if on_deny not in ("return", "raise"):
        raise ConfigError(f"on_deny: expected 'return' or 'raise', got {on_deny!r}")


def require_delegation_source(delegation: object, agent: Agent) -> None:
    """Raise ``ConfigError`` for what is no delegation function, or would have no effect."""
    if delegation is None:
        return
    if isinstance(delegation, Delegation):
        message = "delegation is a function that returns one: guard for agent.under(delegation)"
        raise ConfigError(message)
    adapters.require_plain(delegation, "delegation")
    if agent.delegation is not None:
        message = "the agent is under a delegation already: a delegation function would be in vain"
        raise ConfigError(message)


def _require_runnable(tool: object, position: int) -> None:
    if isinstance(tool, dict):
        name = tool.get("name") or tool.get("type")
        message = (
            f"tools[{position}] ({name!r}) is a dictionary: the model's provider runs such a tool, "
            "where agentguard can't check or record it; leave it out, or pass a tool that runs here"
        )
        raise ConfigError(message, code="tool.unguardable")
    if isinstance(tool, type):
        message = f"tools[{position}] is the class {tool.__qualname__}: pass an instance"
        raise ConfigError(message, code="tool.unguardable")
    if not isinstance(tool, BaseTool) and not callable(tool):
        kind = type(tool).__name__
        message = f"tools[{position}] is a {kind}: expected a LangChain tool or a function"
        raise ConfigError(message, code="tool.unguardable")
