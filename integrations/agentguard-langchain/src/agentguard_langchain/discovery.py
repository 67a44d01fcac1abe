"""The tools of a graph, wherever they run: which of them are guarded, and for whom.

Graphs are looked through, never run: nodes, sub-graphs, and what tools run themselves, as
sub-agents. Only tools that a ``ToolNode`` runs are seen (``create_agent`` makes one): what the code
of a node calls by itself, or a middleware adds at run time, is not.
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

    ``where`` names nodes, tools and sub-agents, from the outside inwards. ``agents`` are names;
    there are none where nothing guards it. ``cached`` is a node around it whose results LangGraph
    keeps (``cache_policy``), None for none: a guarded tool is refused there. ``origin`` and
    ``schema`` (SHA-256, hex) are what ``[tools.NAME]`` can pin of a guarded tool.
    """

    name: str
    where: tuple[str, ...]
    agents: tuple[str, ...]
    cached: str | None = None
    origin: str | None = None
    schema: str | None = None

    @property
    def guarded(self) -> bool:
        """Whether each call of it passes a guard."""
        return bool(self.agents)


def find_tools(graph_or_tools: object) -> list[FoundTool]:
    """Return the tools of a graph (or a ``ToolNode``, a tool, a list of tools), in its order.

    Those of sub-graphs are among them, also where a tool runs a graph. Tools that the model's
    provider runs are found in the agents of ``create_agent``; nobody can guard them. Raises
    ``ConfigError`` for what is neither a graph nor tools.
    """
    given = graph_or_tools
    if isinstance(given, StateGraph):
        given = given.compile()
    if isinstance(given, BaseTool) or (callable(given) and not isinstance(given, Runnable)):
        given = [given]
    discovery = _Discovery()
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        for tool in given:
            discovery.tool(tool, (), {})
    elif isinstance(given, Runnable):
        discovery.walk(given, (), 0)
    else:
        message = f"expected a graph or a list of tools, got a {type(given).__name__}"
        raise ConfigError(message)
    return discovery.found


def unguarded(graph_or_tools: object) -> list[str]:
    """Return the names of the tools that no guard is in front of, with where they run.

    As in ``tools > task > general-purpose > tools > write_file``. Raises as ``find_tools``.
    """
    found = find_tools(graph_or_tools)
    return [" > ".join((*tool.where, tool.name)) for tool in found if not tool.guarded]


class _Discovery:
    """What was found so far, and what was looked at: graphs may hold each other."""

    def __init__(self) -> None:
        self.found: list[FoundTool] = []
        self._seen: dict[int, object] = {}
        self._cached: set[_Path] = set()

    def walk(self, value: object, path: _Path, depth: int) -> None:
        """Look for graphs and tool nodes in a value."""
        if depth > _DEEPEST or id(value) in self._seen or not _may_hold(value):
            return
        self._seen[id(value)] = value  # kept: another object can't get its id
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
        self._cached |= {
            (*path, name)
            for name, node in graph.nodes.items()
            if node.cache_policy is not None or graph.cache_policy is not None
        }
        # the model's node knows the one with the tools: they are found where they run
        for name, bound in sorted(nodes, key=lambda node: not isinstance(node[1], ToolNode)):
            self.walk(bound, (*path, name), 0)

    def tool(self, tool: object, path: _Path, around: Mapping[str, Agent]) -> None:
        """Note a tool, with the agents whose guard is around it, and look into it for graphs."""
        name = _name_of(tool)
        own = {gate_of(tool).agent.name} if isinstance(tool, GuardedTool) else set()
        cached = [node for end, node in enumerate(path, 1) if path[:end] in self._cached]
        agents = tuple(sorted(own | around.keys()))
        pins = _pins(tool, next(iter(around.values()), None))
        self.found.append(FoundTool(name, path, agents, cached[0] if cached else None, *pins))
        inner = (*path, name)
        for part in _of_tool(tool):
            self.walk(part, inner, 0)

    def _provided(self, name: str, tools: object, path: _Path) -> None:
        for tool in tools if name in _PROVIDERS and isinstance(tools, list) else ():
            if isinstance(tool, Mapping):
                said = FoundTool(_name_of(tool), path, ())
                if said not in self.found:
                    self.found.append(said)


def _pins(tool: object, agent: Agent | None) -> tuple[str | None, str | None]:
    """Return the origin of a guarded tool, and the SHA-256 of its schema."""
    if isinstance(tool, BaseTool) and not isinstance(tool, GuardedTool) and agent is not None:
        try:
            tool = put_behind(tool, Gate(agent, "return"))
        except ConfigError:  # it is refused when it is called
            return None, None
    if not isinstance(tool, GuardedTool):
        return None, None
    spec = shape_of(tool).spec
    return spec.origin, spec.schema_sha256


def _around(node: ToolNode) -> Mapping[str, Agent]:
    """Return the agents whose guard wraps the calls of a node, whichever way it is run."""
    wrap, awrap = node._wrap_tool_call, node._awrap_tool_call  # noqa: SLF001  no public way
    found = {agent.name: agent for agent in _guards(wrap)}
    if awrap is None:
        return found
    # sync calls go through the one alone, async ones through the other
    both = {agent.name for agent in _guards(awrap)}
    return {name: agent for name, agent in found.items() if name in both}


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


def _of_tool(tool: object) -> Iterator[object]:
    """Yield what a tool may keep a graph in: its fields, its functions, its methods."""
    if not isinstance(tool, BaseTool):
        yield tool
        return
    yield from (one for one in vars(tool).values() if isinstance(one, (Runnable, Mapping, list)))
    yield from (tool.__dict__.get(slot) for slot in SLOTS)
    yield from (inspect.getattr_static(type(tool), name, None) for name in ("_run", "_arun"))


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield what a value is made of, by name where it has one."""
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
    kept: Mapping[str, object] = getattr(value, "__dict__", {})
    return list(kept.values())


def _nonlocals(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    code = getattr(function, "__code__", None)
    names = getattr(code, "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # a name that has no value yet


def _globals(function: Callable[..., Any]) -> Iterator[object]:
    """Yield the graphs of its module that a function names."""
    known: Mapping[str, object] = getattr(function, "__globals__", {})
    for name in getattr(getattr(function, "__code__", None), "co_names", ()):
        if _is_graph(known.get(name)):
            yield known[name]


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
