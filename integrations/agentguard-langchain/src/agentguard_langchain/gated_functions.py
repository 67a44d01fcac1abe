"""The functions of a guarded tool: each original, behind a gate.

Originals are in closures only: no attribute, ``__wrapped__`` included, leads to them. The class of
a guarded tool stands in ``guarded_tool.py``, the way of one call in ``guarded_call.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from weakref import ref

from langchain_core.tools import BaseTool, Tool

from agentguard import ConfigError
from agentguard_langchain.binding import Entrance, origin_of
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.guarded_call import call_of
from agentguard_langchain.tool_state import (
    SLOTS,
    FunctionCall,
    GatedFunction,
    Guarded,
    Seal,
    gate_of,
    put_seal,
    seal_of,
)


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
    gated = GatedFunction(entrance, ToolResults(entrance.annotations.get("return")), is_method=True)
    gate: Callable[..., Any]
    # LangChain awaits what _arun returns, also where a decorator or its author made it no coroutine
    if name == "_arun" or inspect.iscoroutinefunction(original):

        async def gate(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(original, self)
            return await _apass(self, FunctionCall(bound, args, kwargs, gated))
    else:

        def gate(self: Guarded, /, *args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(original, self)
            return _pass(self, FunctionCall(bound, args, kwargs, gated))

    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [self_parameter, *entrance.signature.parameters.values()]
    _imitate(gate, original, entrance.signature.replace(parameters=parameters), entrance)
    put_seal(gate, Seal(gated, f"{tool.__module__}:{tool.__qualname__}"))
    return gate


def close_slots(tool: Guarded) -> None:
    """Gate, for ``tool``, whatever function stands in its slots."""
    for slot in SLOTS:
        function = tool.__dict__.get(slot)
        seal = seal_of(function)
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
    gated = GatedFunction(entrance, codec, is_method=False)
    gate: Callable[..., Any]
    if slot == "coroutine" or inspect.iscoroutinefunction(original):

        async def gate(*args: Any, **kwargs: Any) -> Any:
            return await _apass(tool, FunctionCall(original, args, kwargs, gated))
    else:

        def gate(*args: Any, **kwargs: Any) -> Any:
            return _pass(tool, FunctionCall(original, args, kwargs, gated))

    _imitate(gate, original, entrance.signature, entrance)

    def rehome(other: Guarded, other_slot: str) -> Callable[..., Any]:
        return _gated_function(other, other_slot, original)

    put_seal(gate, Seal(gated, origin_of(original), ref(tool), gate_of(tool).agent, rehome))
    return gate


def _pass(tool: Guarded, function_call: FunctionCall) -> Any:
    """Run the function as a guarded call, or as a further layer of the call that runs already."""
    call = call_of(tool)
    return function_call.run() if call.is_running else call.run(function_call)


async def _apass(tool: Guarded, function_call: FunctionCall) -> Any:
    """Run the function as a guarded call; the async twin of ``_pass``."""
    call = call_of(tool)
    return await (function_call.arun() if call.is_running else call.arun(function_call))


def _refuse_generator(function: Any, place: str) -> None:
    """Raise ``ConfigError`` for a generator function, sync or async."""
    while isinstance(function, functools.partial):
        function = function.func
    routine = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(routine) or inspect.isasyncgenfunction(routine):
        message = (
            f"{place} is a generator: its effects would come after the call is over, where nobody "
            "watches them; return a list instead"
        )
        raise ConfigError(message, code="tool.generator")


def _imitate(
    gate: Any, original: Callable[..., Any], signature: inspect.Signature, entrance: Entrance
) -> None:
    """Make ``gate`` look like the original, without a way back to it (no ``__wrapped__``)."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        value = getattr(original, name, None)
        if value is not None:
            setattr(gate, name, value)
    gate.__signature__ = signature
    gate.__annotations__ = dict(entrance.annotations)
