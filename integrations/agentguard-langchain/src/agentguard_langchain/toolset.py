"""The tools of one graph, guarded for one agent, and the delegation of the graph's runs.

A middleware, or a pair of nodes, has one toolset. The toolset knows the tools that the model is
given. In a process that resumes a run, the toolset knows no tools before the next turn.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Self

from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp

from agentguard import Agent, ConfigError, Delegation, DelegationError, current_delegation
from agentguard.adapters import AgentSpan, is_inside_delegating_call, refusing_agent
from agentguard_langchain.answers import AnsweredBy, require_answered_by
from agentguard_langchain.delegation import delegation_error, narrowed, require_subagent
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.guarded_tool import GuardedTool
from agentguard_langchain.run_record import RunRecord
from agentguard_langchain.run_spans import callback_manager, run_span
from agentguard_langchain.tool_state import Gate, OnDeny, gate_of, keep_guarded_name, not_pickled
from agentguard_langchain.tools import (
    guard_one,
    guard_tools,
    owner_of,
    require_delegation_source,
    require_on_deny,
)

_LOGGER = logging.getLogger("agentguard")

_CAPACITY: Final = 1024
"""How many tools, how many graphs' tools, and how many runs' delegations are kept at hand."""

_NO_RECORD: Final = (
    "nobody knows any more for whom this run was begun: the handle of its record is not in the "
    "graph's state (agentguard_run), or the record is not in the state directory: begin a new run"
)

RunDelegationSource = Callable[[Any], Delegation | None]
"""Returns the delegation of a run. The argument is the graph's ``Runtime``; at a tool, its
``ToolRuntime``.

