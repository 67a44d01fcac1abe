"""``guard_tools``: the one line that puts an agent's tools behind its guard.

What it accepts and refuses stands here; how a tool is gated stands in ``guarded_tool.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as make_tool

from agentguard import Agent, ConfigError, Delegation, Guard
from agentguard_langchain.delegation import Lender
from agentguard_langchain.gate import Gate, OnDeny
from agentguard_langchain.gated_functions import gate_of
from agentguard_langchain.guarded_tool import GuardedTool, put_behind


def guard_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    agent: Agent | str,
    *,
    delegation: Lender | None = None,
    on_deny: OnDeny = "return",
) -> list[BaseTool]:
    """Return the same tools, each call of which is bound, signed, decided and logged for ``agent``.

    ``agent`` is an ``Agent``, or the name of one: then the nearest ``agentguard.toml``, from the
    working directory upwards, says where it belongs, and a new instance is made. Plain functions
    become tools as ``langchain_core.tools.tool`` makes them. The tools that are passed in are left
    alone: hand only the returned ones to a model or a graph.

    ``delegation`` says for whom each call is made, where no ``with guard.delegate(...)`` reaches:
    in a graph that is built at import, or hosted. It is given the call's ``ToolRuntime``, or None
    outside a graph, and returns a ``Delegation``; None leaves it to the context. Where it raises,
    the call is refused. Inside another guarded call, what that one hands on counts instead.

    A refused tool call is answered by a ``ToolMessage`` with ``status="error"``; with
    ``on_deny="raise"``, and for a call that is no tool call, ``GuardedToolDenied`` is raised.

    Raises ``ConfigError`` for what can't be guarded: a dictionary that the model's provider runs, a
    tool that another agent's guard already has, a class that does its work past ``_run``; and for
    a ``delegation`` that is no function, or in vain, as with ``agent.under(...)``.
    """
    require_on_deny(on_deny)
    given: object = tools
    if not isinstance(given, Sequence):
        raise ConfigError("guard_tools takes a list of tools: guard_tools([tool], agent)")
    for position, tool in enumerate(tools):
        _refuse_unless_ours_to_run(tool, position)
    owner = owner_of(agent)
    require_lender(delegation, owner)
    gate = Gate(owner, on_deny, delegation)
    guarded = [guard_one(tool, gate) for tool in tools]
    owner.tools_named()
    return guarded


def owner_of(agent: Agent | str) -> Agent:
    """Return the agent, or make a new instance of the one of that name; raises ``ConfigError``."""
    owner: object = Guard.find().new_agent(agent) if isinstance(agent, str) else agent
    if isinstance(owner, Agent):
        return owner
    kind = type(agent).__name__
    raise ConfigError(f"agent: expected an Agent or the name of one, got a {kind}")


def guard_one(tool: BaseTool | Callable[..., Any], gate: Gate) -> BaseTool:
    """Return a tool behind ``gate``; one that is guarded for the same agent already stays so."""
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
    if gate.lender not in (None, present.lender):
        message = (
            f"tool {tool.name} is already guarded with another delegation function: guard the "
            "original tool"
        )
        raise ConfigError(message, code="tool.guarded")
    if present.on_deny == gate.on_deny:
        return tool
    return put_behind(tool, Gate(gate.agent, gate.on_deny, present.lender))


def require_on_deny(on_deny: object) -> None:
    """Raise ``ConfigError`` for anything else than "return" and "raise"."""
    if on_deny not in ("return", "raise"):
        raise ConfigError(f"on_deny: expected 'return' or 'raise', got {on_deny!r}")


def require_lender(delegation: object, agent: Agent) -> None:
    """Raise ``ConfigError`` for what can't be a delegation function, or would be in vain."""
    if delegation is None:
        return
    if isinstance(delegation, Delegation):
        message = "delegation is a function that returns one: guard for agent.under(delegation)"
        raise ConfigError(message)
    if not callable(delegation) or inspect.iscoroutinefunction(delegation):
        message = f"delegation: expected a function, no coroutine function, got {delegation!r}"
        raise ConfigError(message)
    if agent.delegation is not None:
        message = "the agent is under a delegation already: a delegation function would be in vain"
        raise ConfigError(message)


def _refuse_unless_ours_to_run(tool: object, position: int) -> None:
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
