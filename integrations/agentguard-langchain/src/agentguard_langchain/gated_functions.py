"""The functions of a guarded tool: what it runs, behind its gate.

Originals are in closures only: no attribute, ``__wrapped__`` included, leads to them. The class
that a guarded tool gets stands in ``guarded_tool.py``, how one call passes in ``gate.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from weakref import ReferenceType, WeakKeyDictionary, ref

from langchain_core.tools import BaseTool, Tool

from agentguard import Agent, ConfigError, Decision, Invocation
from agentguard_langchain.binding import Entrance, Shape, origin_of
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.gate import Gate
from agentguard_langchain.guarded_call import Body, Call

SLOTS: Final = ("func", "coroutine")
"""The fields in which LangChain's own tools keep what they run."""

METHODS: Final = ("_run", "_arun")
"""The methods in which a tool class does its work."""

if TYPE_CHECKING:
    _Tool = BaseTool
else:
    _Tool = object  # a model among the bases would put its fields before those of the tool's class


class Guarded(_Tool):
    """The state that a guarded tool has beside the tool's own."""

    __slots__ = ()

    if TYPE_CHECKING:
        _agentguard_gate: Gate
        _agentguard_name: str
        _agentguard_shape: Shape | None


def gate_of(tool: Guarded) -> Gate:
    """Return the gate that the tool's calls pass; raises ``ConfigError`` where it has none.

    LangChain makes a tool of the guarded class anew for ``configurable_fields``.
    """
    try:
        return tool._agentguard_gate  # noqa: SLF001  private, so that pydantic never shows it
    except AttributeError:
        message = (
            f"tool {tool.name} was made anew from a guarded one, as configurable_fields does, and "
            "has no guard: guard a tool for each configuration instead"
        )
        raise ConfigError(message, code="tool.unguardable") from None


def named_as_guarded(tool: Any, before: Any) -> None:
    """Let ``tool`` count as guarded under the name under which ``before`` was."""
    tool._agentguard_name = before._agentguard_name  # noqa: SLF001


def shape_of(tool: Guarded) -> Shape:
    """Return what the tool's schema says now, with what the configuration says of the tool."""
    shape = tool._agentguard_shape  # noqa: SLF001
    function, seal = _innermost(tool)
    if shape is None or not shape.describes(tool, seal.origin):
        configured = gate_of(tool).agent.tool_spec
        shape = Shape.of(tool, function, seal.origin, configured)
        tool._agentguard_shape = shape  # noqa: SLF001
    return shape


def entrance_of(tool: Guarded) -> Entrance:
    """Return how the callable that does the tool's work takes its arguments."""
    return _innermost(tool)[1].entrance


@dataclass(frozen=True, slots=True)
class _Seal:
    """What is known of a function made here. ``rehome`` gates its original for another tool."""

    entrance: Entrance
    origin: str
    owner: ReferenceType[Guarded] | None = None
    agent: Agent | None = None
    rehome: Callable[[Guarded, str], Callable[..., Any]] | None = None


_SEALS: Final[WeakKeyDictionary[Callable[..., Any], _Seal]] = WeakKeyDictionary()


def _seal_of(function: object) -> _Seal | None:
    return _SEALS.get(function) if inspect.isfunction(function) else None


def _innermost(tool: Guarded) -> tuple[Callable[..., Any], _Seal]:
    for name in METHODS:
        seal = _seal_of(getattr(type(tool), name))
        if seal is not None:
            return getattr(tool, name), seal
    for slot in SLOTS:
        function = tool.__dict__.get(slot)
        seal = _seal_of(function)
        if function is not None and seal is not None:
            return function, seal
    raise ConfigError(f"tool {tool.name} has neither a func nor a coroutine: it can't be guarded")