Where the function raises or returns None, the delegation counts with which the run was begun.
"""


class RunDelegation(NamedTuple):
    """The delegation of a run; ``is_in_context`` if the core finds it in the context by itself."""

    delegation: Delegation | None
    is_in_context: bool = True


class _CachedTool(NamedTuple):
    """A tool, its fields when it was guarded, and the guarded copy."""

    original: BaseTool
    fields: Mapping[str, object]
    guarded: BaseTool

    def is_of(self, tool: BaseTool) -> bool:
        """Whether this is the guarded copy of ``tool``, with the fields that the tool has now."""
        fields = self.original.__dict__
        return (
            self.original is tool
            and len(fields) == len(self.fields)
            and all(fields.get(name) is value for name, value in self.fields.items())
        )


class Toolset:
    """The tools of a graph, and the agent for whom they are guarded.

    The arguments are those of ``GuardMiddleware``. Raises ``ConfigError`` as ``guard_tools`` does.
    """

    def __init__(
        self,
        agent: Agent | str,
        delegation_source: RunDelegationSource | None,
        on_deny: OnDeny,
        answered_by: AnsweredBy | None,
    ) -> None:
        require_on_deny(on_deny)
        require_answered_by(answered_by)
        self.agent = owner_of(agent)
        require_delegation_source(delegation_source, self.agent)
        self.answered_by = answered_by
        self._delegation_source = delegation_source
        self._on_deny = on_deny
        self._gate = Gate(self.agent, on_deny)
        self._cached: OrderedDict[int, _CachedTool] = OrderedDict()
        self._learned: OrderedDict[tuple[str | None, str | None], dict[str, BaseTool]] = (
            OrderedDict()
        )
        self._fixed: dict[str, BaseTool] = {}
        self._resumed: OrderedDict[str, Delegation] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copied middleware acts for the same agent instance

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()

    # --- tools ----------------------------------------------------------------------------------

    def guarded(self, tool: BaseTool) -> BaseTool:
        """Return the tool behind its guard; raises ``ConfigError`` for what can't be guarded."""
        with self._lock:
            cached = self._cached.get(id(tool))
        if cached is not None and cached.is_of(tool):
            return cached.guarded
        gate = self._gate
        if isinstance(tool, GuardedTool) and gate_of(tool) is gate:
            return tool
        if isinstance(tool, GuardedTool) and gate_of(tool).agent is self.agent:
            gate = Gate(self.agent, self._on_deny, gate_of(tool).delegation_source)
        guarded = guard_one(tool, gate)
        if cached is not None and cached.original is tool:
            keep_guarded_name(guarded, cached.guarded)  # fields of the tool have changed since
        self._keep(self._cached, id(tool), _CachedTool(tool, dict(tool.__dict__), guarded))
        return guarded

    def has_guarded(self, tool: BaseTool) -> bool:
        """Whether each call of this very tool passes a guard of this agent."""
        return isinstance(tool, GuardedTool) and gate_of(tool).agent is self.agent

    def guarded_if_possible(self, tool: BaseTool) -> BaseTool:
        """Return the tool behind its guard, or as it is: then its calls are refused."""
        try:
            return self.guarded(tool)
        except ConfigError:
            return tool

    def learn(self, task: GraphTask, tools: Iterable[object]) -> None:
        """Keep the tools that a model is given; raises ``ConfigError`` as ``guard_tools`` does."""
        learned: dict[str, BaseTool] = {}
        for tool in tools:
            if _looks_up_tools(tool):
                continue
            if not isinstance(tool, BaseTool):
                name = tool.get("name") or tool.get("type") if isinstance(tool, dict) else tool
                message = (
                    f"the model is given {name!r}, which its provider runs, where agentguard can't "
                    "check or record it: leave it out, or pass a tool that runs here"
                )
                raise ConfigError(message, code="tool.unguardable")
            learned[tool.name] = self.guarded(tool)
        self._keep(self._learned, (task.thread, task.namespace), learned)

    def known_tool(self, task: GraphTask, name: str) -> BaseTool | None:
        """Return the tool of this name that the model was given in ``task``; None if unknown."""
        return self._learned.get((task.thread, task.namespace), self._fixed).get(name)

    def fix_tools(self, tools: Sequence[BaseTool | Callable[..., Any]]) -> None:
        """Let the toolset have these tools in each task; raises ``ConfigError``."""
        guarded = guard_tools(tools, self.agent, on_deny=self._on_deny)
        self._fixed = {tool.name: self.guarded(tool) for tool in guarded}

    @property
    def tools(self) -> list[BaseTool]:
        """The tools of ``fix_tools``, behind their guard."""
        return list(self._fixed.values())

    def _keep(self, cache: OrderedDict[Any, Any], key: object, value: object) -> None:
        with self._lock:
            cache[key] = value
            cache.move_to_end(key)
            while len(cache) > _CAPACITY:
                cache.popitem(last=False)

    # --- the delegation of a run ----------------------------------------------------------------

    def delegation(self, runtime: Callable[[], Any]) -> RunDelegation:
        """Return the delegation here; raises ``DelegationError`` for one that has ended."""
        if self.agent.delegation is not None:
            return RunDelegation(self.agent.delegation, is_in_context=False)
        if self._delegation_source is not None and not is_inside_delegating_call():
            delegation = self._source_result(self._delegation_source, runtime)
            if delegation is not None:
                return RunDelegation(delegation, is_in_context=False)
        return RunDelegation(current_delegation())

    def _source_result(
        self, source: RunDelegationSource, runtime: Callable[[], Any]
    ) -> Delegation | None:
        try:
            return source(runtime())
        except GraphBubbleUp:
            raise
        except Exception:
            # a run's context is not persisted: the function may have nothing to look at
            _LOGGER.warning("the delegation function failed", exc_info=True)
            return None

    def acting_agent(
        self, task: GraphTask, handle: str | None, runtime: Callable[[], Any], *, has_record: bool
    ) -> Agent:
        """Return the agent as it acts in the run with the record ``handle``.

        ``has_record`` says that a run in a thread has a record here: without the record, each call
        is refused. A failure refuses the agent's calls, on record: no wider authority takes its
        place.
        """
        try:
            require_subagent(self.agent)
            run = self.delegation(runtime)
            if has_record and task.thread is not None:
                run = self._recorded(task, handle, run)
            return self.agent if run.is_in_context else self.agent.under(narrowed(run.delegation))
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001  the application's function may return anything
            return refusing_agent(self.agent, delegation_error(error))

    def span(self, task: GraphTask, handle: str | None, agent: Agent) -> AgentSpan | None:
        """Return the span of the run, which continues that of a paused run; None for none."""

        def paused() -> str | None:
            record = None if handle is None else RunRecord.find(self.agent, task, handle)
            return None if record is None else record.traceparent

        return run_span(agent, task, callback_manager(None), paused)

    def _recorded(self, task: GraphTask, handle: str | None, run: RunDelegation) -> RunDelegation:
        """Compare the delegation with the run's record, whose delegation counts if there is none.

        Raises ``DelegationError``: ``delegation.missing``, ``delegation.mismatch``.
        """
        record = None if handle is None else RunRecord.find(self.agent, task, handle)
        if handle is None or record is None:
            lent = run.delegation
            raise DelegationError(_NO_RECORD, code="delegation.missing", delegation=lent)
        if run.delegation is not None:
            # an object of a wrong type has no principal: it is refused for its type
            record.require(run.delegation)
            return run
        if record.stored is not None:
            return RunDelegation(self._resume(handle, record.stored), is_in_context=False)
        if record.principal is not None:
            message = (
                f"this run was begun for {record.principal}, and what was lent is neither stored "
                "nor in force here: put the delegation in force around the run"
            )
            whose = record.principal
            raise DelegationError(message, code="delegation.missing", delegation=whose)
        return run

    def _resume(self, handle: str, stored: bytes) -> Delegation:
        resumed = self._resumed.get(handle)
        if resumed is None:
            resumed = self.agent.take_up(stored)
            self._keep(self._resumed, handle, resumed)
        return resumed


def _looks_up_tools(tool: object) -> bool:
    """Whether a tool of the model's provider only shows the model more of the graph's tools."""
    return isinstance(tool, dict) and str(tool.get("type")).startswith("tool_search")
