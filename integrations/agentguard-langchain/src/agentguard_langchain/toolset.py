"""The tools of one graph, as one agent's: guarded once, found by name, and used for whom.

A middleware or a pair of nodes has one toolset. It knows tools as the model is given them; in a
process that goes on with a run, it knows none before the next turn.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Self

from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp

from agentguard import Agent, ConfigError, Delegation, DelegationError
from agentguard.delegation import context
from agentguard.telemetry import AgentSpan
from agentguard_langchain.answers import AnsweredBy, require_answered_by
from agentguard_langchain.delegation import lessened, refusal, require_extent
from agentguard_langchain.gate import Gate, OnDeny, not_pickled
from agentguard_langchain.gated_functions import gate_of, named_as_guarded
from agentguard_langchain.graph_task import Place
from agentguard_langchain.guarded_tool import GuardedTool
from agentguard_langchain.run_record import RunRecord
from agentguard_langchain.run_spans import manager_of, run_span
from agentguard_langchain.tools import (
    guard_one,
    guard_tools,
    owner_of,
    require_lender,
    require_on_deny,
)

_LOGGER = logging.getLogger("agentguard")

_MOST: Final = 1024
"""How many tools, graphs' tools and runs' delegations are kept at hand."""

_LOST: Final = (
    "nobody knows any more for whom this run was begun: the handle of its record is not in the "
    "graph's state (agentguard_run), or the record is not in the state directory: begin a new run"
)

RunLender = Callable[[Any], Delegation | None]
"""Says whose delegation a run is, given the graph's ``Runtime``, or at a tool the ``ToolRuntime``.

Where it raises or returns None, the delegation counts with which the run was begun.
"""


def _looks_up_tools(tool: object) -> bool:
    """Whether a tool of the model's provider does nothing but show the model more of its tools."""
    return isinstance(tool, dict) and str(tool.get("type")).startswith("tool_search")


class InForce(NamedTuple):
    """What is lent where a call is made; ``here`` if the core finds it in force by itself."""

    delegation: Delegation | None
    here: bool = True


class _Kept(NamedTuple):
    """A tool, its fields when it was guarded, and the guarded copy."""

    original: BaseTool
    fields: Mapping[str, object]
    guarded: BaseTool

    @property
    def is_current(self) -> bool:
        """Whether nobody has changed the tool since: what the model is told of it counts."""
        now = self.original.__dict__
        return len(now) == len(self.fields) and all(
            now.get(name) is value for name, value in self.fields.items()
        )


