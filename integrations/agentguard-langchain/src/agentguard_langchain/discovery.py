"""Discovery of a graph's tools: where each tool runs, whether it is guarded, and for whom.

Graphs are inspected, never run: their nodes, their sub-graphs, and the graphs that tools run, such
as sub-agents. Discovery sees the tools that a ``ToolNode`` runs (``create_agent`` makes one). A
tool that the code of a node calls by itself, or that a middleware adds at run time, is not seen.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from agentguard import Agent, ConfigError
from agentguard_langchain.enforcement import Enforcement
from agentguard_langchain.guarded_tool import GuardedTool, put_behind
from agentguard_langchain.middleware import GuardMiddleware
from agentguard_langchain.tool_state import SLOTS, Gate, gate_of, shape_of

_DEEPEST: Final = 24
"""How many objects may lie between a graph and one within it."""

_PROVIDERS: Final = ("built_in_tools", "default_tools")
"""Where the model's node of ``create_agent`` has the tools that the model's provider runs."""

_Path = tuple[str, ...]


class FoundTool(NamedTuple):
    """A tool of a graph: its name, ``where`` it runs, and the agents for whom it is guarded.

    ``where`` names nodes, tools and sub-agents, from the outside inwards. ``agents`` are the names
    of agents, none for a tool without a guard. ``cached`` is a node around the tool whose results
    LangGraph caches (``cache_policy``), None for none: a guarded tool is refused there. ``origin``
    and ``schema`` (SHA-256, hex) are the values that ``[tools.NAME]`` can pin of a guarded tool.
    """

    name: str
    where: tuple[str, ...]
    agents: tuple[str, ...]
    cached: str | None = None
    origin: str | None = None
    schema: str | None = None

    @property
    def guarded(self) -> bool:
        """Whether each call of the tool passes a guard."""
        return bool(self.agents)


def find_tools(graph_or_tools: object) -> list[FoundTool]:
    """Return the tools of a graph (or a ``ToolNode``, a tool, a list of tools), in its order.

    The tools of sub-graphs are among them, also of a graph that a tool runs. The agents of
    ``create_agent`` show the tools that the model's provider runs, which can't be guarded. Raises
    ``ConfigError`` for an argument that is neither a graph nor tools.
    """
    root = graph_or_tools
    if isinstance(root, StateGraph):
        root = root.compile()
    if isinstance(root, BaseTool) or (callable(root) and not isinstance(root, Runnable)):
        root = [root]
    discovery = _Discovery()
    if isinstance(root, Sequence) and not isinstance(root, (str, bytes)):
        for tool in root:
            discovery.tool(tool, (), {})
    elif isinstance(root, Runnable):
        discovery.walk(root, (), 0)
    else:
        message = f"expected a graph or a list of tools, got a {type(root).__name__}"
        raise ConfigError(message)
    return discovery.tools


def unguarded(graph_or_tools: object) -> list[str]:
    """Return the tools without a guard, each with where it runs.

    For instance ``tools > task > general-purpose > tools > write_file``. Raises as ``find_tools``.
    """
    tools = find_tools(graph_or_tools)
    return [" > ".join((*tool.where, tool.name)) for tool in tools if not tool.guarded]


class _Discovery:
    """The tools found so far, and the objects inspected: graphs may hold each other."""

    def __init__(self) -> None:
        self.tools: list[FoundTool] = []
        self._inspected: dict[int, object] = {}
        self._cached_nodes: set[_Path] = set()

    def walk(self, value: object, path: _Path, depth: int) -> None:
        """Look for graphs and tool nodes in a value."""
        if depth > _DEEPEST or id(value) in self._inspected or not _may_hold(value):
            return
        self._inspected[id(value)] = value  # kept alive: no other object can get the same id
        if isinstance(value, Pregel):
            self._graph(value, path)
        elif isinstance(value, ToolNode):
            around = _around(value)
            for tool in value.tools_by_name.values():
                self.tool(tool, path, around)
        else:
            for name, one in _parts(value):
                self._provided(name, one, path)
                named = isinstance(value, Mapping) and _is_graph(one)
                self.walk(one, (*path, name) if named and name else path, depth + 1)

    def _graph(self, graph: Pregel[Any, Any, Any, Any], path: _Path) -> None:
        nodes = [(name, node.bound) for name, node in graph.nodes.items() if name != START]
        self._cached_nodes |= {
            (*path, name)
            for name, node in graph.nodes.items()
            if node.cache_policy is not None or graph.cache_policy is not None
        }
        # tool nodes first: the model's node refers to the same tools
        for name, bound in sorted(nodes, key=lambda node: not isinstance(node[1], ToolNode)):
            self.walk(bound, (*path, name), 0)

    def tool(self, tool: object, path: _Path, around: Mapping[str, Agent]) -> None:
        """Add a tool, with the agents whose guard is around it, and inspect it for graphs."""
        name = _name_of(tool)
        own = {gate_of(tool).agent.name} if isinstance(tool, GuardedTool) else set()
        cached = [node for end, node in enumerate(path, 1) if path[:end] in self._cached_nodes]
        agents = tuple(sorted(own | around.keys()))
        pins = _pins(tool, next(iter(around.values()), None))
        self.tools.append(FoundTool(name, path, agents, cached[0] if cached else None, *pins))
        inner = (*path, name)
        for part in _tool_parts(tool):
            self.walk(part, inner, 0)

    def _provided(self, name: str, tools: object, path: _Path) -> None:
        for tool in tools if name in _PROVIDERS and isinstance(tools, list) else ():
            if isinstance(tool, Mapping):
                provided = FoundTool(_name_of(tool), path, ())
                if provided not in self.tools:
                    self.tools.append(provided)


def _pins(tool: object, agent: Agent | None) -> tuple[str | None, str | None]:
    """Return the origin of a guarded tool, and the SHA-256 of its schema."""
    if isinstance(tool, BaseTool) and not isinstance(tool, GuardedTool) and agent is not None:
        try:
            tool = put_behind(tool, Gate(agent, "return"))
        except ConfigError:  # the calls of such a tool are refused
            return None, None
    if not isinstance(tool, GuardedTool):
        return None, None
    spec = shape_of(tool).spec
    return spec.origin, spec.schema_sha256


def _around(node: ToolNode) -> Mapping[str, Agent]:
    """Return the agents whose guard wraps both the sync and the async calls of a node, by name."""
    wrap, awrap = node._wrap_tool_call, node._awrap_tool_call  # noqa: SLF001  no public way
    agents = {agent.name: agent for agent in _guards(wrap)}
    if awrap is None:
        return agents
    # a sync call passes the one wrapper, an async call the other
    async_names = {agent.name for agent in _guards(awrap)}
    return {name: agent for name, agent in agents.items() if name in async_names}


def _guards(wrapper: object, depth: int = 0) -> Iterator[Agent]:
    """Yield the agents whose guard is among composed wrappers of tool calls."""
    if depth > _DEEPEST:
        return
    owner = getattr(wrapper, "__self__", None)
    if isinstance(owner, (GuardMiddleware, Enforcement)):
        yield owner.toolset.agent if isinstance(owner, Enforcement) else owner._toolset.agent  # noqa: SLF001
    elif isinstance(wrapper, functools.partial):
        yield from _guards(wrapper.func, depth + 1)
        for one in wrapper.args:
            yield from _guards(one, depth + 1)
    elif isinstance(wrapper, (list, tuple)):
        for one in wrapper:
            yield from _guards(one, depth + 1)
    elif inspect.isfunction(wrapper):
        for _name, one in _nonlocals(wrapper):
            yield from _guards(one, depth + 1)
        yield from _guards(getattr(wrapper, "__wrapped__", None), depth + 1)


def _tool_parts(tool: object) -> Iterator[object]:
    """Yield the parts of a tool that may hold a graph: its fields, functions and methods."""
    if not isinstance(tool, BaseTool):
        yield tool
        return
    yield from (one for one in vars(tool).values() if isinstance(one, (Runnable, Mapping, list)))
    yield from (tool.__dict__.get(slot) for slot in SLOTS)
    yield from (inspect.getattr_static(type(tool), name, None) for name in ("_run", "_arun"))


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield the parts of a value, with their names; "" for a part without one."""
    if isinstance(value, Mapping):
        yield from ((str(key), one) for key, one in value.items())
    elif isinstance(value, (list, tuple)):
        yield from (("", one) for one in value)
    elif isinstance(value, functools.partial):
        yield from (("", one) for one in (value.func, *value.args, *value.keywords.values()))
    elif inspect.ismethod(value):
        yield "", value.__func__
        yield from (("", one) for one in _fields(value.__self__) if _is_graph(one))
    elif inspect.isfunction(value):
        yield from _nonlocals(value)
        yield from (("", one) for one in _globals(value))
        yield "", getattr(value, "__wrapped__", None)
    else:
        yield from (("", one) for one in _fields(value))


def _fields(value: object) -> list[object]:
    fields: Mapping[str, object] = getattr(value, "__dict__", {})
    return list(fields.values())


def _nonlocals(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    code = getattr(function, "__code__", None)
    names = getattr(code, "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # a name that has no value yet


def _globals(function: Callable[..., Any]) -> Iterator[object]:
    """Yield the graphs among the globals that a function names."""
    module: Mapping[str, object] = getattr(function, "__globals__", {})
    for name in getattr(getattr(function, "__code__", None), "co_names", ()):
        if _is_graph(module.get(name)):
            yield module[name]


def _is_graph(value: object) -> bool:
    return isinstance(value, Pregel) or (
        isinstance(value, Runnable) and not isinstance(value, BaseTool)
    )


def _may_hold(value: object) -> bool:
    return isinstance(value, (Runnable, Mapping, list, tuple, functools.partial)) or (
        inspect.isfunction(value) or inspect.ismethod(value)
    )


def _name_of(tool: object) -> str:
    if isinstance(tool, Mapping):
        return str(tool.get("name") or tool.get("type") or "a tool of the model's provider")
    return str(getattr(tool, "name", None) or getattr(tool, "__name__", None) or tool)
