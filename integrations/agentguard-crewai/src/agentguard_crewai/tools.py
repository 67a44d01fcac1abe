"""Guarded tools: twins of a crew's tools whose functions pass the gate.

A guarded tool shares all its state with the original, because CrewAI counts the uses of a tool in
the state. The class of a guarded tool is a subclass that this module makes under the same name.
Only the functions that run the tool differ: each passes the gate, and then runs the original's
function.
"""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Callable
from typing import Any, Final, NoReturn

from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure

from agentguard import ConfigError
from agentguard_crewai.gate import Gate
from agentguard_crewai.identity import Identity
from agentguard_crewai.sealing import copy_signature, original_class, seal, unsealed_attribute
from agentguard_crewai.tracing import tool_span

_LOGGER = logging.getLogger("agentguard")

_GATE: Final = "_agentguard_gate"
_STATE: Final = (
    "__dict__",
    "__pydantic_private__",
    "__pydantic_extra__",
    "__pydantic_fields_set__",
)
_STOCK: Final[dict[str, tuple[type, ...]]] = {
    "run": (BaseTool, Tool),
    "arun": (BaseTool, Tool),
    "_run": (Tool,),
    "_arun": (BaseTool, Tool),
    "func": (),
}
"""The functions that run a tool, with the classes whose own version calls another of them.

A version of such a class needs no gate, also where a tracer has replaced the version.
"""

_UNCHECKED: Final = ("run", "arun")
"""Functions that get a model's arguments unchecked; CrewAI's own versions validate them."""


class _Gated:
    """The descriptor of a function that runs a guarded tool: the original's, behind the gate.

    The setter keeps an attribute of the object from replacing the gated function. A function that
    lies in the object already, as where a tracer put one, is behind the gate as well.
    """

    def __init__(self, name: str, kind: type[BaseTool]) -> None:
        self._name = name
        self._kind = kind

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None:
            return inspect.getattr_static(self._kind, self._name, None)
        gate = gate_of(tool)
        if self._name not in vars(gate.tool):
            base = next((one for one in self._kind.__mro__ if self._name in vars(one)), None)
            if base in _STOCK[self._name]:
                return vars(base)[self._name].__get__(tool, owner)
        function = unsealed_attribute(gate.tool, self._name)
        entry = gate.entry_points.get(self._name)
        if entry is None or entry[0] != function:  # a bound method is another object each time
            gated = _gate_function(gate, function, unchecked=self._name in _UNCHECKED)
            entry = gate.entry_points[self._name] = function, gated
        return entry[1]

    def __set__(self, tool: BaseTool, value: object) -> None:
        setattr(gate_of(tool).tool, self._name, value)


class _CacheFunction:
    """The descriptor of ``cache_function``: incomplete calls and failures are not cached."""

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None:
            raise AttributeError("cache_function")
        gate = gate_of(tool)
        may_cache = vars(gate.tool)["cache_function"]

        def cacheable(arguments: Any = None, result: Any = None) -> bool:
            if isinstance(result, ToolFailure) or not gate.is_complete(result):
                return False
            try:
                return bool(may_cache(arguments, result))
            except Exception:
                # CrewAI would take the error for the tool's, and run the tool again
                _LOGGER.exception("the cache_function of %s failed: not cached", tool.name)
                return False

        return cacheable

    def __set__(self, tool: BaseTool, value: object) -> None:
        vars(gate_of(tool).tool)["cache_function"] = value


class _Structured:
    """The descriptor of ``to_structured_tool``: gates the function of the structured tool."""

    def __init__(self, written: Callable[[BaseTool], CrewStructuredTool]) -> None:
        self._original = written

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        return self._original if tool is None else functools.partial(self._convert, tool)

    def __set__(self, tool: BaseTool, value: object) -> None:
        object.__setattr__(gate_of(tool).tool, "to_structured_tool", value)

    def _convert(self, tool: BaseTool) -> CrewStructuredTool:
        gate = gate_of(tool)
        replaced = vars(gate.tool).get("to_structured_tool")
        structured: CrewStructuredTool = (
            replaced() if replaced is not None else self._original(tool)
        )
        if type(structured) is not CrewStructuredTool:
            message = (
                f"tool {tool.name} can't be guarded: its to_structured_tool returns a "
                f"{type(structured).__name__}, which may run it in ways of its own"
            )
            raise ConfigError(message, code="tool.unguardable")
        if not is_gated(structured.func, tool):
            structured.func = _gate_function(gate, structured.func)
        structured._original_tool = tool  # noqa: SLF001  as CrewAI does
        return structured


