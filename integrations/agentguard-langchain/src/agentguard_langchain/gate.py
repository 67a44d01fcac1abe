"""The gate in front of a LangChain tool: no call reaches the original past it.

A guarded tool is a copy of the tool whose class is a subclass made here. What that class gates,
and how one call passes once through several layers, stands here; what a call binds stands in
``binding.py``; how a refusal looks in ``denial.py``.

The originals are in closures only: no attribute, ``__wrapped__`` included, leads to them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langgraph.errors import GraphBubbleUp
from pydantic import PrivateAttr

from agentguard import Agent, CallSite, ConfigError, Denied, Invocation
from agentguard_langchain.binding import Entrance, Shape, origin_of
from agentguard_langchain.denial import GuardedToolDenied, denial_message
from agentguard_langchain.factories import unsupplied_fields

OnDeny = Literal["return", "raise"]

SLOTS: Final = ("func", "coroutine")
"""The fields in which LangChain's own tools keep what they run."""

_OWN: Final = {
    "_run": (StructuredTool._run, Tool._run),  # noqa: SLF001  LangChain's hooks for tool authors
    "_arun": (BaseTool._arun, StructuredTool._arun, Tool._arun),  # noqa: SLF001
}
"""Implementations that do nothing but call ``func``, ``coroutine`` or ``_run``."""

_ENTRIES: Final = (
    *("invoke", "ainvoke", "run", "arun", "stream", "astream", "batch", "abatch", "__call__"),
    *("batch_as_completed", "abatch_as_completed", "transform", "atransform"),
)
"""Public ways into a tool, all of which end in ``_run`` or ``_arun`` as LangChain wrote them."""


class Gate:
    """The agent for which tools run, and what a refused tool call gives back."""

    __slots__ = ("__weakref__", "agent", "on_deny")

    def __init__(self, agent: Agent, on_deny: OnDeny) -> None:
        self.agent = agent
        self.on_deny = on_deny

    def refuse(self, tool: str, tool_call_id: str | None, denied: Denied) -> object:
        """Return the message that answers a tool call; raises ``GuardedToolDenied`` elsewhere."""
        if self.on_deny == "return" and tool_call_id is not None:
            return denial_message(tool, tool_call_id, denied.decision)
        raise GuardedToolDenied(tool, denied.decision) from denied

    def __repr__(self) -> str:
        return "<Gate>"

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copied tool acts for the same agent instance

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()


def not_pickled() -> TypeError:
    """Return the error of pickling what is tied to a key in this process."""
    return TypeError("a guarded tool can't be pickled: pickle the tool, and guard it where it runs")


class Call:
    """One call on its way through a tool's layers.

    ``taken`` once a gate has answered for it, ``inside`` while its body runs; ``refusal`` is what
    the gate raised instead.
    """

    __slots__ = ("config", "id", "inside", "refusal", "taken", "tool", "unsupplied")

    def __init__(
        self, tool: BaseTool, call_id: str | None = None, config: RunnableConfig | None = None
    ) -> None:
        self.tool = tool
        self.id = call_id
        self.config = config
        self.unsupplied: frozenset[str] = frozenset()
        self.taken = False
        self.inside = False
        self.refusal: Denied | None = None

    def site(self, call_id: str) -> CallSite:
        """Return where the call stands in a run; a tool by itself does not know the turn."""
        configurable: Mapping[str, Any] = ensure_config(self.config).get("configurable") or {}
        thread, namespace = configurable.get("thread_id"), configurable.get("checkpoint_ns")
        return CallSite(
            call_id=call_id,
            thread=None if thread is None else str(thread),
            namespace=None if namespace is None else str(namespace),
        )


CURRENT: Final[ContextVar[Call | None]] = ContextVar("agentguard_langchain_call", default=None)
"""The call that ``run`` or ``arun`` began last in this context."""


if TYPE_CHECKING:
    _Tool = BaseTool
else:
    _Tool = object  # a model among the bases would put its fields before those of the tool's class


class GuardedTool(_Tool):
    """What the class of a guarded tool adds to that of the tool."""

    __slots__ = ()

    if TYPE_CHECKING:
        _agentguard_gate: Gate
        _agentguard_shape: Shape | None

    def run(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the tool as LangChain does; a refusal is answered here, past ``handle_tool_error``."""
        call = self._begin(kwargs)
        token = CURRENT.set(call)
        try:
            return super().run(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise  # the tool ran; what it called was refused
            return self._agentguard_gate.refuse(self.name, call.id, denied)
        finally:
            CURRENT.reset(token)

    async def arun(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the tool as LangChain does; the async twin of ``run``."""
        call = self._begin(kwargs)
        token = CURRENT.set(call)
        try:
            return await super().arun(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise
            return self._agentguard_gate.refuse(self.name, call.id, denied)
        finally:
            CURRENT.reset(token)

    def _begin(self, options: Mapping[str, Any]) -> Call:
        close_slots(self)
        return Call(self, options.get("tool_call_id"), options.get("config"))

    def _parse_input(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> str | dict[str, Any]:
        parsed = super()._parse_input(tool_input, tool_call_id)
        call = CURRENT.get()
        schema = self.args_schema
        if call is not None and call.tool is self and isinstance(tool_input, dict):
            if schema is not None and not isinstance(schema, dict):
                call.unsupplied = unsupplied_fields(schema, tool_input)
        return parsed

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in SLOTS:
            close_slots(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the tool; the copy is as guarded as this one."""
        copied = super().model_copy(update=update, deep=deep)
        close_slots(copied)
        return copied

    def __copy__(self) -> Self:
        copied = super().__copy__()
        close_slots(copied)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        close_slots(copied)
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()

    def __getstate__(self) -> NoReturn:
        raise not_pickled()


def put_behind(tool: BaseTool, gate: Gate) -> BaseTool:
    """Return a copy of ``tool`` of which every call passes ``gate``.

    Raises ``ConfigError`` where that can't be promised: a class with a way in of its own, or
    annotations that can't be resolved.
    """
    if isinstance(tool, GuardedTool):
        guarded: Any = tool.model_copy()
    else:
        guarded = tool.model_copy()
        object.__setattr__(guarded, "__class__", _guarded_class(type(tool)))
    guarded._agentguard_gate = gate
    guarded._agentguard_shape = None
    close_slots(guarded)
    shape_of(guarded)  # a schema that has no canonical form is found now
    return guarded  # type: ignore[no-any-return]


def shape_of(tool: GuardedTool) -> Shape:
    """Return what the tool's schema says now, with what the configuration says of the tool."""
    shape = tool._agentguard_shape
    if shape is None or not shape.describes(tool):
        function, origin = _original(tool)
        shape = Shape.of(tool, function, origin, tool._agentguard_gate.agent.guard.tool_spec)
        tool._agentguard_shape = shape
    return shape


def entrance_of(tool: GuardedTool) -> Entrance:
    """Return how the tool's innermost callable takes its arguments."""
    function, _origin = _original(tool)
    return _SEALS[function].entrance
