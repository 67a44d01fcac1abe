"""Each path that a call of a guarded agent's tool can take, and what tries to get past its gate.

A test of a path reads a file that everybody may read, and one that nobody may, in the same run: one
call is allowed and made, its twin is denied and is not. Who signed, and for whom, is asserted for
both. How work is handed on stands in ``test_crewai_delegation.py``, servers' tools in
``test_crewai_mcp.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import json
import pickle
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from crewai import Agent, Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.flow import Flow, listen, start
from crewai.hooks import (
    clear_all_tool_call_hooks,
    register_after_tool_call_hook,
    register_before_tool_call_hook,
)
from crewai.lite_agent import LiteAgent
from crewai.llms.base_llm import BaseLLM
from crewai.memory.unified_memory import Memory
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool, to_langchain
from crewai.tools.tool_failure import ToolFailure
from pydantic import BaseModel, Field

from agentguard import ConfigError, Decision, UnguardedCallError
from agentguard_crewai import guard_agent, guard_crew

AGENTS = {
    "lead": {"max_scope": ["read"]},
    "hand": {"max_scope": ["read"]},
    "crew-manager": {"max_scope": ["read"]},
}
CHAIN = ("user:alice", "crew:report", "lead")
PLAN: Any = ("read_file", {"path": "plan"})
SECRET: Any = ("read_file", {"path": "secret"})
BOTH = (PLAN, SECRET)
OBSERVED = re.compile("^Observation: ", re.MULTILINE)


def is_result(role, text):
    """Whether a message tells a model what a tool has returned, natively or in text."""
    return role == "tool" or (role != "system" and bool(re.search(OBSERVED, text)))


class Knowing(BaseLLM):
    """A model that keeps nothing: what it says depends on how many results it was given so far.

    So it can be in several conversations at once. ``scripts`` has what it says, by a word that
    stands in the conversation.
    """

    scripts: dict[str, Any] = {}  # noqa: RUF012  a field of a pydantic model
    native: bool = True

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        said = [str(message["content"]) for message in messages]
        roles = [message["role"] for message in messages]
        given = sum(map(is_result, roles, said))
        script = next(s for word, s in self.scripts.items() if any(word in text for text in said))
        step = script[given]
        if isinstance(step, str):
            return step if self.native else f"Thought: I know.\nFinal Answer: {step}"
        name, arguments = step
        if not self.native:
            return f"Thought: go on.\nAction: {name}\nAction Input: {json.dumps(arguments)}\n"
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": f"call_{given}", "type": "function", "function": function}]

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(messages, *args, **kwargs)

    def supports_function_calling(self) -> bool:
        return self.native

    def supports_stop_words(self) -> bool:
        return False


class Desk:
    """A guard whose policy keeps a secret, and a tool that reads it; ``ran`` is what was read."""

    def __init__(self, made, signed):
        self.made = made
        self.guard = made.guard
        self.ran: list[str] = []
        self._signed = signed
        made.decide = lambda document: (
            Decision.deny("it is secret") if "secret" in str(document["args"]) else Decision.allow()
        )
        self.read_file = self.tool("read_file")

    def tool(self, name, **options):
        def reads(path: str) -> str:
            """Read a file."""
            self.ran.append(path)
            return f"the content of {path}"

        made: Any = tool(name, **options)
        return made(reads)

    def lead(self, way, *steps, **options):
        """An agent whose model reads both files, unless ``steps`` says otherwise."""
        given = {"tools": [self.read_file], **options}
        return way.agent("Lead", *(steps or (*BOTH, "done")), **given)

    def alice(self):
        """What lets the agents act, for as long as it is in force."""
        return self.guard.delegate("user:alice", scope=["read", "write"], via="crew:report")

    def kickoff(self, crew, **inputs):
        with self.alice():
            return crew.kickoff(**inputs)

    def calls(self):
        return self._signed(self.guard)

    def story(self):
        """Who called what with what argument, and what became of it, without an order."""
        return sorted(
            (c.agent, c.tool, str(next(filter(None, c.arguments.values()))), c.outcome or c.code)
            for c in self.calls()
        )

    def require_both(self, *, times=1, tool="read_file", agent="lead", chain=CHAIN):
        """Fail unless one file was read, the other was not, and both calls are the agent's."""
        told = [(agent, tool, "plan", "ok"), (agent, tool, "secret", "policy.denied")]
        assert self.story() == sorted(told * times)
        assert {(c.chain, c.scope) for c in self.calls()} == {(chain, ("read",))}
        assert self.ran == ["plan"] * times


@pytest.fixture
def inbox(recorded, signed):
    """A guard whose policy keeps a secret, and a tool that reads it."""
    return Desk(recorded(agents=AGENTS), signed)


@pytest.fixture
def hooks():
    """Register hooks around the calls of all tools; none is left behind."""

    def register(before=None, after=None):
        if before is not None:
            register_before_tool_call_hook(before)
        if after is not None:
            register_after_tool_call_hook(after)

    yield register
    clear_all_tool_call_hooks()


def codes(output):
    """The codes of what CrewAI says has failed in each task."""
    return [[one.failure.code for one in task.tool_failures] for task in output.tasks_output]


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


async def iterated(streaming):
    async for _chunk in streaming:
        pass
    return streaming.result


# --- how a model calls --------------------------------------------------------------------------


def test_a_call_in_a_crew(inbox, way):
    lead = inbox.lead(way)
    output = inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    assert "the content of plan" in str(output.tasks_output[0].messages)
    inbox.require_both()
    assert len({call.instance for call in inbox.calls()}) == 1


def test_several_native_calls_at_once(inbox, native):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()  # the two that may run are under way at the same time
        inbox.ran.append(path)
        return path

    more = ("read_file", {"path": "paper"})
    lead = inbox.lead(native, [PLAN, SECRET, more], "done", tools=[read_file])
    output = inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert codes(output) == [["policy.denied"]]
    assert sorted(inbox.ran) == ["paper", "plan"]
    assert inbox.story() == [
        ("lead", "read_file", "paper", "ok"),
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file", "secret", "policy.denied"),
    ]
    assert {call.chain for call in inbox.calls()} == {CHAIN}


def test_several_native_calls_one_after_another(inbox, native):
    lead = inbox.lead(
        native, [PLAN, SECRET], "done", tools=[inbox.tool("read_file", max_usage_count=5)]
    )
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    inbox.require_both()


def test_a_model_that_falls_back_from_native_calls_to_text(inbox, native):
    steps = (
        PLAN,
        RuntimeError("this model does not support tools"),
        'Thought: go on.\nAction: read_file\nAction Input: {"path": "secret"}\n',
        "Thought: I know.\nFinal Answer: done",
    )
    output = inbox.kickoff(guard_crew(native.crew(inbox.lead(native, *steps)), inbox.guard))
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    inbox.require_both()


@pytest.mark.parametrize("said", ["Read File", "readFile", "read_fille", '"read_file"'])
def test_a_name_that_crewai_takes_for_a_tools_is_that_tools(inbox, text, said):
    lead = inbox.lead(text, (said, {"path": "plan"}), (said, {"path": "secret"}), "done")
    inbox.kickoff(guard_crew(text.crew(lead), inbox.guard))
    inbox.require_both()


@pytest.mark.parametrize(
    "words", ['{"path": "\\u0073ecret"}', "{'path': 'secret'}", '{path: "secret"}']
)
def test_arguments_are_what_crewai_makes_of_a_models_words(inbox, text, words):
    said = f"Thought: go on.\nAction: read_file\nAction Input: {words}\n"
    lead = inbox.lead(text, PLAN, "done")
    calls = iter([said, "Thought: I know.\nFinal Answer: done"])
    object.__setattr__(lead.llm, "call", lambda *_args, **_kwargs: next(calls))
    inbox.kickoff(guard_crew(text.crew(lead), inbox.guard))
    assert (inbox.story(), inbox.ran) == ([("lead", "read_file", "secret", "policy.denied")], [])


