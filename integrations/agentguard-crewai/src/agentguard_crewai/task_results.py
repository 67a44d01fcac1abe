"""The results of tools that may answer a task, separated by the work that they belong to.

CrewAI may answer a task with a tool's result (``result_as_answer``), and keeps the results in the
agent. An agent may work for two users at once, in two crews: each task must see its own results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent

from agentguard.adapters import assigned

_CURRENT_RESULTS: Final[ContextVar[list[dict[str, Any]] | None]] = ContextVar(
    "agentguard_crewai.task_results", default=None
)
"""The results of the work in this context."""


class _TaskResults(list[dict[str, Any]]):
    """All results of an agent; iteration within some work yields the results of that work."""

    def append(self, result: dict[str, Any]) -> None:
        super().append(result)
        current = _CURRENT_RESULTS.get()
        if current is not None:
            current.append(result)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        current = _CURRENT_RESULTS.get()
        return super().__iter__() if current is None else iter(current)


# CrewAI writes the type's name down with an agent: the name stays that of a list
_TaskResults.__name__ = _TaskResults.__qualname__ = list.__name__


@contextmanager
def separate_task_results(agent: BaseAgent) -> Iterator[None]:
    """Give the work in this block a list of results of its own."""
    if not isinstance(agent.tools_results, _TaskResults):
        agent.tools_results = _TaskResults(agent.tools_results)
    with assigned(_CURRENT_RESULTS, []):
        yield