def _checked(tool: BaseTool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a model's arguments, validated as CrewAI's own ``run`` validates them.

    Raises ``ValueError`` for arguments that the schema rejects, and ``ConfigError`` where a second
    validation would change them: the tool would then run with other arguments than the decided.
    """
    checked = tool._validate_kwargs(kwargs)  # noqa: SLF001  as its run does
    if tool._validate_kwargs(checked) != checked:  # noqa: SLF001
        message = (
            f"tool {tool.name} can't be guarded: it has a run of its own, and its args_schema "
            "makes something else of what it has made; write _run instead of run, or have its "
            "validators leave as it is what they have returned before"
        )
        raise ConfigError(message, code="tool.unguardable")
    return checked


def _gate_function(gate: Gate, function: Callable[..., Any], *, unchecked: bool = False) -> Any:
    """Return ``function`` behind the gate; ``unchecked`` for arguments that nobody validated."""
    gated: Any
    if inspect.iscoroutinefunction(function):

        async def gated(*args: Any, **kwargs: Any) -> Any:
            given = _checked(gate.tool, kwargs) if unchecked and not args else kwargs
            with tool_span(gate.tool):
                return await gate.arun(function, args, given)
    else:

        def gated(*args: Any, **kwargs: Any) -> Any:
            given = _checked(gate.tool, kwargs) if unchecked and not args else kwargs
            with tool_span(gate.tool):
                return gate.run(function, args, given)

    # and no __wrapped__, which would lead past the gate
    copy_signature(gated, function)
    setattr(gated, _GATE, gate)
    return gated


class GuardedTool:
    """Marks the class of a guarded tool."""

    __slots__ = ()

    def __copy__(self) -> NoReturn:
        raise _copy_error()

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise _copy_error()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _copy_error()


def _copy_error() -> TypeError:
    return TypeError("a guarded tool can't be copied or pickled: take the original")


def gate_of(tool: BaseTool) -> Gate:
    """Return the gate of a guarded tool; raises ``ConfigError`` for a copy without a gate."""
    gate = getattr(tool, _GATE, None)
    if not isinstance(gate, Gate):
        message = f"tool {tool.name} is the copy of a guarded tool, and not guarded: did not run"
        raise ConfigError(message, code="tool.unguarded")
    return gate


def is_gated(function: object, tool: BaseTool) -> bool:
    """Return whether a function passes the gate of this guarded tool."""
    if isinstance(function, types.MethodType) and function.__self__ is tool:
        # CrewAI's goes on to func, also where somebody has replaced the tool's _run meanwhile
        return function == tool._run or function.__func__ is Tool._run  # noqa: SLF001
    return getattr(function, _GATE, None) is gate_of(tool)


def original_of(tool: BaseTool) -> BaseTool:
    """Return the original of a guarded tool, or an unguarded tool itself."""
    return gate_of(tool).tool if issubclass(type(tool), GuardedTool) else tool


def gated_tool(tool: BaseTool, identity: Identity, name: str) -> BaseTool:
    """Return the guarded twin of ``tool`` for ``identity``, with ``name`` as the policy's name.

    Raises ``ConfigError`` (``tool.unguardable``) for an object that is no CrewAI tool.
    """
    given: object = tool
    if not isinstance(given, BaseTool):
        message = f"{given!r} is no CrewAI tool: make it one, with crewai.tools.tool"
        raise ConfigError(message, code="tool.unguardable")
    original = original_of(tool)
    seal([original])
    kind = _guarded_class(original_class(original))
    guarded: BaseTool = kind.__new__(kind)
    for part in _STATE:
        object.__setattr__(guarded, part, getattr(original, part))
    object.__setattr__(guarded, _GATE, Gate(identity, original, name))
    return guarded


@functools.lru_cache(maxsize=512)
def _guarded_class(kind: type[BaseTool]) -> type[BaseTool]:
    """Make the guarded subclass of a tool's class, under the same name."""
    namespace = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__slots__": (_GATE,)}
    # under its own name CrewAI's registry would take it for the class of unguarded tools
    namespace["__qualname__"] = f"guarded {kind.__qualname__}"
    guarded: Any = types.new_class(
        kind.__name__, (GuardedTool, kind), {}, lambda given: given.update(namespace)
    )
    guarded.__qualname__ = kind.__qualname__
    # past pydantic, which takes a field's name in a class for its default
    for name in _STOCK:
        if name != "func" or issubclass(kind, Tool):
            type.__setattr__(guarded, name, _Gated(name, kind))
    type.__setattr__(guarded, "to_structured_tool", _Structured(kind.to_structured_tool))
    type.__setattr__(guarded, "cache_function", _CacheFunction())
    return guarded  # type: ignore[no-any-return]