def test_the_policy_sees_values_as_the_tool_receives_them(inbox, way):
    received: list[Any] = []

    class Asked(BaseModel):
        """What the tool is given: a default is filled in, a number is made of words."""

        count: int
        unit: str = Field(default="pages")

    class Count(BaseTool):
        name: str = "count"
        description: str = "Count."
        args_schema: type[BaseModel] = Asked

        def _run(self, count: int, unit: str) -> str:
            received.append((count, unit))
            return "counted"

    lead = inbox.lead(way, ("count", {"count": "7", "agent": "root"}), "done", tools=[Count()])
    inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    (call,) = inbox.calls()
    assert received == [(7, "pages")]
    assert call.arguments == {"count": 7, "unit": "pages"}
    assert [document["args"] for document in inbox.made.asked] == [{"count": 7, "unit": "pages"}]


# --- planners -----------------------------------------------------------------------------------


def plan_of(native, *steps, times=1):
    """A model for the planning alone: each step has a description, and those before it."""
    told = [
        {"step_number": at, "description": what, "tool_to_use": None, "depends_on": list(after)}
        for at, (what, after) in enumerate(steps, 1)
    ]
    said = json.dumps({"plan": "a plan", "ready": True, "steps": told})
    llm = native.model(*[said] * times)
    return PlanningConfig(reasoning_effort="low", max_attempts=1, llm=llm)


def test_the_steps_of_a_planner(inbox, way, native):
    planning = plan_of(native, ("first", ()), ("second", (1,)))
    steps = (PLAN, "the first is done", SECRET, "the second is done", "done")
    lead = inbox.lead(way, *steps, planning_config=planning)
    output = inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    assert output.raw.endswith("done")
    assert not lead.llm.steps  # so these were steps of the plan
    assert codes(output) == [["policy.denied"]]
    inbox.require_both()


def test_the_steps_of_a_planner_that_run_at_once(inbox, native):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        inbox.ran.append(path)
        return path

    scripts = {
        f"read the {path}": [("read_file", {"path": path}), f"it says {path}"]
        for path in ("plan", "paper", "secret")
    }
    llm = Knowing(model="knowing", native=True, scripts={**scripts, "": ["done"]})
    planning = plan_of(native, *[(what, ()) for what in scripts])
    lead = inbox.lead(native, llm=llm, tools=[read_file], planning_config=planning)
    output = inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert codes(output) == [["policy.denied"]]
    assert sorted(inbox.ran) == ["paper", "plan"]
    assert {(call.agent, call.chain) for call in inbox.calls()} == {("lead", CHAIN)}
    assert [told[2:] for told in inbox.story()] == [
        ("paper", "ok"),
        ("plan", "ok"),
        ("secret", "policy.denied"),
    ]


def test_an_agent_that_plans_by_its_own_model(inbox, native):
    plan = json.loads('{"plan": "p", "ready": true, "steps": []}')
    plan["steps"] = [{"step_number": 1, "description": "read", "depends_on": []}]
    lead = inbox.lead(native, json.dumps(plan), PLAN, SECRET, "read", "done", planning=True)
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert not lead.llm.steps
    inbox.require_both()


def test_an_agent_that_plans_by_itself(inbox, native):
    planning = plan_of(native, ("first", ()))
    steps = (*BOTH, "the first is done", "done")
    lead: Any = guard_agent(inbox.lead(native, *steps, planning_config=planning), inbox.guard)
    with inbox.alice():
        lead.kickoff("go on")
    inbox.require_both()


def test_a_planner_that_ran_before_it_was_guarded_is_guarded(inbox, native):
    planning = plan_of(native, ("first", ()), times=2)
    free = (("read_file", {"path": "free"}), "the first is done", "done")
    lead = inbox.lead(native, *free, *BOTH, "the first is done", "done", planning_config=planning)
    crew = native.crew(lead)
    crew.kickoff()
    assert inbox.ran.pop() == "free"
    inbox.kickoff(guard_crew(crew, inbox.guard))
    inbox.require_both()


# --- kinds of tools -----------------------------------------------------------------------------


