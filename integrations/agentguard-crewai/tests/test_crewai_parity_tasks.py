"""A guarded crew whose policy allows everything is the crew that it was, as far as can be seen.

Each scenario is built and run twice, unguarded and guarded, in each way of calling tools and of
kicking off, with a model that says the same. What is compared: the outputs, all that the model got
to read, each event with its fields and its place in the tree, counters, callbacks, hooks, caches
and representations. The one difference is meant: a tool that raises runs once, also where CrewAI
runs it up to six times.
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

import pytest
from crewai import Agent, Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.events import event_context
from crewai.events.base_events import BaseEvent, reset_emission_counter
from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_context import reset_last_event_id, restore_event_scope
from crewai.hooks import (
    register_after_tool_call_hook,
    register_before_tool_call_hook,
    unregister_after_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai.hooks.dispatch import HookAborted
from crewai.llms.base_llm import BaseLLM
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure, ToolFailurePolicy
from pydantic import BaseModel, PrivateAttr
from scripted import Scripted

from agentguard_crewai import guard_agent, guard_crew

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


@pytest.fixture(params=["kickoff", "akickoff"])
def how(request):
    """The ways to kick off a crew; ``kickoff_async`` is ``kickoff`` in a thread.

    A test of what CrewAI does with its own settings takes one of them.
    """
    return HOW[request.param]


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


@pytest.fixture
def same(recorded, signed, monkeypatch):
    """Runs something twice, unguarded and guarded, and compares; ``but`` are meant to differ.

    Under a delegation, each call's chain is the one that led to it, with the key of the last.
    """

    def run(build, run, guarded=guard_crew, but=(), chains=None) -> Same:
        plain = watched(build, run, monkeypatch).seen
        made = recorded(agents={name: {"max_scope": ["a"]} for name in NAMES})
        with made.guard.delegate(LENT[0], scope=["a", "b"], via=LENT[1]):
            watch = watched(lambda watch: guarded(build(watch), made.guard), run, monkeypatch)
        assert set(watch.seen) == set(plain)
        for part in plain.keys() - set(but):
            assert differing(plain[part], watch.seen[part], part) is None
        calls = signed(made.guard)
        for call in calls:
            assert call.chain[:2] == LENT
            assert call.chain[-1] == call.agent
            assert (call.decision, call.scope) == ("allow", ("a",))
        assert {call.chain[2:] for call in calls} == (chains or {(c.agent,) for c in calls})
        return Same(watch.seen, calls)

    return run


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


# --- a call, and what it returns -----------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_a_call_is_the_same(same, way, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW[how])
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("the content of a")
    assert run.seen["ran"] == [["list", "a", 3]]
    assert {"tool_usage_started", "tool_usage_finished"} <= set(run.seen["types"])


def test_several_calls_are_the_same(same, way, how):
    def build(watch):
        steps = [("read_file", {"path": p, "limit": 1}) for p in "abc"]
        counting = ("count_things", {"by": 2}), ("count_things", {"by": 3})
        tools = [reader(watch), Counter()]
        return way.crew(watch.agent(way, "Lead", *steps, *counting, "done", tools=tools))

    run = same(build, how)
    assert [tool for _, tool, _ in run.made] == ["read_file"] * 3 + ["count_things"] * 2
    # in text CrewAI counts a use twice, unguarded as well
    once = 1 if way.native else 2
    assert run.seen["counts"] == [
        ["list", "read_file", 3 * once, None],
        ["list", "Count Things", 2 * once, None],
    ]
    assert run.said("5")


def test_parallel_calls_of_one_step_are_the_same(same, native, how):
    def build(watch):
        step = [("read_file", {"path": "a"}), ("count_things", {"by": 4})]
        tools = [reader(watch), Counter()]
        return native.crew(watch.agent(native, "Lead", step, "done", tools=tools))

    # two threads emit events, in the order that the machine has for them
    run = same(build, how, but=("events", "types"))
    assert sorted(run.made) == [("lead", "count_things", "ok"), ("lead", "read_file", "ok")]


class Report(BaseModel):
    """What a tool may return."""

    title: str
    pages: int = 1


RETURNED: dict[str, Any] = {
    "none": None,
    "int": 7,
    "float": 0.5,
    "false": False,
    "empty": "",
    "list": [1, "b", None],
    "dict": {"a": [1]},
    "tuple": (1, 2),
    "bytes": b"b",
    "model": Report(title="t"),
    "failure": ToolFailure(message="it is closed", code="closed", details={"day": "sunday"}),
    "text of an error": "Error: it is closed",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_what_a_tool_returns_reaches_the_model_alike(same, way, returned):
    def build(watch):
        @tool
        def look(at: str) -> Any:
            """Look."""
            watch.note("ran", at)
            return RETURNED[returned]

        return way.crew(watch.agent(way, "Lead", ("look", {"at": "a"}), "done", tools=[look]))

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "look", "ok")]
    assert run.seen["ran"] == ["a"]


def test_a_result_schema_is_the_same(same, way, how):
    def build(watch):
        @tool(result_schema=Report)
        def report(title: str) -> Any:
            """Report."""
            return {"title": title, "pages": "3"}

        @tool
        def inferred(title: str) -> Report:
            """Report."""
            return Report(title=title)

        steps = ("report", {"title": "x"}), ("inferred", {"title": "y"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[report, inferred]))

    run = same(build, how)
    assert run.said('"pages":3')
    assert [tool for _, tool, _ in run.made] == ["report", "inferred"]


@pytest.mark.parametrize("path", ["run", "_run"])
def test_a_coroutine_is_awaited_alike(same, way, how, path):
    def build(watch):
        @tool
        async def fetch(url: str) -> str:
            """Fetch."""
            await asyncio.sleep(0)
            watch.note("ran", url)
            return f"fetched {url}"

        class Fetch(BaseTool):
            name: str = "fetch"
            description: str = "Fetch."

            async def _run(self, url: str) -> str:
                await asyncio.sleep(0)
                watch.note("ran", url)
                return f"fetched {url}"

        tools = [fetch if path == "run" else Fetch()]
        return way.crew(watch.agent(way, "Lead", ("fetch", {"url": "u"}), "done", tools=tools))

    run = same(build, how)
    assert run.made == [("lead", "fetch", "ok")]
    assert run.seen["ran"] == ["u"]
    assert run.said("fetched u")


class Duck:
    """No tool of CrewAI's, but one that it takes for that of another framework."""

    name = "quack_loudly"
    description = "Quacks."

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def func(self, times: int) -> str:
        self._watch.note("ran", times)
        return "quack " * times


