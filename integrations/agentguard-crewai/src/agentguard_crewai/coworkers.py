"""Work that an agent of a crew hands over to a coworker: to whom, in whose name, and how it fails.

CrewAI hands over with a tool (*Delegate work to coworker*, *Ask question to coworker*), which has
the coworker execute a task, and takes what that raises for a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeGuard

from crewai.tools import BaseTool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool

from agentguard.adapters import take_over
from agentguard_crewai.identity import Identity, require_identity


class CoworkerFailedError(Exception):
    """A coworker's work failed; ``result`` is what CrewAI tells the model about the failure."""

    def __init__(self, result: object) -> None:
        super().__init__("the coworker has failed")
        self.result = result


_FAILURES: Final[ContextVar[list[Exception] | None]] = ContextVar(
    "agentguard_crewai_coworker_failed", default=None
)
"""What came out of the work that is handed over here; None within that work, and elsewhere."""


def is_handover(tool: BaseTool) -> TypeGuard[BaseAgentTool]:
    """Whether a call of this tool is another agent's work."""
    return isinstance(tool, BaseAgentTool)


def coworker_of(tool: BaseAgentTool, given: Mapping[str, object]) -> Identity | None:
    """Return to whom a call hands work over, None for nobody: as CrewAI, the first of that role.

    ``given`` are the tool's arguments by name. Raises ``ConfigError`` for one without an identity.
    """
    spellings: dict[str, Any] = {name: given.get(name) for name in ("coworker", "co_worker")}
    name = tool._get_coworker(**spellings)  # noqa: SLF001  as the tool itself
    role = tool.sanitize_agent_name(name or "")
    for agent in tool.agents:
        if tool.sanitize_agent_name(agent.role) == role:
            return require_identity(agent)
    return None


def hand_over(to: Identity, by: Identity) -> None:
    """Sign the hop to a coworker, before it does anything; raises ``Denied``."""
    if to is not by:
        take_over(to.agent, by.agent)


def run_handover(function: Callable[[], Any]) -> Any:
    """Have a coworker work; raises ``CoworkerFailedError``."""
    failures: list[Exception] = []
    token = _FAILURES.set(failures)
    try:
        result = function()
    finally:
        _FAILURES.reset(token)
    if failures:
        raise CoworkerFailedError(result) from failures[0]
    return result


@contextmanager
def collect_failure() -> Iterator[None]:
    """Do an agent's work: what it raises is the failure of whoever handed it over.

    What fails within it, and is coped with there, is not.
    """
    failures = _FAILURES.get()
    token = _FAILURES.set(None)
    try:
        yield
    except Exception as error:
        if failures is not None:
            failures.append(error)
        raise
    finally:
        _FAILURES.reset(token)
