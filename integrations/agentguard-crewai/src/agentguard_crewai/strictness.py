"""``refuse_unguarded``: makes a process refuse unguarded agents that have tools.

CrewAI has no hook that could refuse (crewai-calls.md). This module therefore replaces the methods
of CrewAI's classes that give an agent its tools.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from crewai import Agent as CrewAgent
from crewai import Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.lite_agent import LiteAgent

from agentguard import ConfigError
from agentguard_crewai.identity import identity_of

_REFUSES: Final = "__agentguard_refuses__"


def refuse_unguarded() -> None:
    """Refuse, from now on in this process, each unguarded agent that has tools.

    Call this function where the program begins; a second call does nothing. The refusal covers
    crews, agents without a crew, and agents that run tools by themselves, as CrewAI's adapters of
    other frameworks do: their kickoff raises ``ConfigError`` (``agent.unguarded``). Agents without
    tools still work, such as those that CrewAI makes for plans and guardrails.
    """
    _replace(CrewAgent, "_add_skill_loader_tool", _check_agent_tools)
    _replace(Task, "_execute_core", _check_task_agent)
    _replace(Task, "_aexecute_core", _check_task_agent)
    _replace(LiteAgent, "_execute_core", _check_lite_agent)


def _replace(kind: type, name: str, check: Callable[..., Callable[..., Any]]) -> None:
    original = getattr(kind, name)
    if not hasattr(original, _REFUSES):
        replacement = functools.wraps(original)(check(original))
        setattr(replacement, _REFUSES, True)
        setattr(kind, name, replacement)


def _check_agent_tools(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a check around the last step before an executor gets an agent's tools."""

    def add(self: CrewAgent, *args: Any, **kwargs: Any) -> Any:
        extended = original(self, *args, **kwargs)
        if extended and identity_of(self) is None:
            raise _unguarded_error(f"the agent {self.role!r}")
        return extended

    return add


def _check_task_agent(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a check of a task's agent, which may run tools past that step."""

    def execute(self: Task, agent: BaseAgent | None, *args: Any, **kwargs: Any) -> Any:
        worker = self.agent if agent is None else agent
        if worker is not None and not isinstance(worker, CrewAgent):
            raise _unguarded_error(f"the agent {worker.role!r}, which runs its tools by itself,")
        return original(self, agent, *args, **kwargs)

    return execute


def _check_lite_agent(original: Callable[..., Any]) -> Callable[..., Any]:
    def execute(self: LiteAgent, *args: Any, **kwargs: Any) -> Any:
        if self.tools:
            raise _unguarded_error(f"the LiteAgent {self.role!r}")
        return original(self, *args, **kwargs)

    return execute


def _unguarded_error(who: str) -> ConfigError:
    message = (
        f"{who} is not guarded, and this process refuses such agents (refuse_unguarded): guard its "
        "crew (guard_crew), or the agent (guard_agent), before it begins"
    )
    return ConfigError(message, code="agent.unguarded")
