"""What an agent's tools have returned, of which CrewAI may answer a task with one.

It keeps that in the agent, which may be at work for two users at once, in two crews.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent

_WITHIN: Final[ContextVar[list[dict[str, Any]] | None]] = ContextVar(
    "agentguard_crewai.task_results", default=None
)
"""What was returned in the work that is done here."""


class _Answers(list[dict[str, Any]]):
    """All that was returned, to look at; whoever goes through it in some work finds that work's."""

    def append(self, result: dict[str, Any]) -> None:
        super().append(result)
        within = _WITHIN.get()
        if within is not None:
            within.append(result)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        within = _WITHIN.get()
        return super().__iter__() if within is None else iter(within)


# whoever writes down what it is, as CrewAI does with agents, finds what it was
_Answers.__name__ = _Answers.__qualname__ = list.__name__


@contextmanager
def of_this_work(agent: BaseAgent) -> Iterator[None]:
    """Let CrewAI answer a task (``result_as_answer``) with nothing from the agent's other work."""
    if not isinstance(agent.tools_results, _Answers):
        agent.tools_results = _Answers(agent.tools_results)
    token = _WITHIN.set([])
    try:
        yield
    finally:
        _WITHIN.reset(token)