class Reads(BaseTool):
    """A tool class; ``ran`` is what was read, and how."""

    name: str = "read_file"
    description: str = "Read a file."
    ran: list[str] = Field(default_factory=list, exclude=True)

    def _run(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"


class ReadsAsync(Reads):
    """Its work is a coroutine function."""

    async def _run(self, path: str) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        self.ran.append(path)
        return f"the content of {path}"


class ReadsInBoth(Reads):
    """It has an async way, too, which CrewAI does not take."""

    async def _arun(self, path: str) -> str:
        return self._run(path)


class ReadsByRun(Reads):
    """It overrides CrewAI's own method around its work."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)


class ReadsThroughRun(Reads):
    """Its work is in ``run`` alone, and ``_run`` goes there."""

    def run(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"

    def _run(self, path: str) -> str:
        return self.run(path)


class ReadsByStructure(Reads):
    """What a model that writes text calls is another method, as the class has it."""

    def work(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"

    def to_structured_tool(self) -> Any:
        made = super().to_structured_tool()
        made.func = self.work
        return made


class OwnTool(Tool):
    """A subclass of CrewAI's class for functions, with a method of its own around the function."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)


def of_function(inbox):
    return inbox.tool("read_file")


def of_coroutine_function(inbox):
    @tool
    async def read_file(path: str) -> str:
        """Read a file."""
        await asyncio.sleep(0)
        inbox.ran.append(path)
        return path

    return read_file


def of_partial(inbox):
    made = inbox.tool("read_file")
    made.func = functools.partial(made.func)
    return made


def of_callable(inbox):
    class Reader:
        """Something that can be called."""

        def __call__(self, path: str) -> str:
            inbox.ran.append(path)
            return path

    made = inbox.tool("read_file")
    made.func = Reader()
    return made


def of_own_class(inbox):
    plain = inbox.tool("read_file")
    return OwnTool(
        name="read_file", description="Read.", func=plain.func, args_schema=plain.args_schema
    )


def of_another_framework(inbox):
    def read_file(path: str) -> str:
        inbox.ran.append(path)
        return path

    return Tool.from_langchain(
        SimpleNamespace(name="read_file", func=read_file, description="Read.")
    )


def of_class(kind):
    return lambda inbox: kind(ran=inbox.ran)


KINDS = {
    "function": of_function,
    "coroutine-function": of_coroutine_function,
    "partial": of_partial,
    "callable": of_callable,
    "class-for-functions": of_own_class,
    "another-framework": of_another_framework,
    "class": of_class(Reads),
    "async-class": of_class(ReadsAsync),
    "class-with-both": of_class(ReadsInBoth),
    "class-with-run": of_class(ReadsByRun),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tool(inbox, way, kind):
    lead = inbox.lead(way, tools=[KINDS[kind](inbox)])
    # a pydantic model copies the list that it is given
    inbox.ran = getattr(lead.tools[0], "ran", inbox.ran)
    output = inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    assert codes(output) == [["policy.denied"]]
    inbox.require_both()


@pytest.mark.parametrize("kind", [ReadsThroughRun, ReadsByStructure])
def test_a_tool_that_makes_its_own_way_is_gated(inbox, way, kind):
    made = kind()
    inbox.ran = made.ran
    lead = inbox.lead(way, tools=[made])
    inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    inbox.require_both()


REPLACED = [
    (kind, name)
    for kind in ("function", "class", "class-for-functions")
    for name in ("run", "_run", "func")
    if (kind, name) != ("class", "func")
]


@pytest.mark.parametrize(("kind", "name"), REPLACED)
def test_what_replaced_a_way_into_the_tool_is_gated(inbox, way, kind, name):
    made: Any = KINDS[kind](inbox)
    inbox.ran = getattr(made, "ran", inbox.ran)
    original = getattr(made, name)
    traces: list[Any] = []

    def traced(*args: Any, **kwargs: Any) -> Any:
        traces.append(kwargs)
        return original(*args, **kwargs)  # as what measures or traces tools does

    object.__setattr__(made, name, traced)
    way.crew(inbox.lead(way, PLAN, "done", tools=[made])).kickoff()
    unguarded = len(traces)
    inbox.ran.clear()
    lead = inbox.lead(way, tools=[made])
    inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    inbox.require_both()
    assert len(traces) == 2 * unguarded  # it is still traced, where CrewAI goes that way


def test_a_tools_method_is_its_own_within_its_work(inbox, way):
    class Twice(Reads):
        """It calls itself, which is no further call of the agent's."""

        def _run(self, path: str) -> str:
            return path if path.endswith("!") else super()._run(path) + self._run(f"{path}!")

    made = Twice()
    inbox.ran = made.ran
    inbox.kickoff(guard_crew(way.crew(inbox.lead(way, tools=[made])), inbox.guard))
    inbox.require_both()


class Content(BaseModel):
    """What a tool with a schema of its results returns."""

    text: str
    lines: int


def test_a_structured_result(inbox, way):
    @tool
    def read_file(path: str) -> Content:
        """Read a file."""
        inbox.ran.append(path)
        return Content(text=f"the content of {path}", lines=1)

    assert read_file.result_schema is Content
    lead = inbox.lead(way, tools=[read_file])
    output = inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    said = str(output.tasks_output[0].messages) + " ".join(lead.llm.heard)
    assert '"lines":1' in said.replace("\\", "")
    assert codes(output) == [["policy.denied"]]
    inbox.require_both()


@pytest.mark.parametrize(("path", "raw"), [("plan", "the content of plan"), ("secret", "done")])
def test_a_result_that_is_the_answer_is_none_where_it_was_denied(inbox, way, path, raw):
    made = inbox.tool("read_file", result_as_answer=True)
    lead = inbox.lead(way, ("read_file", {"path": path}), "done", tools=[made])
    assert inbox.kickoff(guard_crew(way.crew(lead), inbox.guard)).raw == raw
    assert inbox.ran == [path] * (path == "plan")
    assert [call.chain for call in inbox.calls()] == [CHAIN]


def test_the_tools_of_a_task(inbox, native):
    lead = inbox.lead(native, tools=[inbox.tool("never_called")])
    crew = Crew(agents=[lead], tasks=[task_of(lead, tools=[inbox.read_file])])
    inbox.kickoff(guard_crew(crew, inbox.guard))
    inbox.require_both()


def test_two_tasks_with_tools_of_their_own(inbox, native):
    lead = inbox.lead(native, PLAN, "first", ("write_file", {"path": "secret"}), "second", tools=[])
    tasks = [task_of(lead, tools=[inbox.tool(name)]) for name in ("read_file", "write_file")]
    inbox.kickoff(guard_crew(Crew(agents=[lead], tasks=tasks), inbox.guard))
    assert inbox.ran == ["plan"]
    assert inbox.story() == [
        ("lead", "read_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
    ]


def two_of_one_name(inbox, way, *steps):
    """A crew with two tools of one name, of which the second is from elsewhere."""

    @tool("Read File")
    def other(path: str) -> str:
        """Read another file."""
        inbox.ran.append(f"the other {path}")
        return path

    lead = inbox.lead(way, *steps, "done", tools=[inbox.read_file, other])
    return guard_crew(way.crew(lead), inbox.guard)


def test_two_tools_of_one_name_are_two_to_the_policy(inbox, native):
    inbox.made.decide = lambda document: (
        Decision.allow() if document["action"] == "read_file" else Decision.deny("not this one")
    )
    other = ("read_file_2", {"path": "plan"})  # as CrewAI has told the model
    inbox.kickoff(two_of_one_name(inbox, native, PLAN, other))
    assert inbox.ran == ["plan"]
    assert inbox.story() == [
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file_2", "plan", "policy.denied"),
    ]


@pytest.mark.parametrize("name", ["read_file", "read_file_2", "Read File"])
def test_of_two_tools_of_one_name_a_text_means_the_first(inbox, text, name):
    inbox.kickoff(two_of_one_name(inbox, text, (name, {"path": "plan"})))
    assert (inbox.ran, inbox.story()) == (["plan"], [("lead", "read_file", "plan", "ok")])


class Kept(Memory):
    """A memory without a model; what is in it is what was said."""

    said: list[str] = Field(default_factory=list)

    def recall(self, query: str, *_args: Any, **_options: Any) -> Any:
        self.said.append(f"asked for {query}")
        return []

    def remember(self, content: str, *_args: Any, **_options: Any) -> Any:
        self.said.append(f"keeps {content}")
        return SimpleNamespace(scope="/", importance=0.5)

    def extract_memories(self, content: str) -> list[str]:
        return [content][:0]


MEMORIES = (
    ("search_memory", {"queries": ["plan"]}),
    ("search_memory", {"queries": ["secret"]}),
    ("save_to_memory", {"contents": ["plan"]}),
    ("save_to_memory", {"contents": ["secret"]}),
)


@pytest.mark.parametrize("where", ["agent-of-a-crew", "crew", "agent"])
def test_the_tools_of_a_memory(inbox, native, where):
    memory = Kept(llm=native.model(), storage=object(), embedder=len)  # type: ignore[arg-type]
    own = {} if where == "crew" else {"memory": memory}
    lead = inbox.lead(native, *MEMORIES, "done", tools=[], **own)
    if where == "agent":
        guard_agent(lead, inbox.guard)
        with inbox.alice():
            lead.kickoff("go on")
    else:
        crew = native.crew(lead, memory=memory if where == "crew" else False)
        inbox.kickoff(guard_crew(crew, inbox.guard))
    kept = [said for said in memory.said if "plan" in said or "secret" in said]
    assert kept == ["asked for plan", "keeps plan"]
    assert inbox.story() == [
        ("lead", "save_to_memory", "['plan']", "ok"),
        ("lead", "save_to_memory", "['secret']", "policy.denied"),
        ("lead", "search_memory", "['plan']", "ok"),
        ("lead", "search_memory", "['secret']", "policy.denied"),
    ]
    assert {call.chain for call in inbox.calls()} == {CHAIN}


@pytest.fixture
def skills(tmp_path):
    """A folder of skills; a model is told their names, and loads what it needs."""
    for name in ("plan", "secret"):
        (tmp_path / name).mkdir()
        text = f"---\nname: {name}\ndescription: what is {name}\n---\nall about the {name}\n"
        (tmp_path / name / "SKILL.md").write_text(text)
    return tmp_path


@pytest.mark.parametrize("where", ["crew", "agent"])
def test_the_loader_of_skills(inbox, native, skills, where):
    loads = [("load_skill", {"skill_name": name}) for name in ("plan", "secret")]
    lead = inbox.lead(native, *loads, "done", tools=[], skills=[skills])
    if where == "crew":
        heard = inbox.kickoff(guard_crew(native.crew(lead), inbox.guard)).tasks_output[0].messages
    else:
        guard_agent(lead, inbox.guard)
        with inbox.alice():
            heard = lead.kickoff("go on").messages
    assert "all about the plan" in str(heard)
    assert "all about the secret" not in str(heard)
    inbox.ran.append("plan")
    inbox.require_both(tool="load_skill")


def test_the_tool_that_adds_images(inbox, native):
    adds = [("add_image_to_content", {"image_url": name}) for name in ("plan", "secret")]
    lead = inbox.lead(native, *adds, "done", tools=[], multimodal=True)
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    inbox.ran.append("plan")
    inbox.require_both(tool="add_image_to_content")


def test_reading_a_deferred_result_is_a_call_as_well(inbox, native):
    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        return f"a line of {path}\n" * 50_000  # more than fits in a model's context

    lead = inbox.lead(native, PLAN, "done", tools=[read_file])
    model = lead.llm

    class Reader(type(model)):  # type: ignore[misc]
        """It reads what it was told of."""

        def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            for word in str(messages[-1]["content"]).split("`"):
                if word.endswith("/result.md"):
                    asked = {"file_path": word, "line_count": 1}
                    self.steps.insert(0, ("read_a_deferred_tool_result", asked))
                    break
            return super().call(messages, *args, **kwargs)

    lead.llm = Reader(model="scripted", native=True, steps=model.steps)
    output = inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert "a line of plan" in lead.llm.heard[-1]
    assert output.raw == "done"
    assert [call.tool for call in inbox.calls()] == ["read_file", "read_a_deferred_tool_result"]
    assert {call.chain for call in inbox.calls()} == {CHAIN}


# --- how an agent or a crew is begun ------------------------------------------------------------

AGENT_WAYS = {
    "kickoff": lambda agent: agent.kickoff("go on"),
    "kickoff_async": lambda agent: asyncio.run(agent.kickoff_async("go on")),
    "akickoff": lambda agent: asyncio.run(agent.akickoff("go on")),
    "message": lambda agent: agent.message("go on"),
    "execute_task": lambda agent: agent.execute_task(task_of(agent)),
    "aexecute_task": lambda agent: asyncio.run(agent.aexecute_task(task_of(agent))),
    "execute_sync": lambda agent: task_of(agent).execute_sync(),
    "execute_async": lambda agent: task_of(agent).execute_async().result(),
    "aexecute_sync": lambda agent: asyncio.run(task_of(agent).aexecute_sync()),
    "unguarded-crew": lambda agent: Crew(agents=[agent], tasks=[task_of(agent)]).kickoff(),
}


@pytest.mark.parametrize("begin", AGENT_WAYS)
def test_an_agent_without_a_guarded_crew(inbox, native, begin):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    with inbox.alice():
        AGENT_WAYS[begin](lead)
    inbox.require_both()
    assert not lead.llm.steps


async def test_an_agent_that_is_kicked_off_on_an_event_loop(inbox, native):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    with inbox.alice():
        begun = lead.kickoff("go on")  # CrewAI returns a coroutine there
        assert inspect.iscoroutine(begun)
        assert (await begun).raw == "done"
    inbox.require_both()


CREW_WAYS = {
    "kickoff": lambda crew: [crew.kickoff()],
    "kickoff_async": lambda crew: [asyncio.run(crew.kickoff_async())],
    "akickoff": lambda crew: [asyncio.run(crew.akickoff())],
    "kickoff_for_each": lambda crew: crew.kickoff_for_each([{}, {}]),
    "kickoff_for_each_async": lambda crew: asyncio.run(crew.kickoff_for_each_async([{}, {}])),
    "akickoff_for_each": lambda crew: asyncio.run(crew.akickoff_for_each([{}, {}])),
    "copy": lambda crew: [crew.copy().kickoff(), crew.copy().kickoff()],
}


@pytest.mark.parametrize("begin", CREW_WAYS)
def test_the_ways_to_begin_a_crew(inbox, native, begin):
    llm = Knowing(model="knowing", native=True, scripts={"": [*BOTH, "done"]})
    crew = guard_crew(native.crew(inbox.lead(native, llm=llm)), inbox.guard)
    with inbox.alice():
        outputs = CREW_WAYS[begin](crew)
    assert [(output.raw, codes(output)) for output in outputs] == [
        ("done", [["policy.denied"]])
    ] * len(outputs)
    inbox.require_both(times=len(outputs))
    # each copy of the crew has an instance of its own, and the crew itself made no call then
    assert len({call.instance for call in inbox.calls()}) == len(outputs)
    with inbox.alice():
        crew.kickoff()
    instances = {call.instance for call in inbox.calls()}
    assert len(instances) == len(outputs) + (len(outputs) > 1)


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_tasks_that_are_executed_at_once(inbox, native, begin):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        inbox.ran.append(path)
        return path

    lead = inbox.lead(native, tools=[read_file])
    hand = native.agent("Hand", *BOTH, "done", tools=[read_file])
    last = native.agent("Crew manager", "done")
    tasks = [task_of(one, async_execution=True) for one in (lead, hand)]
    crew = guard_crew(Crew(agents=[lead, hand, last], tasks=[*tasks, task_of(last)]), inbox.guard)
    with inbox.alice():
        output = CREW_WAYS[begin](crew)[0]
    assert codes(output) == [["policy.denied"], ["policy.denied"], []]
    assert inbox.ran == ["plan", "plan"]
    for agent in ("lead", "hand"):
        own = [call for call in inbox.calls() if call.agent == agent]
        assert [call.outcome or call.code for call in own] == ["ok", "policy.denied"]
        assert {call.chain for call in own} == {("user:alice", "crew:report", agent)}


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_an_agent_with_a_limit_of_its_time(inbox, native, begin):
    crew = guard_crew(native.crew(inbox.lead(native, max_execution_time=60)), inbox.guard)
    with inbox.alice():
        CREW_WAYS[begin](crew)
    inbox.require_both()


STREAMS = {
    "kickoff": lambda crew: [list(streaming := crew.kickoff()), streaming.result][1],
    "kickoff_async": lambda crew: asyncio.run(streamed(crew.kickoff_async)),
    "akickoff": lambda crew: asyncio.run(streamed(crew.akickoff)),
}


async def streamed(begin):
    return await iterated(await begin())


@pytest.mark.parametrize("begin", STREAMS)
def test_a_crew_that_streams(inbox, native, begin):
    lead = inbox.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead)], stream=True), inbox.guard)
    with inbox.alice():
        output = STREAMS[begin](crew)
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    inbox.require_both()