class Toolset:
    """The tools of a graph, and the agent for whom they are guarded.

    It is made of what an application gives, and raises ``ConfigError`` as ``guard_tools`` does.
    """

    def __init__(
        self,
        agent: Agent | str,
        lender: RunLender | None,
        on_deny: OnDeny,
        answered_by: AnsweredBy | None,
    ) -> None:
        require_on_deny(on_deny)
        require_answered_by(answered_by)
        self.agent = owner_of(agent)
        require_lender(lender, self.agent)
        self.answered_by = answered_by
        self._lender = lender
        self._on_deny = on_deny
        self._gate = Gate(self.agent, on_deny)
        self._guarded: OrderedDict[int, _Kept] = OrderedDict()
        self._known: OrderedDict[tuple[str | None, str | None], dict[str, BaseTool]] = OrderedDict()
        self._given: dict[str, BaseTool] = {}
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
            kept = self._guarded.get(id(tool))
        if kept is not None and kept.original is tool and kept.is_current:
            return kept.guarded
        gate = self._gate
        if isinstance(tool, GuardedTool) and gate_of(tool) is gate:
            return tool
        if isinstance(tool, GuardedTool) and gate_of(tool).agent is self.agent:
            gate = Gate(self.agent, self._on_deny, gate_of(tool).lender)
        guarded = guard_one(tool, gate)
        if kept is not None and kept.original is tool:
            named_as_guarded(guarded, kept.guarded)  # guarded anew since something of it changed
        self._keep(self._guarded, id(tool), _Kept(tool, dict(tool.__dict__), guarded))
        return guarded

    def has_guarded(self, tool: BaseTool) -> bool:
        """Whether each call of this very tool passes a guard of this agent."""
        return isinstance(tool, GuardedTool) and gate_of(tool).agent is self.agent

    def guarded_if_possible(self, tool: BaseTool) -> BaseTool:
        """Return the tool behind its guard, or as it is: it is refused when it is called."""
        try:
            return self.guarded(tool)
        except ConfigError:
            return tool

    def learn(self, place: Place, tools: Iterable[object]) -> None:
        """Keep the tools that a model is given; raises ``ConfigError`` as ``guard_tools`` does."""
        known: dict[str, BaseTool] = {}
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
            known[tool.name] = self.guarded(tool)
        self._keep(self._known, (place.thread, place.namespace), known)

    def known(self, place: Place, name: str) -> BaseTool | None:
        """Return the tool of that name that the model was given here; None if that is not known."""
        known = self._known.get((place.thread, place.namespace), self._given)
        return known.get(name)

    def give(self, tools: Sequence[BaseTool | Callable[..., Any]]) -> None:
        """Let these be the tools wherever it is used; raises ``ConfigError``."""
        guarded = guard_tools(tools, self.agent, on_deny=self._on_deny)
        self._given = {tool.name: self.guarded(tool) for tool in guarded}

    @property
    def tools(self) -> list[BaseTool]:
        """The tools that it was given, behind their guard."""
        return list(self._given.values())

    def _keep(self, kept: OrderedDict[Any, Any], key: object, value: object) -> None:
        with self._lock:
            kept[key] = value
            kept.move_to_end(key)
            while len(kept) > _MOST:
                kept.popitem(last=False)

    # --- for whom -------------------------------------------------------------------------------

    def lent(self, runtime: Callable[[], Any]) -> InForce:
        """Return what is lent here; raises ``DelegationError`` for what has ended."""
        if self.agent.delegation is not None:
            return InForce(self.agent.delegation, here=False)
        if self._lender is not None and not context.is_lent_by_a_call():
            found = self._said(self._lender, runtime)
            if found is not None:
                return InForce(found, here=False)
        in_force = context.in_force()
        return InForce(in_force if isinstance(in_force, Delegation) else None)

    def _said(self, lender: RunLender, runtime: Callable[[], Any]) -> Delegation | None:
        try:
            return lender(runtime())
        except GraphBubbleUp:
            raise
        except Exception:
            # a run's context is not persisted: the function may have nothing to look at
            _LOGGER.warning("the delegation function failed", exc_info=True)
            return None

    def acting(
        self, place: Place, handle: str | None, runtime: Callable[[], Any], *, recorded: bool
    ) -> Agent:
        """Return the agent as it acts in the run of this handle.

        ``recorded`` says that runs in a thread have a record here: without one, nobody acts. What
        fails here refuses the agent's calls, on record: nothing wider takes its place.
        """
        try:
            require_extent(self.agent)
            lent = self.lent(runtime)
            if recorded and place.thread is not None:
                lent = self._in_run(place, handle, lent)
            return self.agent if lent.here else self.agent.under(lessened(lent.delegation))
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001  the application's function may return anything
            return self.agent.refusing(refusal(error))

    def span(self, place: Place, handle: str | None, agent: Agent) -> AgentSpan | None:
        """Return the span of the run of this handle, which may go on another one; None for none."""

        def paused() -> str | None:
            record = None if handle is None else RunRecord.find(self.agent, place, handle)
            return None if record is None else record.traceparent

        return run_span(agent, place, manager_of(None), paused)

    def _in_run(self, place: Place, handle: str | None, lent: InForce) -> InForce:
        """Hold what is lent here against the run's record, which may lend what is not here."""
        record = None if handle is None else RunRecord.find(self.agent, place, handle)
        if handle is None or record is None:
            raise DelegationError(_LOST, code="delegation.missing")
        found = lent.delegation
        if found is not None:
            record.require(getattr(found, "principal", None))  # of a wrong type: refused as such
            return lent
        if record.stored is not None:
            return InForce(self._resume(handle, record.stored), here=False)
        if record.principal is not None:
            message = (
                f"this run was begun for {record.principal}, and what was lent is neither stored "
                "nor in force here: put the delegation in force around the run"
            )
            raise DelegationError(message, code="delegation.missing")
        return lent

    def _resume(self, handle: str, stored: bytes) -> Delegation:
        resumed = self._resumed.get(handle)
        if resumed is None:
            resumed = self.agent.resume(stored)
            self._keep(self._resumed, handle, resumed)
        return resumed
