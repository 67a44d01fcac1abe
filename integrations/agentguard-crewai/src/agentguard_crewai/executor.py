"""The executor of a guarded agent: checks its tools, and guards the reader that CrewAI adds.

CrewAI's executor puts a long result into a file, and gives the model a tool that reads the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_executor import AgentExecutor
from crewai.tools import BaseTool
from crewai.tools.agent_tools.deferred_tool_result_reader import DeferredToolResultReader
from pydantic import PrivateAttr

from agentguard import ConfigError
from agentguard_crewai.binding import model_names
from agentguard_crewai.classes import guarded_class
from agentguard_crewai.gate import Gate
from agentguard_crewai.identity import Identity, require_identity
from agentguard_crewai.tools import GuardedTool, gate_of, is_gated

_TOOLS: Final = ("tools", "original_tools")
_FLOW_LOCK: Final = threading.RLock()
os.register_at_fork(  # a fork waits for the definition: in the child nobody would release the lock
    before=_FLOW_LOCK.acquire,
    after_in_parent=_FLOW_LOCK.release,
    after_in_child=_FLOW_LOCK.release,
)


def define_flow(executor_class: type[AgentExecutor]) -> None:
    """Have CrewAI build the flow definition of an executor's class in one thread at a time.

    CrewAI builds the definition with the first executor, and stores it in the class while it reads
    the class. Of two threads that kick off their first crews at once, one would fail with a
    ``RuntimeError``.
    """
    with _FLOW_LOCK:
        executor_class.flow_definition()


def gate_executor(executor: AgentExecutor) -> None:
    """Check that all tools of an executor are behind the agent's gate, now and at each later use.

    The executor of a planner's steps is dropped, since it keeps its first tools; CrewAI makes a new
    one. Raises ``ConfigError`` (``tool.unguarded``).
    """
    executor._step_executor = None  # noqa: SLF001
    if not isinstance(executor, GuardedExecutor):
        executor.__class__ = guarded_class(GuardedExecutor, type(executor))
    for kind in _TOOLS:
        setattr(executor, kind, getattr(executor, kind))
        list(getattr(executor, kind))


class _CheckedTools(list[Any]):
    """An executor's tools, checked at each iteration: callbacks and hooks can add tools."""

    def __init__(self, tools: Iterable[Any], identity: Identity) -> None:
        super().__init__(tools)
        self._identity = identity

    def __iter__(self) -> Iterator[Any]:
        for tool in super().__iter__():
            if not _is_guarded(tool, self._identity):
                message = (
                    f"tool {tool.name} came to an executor past the guard: it does not run; give "
                    "it to the agent, or to its task, before the agent begins"
                )
                raise ConfigError(message, code="tool.unguarded")
            yield tool


def _is_guarded(tool: Any, identity: Identity) -> bool:
    """Return whether a tool, or its structured form, is behind the gate of this agent."""
    original: Any = tool if isinstance(tool, BaseTool) else tool._original_tool  # noqa: SLF001
    if not isinstance(original, GuardedTool):
        return False
    guarded = cast("BaseTool", original)
    return gate_of(guarded).is_of(identity) and (original is tool or is_gated(tool.func, guarded))


class GuardedExecutor(AgentExecutor):
    """The mixin that turns CrewAI's executor class into the executor of a guarded agent."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _TOOLS:
            value = _CheckedTools(value, require_identity(cast("BaseAgent", self.agent)))
        super().__setattr__(name, value)

    def _register_deferred_file_reader(self, reader: DeferredToolResultReader) -> None:
        identity = require_identity(cast("BaseAgent", self.agent))
        name = model_names([*self.original_tools, reader])[-1]
        reader.__class__ = _GuardedReader
        reader._agentguard_gate = Gate(identity, reader, name)  # type: ignore[attr-defined]  # noqa: SLF001
        super()._register_deferred_file_reader(reader)


# CrewAI compares the reader with `is`: the object stays, and its class changes
class _GuardedReader(GuardedTool, DeferredToolResultReader):  # type: ignore[misc]  # not copied
    """The reader of long results; each use is a guarded call of the agent."""

    _agentguard_gate: Gate | None = PrivateAttr(default=None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._agentguard_gate is None:
            message = "the reader has lost its gate: it reads nothing"
            raise ConfigError(message, code="tool.unguarded")
        return self._agentguard_gate.run(super()._run, args, kwargs)