def test_a_tool_of_another_framework_is_the_same(same, native):
    def build(watch):
        steps = ("quack_loudly", {"times": 2}), "done"
        return native.crew(
            watch.agent(native, "Lead", *steps, tools=[Tool.from_langchain(Duck(watch))])
        )

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "quack_loudly", "ok")]
    assert run.seen["ran"] == [2]


def test_a_result_as_answer_ends_the_task_alike(same, way, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "it is never asked for this"
        return way.crew(
            watch.agent(way, "Lead", *steps, tools=[reader(watch, result_as_answer=True)])
        )

    run = same(build, how)
    assert run.made == [("lead", "read_file", "ok")]
    assert "the content of a" in str(run.seen["result"])
    assert len(run.seen["messages"]) == 1


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyError("k"), ValueError("")])
def test_a_tool_that_raises_looks_the_same_and_runs_once(same, way, how, error):
    ran: list[str] = []

    def build(watch):
        @tool
        def fail(path: str) -> str:
            """Fail."""
            ran.append(path)
            raise error

        return way.crew(watch.agent(way, "Lead", ("fail", {"path": "a"}), "done", tools=[fail]))

    run = same(build, how)
    # six times unguarded in text, and once guarded
    assert len(ran) == (1 if way.native else 6) + 1
    assert run.made == [("lead", "fail", "error")]
    assert run.said(f"{error}".strip(chr(39)))
    assert "tool_usage_error" in run.seen["types"]


def test_a_class_of_tools_that_raises_looks_the_same_and_runs_once(same, way):
    ran: list[str] = []

    def build(watch):
        class Fail(BaseTool):
            name: str = "Fail Fast"
            description: str = "Fails."

            def _run(self, path: str) -> str:
                ran.append(path)
                raise OSError(2, "no such thing")

        steps = ("fail_fast", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[Fail()]))

    run = same(build, HOW["kickoff"])
    assert len(ran) == (1 if way.native else 6) + 1
    assert run.made == [("lead", "fail_fast", "error")]


def test_an_unknown_tool_looks_the_same(same, way, how):
    def build(watch):
        steps = ("no_such_thing", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, how)
    assert run.made == []


MALFORMED: dict[str, Mapping[str, Any]] = {
    "missing": {},
    "of another type": {"path": "a", "limit": "many"},
    "coerced": {"path": "a", "limit": "5"},
    "unknown": {"path": "a", "colour": "red"},
    "only unknown": {"colour": "red"},
    "null": {"path": None},
}


