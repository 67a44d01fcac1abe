"""Work that an agent hands over to a coworker: the coworker, the signed hop, and the failure.

CrewAI hands work over with a tool (*Delegate work to coworker*, *Ask question to coworker*). The
tool has the coworker execute a task, and turns an error of the coworker into a result text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeGuard

from crewai.tools import BaseTool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool

from agentguard.adapters import assigned, take_over
from agentguard_crewai.identity import Identity, require_identity


class CoworkerFailedError(Exception):
    """A coworker's work failed; ``result`` is what CrewAI tells the model about the failure."""

    def __init__(self, result: object) -> None:
        super().__init__("the coworker has failed")
        self.result = result


_FAILURES: Final[ContextVar[list[Exception] | None]] = ContextVar(
    "agentguard_crewai_coworker_failed", default=None
)
"""Collects the failures of the coworker's work; None within that work and outside of a handover."""


def is_handover(tool: BaseTool) -> TypeGuard[BaseAgentTool]:
    """Return whether a call of this tool hands work over to another agent."""
    return isinstance(tool, BaseAgentTool)


def coworker_of(tool: BaseAgentTool, given: Mapping[str, object]) -> Identity | None:
    """Return the coworker of a call, the first agent of the role as in CrewAI; None for no match.

    ``given`` are the tool's arguments by name. Raises ``ConfigError`` for a coworker without an
    identity.
    """
    spellings: dict[str, Any] = {name: given.get(name) for name in ("coworker", "co_worker")}
    name = tool._get_coworker(**spellings)  # noqa: SLF001  as the tool itself
    role = tool.sanitize_agent_name(name or "")
    for agent in tool.agents:
        if tool.sanitize_agent_name(agent.role) == role:
            return require_identity(agent)
    return None


def hand_over(to: Identity, by: Identity) -> None:
    """Sign the hop to a coworker before the coworker begins; raises ``Denied``."""
    if to is not by:
        take_over(to.agent, by.agent)


def run_handover(function: Callable[[], Any]) -> Any:
    """Run the tool that has a coworker work; raises ``CoworkerFailedError``."""
    failures: list[Exception] = []
    with assigned(_FAILURES, failures):
        result = function()
    if failures:
        raise CoworkerFailedError(result) from failures[0]
    return result


@contextmanager
def collect_failure() -> Iterator[None]:
    """Run an agent's work, and report an error that leaves the work to ``run_handover``.

    An error that is caught within the work is not reported.
    """
    failures = _FAILURES.get()
    try:
        with assigned(_FAILURES, None):
            yield
    except Exception as error:
        if failures is not None:
            failures.append(error)
        raise
