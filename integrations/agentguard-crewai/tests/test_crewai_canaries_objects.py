"""What the adapter relies on in CrewAI's agents, crews, classes of crews and flows.

Nothing is guarded: each test states a fact of CrewAI alone, and fails when a release changes it.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.events.event_context import _event_id_stack, restore_event_scope
from crewai.flow import Flow, listen, or_, start
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext
from crewai.flow.flow_context import current_flow_method_name
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.flow.runtime import _iter_condition_events
from crewai.flow.types import FlowMethodName
from crewai.project import CrewBase, agent, task
from crewai.project import crew as crew_method
from crewai.project.crew_base import AgentConfig, _filter_methods
from crewai.state.checkpoint_config import CheckpointConfig, apply_checkpoint
from crewai.tools import tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai_unguarded import READ, changed, task_of, watched
from pydantic import BaseModel, PrivateAttr

# --- what an agent and a crew are ---------------------------------------------------------------


class Private(BaseModel):
    """A mixin such as the adapter's."""

    _secret: Any = PrivateAttr(default=None)


def swapped(one, secret):
    kind = type(type(one).__name__, (Private, type(one)), {"__module__": type(one).__module__})
    one.__class__ = kind
    one._secret = secret
    return one


def test_what_is_private_is_written_down_nowhere(native):
    lead: Any = swapped(native.agent("Lead"), "hidden treasure")
    crew: Any = swapped(native.crew(lead), "hidden treasure")
    for one in (lead, crew):
        assert one._secret == "hidden treasure"
        for text in (repr(one), str(one.model_dump()), str(dict(one))):
            assert "hidden treasure" not in text, changed("private attributes", "agents.py")
    assert "hidden treasure" not in lead.model_dump_json()


def test_a_copy_of_an_agent_is_of_its_class_and_of_a_crew_is_not(native):
    lead: Any = swapped(native.agent("Lead"), "it")
    crew: Any = swapped(native.crew(lead), "it")
    for copied in (lead.copy(), crew.copy().agents[0]):
        assert type(copied) is type(lead), changed("Agent.copy", "agents.py, copy")
        assert copied._secret is None
        assert copied.id != lead.id
        assert copied.agent_executor is None, changed("a copy's executor", "agents.py, copy")
    assert type(crew.copy()) is Crew, changed("Crew.copy", "crews.py, copy")
    for copied in (copy.copy(lead), lead.model_copy()):
        assert copied._secret == "it", changed("shallow copies", "agents.py, __copy__")


def test_a_copy_of_a_crew_keeps_the_order_of_agents_and_finds_a_tasks_by_its_role(native):
    twins = [native.agent("Lead"), native.agent("Lead"), native.agent("Hand")]
    crew = Crew(agents=twins, tasks=[task_of(one) for one in twins])
    copied = crew.copy()
    where = "crews.py, copy"
    assert [one.role for one in copied.agents] == ["Lead", "Lead", "Hand"], changed("order", where)
    found = [copied.agents.index(one.agent) for one in copied.tasks]
    assert found == [0, 0, 2], changed("how a task's agent is found", where)


async def test_an_agents_akickoff_is_its_kickoff_async(native):
    asked: list[Any] = []

    class Asked(Agent):
        async def kickoff_async(self, *args: Any, **kwargs: Any) -> Any:
            asked.append((args, kwargs))
            return "done"

    lead = Asked(role="Lead", goal="g", backstory="b", llm=native.model())
    assert await lead.akickoff("go on") == "done"
    assert len(asked) == 1, changed("Agent.akickoff", "agents.py, kickoff_async")


def test_a_role_is_kept_as_it_was_written(native):
    lead: Any = native.agent("{what} Writer", "done")
    assert lead._original_role is None
    native.crew(lead).kickoff(inputs={"what": "Senior"})
    assert lead.role == "Senior Writer"
    assert lead._original_role == "{what} Writer", changed(
        "_original_role", "agents.py, _require_crewai_role"
    )
    assert lead.copy().role in ("Senior Writer", "{what} Writer")