@pytest.mark.parametrize("given", MALFORMED)
def test_malformed_arguments_look_the_same(same, way, given):
    def build(watch):
        steps = ("read_file", MALFORMED[given]), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    # what does not pass the tool's schema is no call of the tool
    ran = given in ("coerced", "unknown")
    assert run.made == [("lead", "read_file", "ok")] * ran


@pytest.mark.parametrize("given", ["{oops", "[1, 2]", "7", "", "null"])
def test_arguments_that_are_no_object_look_the_same(same, way, given):
    def build(watch):
        said: Any = f"Thought: go on.\nAction: read_file\nAction Input: {given}\n"
        if way.native:
            called = {"name": "read_file", "arguments": given}
            said = [{"id": "c", "type": "function", "function": called}]
        steps = Verbatim(said), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert run.made == []


def test_a_spent_limit_looks_the_same(same, way, how):
    def build(watch):
        steps = [("read_file", {"path": p}) for p in "abc"]
        tools = [reader(watch, max_usage_count=2)]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=tools))

    run = same(build, how)
    # in text CrewAI counts each use twice, so that the limit comes sooner: unguarded as well
    assert len(run.made) == (2 if way.native else 1)
    assert run.said("usage limit")


def test_a_limit_counts_for_the_tool_that_agents_share(same, way):
    def build(watch):
        shared = reader(watch, max_usage_count=2)
        steps = [("read_file", {"path": p}) for p in "abc"]
        lead = watch.agent(way, "Lead", *steps[:2], "done", tools=[shared])
        writer = watch.agent(way, "Writer", *steps, "done", tools=[shared])
        return way.crew(lead, writer)

    run = same(build, HOW["kickoff"])
    assert {agent for agent, _, _ in run.made} == {"lead", "writer"}


@pytest.mark.parametrize("policy", list(ToolFailurePolicy))
@pytest.mark.parametrize("at", ["tool", "task", "agent", "crew"])
def test_a_failure_is_taken_alike(same, way, policy, at):
    def build(watch):
        @tool
        def post(channel: str) -> Any:
            """Post."""
            return ToolFailure(message="there is no such channel", code="channel_not_found")

        options: dict[str, Any] = {"tool_failure_policy": policy}
        if at == "tool":
            post.tool_failure_policy = policy
        more = options if at == "agent" else {}
        steps = ("post", {"channel": "c"}), "done"
        agent = watch.agent(way, "Lead", *steps, tools=[post], **more)
        more = options if at == "task" else {}
        task = Task(description="a task", expected_output="words", agent=agent, **more)
        more = options if at == "crew" else {}
        return Crew(agents=[agent], tasks=[task], **more)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "post", "ok")]
    assert ("tool_failure_detected" in run.seen["types"]) == (policy != "ignore")
    assert ("ToolExecutionFailedError" in str(run.seen["result"])) == (policy == "raise")


def test_the_same_call_over_and_over_is_stopped_alike(same, native):
    def build(watch):
        steps = [("read_file", {"path": "a"})] * 9
        return native.crew(watch.agent(native, "Lead", *steps, "done", tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert "not making progress" in str(run.seen["result"])


def test_a_repeated_call_in_text_is_answered_alike(same, text):
    def build(watch):
        steps = [("read_file", {"path": "a"})] * 3
        return text.crew(watch.agent(text, "Lead", *steps, "done", tools=[reader(watch)]))

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("reusing the same input")


def test_a_model_that_fails_is_asked_again_alike(same, native):
    def build(watch):
        call = "read_file", {"path": "a"}
        steps = call, RuntimeError("the line is busy"), call, "done"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert "agent_execution_error" in run.seen["types"]


def test_a_model_that_keeps_failing_ends_the_crew_alike(same, native):
    def build(watch):
        steps = [RuntimeError("the line is busy")] * 9
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, HOW["kickoff"])
    assert "the line is busy" in str(run.seen["result"])
    assert "crew_kickoff_failed" in run.seen["types"]


def test_too_many_steps_end_alike(same, way):
    def build(watch):
        steps = [("read_file", {"path": p}) for p in "abcdef"]
        tools = [reader(watch)]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=tools, max_iter=3))

    run = same(build, HOW["kickoff"])
    assert set(run.made) == {("lead", "read_file", "ok")}


