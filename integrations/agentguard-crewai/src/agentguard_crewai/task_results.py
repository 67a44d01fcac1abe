"""What an agent's tools have returned, of which CrewAI may answer a task with one.

It keeps that in the agent, which may be at work for two users at once, in two crews.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent

_CURRENT_RESULTS: Final[ContextVar[list[dict[str, Any]] | None]] = ContextVar(
    "agentguard_crewai.task_results", default=None
)
"""What was returned in the work that is done here."""


class _TaskResults(list[dict[str, Any]]):
    """All that was returned, to look at; whoever goes through it in some work finds that work's."""

    def append(self, result: dict[str, Any]) -> None:
        super().append(result)
        current = _CURRENT_RESULTS.get()
        if current is not None:
            current.append(result)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        current = _CURRENT_RESULTS.get()
        return super().__iter__() if current is None else iter(current)


# whoever writes down what it is, as CrewAI does with agents, finds what it was
_TaskResults.__name__ = _TaskResults.__qualname__ = list.__name__


@contextmanager
def separate_task_results(agent: BaseAgent) -> Iterator[None]:
    """Let CrewAI answer a task (``result_as_answer``) with nothing from the agent's other work."""
    if not isinstance(agent.tools_results, _TaskResults):
        agent.tools_results = _TaskResults(agent.tools_results)
    token = _CURRENT_RESULTS.set([])
    try:
        yield
    finally:
        _CURRENT_RESULTS.reset(token)