def test_a_stream_that_is_read_after_the_block_does_not_run(inbox, native):
    lead = inbox.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead)], stream=True), inbox.guard)
    with inbox.alice():
        streaming: Any = crew.kickoff()
    with pytest.raises(ConfigError, match="read it in the block that kicked it off") as refused:
        list(streaming)  # only now it would run
    assert refused.value.code == "crew.elsewhere"
    assert (inbox.ran, inbox.calls()) == ([], [])


def flow_of(sync, begin):
    """A flow whose first method begins what the test does."""
    if sync:

        class Sync(Flow[Any]):
            """Its methods run in threads."""

            @start()
            def first(self) -> Any:
                return begin()

            @listen(first)
            def second(self, result: Any) -> Any:
                return result

        return Sync(suppress_flow_events=True)

    class Async(Flow[Any]):
        """Its methods run on the loop."""

        @start()
        async def first(self) -> Any:
            return await begin()

        @listen(first)
        async def second(self, result: Any) -> Any:
            return result

    return Async(suppress_flow_events=True)


FLOWS = {
    "crew": (True, lambda crew, _agent: crew.kickoff()),
    "agent": (True, lambda _crew, agent: agent.kickoff("go on")),
    "crew-akickoff": (False, lambda crew, _agent: crew.akickoff()),
    "crew-kickoff_async": (False, lambda crew, _agent: crew.kickoff_async()),
    "agent-kickoff": (False, lambda _crew, agent: agent.kickoff("go on")),
    "agent-akickoff": (False, lambda _crew, agent: agent.akickoff("go on")),
}


@pytest.mark.parametrize("begin", FLOWS)
def test_inside_of_a_flow(inbox, native, begin):
    sync, started = FLOWS[begin]
    lead = inbox.lead(native)
    crew = guard_crew(native.crew(lead), inbox.guard)
    with inbox.alice():
        output = flow_of(sync, lambda: started(crew, lead)).kickoff()
    assert output.raw == "done"
    inbox.require_both()