def test_a_checkpoint_is_restored_as_the_class_that_it_is_asked_of(tmp_path):
    asked: list[Any] = []

    class Asked:
        checkpoint: Any = None

        @classmethod
        def from_checkpoint(cls, config: Any) -> Any:
            asked.append(config)
            return cls()

    config = CheckpointConfig(location=str(tmp_path), restore_from=str(tmp_path))
    assert isinstance(apply_checkpoint(Asked(), config), Asked)
    assert asked == [config], changed("restore_from", "agents.py, refuse_restoring")
    assert apply_checkpoint(Asked(), CheckpointConfig(location=str(tmp_path))) is None
    for kind, place in ((Crew, 2), (Agent, 3)):
        for name in ("kickoff", "kickoff_async", "akickoff"):
            names = [n for n in inspect.signature(getattr(kind, name)).parameters if n != "self"]
            found = names.index("from_checkpoint")
            assert found == place, changed(f"{kind.__name__}.{name}", "refuse_restoring")


def test_event_scopes_are_kept_in_a_context(native):
    seen: list[Any] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        seen.append(_event_id_stack.get())
        return path

    native.crew(native.agent("Lead", READ, "done", tools=[read_file])).kickoff()
    kinds = [kind for _event, kind in seen[0]][len(_event_id_stack.get()) :]
    assert kinds[:3] == ["crew_kickoff_started", "task_started", "agent_execution_started"], (
        changed(f"the scopes around a tool: {kinds}", "event_scopes.py")
    )
    before = _event_id_stack.get()
    restore_event_scope((("id", "crew_kickoff_started"),))
    assert _event_id_stack.get() == (("id", "crew_kickoff_started"),)
    restore_event_scope(before)


# --- classes of crews ---------------------------------------------------------------------------


AGENTS_YAML = """
lead:
  role: Lead
  goal: a goal
  backstory: a story
  identity: boss
"""


@pytest.fixture
def made(tmp_path, native):
    """An instance of a class of crews, as its authors write it."""
    (tmp_path / "agents.yaml").write_text(AGENTS_YAML)
    (tmp_path / "tasks.yaml").write_text(
        "it:\n  description: d\n  expected_output: w\n  agent: lead\n"
    )

    @CrewBase
    class Crews:
        """A class of crews."""

        agents_config = str(tmp_path / "agents.yaml")
        tasks_config = str(tmp_path / "tasks.yaml")

        @agent
        def lead(self) -> Agent:
            return Agent(config=self.agents_config["lead"], llm=native.model("done"))  # type: ignore[index]

        @task
        def it(self) -> Task:
            told: Any = self.tasks_config
            return Task(config=told["it"])  # type: ignore[call-arg]

        @crew_method
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)  # type: ignore[attr-defined]

    return Crews()


def test_the_method_below_crew_is_one_of_crewais_wrappers(made):
    layers, found = vars(type(made))["crew"], []
    while layers is not None:
        found.append(layers)
        layers = getattr(layers, "__wrapped__", None)
    wrappers = [
        one
        for one in found
        if getattr(one, "__code__", None) is not None
        and one.__code__.co_qualname == "crew.<locals>.wrapper"
        and one.__globals__["__name__"] == "crewai.project.annotations"
    ]
    assert len(wrappers) == 1, changed(f"how @crew wraps: {found}", "crewbase.py, _is_crew")
    assert isinstance(made.crew(), Crew)


def test_a_class_of_crews_keeps_its_file_and_its_methods(made):
    where = "crewbase.py"
    assert made.agents_config["lead"]["identity"] == "boss", changed("agents_config", where)
    assert str(made.original_agents_config_path).endswith("agents.yaml"), changed("path", where)
    methods = _filter_methods(made._all_methods, "is_agent")
    assert list(methods) == ["lead"], changed("_all_methods", where)
    assert made.lead() is made.crew().agents[0], changed("agents are made anew", where)


def test_a_key_that_crewai_does_not_know_is_dropped(native):
    told = {"role": "Lead", "goal": "g", "backstory": "b", "identity": "boss"}
    lead = Agent(config=told, llm=native.model())
    assert not hasattr(lead, "identity"), changed("Agent has an identity now", "crewbase.py")
    assert {"role", "goal", "backstory", "tools", "llm"} <= set(AgentConfig.__annotations__)
    assert "identity" not in {*Agent.model_fields, *AgentConfig.__annotations__}


# --- flows --------------------------------------------------------------------------------------


TURNS: list[Any] = []