def gated_method(tool: type[BaseTool], name: str, original: object) -> Callable[..., Any]:
    """Return ``original``, the method ``name`` of a tool class, behind the gate of its tool.

    Raises ``ConfigError`` for what is no plain method, and for a generator.
    """
    place = f"{tool.__qualname__}.{name}"
    if not inspect.isfunction(original):
        message = f"{place} is no plain method: agentguard can't guard it"
        raise ConfigError(message, code="tool.unguardable")
    _refuse_generator(original, place)
    unbound = functools.partial(original, None)  # its signature is without self
    entrance = Entrance.of(unbound, tool.__qualname__, framework="run_manager")
    codec = ToolResults(entrance.annotations.get("return"))
    gate: Callable[..., Any]
    # LangChain awaits what _arun returns, also where a decorator or its author made it no coroutine
    if name == "_arun" or inspect.iscoroutinefunction(original):

        async def gate(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
            body = Body(functools.partial(original, self), args, kwargs, codec, layered=True)
            return await gate_of(self).arun(self, body, _describe(self, entrance, body))
    else:

        def gate(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
            body = Body(functools.partial(original, self), args, kwargs, codec, layered=True)
            return gate_of(self).run(self, body, _describe(self, entrance, body))

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = entrance.signature
    parameters = [this, *signature.parameters.values()]
    _dress(gate, original, signature.replace(parameters=parameters), entrance)
    _SEALS[gate] = _Seal(entrance, f"{tool.__module__}:{tool.__qualname__}")
    return gate


def close_slots(tool: Guarded) -> None:
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


def _gated_function(tool: Guarded, slot: str, original: Callable[..., Any]) -> Callable[..., Any]:
    _refuse_generator(original, f"the {slot} of tool {tool.name}")
    entrance = Entrance.of(original, tool.name, framework="callbacks")
    if isinstance(tool, Tool) and not entrance.takes_position:
        message = (
            f"tool {tool.name}: its {slot} has no name for an argument by position, in which way a "
            "Tool passes its one input; make it a StructuredTool, or, where it is behind a "
            "decorator that takes (*args, **kwargs), give that a signature of its own"
        )
        raise ConfigError(message, code="tool.unguardable")
    codec = ToolResults(entrance.annotations.get("return"))
    gate: Callable[..., Any]
    if slot == "coroutine" or inspect.iscoroutinefunction(original):

        async def gate(*args: Any, **kwargs: Any) -> Any:
            body = Body(original, args, kwargs, codec, layered=False)
            return await gate_of(tool).arun(tool, body, _describe(tool, entrance, body))
    else:

        def gate(*args: Any, **kwargs: Any) -> Any:
            body = Body(original, args, kwargs, codec, layered=False)
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


def _refuse_generator(function: Any, place: str) -> None:
    """Raise ``ConfigError`` for a generator function, sync or async."""
    while isinstance(function, functools.partial):
        function = function.func
    called = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        message = (
            f"{place} is a generator: its effects would come after the call is over, where nobody "
            "watches them; return a list instead"
        )
        raise ConfigError(message, code="tool.generator")


def _describe(tool: Guarded, entrance: Entrance, body: Body) -> Callable[[Call], Invocation]:
    """Return what binds a call of ``body``: at execution, so to what the original will receive."""

    def describe(call: Call) -> Invocation:
        shape = shape_of(tool)
        site = call.site(functools.partial(gate_of(tool).agent.call_id, tool.name))
        known: dict[str, Any] = {"made": call.made, "call_id": call.id, "objects": call.objects}
        bind = functools.partial(entrance.bind, shape, body.args, body.kwargs, **known)
        invocation = Invocation.bind(shape.spec, bind, site)
        return replace(invocation, refusal=_renamed(tool))

    return describe


def _renamed(tool: Guarded) -> Decision | None:
    """Refuse a tool that was guarded under another name than it has."""
    before = tool._agentguard_name  # noqa: SLF001
    if tool.name == before:
        return None
    reason = (
        f"the tool {before} was named {tool.name} after it was guarded: guard the tool under the "
        "name that it is to have"
    )
    return Decision.refused(reason, code="tool.changed")


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
