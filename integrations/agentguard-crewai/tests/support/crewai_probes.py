"""A guarded agent with tools of each kind that record how often and with what they ran.

The tests ``test_crewai_tools_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from crewai.tools import BaseTool, tool
from pydantic import BaseModel

from agentguard import Decision
from agentguard_crewai import guard_crew

CHAIN = ("user:alice", "crew:report", "lead")


class Bench:
    """A guard, and crews of one agent, ``lead``, that work under it, lent by Alice."""

    def __init__(self, way: Any, made: Any, signed: Any) -> None:
        self.way = way
        self.made = made
        self._signed = signed
        self.agent: Any = None

    def run(self, tools: list[Any], *steps: Any, scope=("a", "b"), **options: Any) -> Any:
        """Return what came of the one task of a crew, whose model goes through these steps."""
        self.agent = self.way.agent("Lead", *steps, "done", tools=tools, **options)
        crew = guard_crew(self.way.crew(self.agent), self.made.guard)
        with self.made.guard.delegate("user:alice", scope=scope, via="crew:report"):
            return crew.kickoff().tasks_output[0]

    @property
    def calls(self) -> list[Any]:
        calls = self._signed(self.made.guard)
        assert {(call.agent, call.chain, call.scope) for call in calls} <= {("lead", CHAIN, ("a",))}
        return calls

    @property
    def made_calls(self) -> list[tuple[str, str, str, str | None]]:
        return [(call.tool, call.decision, call.code, call.outcome) for call in self.calls]

    def only(self, allowed: Callable[[Any], bool], *reasons: str) -> None:
        """Let the policy allow this, and deny all else for these reasons."""
        self.made.decide = lambda given: (
            Decision.allow() if allowed(given) else Decision.deny(*reasons)
        )


def bench_of(way, recorded, signed, **tables):
    return Bench(way, recorded(agents={"lead": {"max_scope": ["a"]}}, **tables), signed)


class Probe:
    """Tools of which each run is noted, with what it received."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        ran = self.ran

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            ran.append(path)
            return f"the content of {path}"

        class ReadFile(BaseTool):
            name: str = "read_file"
            description: str = "Read a file."

            def _run(self, path: str) -> str:
                ran.append(path)
                return f"the content of {path}"

        @tool("read_file")
        async def awaited(path: str) -> str:
            """Read a file."""
            await asyncio.sleep(0)
            ran.append(path)
            return f"the content of {path}"

        class Awaited(BaseTool):
            name: str = "read_file"
            description: str = "Read a file."

            async def _run(self, path: str) -> str:
                await asyncio.sleep(0)
                ran.append(path)
                return f"the content of {path}"

        self.kinds: dict[str, Any] = {
            "function": read_file,
            "class": ReadFile(),
            "coroutine function": awaited,
            "async class": Awaited(),
        }
        self.read_file: Any = read_file


KINDS = ("function", "class", "coroutine function", "async class")


class Pathed(BaseModel):
    path: str
