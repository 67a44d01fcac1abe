"""Unguarded agents and tools of CrewAI, for the tests of what CrewAI itself does.

The tests ``test_crewai_canaries_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

from typing import Any

from crewai import Agent, Task
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool
from pydantic import PrivateAttr

READ: Any = ("read_file", {"path": "plan"})


def changed(what, where):
    return f"CrewAI has changed: {what} (look at {where})"


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


class Watched(Agent):
    """An agent that notes when CrewAI calls its methods, and may put other tools in their place."""

    _noted: list[Any] = PrivateAttr(default_factory=list)
    _instead: bool = PrivateAttr(default=False)

    def _add_skill_loader_tool(self, tools: list[BaseTool], task: Any = None) -> list[BaseTool]:
        found = super()._add_skill_loader_tool(tools, task)
        if self._instead:  # as the adapter does
            found = [
                Tool(name=one.name, description="d", func=one.run, args_schema=one.args_schema)
                for one in found
            ]
        self._noted.append(("tools", found))
        return found

    def set_fingerprint(self, fingerprint: Any) -> None:
        super().set_fingerprint(fingerprint)
        self._noted.append(("fingerprint", fingerprint))

    def set_cache_handler(self, cache_handler: CacheHandler) -> None:
        super().set_cache_handler(cache_handler)
        self._noted.append(("cache", cache_handler))

    def noted(self, what):
        return [value for name, value in self._noted if name == what]


def watched(way, *steps, **options):
    llm = way.model(*steps)
    given = {"role": "Lead", "goal": "a goal", "backstory": "a story", "llm": llm, **options}
    return Watched(**given)


class Noting(CacheHandler):
    """A cache that notes how it is used, together with what ran."""

    _noted: list[Any] = PrivateAttr(default_factory=list)

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002  CrewAI's name
        self._noted.append(("add", tool, input))
        super().add(tool, input, output)

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002  CrewAI's name
        self._noted.append(("read", tool, input))
        return super().read(tool, input)
