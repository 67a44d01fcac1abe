"""Tools of guarded agents that are called past their crew: they do not run, and say why.

In callbacks and guardrails, by subclasses, replaced methods and unguarded crews; renamed, and with
other functions below them. What code of the process can still reach is named in crewai-limits.md.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import json
import pickle
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import BaseTool, tool

from agentguard import ConfigError, Decision, UnguardedCallError
from agentguard.audit.kinds import parse_entry
from agentguard.signing.dsse import Envelope
from agentguard_crewai import guard_agent, guard_crew
from agentguard_crewai.sealing import SealedTool, seal

# a callback that is no module's can't be written to a checkpoint, and none is here
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks cannot be serialized")

READ = ("read_file", {"path": "notes"})
PAST = "was called past the agent"


class Note(BaseTool):
    """A tool that is a class."""

    name: str = "note"
    description: str = "Note something."
    ran: Any = None

    def _run(self, text: str) -> str:
        self.ran.append(text)
        return f"noted {text}"

    async def _arun(self, text: str) -> str:
        return self._run(text)


class Desk:
    """A guard, two tools, and what they have done."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.log = make()
        self.ran: list[str] = []

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            self.ran.append(path)
            return f"the content of {path}"

        self.read: Any = read_file
        self.note: Any = Note(ran=self.ran)

    @property
    def tools(self) -> list[Any]:
        return [self.read, self.note]

    def crew(self, crew: Crew) -> Crew:
        return guard_crew(crew, self.log.guard)


@pytest.fixture
def inbox(recorded) -> Desk:
    return Desk(recorded)


def task(agent: Any, **options: Any) -> Task:
    return Task(description="a task", expected_output="words", agent=agent, **options)


# --- every way into a tool that the application holds ---------------------------------------------

