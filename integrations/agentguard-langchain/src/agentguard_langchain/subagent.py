"""``guard_subagent``: a child graph, chain or tool that runs with less than its parent has.

``SubagentScope`` is the delegation in force while the child runs. A stream runs in a context of its
own, copied where the stream begins: code that asks for the items neither gets the sub-agent's scope
nor changes the delegation of the sub-agent. The guarded tools of the child make the hop to the
child's agent when they are used.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel

from agentguard import Agent, ConfigError, Delegation, DelegationError
from agentguard.adapters import Narrowing, astream_within, parse_scopes, stream_within
from agentguard_langchain.binding import Entrance, origin_of
from agentguard_langchain.guarded_tool import GuardedTool, refuse_replaced_methods
from agentguard_langchain.nested_work import SubagentTool
from agentguard_langchain.run_spans import subagent
from agentguard_langchain.tool_state import METHODS, SLOTS

Input = TypeVar("Input")
Output = TypeVar("Output")
AnyTool = TypeVar("AnyTool", bound=BaseTool)
AnyGraph = TypeVar("AnyGraph", bound=Pregel[Any, Any, Any, Any])


@overload
def guard_subagent(  # type: ignore[overload-overlap]  # of the Runnables, tools stay tools
    child: AnyTool, agent: Agent, *, scope: Sequence[str]
) -> AnyTool: ...


@overload
def guard_subagent(child: AnyGraph, agent: Agent, *, scope: Sequence[str]) -> AnyGraph: ...


@overload
def guard_subagent(
    child: Runnable[Input, Output], agent: Agent, *, scope: Sequence[str]
) -> Runnable[Input, Output]: ...


def guard_subagent(child: Any, agent: Agent, *, scope: Sequence[str]) -> Any:
    """Return a ``child`` that runs with no more than ``scope`` of the delegation in force.

    ``child`` is a compiled graph (``create_agent``'s), another Runnable, or a tool that runs one.
    ``agent`` is the agent for whom the child's tools are guarded: the calls of other agents in the
    child are refused (``agent.mismatch``). A compiled graph stays one, and any other Runnable can
    be run as before. Where less than ``scope`` is in force, each guarded call in the child is
    refused (``invalid_scope``). Where no delegation is in force, ``agent`` acts as its
    configuration says: on its own authority, or not at all.

    Raises ``ConfigError`` for what can't be wrapped, such as a tool that is guarded already, and
    ``DelegationError`` (``scope.malformed``).
    """
    argument: object = agent
    if not isinstance(argument, Agent):
        kind = type(argument).__name__
        message = f"agent: expected the Agent for whom the child's tools are guarded, got a {kind}"
        raise ConfigError(message)
    begin = functools.partial(SubagentScope, agent, parse_scopes(scope))
    if isinstance(child, BaseTool):
        return _tool(child, begin)
    if isinstance(child, Pregel):
        return _graph(child, begin)
    if isinstance(child, Runnable):
        return _Subagent(child, begin)
    hint = ": compile the graph first" if hasattr(child, "compile") else ""
    message = f"child: expected a compiled graph, a Runnable or a tool, got {child!r}{hint}"
    raise ConfigError(message)


# --- graphs -------------------------------------------------------------------------------------


def _graph(child: Pregel[Any, Any, Any, Any], begin: Callable[[], SubagentScope]) -> object:
    """Copy a graph, with a subclass of its class: the copy still is a subgraph of the graph around.

    All other ways to run a graph go through ``stream`` and ``astream``. LangGraph's copies of a
    graph keep the class.
    """
    kind = type(child)

    @functools.wraps(kind.stream)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return begin().stream(lambda: kind.stream(self, *args, **kwargs))

    @functools.wraps(kind.astream)
    def astream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return begin().astream(lambda: kind.astream(self, *args, **kwargs))

    copied = copy.copy(child)
    object.__setattr__(copied, "__class__", _subclass(kind, stream=stream, astream=astream))
    return copied


def _subclass(kind: type[Any], *marks: type, **methods: Callable[..., Any]) -> type[Any]:
    names = ("__module__", "__qualname__", "__doc__")
    members = {**{name: getattr(kind, name) for name in names}, **methods}
    bases = (*marks, kind)
    return types.new_class(kind.__name__, bases, {}, lambda namespace: namespace.update(members))


# --- other Runnables ----------------------------------------------------------------------------


class _Subagent(Runnable[Input, Output]):
    """A Runnable that runs another one as a sub-agent."""

    def __init__(self, child: Runnable[Input, Output], begin: Callable[[], SubagentScope]) -> None:
        self.name = child.get_name()
        self._child = child
        self._begin = begin

    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:  # noqa: A002
        """Run the child."""
        with self._begin().entered():
            return self._child.invoke(input, config, **kwargs)

    async def ainvoke(
        self,
        input: Input,  # noqa: A002  the name that Runnable gives it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Output:
        """Run the child; the async twin of ``invoke``."""
        with self._begin().entered():
            return await self._child.ainvoke(input, config, **kwargs)

    def stream(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Output]:
        """Run the child while its output is iterated."""
        return self._begin().stream(lambda: self._child.stream(input, config, **kwargs))

    def astream(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Output]:
        """Run the child while its output is iterated; the async twin of ``stream``."""
        return self._begin().astream(lambda: self._child.astream(input, config, **kwargs))

    @property
    def InputType(self) -> Any:  # noqa: N802
        """The same as the child's."""
        return self._child.InputType

    @property
    def OutputType(self) -> Any:  # noqa: N802
        """The same as the child's."""
        return self._child.OutputType

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The same as the child's."""
        return self._child.config_specs

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[Any]:
        """Return the same as the child."""
        return self._child.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[Any]:
        """Return the same as the child."""
        return self._child.get_output_schema(config)

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """Return the same as the child."""
        return self._child.get_graph(config)

    def __repr__(self) -> str:
        return f"guard_subagent({self._child!r})"


# --- tools --------------------------------------------------------------------------------------


def _tool(child: BaseTool, begin: Callable[[], SubagentScope]) -> BaseTool:
    """Copy a tool; the function of each call of the copy runs as the sub-agent."""
    if isinstance(child, GuardedTool):
        message = (
            f"tool {child.name} is guarded, and its guard would then act as the sub-agent: wrap "
            "the original tool, and guard what comes back for the parent: "
            "guard_tools([guard_subagent(tool, child_agent, scope=...)], parent_agent)"
        )
        raise ConfigError(message, code="tool.guarded")
    refuse_replaced_methods(child)
    slots = {name: child.__dict__[name] for name in SLOTS if callable(child.__dict__.get(name))}
    wrapped = {name: _in_scope(function, child.name, begin) for name, function in slots.items()}
    copied = child.model_copy(update=wrapped)
    kind = type(child)
    methods = {name: getattr(kind, name) for name in METHODS}
    own = {name: _in_scope(m, child.name, begin) for name, m in methods.items() if not _is_stock(m)}
    object.__setattr__(copied, "__class__", _subclass(kind, SubagentTool, **own))
    return copied


def _is_stock(method: Callable[..., Any]) -> bool:
    """Whether a method is LangChain's, which only calls the slots, or the other method."""
    return method.__module__.startswith("langchain_core.")


def _in_scope(
    function: Callable[..., Any], tool: str, begin: Callable[[], SubagentScope]
) -> Callable[..., Any]:
    """Return ``function`` as one that runs as the sub-agent, with the same signature."""
    wrapper: Any
    if inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with begin().entered():
                return await function(*args, **kwargs)
    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with begin().entered():
                return function(*args, **kwargs)

    entrance = Entrance.of(function, tool, framework="callbacks")
    wrapper.__signature__ = entrance.signature
    wrapper.__annotations__ = dict(entrance.annotations)
    wrapper.__module__, _, wrapper.__qualname__ = origin_of(function).partition(":")
    wrapper.__name__ = getattr(function, "__name__", wrapper.__name__)
    wrapper.__doc__ = getattr(function, "__doc__", None)
    return wrapper  # type: ignore[no-any-return]


Item = TypeVar("Item")


class SubagentScope(Narrowing):
    """One run of the sub-agent ``agent``, within which ``scope`` is all that is in force."""

    __slots__ = ("agent",)

    def __init__(self, agent: Agent, scope: tuple[str, ...]) -> None:
        def lessen(delegation: object) -> object:
            return _narrowed(delegation, agent, scope)

        super().__init__(lessen, agent)
        self.agent = agent

    @property
    def delegation(self) -> object:
        """The narrowed delegation: the agent's own (``under``), or else the one in force around."""
        own = self.agent.delegation
        return super().delegation if own is None else self.narrow(own)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the scope in force within the block."""
        self.begin()
        try:
            with subagent(self.agent):
                yield
        finally:
            self.end()

    def stream(self, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """Begin the scope now, in a context of its own, in which ``start`` makes the items."""
        return stream_within(self, start)

    def astream(self, start: Callable[[], AsyncIterator[Item]]) -> AsyncIterator[Item]:
        """Begin the scope now; the async twin of ``stream``."""
        return astream_within(self, start)


def _narrowed(delegation: object, agent: Agent, scope: tuple[str, ...]) -> object:
    if not isinstance(delegation, Delegation):
        return delegation
    try:
        return delegation.narrowed(scope=scope)
    except DelegationError as error:
        message = f"the sub-agent {agent.name} is to have more than there is: {error}"
        raise DelegationError(message, code=error.code, delegation=delegation) from error
