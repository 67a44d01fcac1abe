"""Runs a scenario unguarded and guarded, and compares all that can be seen of both.

The tests ``test_crewai_parity_*.py`` share this. Compared are the outputs, all that the model got
to read, each event with its fields and its place in the tree, counters, callbacks, hooks, caches
and representations. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import NoneType
from typing import Any

from crewai import Agent, Crew, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.events import event_context
from crewai.events.base_events import BaseEvent, reset_emission_counter
from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_context import reset_last_event_id, restore_event_scope
from crewai.llms.base_llm import BaseLLM
from crewai.tools import BaseTool, tool
from crewai.tools.structured_tool import CrewStructuredTool
from pydantic import BaseModel, PrivateAttr
from scripted import Scripted

NAMES = ("lead", "writer", "crew-manager", "boss")
LENT = ("user:alice", "crew:report")


_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_MEASURED = {"timestamp", "started_at", "finished_at", "duration_ms"}
_TIME = re.compile(
    r"datetime\.datetime\([\d, ]+(?:tzinfo=[^)]+)?\)"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:Z|[+-]\d\d:\d\d)?"
)


@dataclass(frozen=True)
class Verbatim:
    """What a model says, as it is."""

    said: Any


@dataclass
class Watch:
    """What can be seen of one run; ``note`` writes down what a test adds to that."""

    seen: dict[str, list[Any]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, value: Any = None) -> None:
        self.seen.setdefault(what, []).append(self.shown(value))

    def shown(self, value: Any) -> Any:
        """Return a value such that two runs of the same have equal ones."""
        if isinstance(value, str):
            return str(value) if isinstance(value, Enum) else self._text(value)
        if isinstance(value, Mapping):
            items = ((self._text(str(key)), key, item) for key, item in value.items())
            return {text: "a time" if key in _MEASURED else self.shown(i) for text, key, i in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [type(value).__name__, *map(self.shown, value)]
        return value if type(value) in (NoneType, bool, int, float) else self._object(value)

    def _object(self, value: Any) -> Any:
        kind = type(value).__qualname__
        if isinstance(value, BaseTool | CrewStructuredTool):
            return [kind, value.name, value.description]
        if isinstance(value, BaseAgent | Task):
            return [kind, self._text(f"{value.id} {getattr(value, 'role', None)}")]
        if isinstance(value, BaseModel) and not isinstance(value, BaseLLM | Crew):
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return [kind, self.shown(fields)]
        if isinstance(value, datetime):
            return "a time"
        told = str(value) if isinstance(value, Enum | BaseException) else ""
        return [kind, getattr(value, "__qualname__", None), self._text(told)]

    def _text(self, text: str) -> str:
        text = _UUID.sub(lambda found: self._number(found[0]), text)
        return _TIME.sub("a time", _ADDRESS.sub("0x", text))

    def _number(self, uuid: str) -> str:
        return self.known.setdefault(uuid, f"#{len(self.known)}")

    def model(self, way: Any, *steps: Any) -> Any:
        """Return a model of which everything is written down that it gets to read."""
        model = Watched(model="scripted", native=way.native, steps=list(steps))
        model._noted = self.note
        return model

    def agent(self, way: Any, role: str, *steps: Any, **options: Any) -> Agent:
        return way.agent(role, **{"llm": self.model(way, *steps), **options})


class Watched(Scripted):
    """A scripted model that notes what it gets to read."""

    _noted: Callable[[str, Any], None] = PrivateAttr()

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self._noted("messages", copy.deepcopy(messages))
        names = ("tools", "available_functions", "response_model")
        offered = {name: kwargs[name] for name in names if kwargs.get(name)}
        self._noted("offered", copy.deepcopy(offered))
        if self.steps and isinstance(self.steps[0], Verbatim):
            return self.steps.pop(0).said
        return super().call(messages, *args, **kwargs)


def watched(build: Callable[[Watch], Any], run: Callable[[Any], Any], monkeypatch) -> Watch:
    """Build something and run it; return what was seen of that."""
    watch, events = Watch(), []
    watch.seen["warnings"] = warned = []
    monkeypatch.setattr(event_context._console, "print", lambda said: warned.append(str(said)))

    def begun() -> None:
        reset_emission_counter()
        reset_last_event_id()
        restore_event_scope(())
        built.append(build(watch))
        try:
            watch.note("result", run(built[0]))
        except Exception as error:  # noqa: BLE001  any is to be the same
            watch.note("result", error)

    def prepared(source: Any, event: BaseEvent) -> None:
        prepare(source, event)
        events.append(event)

    built: list[Any] = []
    prepare = crewai_event_bus._prepare_event
    with monkeypatch.context() as patched:
        patched.setattr(crewai_event_bus, "_prepare_event", prepared)
        contextvars.copy_context().run(begun)
    events.sort(key=lambda event: (event.emission_sequence or 0, event.timestamp))
    for event in events:
        if event.type != "default_env":  # once in a process
            watch.note("events", event)
            watch.note("types", event.type)
    for crew in built if isinstance(built[0], Crew) else []:
        look_at(crew, watch)
    return watch


def look_at(crew: Crew, watch: Watch) -> None:
    """Note what lies open in a crew after a run."""
    watch.note("metrics", crew.usage_metrics)
    watch.note("reprs", [repr(crew), str(crew)])
    for task in crew.tasks:
        counted = (task.used_tools, task.tools_errors, task.delegations)
        watch.note("tasks", [*counted, task.processed_by_agents, task.output])
    for agent in crew.agents:
        watch.note("results", [agent.tools_results, agent.last_messages])
        watch.note("reprs", [repr(agent), str(agent), agent.key])
        for one in agent.tools:
            watch.note("counts", [one.name, one.current_usage_count, one.max_usage_count])
            watch.note("reprs", [repr(one), str(one), dumped(one)])


def dumped(one: BaseTool) -> list[Any]:
    """What pydantic writes of a tool; a function has no JSON."""
    return [one.model_dump(), one.model_dump_json(exclude={"func", "cache_function"})]


def differing(one: Any, other: Any, where: str) -> str | None:
    """Return where two values differ first, and how."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(one[key], other[key], f"{where}.{key}") for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(a, b, f"{where}[{at}]") for at, (a, b) in enumerate(zip(one, other, strict=True))]
    elif one == other:
        return None
    else:
        one, other = str(one), str(other)
        at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 60)
        return f"{where}: {one[at - 60 : at + 60]!r} became {other[at - 60 : at + 60]!r}"
    return next((found for pair in pairs if (found := differing(*pair))), None)


HOW: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda crew: crew.kickoff(),
    "kickoff_async": lambda crew: asyncio.run(crew.kickoff_async()),
    "akickoff": lambda crew: asyncio.run(crew.akickoff()),
}


@dataclass(frozen=True)
class Same:
    """What was seen of the guarded run, and its calls, each verified."""

    seen: dict[str, list[Any]]
    calls: list[Any]

    @property
    def made(self) -> list[tuple[str, str, str | None]]:
        """Who called what, and what became of it."""
        return [(call.agent, call.tool, call.outcome) for call in self.calls]

    def said(self, text: str) -> bool:
        """Whether the model got to read this."""
        return text in str(self.seen["messages"])


def reader(watch: Watch, **options: Any) -> Any:
    """A tool that reads."""

    @tool(**options)
    def read_file(path: str, limit: int = 3) -> str:
        """Read a file."""
        watch.note("ran", [path, limit])
        return f"the content of {path}"

    return read_file


class Counter(BaseTool):
    """A tool with state of its own."""

    name: str = "Count Things"
    description: str = "Counts."
    counted: int = 0

    def _run(self, by: int = 1) -> int:
        self.counted += by
        return self.counted


class Report(BaseModel):
    """What a tool may return."""

    title: str
    pages: int = 1