# --- callbacks, hooks, guardrails ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
def test_callbacks_are_told_the_same(same, native):
    def build(watch):
        def inputs_of(inputs):
            watch.note("before_kickoff", inputs)
            return {**(inputs or {}), "about": "bees"}

        def after(output):
            watch.note("after_kickoff", output)
            output.raw += "!"
            return output

        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead on {about}", *steps, tools=[reader(watch)])
        guard_as_lead(lead)
        lead.step_callback = lambda step: watch.note("step of the agent", step)
        writer = watch.agent(native, "Writer", ("read_file", {"path": "b"}), "written")
        tasks = [
            Task(description="about {about}", expected_output="words", agent=lead),
            Task(
                description="write",
                expected_output="words",
                agent=writer,
                tools=[reader(watch)],
                callback=lambda output: watch.note("task", output),
            ),
        ]
        return Crew(
            agents=[lead, writer],
            tasks=tasks,
            step_callback=lambda step: watch.note("step of the crew", step),
            task_callback=lambda output: watch.note("task of the crew", output),
            before_kickoff_callbacks=[inputs_of],
            after_kickoff_callbacks=[after],
        )

    def guard_as_lead(agent):
        agent._original_role = None

    run = same(build, HOW["kickoff"], guarded=named({"Lead on {about}": "lead"}))
    assert run.made == [("lead", "read_file", "ok"), ("writer", "read_file", "ok")]
    assert "written!" in str(run.seen["result"])
    told = {"before_kickoff", "after_kickoff", "step of the agent", "step of the crew"}
    assert told | {"task", "task of the crew"} <= set(run.seen)
    assert run.said("about bees")


def named(names: Mapping[str, str]) -> Callable[[Crew, Any], Crew]:
    """Guard a crew, some agents of which have another name than their role's."""

    def guarded(crew, guard):
        for agent in crew.agents:
            if agent.role in names:
                guard_agent(agent, guard, name=names[agent.role])
        return guard_crew(crew, guard)

    return guarded


@pytest.fixture
def hooks():
    """Registers hooks of tool calls, in the place of those of the run before."""
    made: list[Any] = []

    def register(before=None, after=None):
        clear()
        made.append((before, after))
        if before is not None:
            register_before_tool_call_hook(before)
        register_after_tool_call_hook(after)

    def clear():
        while made:
            before, after = made.pop()
            unregister_before_tool_call_hook(before)
            unregister_after_tool_call_hook(after)

    yield register
    clear()


def context(context: Any) -> list[Any]:
    """What a hook is told."""
    names = ("tool_name", "tool_input", "tool", "agent", "task", "crew", "tool_result")
    return [*(getattr(context, name) for name in names), context.raw_tool_result]


@pytest.mark.parametrize("answer", [None, True, False, "abort", "raise"])
def test_a_hook_before_a_call_has_the_same_say(same, way, how, hooks, answer):
    def build(watch):
        def before(given):
            watch.note("before", context(given))
            if answer == "abort":
                raise HookAborted(reason="not today")
            if answer == "raise":
                raise RuntimeError("a hook that fails")
            return answer

        hooks(before, lambda given: watch.note("after", context(given)))
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    first = same(build, how)
    blocked = answer in (False, "abort")
    assert first.made == [("lead", "read_file", "ok")] * (not blocked)
    assert first.said("blocked by hook") == blocked


def test_hooks_change_what_goes_in_and_what_comes_out_alike(same, way, how, hooks):
    def build(watch):
        def before(given):
            given.tool_input["path"] = given.tool_input["path"].upper()

        hooks(before, lambda given: f"<{given.tool_result}>")
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, how)
    assert run.seen["ran"] == [["list", "A", 3]]
    assert run.calls[0].arguments == {"path": "A", "limit": 3}
    assert run.said("the content of A>")


def test_a_guardrail_has_the_same_say(same, native):
    def build(watch):
        def checked(output):
            watch.note("guardrail", output)
            good = "better" in output.raw
            return good, output.raw if good else "make it better"

        call = "read_file", {"path": "a"}
        lead = watch.agent(native, "Lead", call, "bad", call, "better", tools=[reader(watch)])
        task = Task(
            description="a task",
            expected_output="words",
            agent=lead,
            guardrail=checked,
            guardrail_max_retries=2,
        )
        return Crew(agents=[lead], tasks=[task])

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert run.said("make it better")
    assert len(run.seen["guardrail"]) == 2


# --- tasks ---------------------------------------------------------------------------------------


