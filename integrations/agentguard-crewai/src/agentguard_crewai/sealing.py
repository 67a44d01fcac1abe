"""The tools of guarded agents, as their application holds them: guarded calls alone run them.

A sealed tool is the object that it was, of a subclass made here. What runs it (``run``, ``func``
and the others) is there to look at, and raises ``UnguardedCallError`` wherever the gate has not let
through a call of the tool: in a callback, a guardrail, an unguarded crew. Code of the same process
can still reach for what lies below (docs/crewai.md).
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

ENTRY_POINTS: Final = ("run", "arun", "_run", "_arun", "func")
"""The ways in which a tool is run."""

_KIND: Final = "_agentguard_kind"


class _RunningCall:
    """A guarded call of a tool, until it ends: copies of its context may outlive it."""

    __slots__ = ("tool",)

    def __init__(self, tool: BaseTool) -> None:
        self.tool: BaseTool | None = tool


_WITHIN: Final[ContextVar[_RunningCall | None]] = ContextVar(
    "agentguard_crewai_within", default=None
)
"""The call that runs here."""

_NAMES: Final[dict[int, tuple[weakref.ref[BaseTool], str]]] = {}
"""The names that tools had when they were sealed, by their ``id()``."""


class SealedTool:
    """Marks the class of a sealed tool."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        message = "a guarded agent's tool can't be pickled: what came of it would be unguarded"
        raise TypeError(message)


def seal(tools: Iterable[object] | None, *, anew: bool = False) -> None:
    """Let tools run in guarded calls alone, by the names that they have.

    Those that are sealed keep the names that they had then, unless they are sealed ``anew``. What
    is no CrewAI tool is left as it is: it never comes to an executor.
    """
    for tool in tools or ():
        if not isinstance(tool, BaseTool):
            continue
        kind = type(tool)  # asked once: another thread may seal the same tool meanwhile
        if not issubclass(kind, SealedTool):
            object.__setattr__(tool, "__class__", _sealed_class(kind))
        if anew or id(tool) not in _NAMES:
            forget: Callable[[object], object] = functools.partial(_forget, id(tool))
            _NAMES[id(tool)] = weakref.ref(tool, forget), tool.name


def _forget(key: int, _gone: object) -> None:
    _NAMES.pop(key, None)


def require_name(tool: BaseTool) -> None:
    """Raise ``ConfigError`` (``tool.changed``) for a tool that had another name when it was sealed.

    The name is what policies know a tool by.
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
    """Run the code of a tool, within its guarded call."""
    running = _RunningCall(tool)
    token = _WITHIN.set(running)
    try:
        yield
    finally:
        running.tool = None
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _WITHIN.reset(token)


def _is_running(tool: BaseTool) -> bool:
    running = _WITHIN.get()
    return running is not None and running.tool is tool


def original_class(tool: BaseTool) -> type[BaseTool]:
    """Return the class that a tool had before it was sealed, or else has."""
    kind: type[BaseTool] = getattr(type(tool), _KIND, type(tool))
    return kind


def unsealed_attribute(tool: BaseTool, name: str) -> Any:
    """Return what runs a tool, below its seal."""
    if name in vars(tool):
        return vars(tool)[name]
    member = inspect.getattr_static(original_class(tool), name)
    return member.__get__(tool, type(tool)) if hasattr(member, "__get__") else member


class _Sealed:
    """A way to run a sealed tool; it has a setter, so that nothing in the object replaces it."""

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
    """``to_structured_tool``: what a model's text runs is checked, whoever has made it."""

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
    """Return ``function``, which raises outside of a guarded call of the tool."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        if not _is_running(tool):
            message = (
                f"the tool {tool.name!r} is a guarded agent's, and was called past the agent: it "
                "did not run, since nobody would have decided on the call; let the agent call it, "
                "or make a tool of its own for what calls it here"
            )
            raise UnguardedCallError(message)
        return function(*args, **kwargs)

    return copy_signature(checked, function)


def copy_signature(replacement: Any, function: Any) -> Any:
    """Give ``replacement`` the signature and names of ``function``, but no reference to it."""
    with suppress(ValueError, TypeError):  # what is written in C may not say
        replacement.__signature__ = inspect.signature(function)
    replacement.__name__ = getattr(function, "__name__", replacement.__name__)
    replacement.__doc__ = getattr(function, "__doc__", None)
    replacement.__annotations__ = dict(getattr(function, "__annotations__", {}))
    return replacement


@functools.lru_cache(maxsize=512)
def _sealed_class(kind: type[BaseTool]) -> type[BaseTool]:
    """Make the sealed subclass of a tool's class. It looks like that one."""
    namespace = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    # under its own name CrewAI's registry would take it for the class of unguarded tools
    namespace["__qualname__"] = f"sealed {kind.__qualname__}"
    sealed: Any = types.new_class(
        kind.__name__, (SealedTool, kind), {}, lambda members: members.update(namespace)
    )
    sealed.__qualname__ = kind.__qualname__
    # past pydantic, which takes a field's name in a class for its default
    for name in ENTRY_POINTS:
        if name != "func" or issubclass(kind, Tool):
            type.__setattr__(sealed, name, _Sealed(name, kind))
    type.__setattr__(sealed, "to_structured_tool", _Structured(kind))
    type.__setattr__(sealed, _KIND, kind)
    return sealed  # type: ignore[no-any-return]
