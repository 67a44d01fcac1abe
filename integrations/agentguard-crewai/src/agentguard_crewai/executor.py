"""An executor of a guarded agent: a last look at its tools, and the one that it gives itself.

CrewAI's executor puts a long result into a file, and gives the model a tool to read it.
"""

from __future__ import annotations

from typing import Any, cast

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_executor import AgentExecutor
from crewai.tools.agent_tools.deferred_tool_result_reader import DeferredToolResultReader
from pydantic import PrivateAttr

from agentguard import ConfigError
from agentguard_crewai.binding import names_of
from agentguard_crewai.classes import guarded_class
from agentguard_crewai.gate import Gate
from agentguard_crewai.identity import require_identity
from agentguard_crewai.tools import GuardedTool


def gate_executor(executor: AgentExecutor) -> None:
    """Look once more, as no tool goes to an executor that is not behind a gate; guard its own.

    What runs a planner's steps is made anew: it would keep the tools that it was made with. Raises
    ``ConfigError`` (``tool.unguarded``).
    """
    made = [structured._original_tool for structured in executor.tools]  # noqa: SLF001
    for tool in (*executor.original_tools, *made):
        if not isinstance(tool, GuardedTool):
            message = f"tool {tool.name} came to an executor past the guard: it does not run"
            raise ConfigError(message, code="tool.unguarded")
    executor._step_executor = None  # noqa: SLF001
    if not isinstance(executor, GuardedExecutor):
        executor.__class__ = guarded_class(GuardedExecutor, type(executor))


class GuardedExecutor(AgentExecutor):
    """What the class of a guarded agent's executor adds to CrewAI's."""

    def _register_deferred_file_reader(self, reader: DeferredToolResultReader) -> None:
        identity = require_identity(cast("BaseAgent", self.agent))
        name = names_of([*self.original_tools, reader])[-1]
        reader.__class__ = _GuardedReader
        reader._agentguard_gate = Gate(identity, reader, name)  # type: ignore[attr-defined]  # noqa: SLF001
        super()._register_deferred_file_reader(reader)


# CrewAI finds the reader by its identity, so that it can be no other object
class _GuardedReader(GuardedTool, DeferredToolResultReader):  # type: ignore[misc]  # not copied
    """The reader, whose every use is a guarded call of the agent that was given the result."""

    _agentguard_gate: Gate | None = PrivateAttr(default=None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._agentguard_gate is None:
            message = "the reader has lost its gate: it reads nothing"
            raise ConfigError(message, code="tool.unguarded")
        return self._agentguard_gate.run(super()._run, args, kwargs)
