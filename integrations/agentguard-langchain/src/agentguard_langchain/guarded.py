"""A guarded LangChain tool: the class that it gets, the functions that are gated, the copies.

A guarded tool is a copy of the tool whose class is a subclass made here, so that whatever looks
at the tool (models, graphs, tracers) sees what it saw before. How one call passes stands in
``gate.py``, what it binds in ``binding.py``.

The originals are in closures only: no attribute, ``__wrapped__`` included, leads to them.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

from langchain_core.tools import BaseTool, StructuredTool, Tool
from pydantic import PrivateAttr

from agentguard import Agent, ConfigError, Denied, Invocation
from agentguard_langchain.binding import Entrance, Shape, origin_of
from agentguard_langchain.factories import unsupplied_fields
from agentguard_langchain.gate import CURRENT, Body, Call, Gate, not_pickled

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
        """Run the tool as LangChain does; ``handle_tool_error`` never sees a refusal."""
        call = self._begin(kwargs)
        token = CURRENT.set(call)
        try:
            return super().run(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise  # the tool ran; what it called was refused
            return gate_of(self).refuse(self.name, call.id, denied)
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
            return gate_of(self).refuse(self.name, call.id, denied)
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
        if schema is None or isinstance(schema, dict) or isinstance(tool_input, str):
            return parsed
        if call is not None and call.tool is self:
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
    copied: Any = tool.model_copy()
    if not isinstance(tool, GuardedTool):
        object.__setattr__(copied, "__class__", _guarded_class(type(tool)))
    copied._agentguard_gate = gate  # noqa: SLF001
    copied._agentguard_shape = None  # noqa: SLF001
    close_slots(copied)
    shape_of(copied)  # what can't be described is found now, not at the first call
    return copied  # type: ignore[no-any-return]


def gate_of(tool: GuardedTool) -> Gate:
    """Return the gate that the tool's calls pass."""
    return tool._agentguard_gate  # noqa: SLF001  private, so that pydantic never shows it


def shape_of(tool: GuardedTool) -> Shape:
    """Return what the tool's schema says now, with what the configuration says of the tool."""
    shape = tool._agentguard_shape  # noqa: SLF001
    if shape is None or not shape.describes(tool):
        function, seal = _innermost(tool)
        configured = gate_of(tool).agent.guard.tool_spec
        shape = Shape.of(tool, function, seal.origin, configured)
        tool._agentguard_shape = shape  # noqa: SLF001
    return shape


def entrance_of(tool: GuardedTool) -> Entrance:
    """Return how the callable that does the tool's work takes its arguments."""
    return _innermost(tool)[1].entrance


# --- what is gated ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seal:
    """What is known of a function made here. ``rehome`` gates its original for another tool."""

    entrance: Entrance
    origin: str
    owner: ReferenceType[GuardedTool] | None = None
    agent: Agent | None = None
    rehome: Callable[[GuardedTool, str], Callable[..., Any]] | None = None


_SEALS: Final[WeakKeyDictionary[Callable[..., Any], _Seal]] = WeakKeyDictionary()


def _seal_of(function: object) -> _Seal | None:
    return _SEALS.get(function) if inspect.isfunction(function) else None


def _innermost(tool: GuardedTool) -> tuple[Callable[..., Any], _Seal]:
    for name in _OWN:
        seal = _seal_of(getattr(type(tool), name))
        if seal is not None:
            return getattr(tool, name), seal
    for slot in SLOTS:
        function = tool.__dict__.get(slot)
        seal = _seal_of(function)
        if function is not None and seal is not None:
            return function, seal
    raise ConfigError(f"tool {tool.name} has neither a func nor a coroutine: it can't be guarded")


@functools.lru_cache(maxsize=256)
def _guarded_class(tool: type[BaseTool]) -> type[BaseTool]:
    """Make the guarded subclass. It keeps the name: what LangChain writes down stays the same."""
    for name in _ENTRIES:
        owner = next((base for base in tool.__mro__ if name in base.__dict__), None)
        if owner is not None and not owner.__module__.startswith("langchain_core."):
            message = (
                f"{tool.__qualname__} can't be guarded: {owner.__qualname__}.{name} may do the "
                "tool's work past _run; let _run and _arun do it, and remove the override"
            )
            raise ConfigError(message, code="tool.unguardable")
    namespace: dict[str, Any] = {
        "__module__": tool.__module__,
        "__qualname__": tool.__qualname__,
        "__doc__": tool.__doc__,
        "__annotations__": {"_agentguard_gate": Gate, "_agentguard_shape": Any},
        "_agentguard_gate": PrivateAttr(),
        "_agentguard_shape": PrivateAttr(default=None),
    }
    for name, pure in _OWN.items():
        original = inspect.getattr_static(tool, name)
        if original not in pure:
            namespace[name] = _gated_method(tool, name, original)
    return types.new_class(tool.__name__, (GuardedTool, tool), {}, lambda ns: ns.update(namespace))