class Pausing(Flow[dict[str, Any]]):
    """A flow that pauses once, and goes on with what it is told."""

    @start()
    def begin(self) -> None:
        pass

    @listen(or_(begin, "answered"))
    def first(self) -> str:
        TURNS.append(current_flow_method_name.get())
        if self.last_human_feedback is None:
            context = PendingFeedbackContext(
                flow_id=self.flow_id,
                flow_class=f"{type(self).__module__}.{type(self).__qualname__}",
                method_name="first",
                method_output=None,
                message="it waits",
                emit=["answered"],
                default_outcome="answered",
            )
            raise HumanFeedbackPending(context)
        return "done"

    @listen(first)
    async def second(self, result: str) -> str:
        TURNS.append(current_flow_method_name.get())
        return result


def test_a_flow_that_pauses_keeps_what_it_is_told_to(tmp_path):
    kept = functools.partial(SQLiteFlowPersistence, str(tmp_path / "flows.db"))
    TURNS.clear()
    flow = Pausing(persistence=kept(), suppress_flow_events=True)
    paused = flow.kickoff()
    where = "flows.py"
    assert isinstance(paused, HumanFeedbackPending), changed("a pause", where)
    assert paused.context.method_name == "first", changed("the method of a pause", where)
    resumed: Any = Pausing.from_pending(flow.flow_id, kept(), suppress_flow_events=True)
    assert resumed.resume() == "done", changed("how a flow goes on", where)
    assert TURNS == ["first", "first", "second"], changed("current_flow_method_name", where)
    assert not hasattr(Pausing, current_flow_method_name.get()), changed("its default", where)


def test_a_flow_tells_what_its_methods_listen_to():
    flow, where = Pausing(suppress_flow_events=True), "flows.py"
    told = {
        name: listens if listens is None else sorted(_iter_condition_events(listens))
        for name in ("begin", "first", "second")
        for listens in [flow._listen_condition(FlowMethodName(name))]
    }
    expected = {"begin": None, "first": ["answered", "begin"], "second": ["first"]}
    assert told == expected, changed("_listen_condition", where)


def test_a_stream_runs_when_it_is_read(native):
    where = "crews.py, _bind_stream"
    crew = native.crew(native.agent("Lead", "done"), stream=True)
    streaming: Any = crew.kickoff()
    assert streaming._sync_iterator is not None, changed("what is iterated", where)
    assert crew.agents[0].llm.heard == [], changed("it runs at once", where)  # type: ignore[union-attr]
    list(streaming)
    assert streaming.result.raw == "done"

    async def later() -> Any:
        return await crew.akickoff()

    assert asyncio.run(later())._async_iterator is not None, changed("what is iterated", where)


@pytest.mark.parametrize("begin", ["execute_task", "aexecute_task"])
def test_an_agent_answers_with_any_result_that_is_there(native, begin):
    lead: Any = native.agent("Lead", "done")
    lead.tools_results.append({"result": "of another task", "result_as_answer": True})
    task = task_of(lead)
    said = (
        lead.execute_task(task)
        if begin == "execute_task"
        else asyncio.run(lead.aexecute_task(task))
    )
    where = "agents.py, tools_results"
    assert said == "of another task", changed("results of tools are emptied", where)


def test_without_a_role_no_fingerprint_is_set(text, read_file, ran):
    lead = watched(text, READ, "done", tools=[read_file], role="")
    text.crew(lead).kickoff()
    assert ran == ["plan"]
    assert lead.noted("fingerprint") == [], changed("it is set now", "agents.py, _work_as")


def test_threads_of_crewai_are_those_that_the_adapter_knows(native):
    """A tool runs beside the loop, not on it: a call that waits for people blocks no other."""
    seen: list[Any] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        seen.append(threading.current_thread())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return path

    async def both() -> None:
        crew = native.crew(native.agent("Lead", READ, "done", tools=[read_file]))
        await crew.akickoff()
        seen.append(threading.current_thread())

    asyncio.run(both())
    tools, loop = seen
    assert tools is not loop, changed("tools run on the event loop", "gate.py, run")


def test_a_structured_tool_runs_its_function_and_no_other(read_file):
    structured = CrewStructuredTool.from_function(lambda path: path, name="n", description="d")
    assert structured.invoke({"path": "a"}) == "a"
    structured.func = lambda path: path * 2
    assert structured.invoke({"path": "a"}) == "aa", changed("invoke", "tools.py, _Structured")