def test_outputs_of_a_shape_are_the_same(same, native):
    def build(watch):
        said = '{"title": "t", "pages": 2}'
        steps = ("read_file", {"path": "a"}), said, said
        one = watch.agent(native, "Lead", *steps, *[said] * 3, tools=[reader(watch)])
        two = watch.agent(native, "Writer", said, said, said)
        tasks = [
            Task(description="one", expected_output="x", agent=one, output_pydantic=Report),
            Task(description="two", expected_output="x", agent=two, output_json=Report),
        ]
        return Crew(agents=[one, two], tasks=tasks)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "read_file", "ok")]
    (result,) = run.seen["result"]
    assert "Report" in str(result)


def test_context_and_conditions_are_the_same(same, native):
    def build(watch):
        tools = [reader(watch)]
        lead = watch.agent(native, "Lead", ("read_file", {"path": "a"}), "found bees", tools=tools)
        writer = watch.agent(
            native, "Writer", ("read_file", {"path": "b"}), "ok", "end", tools=tools
        )
        first = Task(description="find", expected_output="x", agent=lead)

        def conditional(what: str) -> ConditionalTask:
            return ConditionalTask(
                description=f"only for {what}",
                expected_output="x",
                agent=writer,
                condition=lambda output: what in output.raw,
            )

        last = Task(description="end", expected_output="x", agent=writer, context=[first])
        tasks = [first, conditional("wasps"), conditional("bees"), last]
        if not tasks[1].condition:
            raise AssertionError
        return Crew(agents=[lead, writer], tasks=tasks)

    run = same(build, HOW["akickoff"])
    assert run.seen["result"]
    assert ("lead", "read_file", "ok") in run.made
    assert run.said("found bees")


def test_asynchronous_tasks_are_the_same(same, native, how):
    def build(watch):
        lead = watch.agent(
            native, "Lead", ("read_file", {"path": "a"}), "one", tools=[reader(watch)]
        )
        writer = watch.agent(native, "Writer", ("read_file", {"path": "b"}), "two")
        tasks = [
            Task(description="x", expected_output="x", agent=lead, async_execution=True),
            Task(description="y", expected_output="y", agent=writer, tools=[reader(watch)]),
        ]
        tasks[1].context = [tasks[0]]
        return Crew(agents=[lead, writer], tasks=tasks)

    # a thread of its own emits events beside those of the crew
    run = same(build, how, but=("events", "types", "messages"))
    assert run.made == [("lead", "read_file", "ok"), ("writer", "read_file", "ok")]


def test_an_agent_with_two_tasks_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "one", ("count_things", {}), "two"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        tasks = [
            Task(description="x", expected_output="x", agent=lead),
            Task(description="y", expected_output="y", agent=lead, tools=[Counter()]),
        ]
        return Crew(agents=[lead], tasks=tasks)

    run = same(build, HOW["kickoff"])
    assert run.made == [("lead", "read_file", "ok"), ("lead", "count_things", "ok")]


def test_a_time_limit_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        tools = [reader(watch)]
        return native.crew(watch.agent(native, "Lead", *steps, tools=tools, max_execution_time=60))

    assert same(build, HOW["akickoff"]).made == [("lead", "read_file", "ok")]


def test_work_handed_to_a_coworker_is_the_same(same, native, how):
    def build(watch):
        handed = {"task": "write", "context": "c", "coworker": "Writer"}
        steps = ("delegate_work_to_coworker", handed), "done"
        lead = watch.agent(native, "Lead", *steps, allow_delegation=True)
        asked = ("read_file", {"path": "a"}), "written"
        writer = watch.agent(native, "Writer", *asked, tools=[reader(watch)])
        task = Task(description="a task", expected_output="words", agent=lead)
        return Crew(agents=[lead, writer], tasks=[task])

    chains = {("lead",), ("lead", "writer")}
    run = same(build, how, chains=chains)
    assert sorted(run.made) == [
        ("lead", "delegate_work_to_coworker", "ok"),
        ("writer", "read_file", "ok"),
    ]
    assert run.said("written")


def test_a_question_to_nobody_is_answered_alike(same, way, how):
    def build(watch):
        asked = {"question": "why?", "context": "c", "coworker": "Nobody"}
        steps = ("ask_question_to_coworker", asked), "done"
        lead = watch.agent(way, "Lead", *steps, allow_delegation=True)
        task = Task(description="a task", expected_output="words", agent=lead)
        return Crew(agents=[lead, watch.agent(way, "Writer", "unasked")], tasks=[task])

    run = same(build, how)
    assert run.made == [("lead", "ask_question_to_coworker", "ok")]


