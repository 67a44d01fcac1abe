"""Seals the tool objects that an application holds: only guarded calls can run a sealed tool.

A sealed tool is the same object under a subclass that this module makes. Its entry points (``run``,
``func`` and others) can be read, but raise ``UnguardedCallError`` outside of a guarded call: in a
callback, a guardrail, an unguarded crew. Code of the same process can still reach the functions
below the seal (docs/how-to/crewai-limits.md).
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, NoReturn

from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool

from agentguard import ConfigError, UnguardedCallError
from agentguard.adapters import assigned

ENTRY_POINTS: Final = ("run", "arun", "_run", "_arun", "func")
"""The names of the functions that run a tool."""

_KIND: Final = "_agentguard_kind"


class _RunningCall:
    """A guarded call of a tool; ``tool`` is None once the call ends, in copied contexts as well."""

    __slots__ = ("tool",)

    def __init__(self, tool: BaseTool) -> None:
        self.tool: BaseTool | None = tool


_WITHIN: Final[ContextVar[_RunningCall | None]] = ContextVar(
    "agentguard_crewai_within", default=None
)
"""The guarded call in this context."""

_NAMES: Final[dict[int, tuple[weakref.ref[BaseTool], str]]] = {}
"""The name of each tool when the tool was sealed, by the tool's ``id()``."""


class SealedTool:
    """Marks the class of a sealed tool."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        message = "a guarded agent's tool can't be pickled: what came of it would be unguarded"
        raise TypeError(message)


def seal(tools: Iterable[object] | None, *, anew: bool = False) -> None:
    """Seal these tools, and record their names.

    A tool that is sealed already keeps its recorded name unless ``anew`` is true. Objects that are
    no CrewAI tools are left alone: no executor gets them.
    """
    for tool in () if tools is None else tools:
        if not isinstance(tool, BaseTool):
            continue
        kind = type(tool)  # read once: another thread may seal the same tool meanwhile
        if not issubclass(kind, SealedTool):
            object.__setattr__(tool, "__class__", _sealed_class(kind))
        if anew or id(tool) not in _NAMES:
            forget: Callable[[object], object] = functools.partial(_forget, id(tool))
            _NAMES[id(tool)] = weakref.ref(tool, forget), tool.name


def _forget(key: int, _gone: object) -> None:
    _NAMES.pop(key, None)


def require_name(tool: BaseTool) -> None:
    """Raise ``ConfigError`` (``tool.changed``) for a tool whose name changed since the seal.

    Policies know a tool by its name.
    """
    _tool, name = _NAMES.get(id(tool), (None, tool.name))
    if name != tool.name:
        message = (
            f"the tool {tool.name!r} was {name!r} when its agent was guarded: guard the agent, or "
            "the crew, once its tools have their names"
        )
        raise ConfigError(message, code="tool.changed")


@contextmanager
def unseal(tool: BaseTool) -> Iterator[None]:
    """Allow the tool's code to run in this block, which is the tool's guarded call."""
    running = _RunningCall(tool)
    try:
        with assigned(_WITHIN, running):
            yield
    finally:
        running.tool = None


def _is_running(tool: BaseTool) -> bool:
    running = _WITHIN.get()
    return running is not None and running.tool is tool


def original_class(tool: BaseTool) -> type[BaseTool]:
    """Return the class of a tool without its seal."""
    kind: type[BaseTool] = getattr(type(tool), _KIND, type(tool))
    return kind


def unsealed_attribute(tool: BaseTool, name: str) -> Any:
    """Return the attribute of a tool below its seal."""
    if name in vars(tool):
        return vars(tool)[name]
    member = inspect.getattr_static(original_class(tool), name)
    return member.__get__(tool, type(tool)) if hasattr(member, "__get__") else member


class _Sealed:
    """The descriptor of an entry point; its setter keeps an attribute from hiding the seal."""

    def __init__(self, name: str, kind: type[BaseTool]) -> None:
        self._name = name
        self._kind = kind

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None:
            return self._of_class()
        member = unsealed_attribute(tool, self._name)
        return member if _is_running(tool) else _checked(tool, member)

    def __set__(self, tool: BaseTool, value: object) -> None:
        vars(tool)[self._name] = value

    def __delete__(self, tool: BaseTool) -> None:
        del vars(tool)[self._name]

    def _of_class(self) -> Any:
        member = inspect.getattr_static(self._kind, self._name, None)
        if not inspect.isfunction(member):
            raise AttributeError(self._name)

        def run(tool: BaseTool, *args: Any, **kwargs: Any) -> Any:
            return getattr(tool, self._name)(*args, **kwargs)

        return copy_signature(run, member)


class _Structured:
    """The descriptor of ``to_structured_tool``: seals the function of the structured tool."""

    def __init__(self, kind: type[BaseTool]) -> None:
        self._kind = kind

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None:
            return self._kind.to_structured_tool

        def to_structured_tool() -> Any:
            structured = unsealed_attribute(tool, "to_structured_tool")()
            if callable(getattr(structured, "func", None)):
                structured.func = _checked(tool, structured.func)
            return structured

        return to_structured_tool

    def __set__(self, tool: BaseTool, value: object) -> None:
        vars(tool)["to_structured_tool"] = value


def _checked(tool: BaseTool, function: Callable[..., Any]) -> Any:
    """Return a twin of ``function`` that raises outside of a guarded call of the tool."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        if not _is_running(tool):
            message = (
                f"the tool {tool.name!r} is a guarded agent's, and was called past the agent: it "
                "did not run, since nobody would have decided on the call; let the agent call it, "
                "or give the code that calls it here a separate tool"
            )
            raise UnguardedCallError(message)
        return function(*args, **kwargs)

    return copy_signature(checked, function)


def copy_signature(replacement: Any, function: Any) -> Any:
    """Give ``replacement`` the signature and names of ``function``, but no reference to it."""
    with suppress(ValueError, TypeError):  # a C function may have no signature
        replacement.__signature__ = inspect.signature(function)
    replacement.__name__ = getattr(function, "__name__", replacement.__name__)
    replacement.__doc__ = getattr(function, "__doc__", None)
    replacement.__annotations__ = dict(getattr(function, "__annotations__", {}))
    return replacement


@functools.lru_cache(maxsize=512)
def _sealed_class(kind: type[BaseTool]) -> type[BaseTool]:
    """Make the sealed subclass of a tool's class; in the end it has the name of the class."""
    namespace = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    # while the class is made, another name keeps the class out of CrewAI's registry of tools,
    # where it would replace the class of unguarded tools
    namespace["__qualname__"] = f"sealed {kind.__qualname__}"
    sealed: Any = types.new_class(
        kind.__name__, (SealedTool, kind), {}, lambda members: members.update(namespace)
    )
    sealed.__qualname__ = kind.__qualname__
    # set past pydantic, which would read the attribute as the default of the field of this name
    for name in ENTRY_POINTS:
        if name != "func" or issubclass(kind, Tool):
            type.__setattr__(sealed, name, _Sealed(name, kind))
    type.__setattr__(sealed, "to_structured_tool", _Structured(kind))
    type.__setattr__(sealed, _KIND, kind)
    return sealed  # type: ignore[no-any-return]
