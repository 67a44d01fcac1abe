"""What ``agentguard doctor --graph`` says of a graph: which of its tools are guarded.

Here the application's code is imported. How its graph is looked through is known to the adapter of
its framework, which is found through an entry point.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final, NamedTuple

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen
from agentguard.domain.config import ToolConfig
from agentguard.domain.config.spelling import closest_name
from agentguard.errors import AgentguardError, ConfigError
from agentguard.signing.canonical import JSON

GROUP: Final = "agentguard.graphs"
"""The entry point group of functions that list a graph's tools: see ``GraphTool``."""


class GraphTool(NamedTuple):
    """A tool of a graph, ``where`` it runs, and the ``agents`` for whom it is guarded.

    ``cached`` is a node around it whose results the framework keeps, None for none. ``origin`` and
    ``schema`` (SHA-256, hex) are what ``[tools.NAME]`` can pin; None where nothing guards it.
    """

    name: str
    where: tuple[str, ...]
    agents: tuple[str, ...]
    cached: str | None = None
    origin: str | None = None
    schema: str | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members that ``doctor --json`` gives."""
        members: dict[str, JSON] = {"tool": self.name, "where": list(self.where)}
        members |= {"agents": list(self.agents), "cached": self.cached}
        return {**members, "origin": self.origin, "schema": self.schema}


def tools_in(reference: str) -> list[GraphTool]:
    """Import ``package.module:graph`` and list its tools; raises ``ConfigError``.

    A function in its place is called, without arguments, to make the graph.
    """
    lists = _lists()
    module_name, _, name = reference.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
        graph = factory() if inspect.isfunction(factory) else factory
        return [GraphTool(*tool) for tool in lists(graph)]
    except AgentguardError:
        raise
    except Exception as error:
        message = (
            f"--graph {reference!r} can't be looked at ({type(error).__name__}: {error}); expected "
            "package.module:graph, on Python's path: set PYTHONPATH as the application has it"
        )
        raise ConfigError(message) from error


def findings(
    reference: str, tools: Sequence[GraphTool], configured: Mapping[str, ToolConfig]
) -> Iterator[Finding]:
    """Say which tools of a graph nothing guards, and which ``[tools]`` are not in it."""
    check = f"graph {reference}"
    bare = [tool for tool in tools if not tool.agents]
    if not tools:
        what = "no tools are found in it: what the code of a node calls by itself is not seen"
        yield Finding("warn", check, what)
    elif not bare:
        many = screen.count(len(tools), "tool, which is guarded", "tools, all of them guarded")
        yield Finding("ok", check, many)
    for tool in bare:
        place = f" in {_place(tool)}" if tool.where else ""
        what = f"{tool.name}{place} is not guarded: nothing checks or records its calls"
        yield Finding("warn", check, what)
    for tool in tools:
        if tool.cached is not None and tool.agents:
            what = (
                f"{tool.name} runs in the node {tool.cached}, whose results are cached: each call "
                "is refused there; take the cache_policy off that node"
            )
            yield Finding("fail", check, what)
    yield from _pins(tools, configured)
    names = {tool.name for tool in tools}
    for name in configured:
        if name not in names:
            meant = closest_name(name, sorted(names))
            what = f"[tools.{name}] names no tool of {reference}"
            if meant is None:
                yield Finding("ok", f"tool {name}", what)
            else:
                yield Finding("warn", f"tool {name}", f"{what}: is {meant} meant?")


def _pins(tools: Sequence[GraphTool], configured: Mapping[str, ToolConfig]) -> Iterator[Finding]:
    """Say of each guarded tool what can be pinned, or in what it is not what is pinned."""
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
                yield Finding("ok", f"tool {tool.name}", f"not pinned: {line} would pin it")
            else:
                what = f"not the one that is pinned, so each call is refused; it has {line}"
                yield Finding("fail", f"tool {tool.name}", what)


def draw(tools: Sequence[GraphTool]) -> None:
    """Print the table of a graph's tools."""
    nobody = screen.styled("warn", "nobody")
    rows = [
        ((screen.barred(t.name), _place(t), ", ".join(t.agents) if t.agents else nobody), "")
        for t in tools
    ]
    screen.columns(("tool", "in", "guarded for"), rows)


def _place(tool: GraphTool) -> str:
    return " > ".join(tool.where)


def _lists() -> Callable[[object], Sequence[GraphTool]]:
    for entry_point in entry_points(group=GROUP):
        return entry_point.load()  # type: ignore[no-any-return]  # what the entry point names
    message = (
        "doctor --graph needs agentguard-langchain, which is not installed: from a clone of the "
        "project, run pip install . ./integrations/agentguard-langchain"
    )
    raise ConfigError(message, code="command.missing")
