"""The checks of ``agentguard doctor --graph``: which tools of a graph are guarded.

This module imports the application's code. The adapter for LangChain lists the tools of a graph: it
is imported by its name here, when it is needed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen
from agentguard.domain.config import ToolConfig
from agentguard.errors import AgentguardError, ConfigError
from agentguard.signing.canonical import JSON
from agentguard.spelling import closest_name

_ADAPTER: Final = "agentguard_langchain"


class GraphTool(NamedTuple):
    """A tool of a graph, the nodes that contain it, and the ``agents`` for whom it is guarded.

    ``where`` has the names of the nodes, the outermost first. ``cached`` is the name of a node
    around the tool whose results the framework caches, or None. ``[tools.NAME]`` can pin ``origin``
    and ``schema`` (SHA-256, hex); both are None for a tool without a guard.
    """

    name: str
    where: tuple[str, ...]
    agents: tuple[str, ...]
    cached: str | None = None
    origin: str | None = None
    schema: str | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members of the tool in the output of ``doctor --json``."""
        members: dict[str, JSON] = {"tool": self.name, "where": list(self.where)}
        members |= {"agents": list(self.agents), "cached": self.cached}
        return {**members, "origin": self.origin, "schema": self.schema}


def tools_in(reference: str) -> list[GraphTool]:
    """Import ``package.module:graph`` and list its tools; raises ``ConfigError``.

    If the reference names a function, the function is called without arguments to make the graph.
    """
    list_tools = _adapter_function()
    module_name, _, name = reference.partition(":")
    try:
        graph_or_factory = getattr(importlib.import_module(module_name), name)
        is_factory = inspect.isfunction(graph_or_factory)
        graph = graph_or_factory() if is_factory else graph_or_factory
        return [GraphTool(*tool) for tool in list_tools(graph)]
    except AgentguardError:
        raise
    except Exception as error:
        message = (
            f"--graph {reference!r} can't be imported ({type(error).__name__}: {error}); expected "
            "package.module:graph on Python's path: set PYTHONPATH as the application does"
        )
        raise ConfigError(message) from error


def findings(
    reference: str, tools: Sequence[GraphTool], configured: Mapping[str, ToolConfig]
) -> Iterator[Finding]:
    """Report the tools of a graph without a guard, and the ``[tools]`` that the graph lacks."""
    check = f"graph {reference}"
    unguarded = [tool for tool in tools if not tool.agents]
    if not tools:
        what = "the graph has no tools: a call that a node's own code makes is not visible here"
        yield Finding("warn", check, what)
    elif not unguarded:
        many = screen.count(len(tools), "tool, which is guarded", "tools, all of them guarded")
        yield Finding("ok", check, many)
    for tool in unguarded:
        place = f" in {_place(tool)}" if tool.where else ""
        what = (
            f"{tool.name}{place} is not guarded: nothing checks or records its calls; guard it "
            "with guard_tools"
        )
        yield Finding("warn", check, what)
    for tool in tools:
        if tool.cached is not None and tool.agents:
            what = (
                f"{tool.name} runs in the node {tool.cached}, whose results are cached: each call "
                "there is refused; remove cache_policy from that node"
            )
            yield Finding("fail", check, what)
    yield from _pins(tools, configured)
    names = {tool.name for tool in tools}
    for name in configured:
        if name not in names:
            suggestion = closest_name(name, sorted(names))
            what = f"[tools.{name}] names no tool of {reference}"
            if suggestion is None:
                yield Finding("ok", f"tool {name}", what)
            else:
                yield Finding("warn", f"tool {name}", f"{what}: did you mean {suggestion}?")


def _pins(tools: Sequence[GraphTool], configured: Mapping[str, ToolConfig]) -> Iterator[Finding]:
    """Report for each guarded tool which values can be pinned, and which differ from the pin."""
    for tool in dict.fromkeys(tools):
        table = configured.get(tool.name, ToolConfig())
        for key, pinned, value in (
            ("origin", table.origin, tool.origin),
            ("schema", table.schema, tool.schema),
        ):
            if value is None or pinned == value:
                continue
            line = f'{key} = "{value}" under [tools.{tool.name}]'
            if pinned is None:
                yield Finding("ok", f"tool {tool.name}", f"not pinned: to pin it, write {line}")
            else:
                what = (
                    f"its {key} differs from the pin, so each call is refused: if the change is "
                    f"intended, write {line}"
                )
                yield Finding("fail", f"tool {tool.name}", what)


def draw(tools: Sequence[GraphTool]) -> None:
    """Print the table of a graph's tools."""
    nobody = screen.styled("warn", "nobody")
    rows = [((screen.barred(t.name), _place(t), ", ".join(t.agents) or nobody), "") for t in tools]
    screen.columns(("tool", "in", "guarded for"), rows)


def _place(tool: GraphTool) -> str:
    return " > ".join(tool.where)


def _adapter_function() -> Callable[[object], Sequence[GraphTool]]:
    """Return the adapter's function that lists a graph's tools."""
    try:
        adapter = importlib.import_module(f"{_ADAPTER}.discovery")
    except ModuleNotFoundError as error:
        if error.name != _ADAPTER:
            raise
        message = (
            "doctor --graph needs agentguard-langchain, which is not installed: from a clone of "
            "the project, run pip install . ./integrations/agentguard-langchain"
        )
        raise ConfigError(message, code="command.missing") from error
    return adapter.find_tools  # type: ignore[no-any-return]  # an imported name has no static type
