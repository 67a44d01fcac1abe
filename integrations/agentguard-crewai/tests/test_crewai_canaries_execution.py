"""What the adapter relies on in CrewAI's failures, retries, delegated work and contexts.

Nothing is guarded: each test states a fact of CrewAI alone, and fails when a release changes it.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import threading
from contextvars import ContextVar
from pathlib import Path
from queue import Queue
from typing import Any

import crewai
import pytest
import rounds
from crewai import Agent, Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import tool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from crewai_unguarded import READ, Noting, changed, task_of, watched
from pydantic import PrivateAttr

# --- failures and tries -------------------------------------------------------------------------


def test_a_failure_is_one_execution_that_model_and_task_are_told_of(way):
    tries: list[str] = []
    handler = Noting()

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        return ToolFailure(message="not this one", code="policy.denied")  # type: ignore[return-value]

    lead = way.agent("Lead", READ, "done", tools=[read_file], cache_handler=handler)
    output = way.crew(lead).kickoff()
    where = "denial.py"
    assert tries == ["plan"], changed("a failure is tried again", where)
    (failed,) = output.tasks_output[0].tool_failures
    assert (failed.failure.code, failed.failure.message) == ("policy.denied", "not this one")
    said = str(output.tasks_output[0].messages)
    assert "not this one (code: policy.denied)" in said, changed("what a model is told", where)
    (stored,) = [handler.read("read_file", '{"path": "plan"}')]
    assert stored is None, changed("a failure is cached", where)


def test_a_result_that_is_the_answer_is_none_where_it_has_failed(way):
    @tool(result_as_answer=True)
    def read_file(path: str) -> str:
        """Read a file."""
        return ToolFailure(message="no")  # type: ignore[return-value]

    lead = way.agent("Lead", READ, "done", tools=[read_file])
    assert way.crew(lead).kickoff().raw == "done", changed("a failure is the answer", "denial.py")


def test_a_fingerprint_is_set_once_before_each_text_action(text):
    tries: list[str] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        raise ValueError(path)

    lead = watched(text, READ, ("read_file", {"path": "b"}), "done", tools=[read_file])
    text.crew(lead).kickoff()
    where = "call.py, Action"
    assert tries == [*["plan"] * 6, *["b"] * 6], changed("how often CrewAI tries", where)
    assert len(lead.noted("fingerprint")) == 2, changed("when a fingerprint is set", where)


def test_a_fingerprint_is_not_set_for_native_calls(native, read_file):
    lead = watched(native, READ, "done", tools=[read_file])
    native.crew(lead).kickoff()
    assert lead.noted("fingerprint") == [], changed("native calls set it", "call.py, Action")


def test_a_native_call_is_tried_once(native):
    tries: list[str] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        raise ValueError(path)

    output = native.crew(native.agent("Lead", READ, "done", tools=[read_file])).kickoff()
    assert tries == ["plan"], changed("native calls are tried again", "call.py, Action")
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason is ToolFailureReason.EXCEPTION


class Stop(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("how", ["alone", "several", "coworker", "akickoff"])
def test_what_is_no_exception_passes_through_crewai(native, text, how):
    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        raise Stop

    for way in (native, text):
        if how == "several" and not way.native:
            continue
        steps: Any = [[READ, READ]] if how == "several" else [READ]
        lead = way.agent("Lead", *steps, "done", tools=[read_file])
        crew = way.crew(lead)
        if how == "coworker":
            hands = ("delegate_work_to_coworker", {"task": "t", "context": "c", "coworker": "Lead"})
            boss = way.agent("Boss", hands, "done", allow_delegation=True)
            crew = Crew(agents=[boss, lead], tasks=[task_of(boss)])
        begin = (lambda: asyncio.run(crew.akickoff())) if how == "akickoff" else crew.kickoff  # noqa: B023
        with pytest.raises(Stop):
            contextvars.copy_context().run(begin)  # CrewAI leaves its scopes open


def test_what_is_no_exception_ends_the_thread_of_a_task_and_leaves_it_open(native, monkeypatch):
    ended: Queue[Any] = Queue()
    monkeypatch.setattr(threading, "excepthook", lambda told: ended.put(told.exc_type))

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        raise Stop

    lead = native.agent("Lead", READ, "done", tools=[read_file])
    future = task_of(lead, async_execution=True).execute_async(lead)
    assert ended.get(timeout=120) is Stop
    assert not future.done(), changed("whoever waits for such a task is told", "agents.py")


def test_parallel_steps_of_a_plan_take_what_is_no_exception_for_a_failure():
    path = Path(crewai.__file__).parent / "agents" / "agent_executor.py"
    written = ast.parse(path.read_text("utf-8"))
    gathered = [
        node
        for node in ast.walk(written)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.gather"
    ]
    taken = [{one.arg: ast.unparse(one.value) for one in node.keywords} for node in gathered]
    where = "agents.py, _work_as"
    assert taken == [{"return_exceptions": "True"}], changed("how steps end", where)


# --- work that is handed on ---------------------------------------------------------------------


class Handed(Agent):
    """An agent that notes the work it is given."""

    _given: list[Any] = PrivateAttr(default_factory=list)

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> Any:
        self._given.append((task.description, context, tools))
        if task.description == "fail":
            raise ValueError("it can't be done")
        return "it is done"


@pytest.mark.parametrize(("number", "argument"), [(0, "task"), (1, "question")])
def test_a_delegation_tool_has_its_coworker_execute_a_task(native, number, argument):
    twins: list[Any] = [
        Handed(role=role, goal="g", backstory="b", llm=native.model())
        for role in ("Hand", " HAND", "Other")
    ]
    made = native.agent("Lead").get_delegation_tools(twins)[number]
    where = "coworkers.py, coworker_of"
    assert isinstance(made, BaseAgentTool)
    assert made.agents == twins
    told = {"context": "c", "coworker": "[ hand , Other]"}
    assert made.run(**{argument: "work", **told}) == "it is done"
    given = [one._given for one in twins]
    assert given == [[("work", "c", None)], [], []], changed("who gets the work", where)
    said = made.run(**{argument: "fail", **told})
    where = "coworkers.py, run_handover"
    assert "it can't be done" in said, changed("what a coworker raises is not a text", where)
    assert made._get_coworker("a", co_worker="b") == "a"
    assert made._get_coworker(None, co_worker="b") == "b"
    assert made._get_coworker(coworker=None, co_worker="[x, y]") == "x"
    assert made.sanitize_agent_name(' A "b"\n c ') == "a b c"


def test_delegation_tools_are_the_only_ones_that_hand_work_on():
    kinds = {kind.__name__ for kind in BaseAgentTool.__subclasses__()}
    theirs = {k for k in kinds if not k.startswith("_")}
    assert theirs == {"DelegateWorkTool", "AskQuestionTool"}, changed("those tools", "coworkers.py")


@pytest.mark.parametrize("begin", ["kickoff", "akickoff", "replay"])
def test_a_hierarchical_crew_makes_its_manager_and_asks_who_is_to_work(native, begin):
    asked: list[Any] = []

    class Asking(Crew):
        def _create_manager_agent(self) -> None:
            super()._create_manager_agent()
            asked.append(self.manager_agent)

        def _get_agent_to_use(self, task: Task) -> Any:
            asked.append(super()._get_agent_to_use(task))
            return asked[-1]

    hand = native.agent("Hand", "done")
    crew = Asking(
        agents=[hand],
        tasks=[task_of(hand)],
        process=Process.hierarchical,
        manager_llm=native.model("done", "done"),
    )
    if begin == "akickoff":
        asyncio.run(crew.akickoff())
    else:
        crew.kickoff()
    if begin == "replay":
        asked.clear()
        crew.replay(str(crew.tasks[0].id))
    manager = crew.manager_agent
    assert manager is not None
    assert asked == [manager, manager], changed("when it is made, and who works", "crews.py")
    assert manager.role == "Crew Manager", changed("its role", "the pages: crew-manager")


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_sequential_crew_asks_who_is_to_work(native, begin):
    asked: list[Any] = []

    class Asking(Crew):
        def _get_agent_to_use(self, task: Task) -> Any:
            asked.append(super()._get_agent_to_use(task))
            return asked[-1]

    lead, hand = native.agent("Lead", "done"), native.agent("Hand", "done")
    crew = Asking(agents=[lead, hand], tasks=[task_of(hand), task_of(lead)])
    asyncio.run(crew.akickoff()) if begin == "akickoff" else crew.kickoff()
    assert asked == [hand, lead], changed("who works at a task", "crews.py, _get_agent_to_use")


# --- what is in a context -----------------------------------------------------------------------


WHO: ContextVar[str] = ContextVar("who", default="nobody")


def planned(native):
    steps: list[dict[str, Any]] = [
        {"step_number": at, "description": "read", "tool_to_use": None, "depends_on": []}
        for at in (1, 2)
    ]
    said = str({"plan": "p", "ready": True, "steps": steps})
    said = said.replace("'", '"').replace("True", "true").replace("None", "null")
    return PlanningConfig(reasoning_effort="low", max_attempts=1, llm=native.model(said))


CONTEXTS = {
    "kickoff": lambda crew: crew.kickoff(),
    "kickoff_async": lambda crew: asyncio.run(crew.kickoff_async()),
    "akickoff": lambda crew: asyncio.run(crew.akickoff()),
    "for-each": lambda crew: asyncio.run(crew.akickoff_for_each([{}])),
    "agent": lambda crew: crew.agents[0].kickoff("go on"),
    "async-task": lambda crew: crew.tasks[0].execute_async().result(),
    "stream": lambda crew: list(crew.model_copy(update={"stream": True}).kickoff()),
}


@pytest.mark.parametrize(
    ("begin", "options"), rounds.half(CONTEXTS, ["", "timeout", "several", "planner"])
)
def test_a_context_reaches_the_tools(native, text, begin, options):
    for way in (native, text):
        seen: list[str] = []

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            seen.append(WHO.get())  # noqa: B023  it is called in this turn
            return path

        steps: Any = [READ, "done"]
        given: dict[str, Any] = {"tools": [read_file]}
        if options == "timeout":
            given["max_execution_time"] = 60
        elif options == "several" and way.native:
            steps = [[READ, ("read_file", {"path": "b"})], "done"]
        elif options == "planner":
            given["planning_config"] = planned(native)
            steps = [READ, READ, "done", "done", "done"]
        crew = way.crew(way.agent("Lead", *steps, **given))
        token = WHO.set("alice")
        try:
            CONTEXTS[begin](crew)
        finally:
            WHO.reset(token)
        assert seen, changed("the tool was not called", "the design of chains")
        assert set(seen) == {"alice"}, changed("contexts are lost", "the design of chains")