@pytest.mark.parametrize("manager", ["made", "given"])
def test_a_hierarchical_crew_is_the_same(same, native, how, manager):
    def build(watch):
        handed = {"task": "write", "context": "c", "coworker": "Writer"}
        steps = ("delegate_work_to_coworker", handed), "done"
        asked = ("read_file", {"path": "a"}), "written"
        writer = watch.agent(native, "Writer", *asked, tools=[reader(watch)])
        task = Task(description="a task", expected_output="words")
        options: dict[str, Any] = {"manager_llm": watch.model(native, *steps)}
        if manager == "given":
            options = {"manager_agent": watch.agent(native, "Boss", *steps, allow_delegation=True)}
        return Crew(agents=[writer], tasks=[task], process=Process.hierarchical, **options)

    boss = "crew-manager" if manager == "made" else "boss"
    run = same(build, how, chains={(boss,), (boss, "writer")})
    assert sorted(run.made) == sorted(
        [(boss, "delegate_work_to_coworker", "ok"), ("writer", "read_file", "ok")]
    )


def test_inputs_are_filled_in_alike(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        lead.goal, lead.backstory = "know all about {topic}", "you are {mood}"
        task = Task(description="about {topic}", expected_output="{topic}", agent=lead)
        return Crew(agents=[lead], tasks=[task])

    given = {"topic": "bees", "mood": "curious"}
    run = same(build, lambda crew: crew.kickoff(inputs=given))
    assert run.said("know all about bees")
    assert run.made == [("lead", "read_file", "ok")]


def test_a_stream_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        return native.crew(lead, stream=True)

    def run(crew):
        output = crew.kickoff()
        return [[chunk.content for chunk in output], output.result]

    # CrewAI runs it in a thread, whose events begin anew
    assert same(build, run, but=("events", "types")).made == [("lead", "read_file", "ok")]


def test_a_replay_is_the_same(same, native):
    def build(watch):
        tools = [reader(watch)]
        lead = watch.agent(native, "Lead", ("read_file", {"path": "a"}), "found", tools=tools)
        steps = ("read_file", {"path": "b"}), "one", ("read_file", {"path": "c"}), "two"
        writer = watch.agent(native, "Writer", *steps, tools=tools)
        tasks = [
            Task(description=what, expected_output="words", agent=agent)
            for what, agent in (("find", lead), ("write", writer))
        ]
        return Crew(agents=[lead, writer], tasks=tasks)

    run = same(build, lambda crew: [crew.kickoff(), crew.replay(str(crew.tasks[1].id))])
    assert [agent for agent, _, _ in run.made] == ["lead", "writer", "writer"]
    assert "two" in str(run.seen["result"])


def test_a_limit_of_requests_is_the_same(same, native):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)], max_rpm=1000))

    assert same(build, HOW["kickoff"]).made == [("lead", "read_file", "ok")]


# --- caches --------------------------------------------------------------------------------------


def calls_of(paths: str) -> list[tuple[str, dict[str, str]]]:
    return [("read_file", {"path": path}) for path in paths]


@pytest.mark.parametrize("where", ["crew", "agent", "handler"])
def test_a_cached_result_of_the_same_agent_is_used_alike(same, way, how, where):
    def build(watch):
        options: dict[str, Any] = {"agent": {"cache": True}, "handler": {"cache_handler": None}}
        more = dict(options.get(where, {}))
        if where == "handler":
            more["cache_handler"] = CacheHandler()
        lead = watch.agent(way, "Lead", *calls_of("aba"), "done", tools=[reader(watch)], **more)
        return way.crew(lead, cache=where == "crew")

    run = same(build, how)
    # the third is a hit: the tool runs twice, and the call is on record
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b"]
    assert run.made == [("lead", "read_file", "ok")] * 3


@pytest.mark.parametrize("where", ["nowhere", "agent says no"])
def test_without_a_cache_the_tool_runs_alike(same, native, where):
    def build(watch):
        more = {"cache": False} if where == "agent says no" else {}
        lead = watch.agent(native, "Lead", *calls_of("aba"), "done", tools=[reader(watch)], **more)
        return native.crew(lead, cache=where != "nowhere")

    run = same(build, HOW["kickoff"])
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]


def test_an_agent_that_only_a_task_has_is_offered_no_cache_alike(same, native):
    def build(watch):
        lead = watch.agent(native, "Lead", "done")
        writer = watch.agent(native, "Writer", *calls_of("aba"), "done", tools=[reader(watch)])
        task = Task(description="a task", expected_output="words", agent=writer)
        return native.crew(lead, tasks=[task], cache=True)

    run = same(build, HOW["akickoff"])
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]