def test_a_second_try_after_a_guardrail(inbox, native):
    tries = []

    def once(_output):
        tries.append(len(inbox.calls()))
        return (len(tries) > 1, "not yet" if len(tries) == 1 else "done")

    lead = inbox.lead(native, PLAN, "first", SECRET, "second")
    task = task_of(lead, guardrail=once)
    inbox.kickoff(guard_crew(Crew(agents=[lead], tasks=[task]), inbox.guard))
    assert tries == [1, 2]
    inbox.require_both()


def test_a_second_try_of_an_agent_by_itself_after_a_guardrail(inbox, native):
    tries = []

    def once(_output):
        tries.append(len(inbox.calls()))
        return (len(tries) > 1, "not yet" if len(tries) == 1 else "done")

    lead: Any = guard_agent(
        inbox.lead(native, PLAN, "one", SECRET, "two", guardrail=once), inbox.guard
    )
    with inbox.alice():
        lead.kickoff("go on")
    assert tries == [1, 2]
    inbox.require_both()


def test_a_second_try_after_what_a_person_said_of_the_answer(inbox, native, monkeypatch):
    said = iter(["read the other one, too", ""])
    monkeypatch.setattr("builtins.input", lambda *_prompt: next(said))
    lead = inbox.lead(native, PLAN, "first", SECRET, "second")
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead, human_input=True)]), inbox.guard)
    assert inbox.kickoff(crew).raw == "second"
    inbox.require_both()


def test_a_task_on_a_condition(inbox, native):
    lead = inbox.lead(native, PLAN, "first", SECRET, "second")
    tasks = [
        task_of(lead),
        *(
            ConditionalTask(
                description="on a condition",
                expected_output="words",
                agent=lead,
                condition=lambda _output, met=met: met,
            )
            for met in (False, True)
        ),
    ]
    inbox.kickoff(guard_crew(Crew(agents=[lead], tasks=tasks), inbox.guard))
    inbox.require_both()


def test_a_crew_whose_tasks_are_planned_first(inbox, native):
    plan = {"list_of_plans_per_task": [{"task_number": 1, "task": "a task", "plan": "read both"}]}
    planner = native.model(*[json.dumps(plan)] * 2)
    lead = inbox.lead(native)
    crew = Crew(agents=[lead], tasks=[task_of(lead)], planning=True, planning_llm=planner)
    inbox.kickoff(guard_crew(crew, inbox.guard))
    assert "read both" in crew.tasks[0].description
    inbox.require_both()


def test_a_model_of_its_own_that_picks_the_tools(inbox, text, native):
    picks = [
        json.dumps({"tool_name": "read_file", "arguments": {"path": path}})
        for path in ("plan", "secret")
    ]
    picking = native.model(*picks)
    unheard = ("look into it", {})  # CrewAI asks the other model which tool is meant
    lead = inbox.lead(text, unheard, unheard, "done", function_calling_llm=picking)
    inbox.kickoff(guard_crew(text.crew(lead), inbox.guard))
    assert len(picking.heard) == len(picks)
    inbox.require_both()


def test_a_second_try_after_an_error_of_the_model(inbox, native):
    lead = inbox.lead(native, PLAN, ValueError("the model is away"), SECRET, "done")
    output = inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert output.raw == "done"
    inbox.require_both()