WAYS: dict[str, Callable[[Any, dict[str, str]], Any]] = {
    "run": lambda one, given: one.run(**given),
    "run_by_place": lambda one, given: one.run(*given.values()),
    "_run": lambda one, given: one._run(**given),
    "arun": lambda one, given: asyncio.run(one.arun(**given)),
    "_arun": lambda one, given: asyncio.run(one._arun(**given)),
    "of_its_class": lambda one, given: type(one)._run(one, **given),
    "run_of_its_class": lambda one, given: type(one).run(one, **given),
    "structured": lambda one, given: one.to_structured_tool().invoke(given),
    "structured_func": lambda one, given: one.to_structured_tool().func(**given),
    "structured_async": lambda one, given: asyncio.run(one.to_structured_tool().ainvoke(given)),
    "copy": lambda one, given: copy.copy(one).run(**given),
    "renamed_copy": lambda one, given: one.model_copy(update={"name": "x"}).run(**given),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("which", ["function", "class"])
def test_no_way_into_a_tool_leads_past_its_agent(inbox, native, way, which):
    one, given = (
        (inbox.read, {"path": "notes"}) if which == "function" else (inbox.note, {"text": "notes"})
    )
    with suppress(NotImplementedError):  # a function that is not async has no arun
        way(one, given)
        assert inbox.ran == ["notes"]  # unguarded, it runs
    inbox.ran.clear()
    guard_agent(native.agent("Lead", tools=inbox.tools), inbox.log.guard)
    with pytest.raises(UnguardedCallError, match=PAST) as raised:
        way(one, given)
    assert raised.value.code == "tool.unguarded"
    assert inbox.ran == []


def test_the_function_of_a_tool_raises_as_well(inbox, native):
    guard_agent(native.agent("Lead", tools=inbox.tools), inbox.log.guard)
    with pytest.raises(UnguardedCallError, match=PAST):
        inbox.read.func(path="notes")
    assert inbox.ran == []
    assert not hasattr(inbox.read.func, "__wrapped__")


def test_a_tool_can_not_be_pickled_and_so_made_anew(inbox, native):
    guard_agent(native.agent("Lead", tools=inbox.tools), inbox.log.guard)
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(inbox.note)


def test_what_traces_a_tool_is_no_way_past_it(inbox, native):
    guard_agent(native.agent("Lead", tools=inbox.tools), inbox.log.guard)
    written = inbox.note._run
    object.__setattr__(inbox.note, "_run", functools.partial(written))
    with pytest.raises(UnguardedCallError, match=PAST):
        inbox.note.run(text="notes")
    assert inbox.ran == []


def test_the_agents_own_calls_run(inbox, native, signed):
    calls = [READ, ("note", {"text": "it"}), "done"]
    crew = inbox.crew(native.crew(native.agent("Lead", *calls, tools=inbox.tools)))
    assert crew.kickoff().raw == "done"
    assert inbox.ran == ["notes", "it"]
    assert [(call.tool, call.outcome) for call in signed(inbox.log.guard)] == [
        ("read_file", "ok"),
        ("note", "ok"),
    ]


def test_what_a_call_has_begun_runs_its_tool_no_more_once_it_has_ended(inbox, native):
    contexts: list[contextvars.Context] = []

    @tool
    def begin(what: str) -> str:
        """Begin something that goes on."""
        contexts.append(contextvars.copy_context())
        inbox.ran.append(what)
        return "begun"

    lead = native.agent("Lead", ("begin", {"what": "it"}), "done", tools=[begin])
    inbox.crew(native.crew(lead)).kickoff()
    with pytest.raises(UnguardedCallError, match=PAST):
        contexts[0].run(begin.run, what="it once more")
    assert inbox.ran == ["it"]


# --- from within a kickoff ------------------------------------------------------------------------


def test_a_step_callback_runs_no_tool(inbox, native, signed):
    def step(_step: Any) -> None:
        inbox.read.run(path="secrets")

    lead = native.agent("Lead", READ, "done", tools=inbox.tools, step_callback=step)
    lead.max_retry_limit = 0
    with pytest.raises(UnguardedCallError, match=PAST):
        inbox.crew(native.crew(lead)).kickoff()
    assert inbox.ran == ["notes"]
    assert [call.arguments for call in signed(inbox.log.guard)] == [{"path": "notes"}]


def test_a_guardrail_runs_no_tool(inbox, native):
    lead = native.agent("Lead", READ, "done", tools=inbox.tools)

    def guardrail(_output):
        return True, lead.tools[0].run(path="secrets")

    crew = inbox.crew(native.crew(lead, tasks=[task(lead, guardrail=guardrail)]))
    with pytest.raises(UnguardedCallError, match=PAST):
        crew.kickoff()
    assert inbox.ran == ["notes"]


def test_nor_do_callbacks_of_a_coworker_while_work_is_handed_over(inbox, native):
    work = {"task": "read", "context": "now", "coworker": "Worker"}
    lead = native.agent("Lead", ("delegate_work_to_coworker", work), "done", allow_delegation=True)
    told: list[str] = []

    def step(_step: Any) -> None:
        try:
            inbox.read.run(path="secrets")
        except UnguardedCallError as error:
            told.append(error.code)

    worker = native.agent("Worker", READ, "read", tools=inbox.tools, step_callback=step)
    inbox.crew(native.crew(lead, worker, tasks=[task(lead)])).kickoff()
    assert inbox.ran == ["notes"]
    assert set(told) == {"tool.unguarded"}


class Eager(Agent):
    """Uses its tools before CrewAI does."""

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> Any:
        self.tools[0].run(path="secrets")
        return super().execute_task(task, context, tools)


def test_a_class_of_agents_runs_no_tool_by_itself(inbox, native):
    given = {"goal": "g", "backstory": "b", "llm": native.model("done"), "tools": inbox.tools}
    crew = inbox.crew(native.crew(Eager(role="Lead", **given)))
    with pytest.raises(UnguardedCallError, match=PAST):
        crew.kickoff()
    assert inbox.ran == []


@pytest.mark.parametrize("name", ["execute_task", "create_agent_executor", "kickoff", "copy"])
def test_a_method_that_is_replaced_once_the_agent_is_guarded_stops_the_crew(inbox, native, name):
    lead = native.agent("Lead", READ, "done", tools=inbox.tools)
    crew = inbox.crew(native.crew(lead))
    object.__setattr__(lead, name, lambda *_args, **_kwargs: inbox.read.run(path="secrets"))
    with pytest.raises(ConfigError, match=f"its {name} was replaced") as raised:
        crew.kickoff()
    assert raised.value.code == "agent.unguardable"
    assert inbox.ran == []


def test_an_unguarded_crew_can_not_use_a_guarded_agents_tools(inbox, native):
    guard_agent(native.agent("Lead", tools=inbox.tools), inbox.log.guard)
    other = native.agent("Other", READ, "done", tools=inbox.tools)
    output = native.crew(other).kickoff()
    assert inbox.ran == []
    assert output.raw == "done"


def test_a_tool_of_a_task_is_sealed_with_its_crew(inbox, native):
    lead = native.agent("Lead", READ, "done")
    crew = inbox.crew(native.crew(lead, tasks=[task(lead, tools=inbox.tools)]))
    with pytest.raises(UnguardedCallError, match=PAST):
        inbox.read.run(path="secrets")
    crew.kickoff()
    assert inbox.ran == ["notes"]


def test_a_tool_that_comes_later_is_sealed_when_it_is_used(inbox, native):
    lead = native.agent("Lead", READ, "done")
    crew = inbox.crew(native.crew(lead))
    lead.tools = inbox.tools
    crew.kickoff()
    with pytest.raises(UnguardedCallError, match=PAST):
        inbox.read.run(path="secrets")
    assert inbox.ran == ["notes"]


# --- names and functions --------------------------------------------------------------------------


def only_reading(call: Any) -> Decision:
    return Decision.allow() if call["action"] == "read_file" else Decision.deny("no")


def test_a_tool_that_takes_an_allowed_name_does_not_run(inbox, way, signed):
    inbox.log.decide = only_reading
    crew = inbox.crew(way.crew(way.agent("Lead", tools=[inbox.note])))
    inbox.note.name = "read_file"
    crew.agents[0].llm.steps[:] = [("read_file", {"text": "it"}), "done"]
    output = crew.kickoff()
    assert inbox.ran == []
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.code == "tool.changed"
    assert "was 'note' when its agent was guarded" in str(failed.failure.details)
    assert [call.code for call in signed(inbox.log.guard)] == ["tool.changed"]


def test_nor_does_a_copy_of_its_crew_give_it_that_name(inbox, native):
    crew = inbox.crew(native.crew(native.agent("Lead", tools=[inbox.note])))
    inbox.note.name = "read_file"
    copied = crew.copy()
    copied.agents[0].llm.steps[:] = [("read_file", {"text": "it"}), "done"]
    output = copied.kickoff()
    assert [one.failure.code for one in output.tasks_output[0].tool_failures] == ["tool.changed"]
    assert inbox.ran == []


def test_a_tool_that_is_guarded_once_more_has_its_new_name(inbox, native):
    crew = inbox.crew(native.crew(native.agent("Lead", tools=[inbox.note])))
    inbox.note.name = "write"
    inbox.crew(crew)
    crew.agents[0].llm.steps[:] = [("write", {"text": "it"}), "done"]
    crew.kickoff()
    assert inbox.ran == ["it"]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_tool_that_is_pinned_runs_as_what_it_is_and_as_nothing_else(recorded, native, swapped):
    ran: list[str] = []
    note: Any = Note(ran=ran)
    origin = f"{Note.__module__}:{Note.__qualname__}"
    log = recorded(tools={"note": {"origin": origin}})
    crew = guard_crew(
        native.crew(native.agent("Lead", ("note", {"text": "it"}), "done", tools=[note])),
        log.guard,
    )
    if swapped:
        object.__setattr__(note, "_run", lambda text: ran.append(f"{text}, by another"))
    output = crew.kickoff()
    codes = [one.failure.code for one in output.tasks_output[0].tool_failures]
    assert (ran, codes) == (([], ["tool.changed"]) if swapped else (["it"], []))


def digests(guard: Any) -> list[str]:
    """The digests of the tools in the calls that were signed."""
    with closing(guard.reader()) as reader:
        read = [parse_entry(body) for _index, body in reader.entries()]
    payloads: list[Any] = [
        json.loads(Envelope.parse(one.members["invocation"], may_be_joint=True).payload)
        for one in read
        if one.kind == "call"
    ]
    return [payload["predicate"]["tool"]["digest"] for payload in payloads]


@pytest.mark.parametrize("which", ["function", "class", "its_class"])
def test_a_function_that_is_swapped_is_on_record_as_what_it_is(inbox, native, monkeypatch, which):
    crew = inbox.crew(native.crew(native.agent("Lead", tools=inbox.tools)))

    def other(*_self: Any, **_given: Any) -> str:
        inbox.ran.append("swapped")
        return "swapped"

    name, given = ("note", {"text": "it"}) if which != "function" else READ
    for _ in range(2):
        crew.agents[0].llm.steps[:] = [(name, given), "done"]
        crew.kickoff()
        if which == "function":
            inbox.read.func = other
        elif which == "class":
            object.__setattr__(inbox.note, "_run", other)
        else:
            monkeypatch.setattr(Note, "_run", other)
    before, after = digests(inbox.log.guard)
    assert before != after
    assert inbox.ran[-1] == "swapped"


def test_a_tool_that_another_thread_seals_meanwhile_is_sealed_once():
    """Crews that share a tool are guarded in threads: the tool changes its class in between."""
    place: Any = vars(object)["__class__"]

    class Shared(Note):
        @property
        def __class__(self):
            kind = place.__get__(self)
            if not issubclass(kind, SealedTool) and not met:
                met.append("another thread")
                seal([self])
            return kind

        @__class__.setter
        def __class__(self, kind):
            place.__set__(self, kind)

    met: list[str] = []
    shared = Shared()
    seal([shared])
    assert isinstance(shared, SealedTool)
    with pytest.raises(UnguardedCallError):
        shared.run(text="x")