def test_a_cache_function_has_the_same_say(same, way, how):
    def build(watch):
        def cached(args, result):
            watch.note("asked", [args, result])
            return args["path"] != "a"

        read_file = reader(watch)
        read_file.cache_function = cached
        steps = calls_of("abab")
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=[read_file]), cache=True)

    run = same(build, how)
    assert [ran[1] for ran in run.seen["ran"]] == ["a", "b", "a"]
    assert len(run.seen["asked"]) == 3


def test_a_failure_is_kept_in_no_cache_alike(same, way, how):
    def build(watch):
        said = iter([ToolFailure(message="busy"), "x", "free"])

        @tool
        def knock(at: str) -> Any:
            """Knock."""
            watch.note("ran", at)
            return next(said)

        steps = [("knock", {"at": at}) for at in "aba"]
        return way.crew(watch.agent(way, "Lead", *steps, "done", tools=[knock]), cache=True)

    run = same(build, how)
    assert run.seen["ran"] == ["a", "b", "a"]
    assert run.said("free")


# --- agents by themselves ------------------------------------------------------------------------


ALONE: dict[str, Callable[[Any], Any]] = {
    "kickoff": lambda agent: agent.kickoff("do it"),
    "kickoff_async": lambda agent: asyncio.run(agent.kickoff_async("do it")),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("do it")),
    "messages": lambda agent: agent.kickoff(
        [{"role": "user", "content": "hello"}, {"role": "user", "content": "do it"}]
    ),
    "a shape": lambda agent: agent.kickoff("do it", response_format=Report),
}


@pytest.mark.parametrize("alone", ALONE)
def test_an_agent_by_itself_is_the_same(same, native, alone):
    def build(watch):
        said = '{"title": "t", "pages": 2}' if alone == "a shape" else "done"
        steps = ("read_file", {"path": "a"}), *[said] * 3
        return watch.agent(native, "Lead", *steps, tools=[reader(watch)])

    run = same(build, ALONE[alone], guarded=guard_agent)
    assert run.made == [("lead", "read_file", "ok")]
    assert run.said("the content of a")
    assert "lite_agent_execution_completed" in run.seen["types"]


def test_the_guardrail_of_an_agent_has_the_same_say(same, native):
    def build(watch):
        def checked(output):
            watch.note("guardrail", output.raw)
            return "better" in output.raw, output.raw

        call = "read_file", {"path": "a"}
        steps = call, "bad", call, "better"
        return watch.agent(native, "Lead", *steps, tools=[reader(watch)], guardrail=checked)

    run = same(build, ALONE["kickoff"], guarded=guard_agent)
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert run.seen["guardrail"] == ["bad", "better"]


# --- copies, and runs of one crew after another --------------------------------------------------