def _gated_method(tool: type[BaseTool], name: str, original: object) -> Callable[..., Any]:
    if not inspect.isfunction(original):
        message = f"{tool.__qualname__}.{name} is no plain method: agentguard can't guard it"
        raise ConfigError(message, code="tool.unguardable")
    unbound = functools.partial(original, None)  # its signature is without self
    entrance = Entrance.of(unbound, tool.__qualname__, framework="run_manager")
    gate: Callable[..., Any]
    if inspect.iscoroutinefunction(original):

        async def gate(self: GuardedTool, /, *args: Any, **kwargs: Any) -> Any:
            body = Body(functools.partial(original, self), args, kwargs, layered=True)
            return await gate_of(self).arun(self, body, _describe(self, entrance, body))
    else:

        def gate(self: GuardedTool, /, *args: Any, **kwargs: Any) -> Any:
            body = Body(functools.partial(original, self), args, kwargs, layered=True)
            return gate_of(self).run(self, body, _describe(self, entrance, body))

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = entrance.signature
    parameters = [this, *signature.parameters.values()]
    _dress(gate, original, signature.replace(parameters=parameters), entrance)
    _SEALS[gate] = _Seal(entrance, f"{tool.__module__}:{tool.__qualname__}")
    return gate


def close_slots(tool: GuardedTool) -> None:
    """See to it that whatever stands in the slots of ``tool`` is gated for it."""
    for slot in SLOTS:
        function = tool.__dict__.get(slot)
        seal = _seal_of(function)
        if seal is not None and seal.owner is not None and seal.owner() is tool:
            continue
        if seal is not None and seal.rehome and seal.agent is gate_of(tool).agent:
            tool.__dict__[slot] = seal.rehome(tool, slot)
        elif callable(function):
            tool.__dict__[slot] = _gated_function(tool, slot, function)


def _gated_function(
    tool: GuardedTool, slot: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    entrance = Entrance.of(original, tool.name, framework="callbacks")
    gate: Callable[..., Any]
    if slot == "coroutine" or inspect.iscoroutinefunction(original):

        async def gate(*args: Any, **kwargs: Any) -> Any:
            body = Body(original, args, kwargs, layered=False)
            return await gate_of(tool).arun(tool, body, _describe(tool, entrance, body))
    else:

        def gate(*args: Any, **kwargs: Any) -> Any:
            body = Body(original, args, kwargs, layered=False)
            return gate_of(tool).run(tool, body, _describe(tool, entrance, body))

    _dress(gate, original, entrance.signature, entrance)
    _SEALS[gate] = _Seal(
        entrance,
        origin_of(original),
        ref(tool),
        gate_of(tool).agent,
        lambda other, other_slot: _gated_function(other, other_slot, original),
    )
    return gate


def _describe(tool: GuardedTool, entrance: Entrance, body: Body) -> Callable[[Call], Invocation]:
    """Return what binds a call of ``body``: at execution, so to what the original will receive."""

    def describe(call: Call) -> Invocation:
        shape = shape_of(tool)
        site = call.site(call.id or gate_of(tool).agent.call_id(tool.name))
        bind = functools.partial(
            entrance.bind, shape, body.args, body.kwargs, unsupplied=call.unsupplied
        )
        return Invocation.bind(shape.spec, bind, site)

    return describe


def _dress(
    gate: Any, original: Callable[..., Any], signature: inspect.Signature, entrance: Entrance
) -> None:
    """Make ``gate`` look like the original, without a way back to it (no ``__wrapped__``)."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        value = getattr(original, name, None)
        if value is not None:
            setattr(gate, name, value)
    gate.__signature__ = signature
    gate.__annotations__ = dict(entrance.annotations)