def test_a_run_that_is_replayed(inbox, native):
    lead = inbox.lead(native, PLAN, "first", SECRET, "second", PLAN, SECRET, "again")
    tasks = [Task(description=f"task {at}", expected_output="words", agent=lead) for at in range(2)]
    crew = guard_crew(Crew(agents=[lead], tasks=tasks), inbox.guard)
    inbox.kickoff(crew)
    inbox.require_both()
    with inbox.guard.delegate("user:bob", scope=["read"], via="crew:report"):
        assert crew.replay(str(crew.tasks[1].id)).raw == "again"
    chains = [call.chain for call in inbox.calls()]
    assert chains == [CHAIN, CHAIN, ("user:bob", *CHAIN[1:]), ("user:bob", *CHAIN[1:])]
    assert inbox.ran == ["plan", "plan"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """CrewAI writes what it has trained into the folder that it runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_prompt: "better, please")
    return tmp_path


def test_a_crew_that_is_trained(inbox, native, elsewhere):
    learned = json.dumps({"suggestions": ["read"], "quality": 5, "final_summary": "good"})
    lead = inbox.lead(native, *BOTH, "done", "better", learned, learned)
    crew = guard_crew(native.crew(lead), inbox.guard)
    with inbox.alice():
        crew.train(1, str(elsewhere / "trained.pkl"))
    inbox.require_both()


def test_a_crew_that_is_tested(inbox, native, elsewhere):
    crew = guard_crew(native.crew(inbox.lead(native)), inbox.guard)
    with inbox.alice():
        crew.test(1, native.model(*[json.dumps({"quality": 5})] * 2))
    inbox.require_both()


# --- copies -------------------------------------------------------------------------------------

COPIES = {
    "copy": lambda agent: agent.copy(),
    "model_copy": lambda agent: agent.model_copy(),
    "copy.copy": copy.copy,
}


@pytest.mark.parametrize("planning", [False, True], ids=["", "planning"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_an_agent_is_another_instance(inbox, native, how, planning):
    steps: tuple[Any, ...] = (*BOTH, "done")
    options = {}
    if planning:
        steps = (*BOTH, "the first is done", "done")
        options["planning_config"] = plan_of(native, ("first", ()), times=2)
    lead = guard_agent(inbox.lead(native, *steps, *steps, **options), inbox.guard)
    with inbox.alice():
        Crew(agents=[lead], tasks=[task_of(lead)]).kickoff()
        copied = COPIES[how](lead)
        if planning and how == "copy":  # CrewAI writes the settings down, without their model
            copied.planning_config = plan_of(native, ("first", ()))
        Crew(agents=[copied], tasks=[task_of(copied)]).kickoff()
    inbox.require_both(times=2)
    first, second, third, fourth = (call.instance for call in inbox.calls())
    assert first == second
    assert third == fourth != first


@pytest.mark.parametrize("how", [copy.deepcopy, lambda agent: agent.model_copy(deep=True)])
def test_a_deep_copy_of_an_agent_is_another_instance(inbox, native, how):
    lead: Any = guard_agent(
        inbox.lead(native, tools=[]), inbox.guard
    )  # CrewAI can't copy tools deeply
    copied = how(lead)
    for agent in (lead, copied):
        agent.tools = [inbox.read_file]
        agent.llm = native.model(*BOTH, "done")
        with inbox.alice():
            agent.kickoff("go on")
    inbox.require_both(times=2)
    assert len({call.instance for call in inbox.calls()}) == 2


@pytest.mark.parametrize("how", ["model_copy", "copy.copy"])
def test_an_agent_and_its_copy_can_be_at_work_at_once(inbox, native, how):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        inbox.ran.append(path)
        return path

    llm = Knowing(model="knowing", scripts={"": [PLAN, SECRET, "done"]})
    lead: Any = guard_agent(inbox.lead(native, llm=llm, tools=[read_file]), inbox.guard)
    lead.create_agent_executor()  # which is not the copy's
    with inbox.alice():
        copied = COPIES[how](lead)
        tasks = [task_of(one, async_execution=True) for one in (lead, copied)]
        for waiting in [task.execute_async() for task in tasks]:
            waiting.result(timeout=120)
    inbox.require_both(times=2)
    assert len({call.instance for call in inbox.calls()}) == 2


def test_a_tool_that_another_agent_was_guarded_with_is_the_own_of_who_calls_it(inbox, native):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    lead.create_agent_executor()
    hand = native.agent("Hand", *BOTH, "done", tools=lead.agent_executor.original_tools)
    inbox.kickoff(guard_crew(native.crew(hand), inbox.guard))
    inbox.require_both(agent="hand", chain=(*CHAIN[:2], "hand"))


def test_what_is_made_from_the_class_of_a_guarded_agent_has_no_identity(inbox, native):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    made = type(lead)(role="Lead", goal="g", backstory="b", llm=lead.llm, tools=lead.tools)
    with inbox.alice(), pytest.raises(ConfigError, match="'Lead' is not guarded") as refused:
        made.kickoff("go on")
    assert refused.value.code == "agent.unguarded"
    assert (inbox.ran, inbox.calls()) == ([], [])
    with inbox.alice():
        lead.kickoff("go on")
    inbox.require_both()


def test_what_is_made_from_the_class_of_a_guarded_crew_has_no_guard(inbox, native):
    lead = inbox.lead(native)
    crew: Any = guard_crew(native.crew(lead), inbox.guard)
    made = type(crew)(agents=[lead], tasks=[task_of(lead)])
    with inbox.alice(), pytest.raises(ConfigError, match=r"the crew .* is not guarded"):
        made.kickoff()
    assert (inbox.ran, inbox.calls()) == ([], [])


def test_a_guarded_agent_is_not_pickled(inbox, native):
    lead = guard_agent(inbox.lead(native), inbox.guard)
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(lead)


@pytest.mark.parametrize(
    "how",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda one: one.model_copy()],
    ids=["copy", "deepcopy", "pickle", "model_copy"],
)
def test_a_guarded_tool_is_not_copied(inbox, native, how):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    with pytest.raises(TypeError, match="take the original"):
        how(guarded)


def test_what_is_made_from_the_class_of_a_guarded_tool_does_not_run(inbox, native):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    fields = ("name", "description", "args_schema", "func")
    made = type(guarded)(**{name: getattr(guarded, name) for name in fields})
    enters: list[Any] = [
        lambda: made.run(path="plan"),
        lambda: made._run(path="plan"),
        lambda: made.func("plan"),
        lambda: made.to_structured_tool().invoke({"path": "plan"}),
    ]
    for enter in enters:
        with inbox.alice(), pytest.raises(ConfigError, match="did not run"):
            enter()
    assert inbox.ran == []


# --- who is not guarded -------------------------------------------------------------------------

SLIPS = {
    "agents": lambda crew, agent: crew.agents.append(agent),
    "task": lambda crew, agent: setattr(crew.tasks[0], "agent", agent),
    "another-task": lambda crew, agent: crew.tasks.append(task_of(agent)),
    "manager": lambda crew, agent: setattr(crew, "manager_agent", agent),
}


@pytest.mark.parametrize("begin", CREW_WAYS)
@pytest.mark.parametrize("slip", SLIPS)
def test_an_unguarded_agent_that_slips_in_aborts_the_crew(inbox, native, slip, begin):
    crew = guard_crew(native.crew(inbox.lead(native)), inbox.guard)
    SLIPS[slip](crew, native.agent("Hand", *BOTH, "done", tools=[inbox.read_file]))
    with inbox.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded") as aborted:
        CREW_WAYS[begin](crew)
    assert aborted.value.code == "agent.unguarded"
    assert (inbox.ran, inbox.calls()) == ([], [])


LATE = {
    "before-kickoff": lambda crew, put: crew.before_kickoff_callbacks.append(put),
    "task-callback": lambda crew, put: setattr(crew.tasks[0], "callback", put),
}


@pytest.mark.parametrize("begin", ["kickoff", "kickoff_async", "akickoff"])
@pytest.mark.parametrize("late", LATE)
def test_an_unguarded_agent_that_a_callback_puts_in_does_not_run(inbox, native, late, begin):
    lead = inbox.lead(native)
    crew = guard_crew(Crew(agents=[lead], tasks=[task_of(lead), task_of(lead)]), inbox.guard)
    hand = native.agent("Hand", *BOTH, "done", tools=[inbox.read_file])

    def put(given: Any) -> Any:
        crew.tasks[1].agent = hand
        return given

    LATE[late](crew, put)
    with inbox.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded"):
        CREW_WAYS[begin](crew)
    inbox.require_both()  # the first task's calls, and no other


def test_a_replay_with_an_unguarded_agent_is_aborted(inbox, native):
    lead = inbox.lead(native)
    crew = guard_crew(native.crew(lead), inbox.guard)
    inbox.kickoff(crew)
    crew.tasks[0].agent = native.agent("Hand", *BOTH, "done", tools=[inbox.read_file])
    with inbox.alice(), pytest.raises(ConfigError, match="'Hand' is not guarded"):
        crew.replay(str(crew.tasks[0].id))
    inbox.require_both()


def asks(coworker):
    return ("delegate_work_to_coworker", {"task": "t", "context": "c", "coworker": coworker})


@pytest.mark.parametrize("guarded_crew", [True, False], ids=["guarded-crew", "unguarded-crew"])
def test_an_unguarded_coworker_is_given_no_work(inbox, native, guarded_crew):
    lead = inbox.lead(native, PLAN, asks("Hand"), "done", allow_delegation=True)
    hand = native.agent("Hand", *BOTH, "done", tools=[inbox.read_file])
    if guarded_crew:
        crew = guard_crew(native.crew(lead), inbox.guard)
        crew.before_kickoff_callbacks.append(lambda _given: crew.agents.append(hand))
    else:
        guard_agent(lead, inbox.guard)
        crew = Crew(agents=[lead, hand], tasks=[task_of(lead)])
    output = inbox.kickoff(crew)
    assert codes(output) == [["agent.unguarded"]]
    assert (inbox.ran, len(hand.llm.steps)) == (["plan"], 3)
    assert [(c.agent, c.tool, c.outcome or c.code) for c in inbox.calls()] == [
        ("lead", "read_file", "ok"),
        ("lead", "delegate_work_to_coworker", "agent.unguarded"),
    ]


def test_a_manager_that_the_crew_makes_is_guarded_each_time(inbox, native):
    hand = native.agent("Hand", *BOTH, "done", *BOTH, "done", tools=[inbox.read_file])
    manager = native.model(asks("Hand"), "done", asks("Hand"), "done")
    crew = Crew(
        agents=[hand], tasks=[task_of(hand)], process=Process.hierarchical, manager_llm=manager
    )
    guard_crew(crew, inbox.guard)
    assert crew.manager_agent is None
    for _time in range(2):
        inbox.kickoff(crew)
        assert inbox.ran == ["plan"]
        inbox.ran.clear()
        crew.tasks[0].agent = hand  # CrewAI has put the manager in its place
    told = [(c.agent, c.tool, c.outcome or c.code, c.chain[2:]) for c in inbox.calls()]
    assert (
        told
        == [
            ("crew-manager", "delegate_work_to_coworker", "ok", ("crew-manager",)),
            ("hand", "read_file", "ok", ("crew-manager", "hand")),
            ("hand", "read_file", "policy.denied", ("crew-manager", "hand")),
        ]
        * 2
    )


def test_an_agent_of_another_guard_is_an_error(inbox, recorded, native):
    other = recorded(agents=AGENTS)
    lead, hand = inbox.lead(native), native.agent("Hand", "done")
    guard_agent(hand, other.guard)
    with pytest.raises(ConfigError, match="already guarded") as refused:
        guard_crew(native.crew(lead, hand), inbox.guard)
    assert refused.value.code == "agent.guarded"
    with pytest.raises(ConfigError, match="already guarded"):
        guard_agent(hand, inbox.guard)
    with pytest.raises(ConfigError, match="already guarded"):
        guard_agent(hand, other.guard, name="lead")
    assert guard_agent(hand, other.guard) is hand
    assert guard_agent(hand, other.guard, name="hand") is hand


def test_a_crew_of_another_guard_is_an_error(inbox, recorded, native):
    other = recorded(agents=AGENTS)
    crew = guard_crew(native.crew(inbox.lead(native)), inbox.guard)
    with pytest.raises(ConfigError, match="already guarded") as refused:
        guard_crew(crew, other.guard)
    assert refused.value.code == "agent.guarded"
    assert guard_crew(crew, inbox.guard) is crew
    inbox.kickoff(crew)
    inbox.require_both()


def test_a_crew_keeps_its_guard_whoever_is_put_into_it(inbox, recorded, native):
    other = recorded(agents=AGENTS)
    crew = guard_crew(native.crew(inbox.lead(native)), inbox.guard)
    hand = guard_agent(native.agent("Hand", "done"), other.guard)
    crew.agents[:], crew.tasks[0].agent = [hand], hand
    with pytest.raises(ConfigError, match=r"the crew .* is already guarded"):
        guard_crew(crew, other.guard)


class Foreign(BaseAgent):
    """An agent that runs its tools by itself, as those of other frameworks do."""

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        raise AssertionError

    async def aexecute_task(self, task: Any, context: Any = None, tools: Any = None) -> str:
        raise AssertionError

    def create_agent_executor(self, tools: Any = None) -> None:
        raise AssertionError

    def get_delegation_tools(self, agents: Any) -> list[BaseTool]:
        return []

    def get_platform_tools(self, apps: Any) -> list[BaseTool]:
        return []

    def get_mcp_tools(self, mcps: Any) -> list[BaseTool]:
        return []


def test_an_agent_that_runs_its_tools_by_itself_is_not_guarded(inbox, native):
    foreign: Any = Foreign(role="Hand", goal="g", backstory="b")
    with pytest.raises(ConfigError, match="runs its tools by itself") as refused:
        guard_agent(foreign, inbox.guard)
    assert refused.value.code == "agent.unguardable"
    with pytest.raises(ConfigError, match="runs its tools by itself"):
        guard_crew(Crew(agents=[inbox.lead(native), foreign], tasks=[]), inbox.guard)


@pytest.mark.parametrize("method", ["execute_task", "aexecute_task", "kickoff", "kickoff_async"])
def test_an_agent_that_is_put_to_work_in_another_way_is_not_guarded(inbox, native, method):
    lead = inbox.lead(native)
    object.__setattr__(lead, method, lambda *_args, **_kwargs: "done")  # as Agent(a2a=...) does
    with pytest.raises(ConfigError, match=f"its {method} was replaced") as refused:
        guard_agent(lead, inbox.guard)
    assert refused.value.code == "agent.unguardable"


class PastTheGuard(Agent):
    """A class of agents that gives its executor a tool of its own, at the end."""

    def create_agent_executor(self, tools: Any = None, task: Any = None) -> None:
        super().create_agent_executor(tools, task)
        executor: Any = self.agent_executor
        executor.original_tools = [*executor.original_tools, Reads(name="other")]
        executor.tools = [*executor.tools, executor.original_tools[-1].to_structured_tool()]


def test_a_class_of_agents_that_adds_tools_past_the_guard_does_not_run(inbox, native):
    llm = native.model(("other", {"path": "plan"}), "done")
    lead = PastTheGuard(role="Lead", goal="g", backstory="b", llm=llm, tools=[inbox.read_file])
    crew = guard_crew(native.crew(lead), inbox.guard)
    with inbox.alice(), pytest.raises(ConfigError, match="past the guard") as refused:
        crew.kickoff()
    assert refused.value.code == "tool.unguarded"
    assert inbox.calls() == []


@pytest.mark.filterwarnings("ignore:LiteAgent is deprecated:FutureWarning")
def test_what_is_no_agent_of_a_crew_is_not_guarded(inbox, native):
    lite: Any = LiteAgent(role="Hand", goal="g", backstory="b", llm=native.model())
    with pytest.raises(ConfigError, match="expected a CrewAI agent"):
        guard_agent(lite, inbox.guard)


RESTORED = {
    "kickoff": lambda crew, _agent, config: crew.kickoff(from_checkpoint=config),
    "kickoff-positional": lambda crew, _agent, config: crew.kickoff(None, None, config),
    "kickoff_async": lambda crew, _agent, config: asyncio.run(
        crew.kickoff_async(from_checkpoint=config)
    ),
    "akickoff": lambda crew, _agent, config: asyncio.run(crew.akickoff(from_checkpoint=config)),
    "agent": lambda _crew, agent, config: agent.kickoff("go on", from_checkpoint=config),
    "agent-positional": lambda _crew, agent, config: agent.kickoff("go on", None, None, config),
    "agent-kickoff_async": lambda _crew, agent, config: asyncio.run(
        agent.kickoff_async("go on", from_checkpoint=config)
    ),
    "agent-akickoff": lambda _crew, agent, config: asyncio.run(
        agent.akickoff("go on", from_checkpoint=config)
    ),
}


@pytest.mark.parametrize("begin", RESTORED)
def test_what_is_restored_from_a_checkpoint_is_not_run(inbox, native, tmp_path, begin):
    lead = inbox.lead(native, tools=[Reads()])
    crew = guard_crew(native.crew(lead), inbox.guard)
    kept = CheckpointConfig(location=str(tmp_path), on_events=["task_completed"])
    with inbox.alice():
        crew.kickoff(from_checkpoint=kept)
    before = inbox.calls()
    (written,) = tmp_path.rglob("*.json")
    config = CheckpointConfig(location=str(tmp_path), restore_from=str(written))
    with inbox.alice(), pytest.raises(ConfigError, match="a checkpoint holds no identities"):
        RESTORED[begin](crew, lead, config)
    assert inbox.calls() == before


def test_a_checkpoint_tells_nothing_of_identities_and_is_guarded_anew(inbox, native, tmp_path):
    lead = inbox.lead(native, tools=[Reads()])
    kept = CheckpointConfig(location=str(tmp_path), on_events=["task_completed"])
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard), from_checkpoint=kept)
    (written,) = tmp_path.rglob("*.json")
    text = written.read_text()
    assert "Lead" in text
    thumbprint = inbox.calls()[0].instance.rpartition("/")[2]
    assert not [word for word in ("_agentguard", "spiffe", thumbprint) if word in text]
    config = CheckpointConfig(location=str(tmp_path), restore_from=str(written))
    # it leaves what it has restored in the context
    crew = contextvars.copy_context().run(Crew.from_checkpoint, config)
    assert type(crew) is Crew
    assert type(crew.agents[0]) is Agent
    guard_crew(crew, inbox.guard)
    again: Any = crew.agents[0]
    again.llm = native.model(*BOTH, "done")
    with inbox.alice():
        again.kickoff("go on")
    assert len({call.instance for call in inbox.calls()}) == 2


# --- what gets a guarded tool in its hands ------------------------------------------------------


def with_func(tool, function):
    tool.func = function
    return tool


# Each takes a guarded tool, its structured twin and a path.
WAYS_IN = {
    "run": lambda t, s, p: t.run(path=p),
    "run-positional": lambda t, s, p: t.run(p),
    "_run": lambda t, s, p: t._run(path=p),
    "_run-positional": lambda t, s, p: t._run(p),
    "structured": lambda t, s, p: s.invoke({"path": p}),
    "structured-text": lambda t, s, p: s.invoke(json.dumps({"path": p})),
    "structured-func": lambda t, s, p: s.func(path=p),
    "structured-_run": lambda t, s, p: s._run(p),
    "structured-copy": lambda t, s, p: s.model_copy().invoke({"path": p}),
    "structured-original": lambda t, s, p: s._original_tool.run(path=p),
    "structured-again": lambda t, s, p: t.to_structured_tool().invoke({"path": p}),
    "listed": lambda t, s, p: to_langchain([t])[0].invoke({"path": p}),
    "converted-structured": lambda t, s, p: Tool.from_langchain(s).run(path=p),
    "run-of-the-class": lambda t, s, p: BaseTool.run(t, path=p),
    "unwrapped": lambda t, s, p: inspect.unwrap(s.func)(path=p),
}
FUNCTION_WAYS_IN = {
    "func": lambda t, s, p: t.func(p),
    "func-unwrapped": lambda t, s, p: inspect.unwrap(t.func)(p),
    "run-of-the-class-of-functions": lambda t, s, p: Tool.run(t, path=p),
    "_run-of-the-class-of-functions": lambda t, s, p: Tool._run(t, path=p),
    "converted": lambda t, s, p: Tool.from_langchain(t).run(path=p),
    "assigned": lambda t, s, p: with_func(t, vars(t)["func"]).run(path=p),
}


@pytest.mark.parametrize(
    ("kind", "enter"),
    [
        *[(kind, enter) for kind in ("function", "class") for enter in WAYS_IN],
        *[("class-with-run", enter) for enter in WAYS_IN if enter != "run-positional"],
        *[("function", enter) for enter in FUNCTION_WAYS_IN],
    ],
)
def test_the_ways_into_a_tool_that_an_executor_has(inbox, native, kind, enter):
    lead: Any = guard_agent(inbox.lead(native, tools=[KINDS[kind](inbox)]), inbox.guard)
    inbox.ran = getattr(lead.tools[0], "ran", inbox.ran)
    lead.create_agent_executor()
    (guarded,), (structured,) = lead.agent_executor.original_tools, lead.agent_executor.tools
    way_in = {**WAYS_IN, **FUNCTION_WAYS_IN}[enter]
    with inbox.alice():
        assert way_in(guarded, structured, "plan") == "the content of plan"
        refused = way_in(guarded, structured, "secret")
    assert isinstance(refused, ToolFailure)
    assert refused.code == "policy.denied"
    inbox.require_both()


@pytest.mark.parametrize("enter", ["arun", "_arun"])
async def test_the_async_ways_into_a_tool(inbox, native, enter):
    lead: Any = guard_agent(inbox.lead(native, tools=[of_coroutine_function(inbox)]), inbox.guard)
    lead.create_agent_executor()
    (guarded,) = lead.agent_executor.original_tools
    with inbox.alice():
        assert await getattr(guarded, enter)(path="plan") == "plan"
        assert (await getattr(guarded, enter)(path="secret")).code == "policy.denied"
    inbox.require_both()


async def test_a_thread_of_crewais_own_that_has_lost_the_context_widens_nothing(inbox, native):
    lead: Any = guard_agent(inbox.lead(native), inbox.guard)
    lead.create_agent_executor()
    (structured,) = lead.agent_executor.tools
    with inbox.alice():
        assert (await structured.ainvoke({"path": "plan"})).code == "delegation.missing"
    assert (inbox.ran, [call.chain for call in inbox.calls()]) == ([], [()])


def test_no_attribute_of_a_gated_function_leads_past_it(inbox, native):
    lead: Any = guard_agent(inbox.lead(native, tools=[inbox.read_file]), inbox.guard)
    lead.create_agent_executor()
    (guarded,), (structured,) = lead.agent_executor.original_tools, lead.agent_executor.tools
    for function in (guarded.func, structured.func, guarded.run, guarded._run):
        assert not hasattr(function, "__wrapped__")
    assert guarded.func.__name__ == inbox.read_file.func.__name__
    assert inbox.read_file.func not in vars(guarded.func).values()


def test_the_policy_sees_what_a_hook_made_of_the_arguments(inbox, way, hooks):
    def change(context: Any) -> None:
        context.tool_input["path"] = {"plan": "secret", "secret": "plan"}[
            context.tool_input["path"]
        ]

    hooks(before=change)
    output = inbox.kickoff(guard_crew(way.crew(inbox.lead(way)), inbox.guard))
    assert codes(output) == [["policy.denied"]]
    inbox.require_both()
    asked = [document["args"]["path"] for document in inbox.made.asked]
    assert asked == ["secret", "plan"]  # the model has asked for them the other way round


def test_a_hook_that_fails_lets_nothing_past_the_gate(inbox, way, hooks):
    def broken(_context: Any) -> None:
        raise RuntimeError

    hooks(before=broken, after=broken)
    inbox.kickoff(guard_crew(way.crew(inbox.lead(way)), inbox.guard))
    inbox.require_both()


def test_what_a_hook_has_blocked_is_no_call(inbox, way, hooks):
    hooks(before=lambda context: False if context.tool_input["path"] == "plan" else None)
    inbox.kickoff(guard_crew(way.crew(inbox.lead(way)), inbox.guard))
    assert (inbox.ran, inbox.story()) == ([], [("lead", "read_file", "secret", "policy.denied")])


def test_a_hook_that_calls_the_tool_itself_is_gated(inbox, way, hooks):
    results = []

    def call(context: Any) -> None:
        if context.tool_input["path"] == "plan":
            results.append(context.tool.func(path="secret"))
            results.append(context.tool._original_tool.run(path="paper"))

    hooks(after=call)
    inbox.kickoff(guard_crew(way.crew(inbox.lead(way, PLAN, "done")), inbox.guard))
    assert [getattr(one, "code", one) for one in results] == [
        "policy.denied",
        "the content of paper",
    ]
    assert inbox.ran == ["plan", "paper"]
    assert {(call.agent, call.chain) for call in inbox.calls()} == {("lead", CHAIN)}


def test_a_hook_that_calls_the_tool_before_the_model_does_is_another_call(inbox, way, hooks):
    results = []

    def call(context: Any) -> None:
        results.append(context.tool.func(path="secret" if len(results) == 0 else "paper"))

    hooks(before=call)
    lead = inbox.lead(way, PLAN, ("read_file", {"path": "page"}), "done")
    output = inbox.kickoff(guard_crew(way.crew(lead), inbox.guard))
    assert [getattr(one, "code", one) for one in results] == [
        "policy.denied",
        "the content of paper",
    ]
    assert codes(output) == [[]]
    assert inbox.ran == ["plan", "paper", "page"]
    assert {(call.agent, call.chain) for call in inbox.calls()} == {("lead", CHAIN)}


@pytest.mark.parametrize(("kind", "name"), REPLACED)
def test_what_a_hook_puts_in_the_place_of_a_way_in_is_gated(inbox, native, hooks, kind, name):
    made: Any = KINDS[kind](inbox)
    inbox.ran = getattr(made, "ran", inbox.ran)
    ran = inbox.ran

    def put(context: Any) -> None:
        held = context.tool._original_tool

        def instead(path: str) -> str:
            ran.append(path)
            return path

        object.__setattr__(held, name, instead)

    hooks(before=put)
    lead = inbox.lead(native, ("read_file", {"path": "paper"}), *BOTH, "done", tools=[made])
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert "secret" not in ran
    assert inbox.story() == [
        ("lead", "read_file", "paper", "ok"),
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file", "secret", "policy.denied"),
    ]


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_callback_gets_guarded_tools_of_the_executor(inbox, native, begin):
    found: list[Any] = []
    lead = inbox.lead(native, PLAN, "done")

    def look(_given: Any) -> None:
        executor: Any = lead.agent_executor
        if not found:
            found.append(executor.original_tools[0].run(path="secret"))
            found.append(executor.tools[0].invoke({"path": "secret"}))

    crew = guard_crew(native.crew(lead), inbox.guard)
    crew.tasks[0].callback = look
    with inbox.alice():
        CREW_WAYS[begin](crew)
    assert [one.code for one in found] == ["policy.denied"] * 2
    assert inbox.ran == ["plan"]
    assert [call.chain for call in inbox.calls()] == [CHAIN] * 3


def test_the_tool_that_was_given_stays_the_object_that_it_was_and_runs_for_its_agent_alone(
    inbox, native
):
    lead = inbox.lead(native)
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert lead.tools == [inbox.read_file]
    assert isinstance(inbox.read_file, Tool)
    with pytest.raises(UnguardedCallError):
        inbox.read_file.run(path="secret")
    assert len(inbox.calls()) == 2