def test_a_second_run_of_a_crew_is_the_same(same, native, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "one", ("read_file", {"path": "a"}), "two"
        return native.crew(watch.agent(native, "Lead", *steps, tools=[reader(watch)]), cache=True)

    run = same(build, lambda crew: [how(crew), how(crew)])
    assert run.made == [("lead", "read_file", "ok")] * 2


EACH: dict[str, Callable[[Any, Any], Any]] = {
    "kickoff_for_each": lambda crew, given: crew.kickoff_for_each(given),
    "kickoff_for_each_async": lambda crew, given: asyncio.run(crew.kickoff_for_each_async(given)),
    "akickoff_for_each": lambda crew, given: asyncio.run(crew.akickoff_for_each(given)),
}


@pytest.mark.parametrize("each", EACH)
def test_a_run_for_each_input_is_the_same(same, native, each):
    def build(watch):
        class Each(BaseTool):
            name: str = "Look Up"
            description: str = "Looks up."

            def _run(self, word: str) -> str:
                return f"found {word}"

        # a model whose answers depend on what it reads: the runs may be at the same time
        plain: Any = type(native.model())

        class Model(plain):
            def call(self, messages, *args, **kwargs):
                asked = str(messages)
                word = "bees" if "about bees" in asked else "wasps"
                known = f"found {word}" in asked
                self.steps[:] = [f"all of {word}" if known else ("look_up", {"word": word})]
                return plain.call(self, messages, *args, **kwargs)

        llm = Model(model="scripted", native=True)
        lead = watch.agent(native, "Lead", llm=llm, tools=[Each()])
        task = Task(description="about {topic}", expected_output="words", agent=lead)
        return Crew(agents=[lead], tasks=[task])

    given = [{"topic": "bees"}, {"topic": "wasps"}]
    but = () if each == "kickoff_for_each" else ("events", "types", "counts", "reprs")
    run = same(build, lambda crew: [one.raw for one in EACH[each](crew, given)], but=but)
    assert run.seen["result"] == [["list", "all of bees", "all of wasps"]]
    assert run.made == [("lead", "look_up", "ok")] * 2
    # each copy is an instance with a key of its own
    assert len({call.instance for call in run.calls}) == 2


def test_a_copied_crew_is_the_same(same, native, how):
    def build(watch):
        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead", *steps, tools=[reader(watch)])
        writer = watch.agent(native, "Writer", "written")
        return native.crew(lead, writer, cache=True, name="copied")

    run = same(build, lambda crew: how(crew.copy()))
    assert run.made == [("lead", "read_file", "ok")]


# --- what can be looked at -----------------------------------------------------------------------


def looked_at(way) -> Callable[[Watch], Crew]:
    def build(watch):
        steps = ("count_things", {"by": 6}), "done"
        tools = [Counter(max_usage_count=3)]  # a function has no JSON
        lead = watch.agent(way, "Lead", *steps, tools=tools, cache=True)
        return way.crew(lead, watch.agent(way, "Writer", "written"), cache=True, name="looked at")

    return build


def dumps(crew: Crew) -> list[Any]:
    """All ways in which Python, pydantic and CrewAI write a crew down."""
    one = crew.agents[0]
    crewless = {"crew", "agents", "tasks"}
    return [
        *(repr(x) for x in (crew, one, *one.tools, *crew.tasks)),
        *(str(x) for x in (crew, one, *one.tools, *crew.tasks)),
        one.model_dump(exclude=crewless),
        one.model_dump(mode="json"),
        one.model_dump_json(),
        *(dumped(x) for x in one.tools),
        crew.model_dump(exclude=crewless),
        crew.model_dump_json(),
        [type(x).__name__ for x in (crew, one, *one.tools)],
        [type(x).__qualname__ for x in (crew, one, *one.tools)],
        [type(x).__module__ for x in (crew, one, *one.tools)],
        [type(x).__doc__ for x in (crew, one, *one.tools)],
        [sorted(type(x).model_fields) for x in (crew, one, *one.tools)],
        [x.tool_type for x in one.tools],
        [x.formatted_description for x in one.tools],
    ]


def test_it_is_written_down_as_it_was(same, native):
    same(looked_at(native), lambda crew: [dumps(crew), crew.kickoff().raw, dumps(crew)])


def test_no_key_and_no_identity_is_written_down(native, recorded, tmp_path):
    made = recorded(agents={name: {"max_scope": ["a"]} for name in NAMES})
    crew = guard_crew(looked_at(native)(Watch()), made.guard)
    crew.checkpoint = CheckpointConfig(location=str(tmp_path), on_events=["*"])
    with made.guard.delegate("user:alice", scope=["a"]):
        written = str(dumps(crew))
        assert crew.kickoff().raw == "written"
        written += str(dumps(crew))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    written += "".join(path.read_text() for path in files)
    assert "count_things" in written
    for secret in ("agentguard", "spiffe:", "_agentguard", "guarded ", "Identity", "user:alice"):
        assert secret not in written.replace("agentguard-crewai", "")
    for call in made.calls():
        assert call.agent.rsplit("/", 1)[-1] not in written


def test_the_classes_are_what_they_were(native, recorded):
    made = recorded(agents={name: {} for name in NAMES})

    class Special(Agent):
        pass

    class Team(Crew):
        pass

    one = Special(role="Lead", goal="g", backstory="b", llm=native.model("done"), tools=[Counter()])
    task = Task(description="a task", expected_output="words", agent=one)
    crew = guard_crew(Team(agents=[one], tasks=[task]), made.guard)
    assert isinstance(crew, Team)
    assert isinstance(one, Special)
    assert crew.agents == [one]
    assert task.agent is one
    one.create_agent_executor()
    (shown,) = one.agent_executor.original_tools
    assert isinstance(shown, Counter)
    assert isinstance(one.tools[0], Counter)  # what the application holds looks as it did
    assert type(one.tools[0]).__qualname__ == Counter.__qualname__
    assert shown == one.tools[0] or shown.model_dump() == one.tools[0].model_dump()
