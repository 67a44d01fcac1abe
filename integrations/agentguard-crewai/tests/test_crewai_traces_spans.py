"""The spans of crews: in whose span each call is, on each path, and what is in no span.

A test compares whole trees: the spans that a crew makes, and no others. The attributes of a call's
span are the core's (``tests/unit/telemetry``); instrumentors are in
``test_crewai_instrumented.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from typing import Any

import pytest
from crewai import Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import tool
from crewai_traces import AGENT_WAYS, AGENTS, ONE, READ, hands, one_trace, task_of, tree
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode

from agentguard import Decision, Requirement
from agentguard.identity.credential import agent_alias
from agentguard_crewai import (
    agent_of,
    guard_agent,
    guard_crew,
    resumable,
)

SECRET: Any = ("read_file", {"path": "secret"})
BREAK: Any = ("break_it", {})


def statuses(spans, name):
    return [
        (span.status.status_code, span.attributes.get("error.type")) for span in spans.named(name)
    ]


# --- one trace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["delegate_work_to_coworker", "ask_question_to_coworker"])
def test_a_coworker_is_inside_the_call_that_hands_work_on(traced_team, native, spans, by):
    crew = traced_team.pair(native, [READ, hands(by), "done"], [READ, SECRET, "done"])
    with traced_team.alice():
        crew.kickoff()
    assert spans.tree() == tree(f"""
invoke_workflow report
  invoke_agent lead
    execute_tool read_file
    execute_tool {by}
      invoke_agent hand
        execute_tool read_file
        execute_tool read_file
""")
    one_trace(spans)
    lead, hand = crew.agents
    told = spans.one("invoke_agent hand").attributes
    assert told == {
        "gen_ai.operation.name": "invoke_agent",
        "agentguard.actor": agent_alias(agent_of(hand).id),
        "gen_ai.agent.name": "hand",
        "agentguard.agent.id": agent_of(hand).id,
        "agentguard.agent.type": "agent",
        "agentguard.principal.id": "user:alice",
        "user.id": "user:alice",
        "agentguard.delegation.chain": "user:alice>crew:report>agent:lead>agent:hand",
        "agentguard.delegation.depth": 3,
    }
    assert spans.one("invoke_workflow report").attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.agent.name": "report",
        "gen_ai.workflow.name": "report",
        "agentguard.principal.id": "user:alice",
        "user.id": "user:alice",
    }
    calls = [
        (span.attributes["agentguard.agent.id"], span.attributes["agentguard.policy.decision"])
        for span in spans.named("execute_tool read_file")
    ]
    assert calls == [
        (agent_of(lead).id, "allow"),
        (agent_of(hand).id, "allow"),
        (agent_of(hand).id, "deny"),
    ]


def test_the_calls_that_are_signed_name_the_trace_and_their_spans(traced_team, way, spans):
    crew = traced_team.pair(way, [READ, hands(), "done"], [SECRET, "done"])
    crew.kickoff()
    found = {
        (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")
        for span in spans.all()
        if span.name.startswith("execute_tool")
    }
    named = [str(call.predicate["traceparent"]).split("-") for call in traced_team.made.calls()]
    assert {(trace_id, span_id) for _version, trace_id, span_id, _flags in named} == found
    assert len(named) == 3


def test_the_agents_of_two_tasks_are_side_by_side(traced_team, native, spans):
    lead, hand = (traced_team.agent(native, role, READ, "done") for role in ("Lead", "Hand"))
    guard_crew(native.crew(lead, hand, name="report"), traced_team.guard).kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool read_file
  invoke_agent hand
    execute_tool read_file
""")


def test_the_crew_is_inside_what_asked_for_it(traced_team, native, spans):
    with trace.get_tracer("the application").start_as_current_span("request") as request:
        traced_team.crew(native, READ, "done").kickoff()
    assert spans.tree() == ["request", *(f"  {line}" for line in ONE)]
    assert trace.get_current_span() is not request


def test_the_manager_that_a_crew_makes(traced_team, native, spans):
    hand = traced_team.agent(native, "Hand", READ, "done")
    manager = native.model(hands(), "done")
    task = Task(description="a task", expected_output="words")
    hierarchy = {"process": Process.hierarchical, "manager_llm": manager}
    crew = Crew(name="report", agents=[hand], tasks=[task], **hierarchy)
    guard_crew(crew, traced_team.guard).kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent crew-manager
    execute_tool delegate_work_to_coworker
      invoke_agent hand
        execute_tool read_file
""")


def test_an_agent_that_a_tool_kicks_off_is_inside_the_call(traced_team, native, spans):
    hand = guard_agent(traced_team.agent(native, "Hand", READ, "done"), traced_team.guard)

    @tool
    def ask() -> str:
        """Ask somebody."""
        return str(hand.kickoff("go on").raw)

    lead = native.agent("Lead", ("ask", {}), "done", tools=[ask])
    guard_crew(native.crew(lead, name="report"), traced_team.guard).kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool ask
      invoke_agent hand
        execute_tool read_file
""")


def test_another_agent_at_the_same_task_has_a_span_of_its_own(traced_team, native, spans):
    hand = guard_agent(traced_team.agent(native, "Hand", READ, "done"), traced_team.guard)

    @tool
    def ask() -> str:
        """Ask somebody."""
        return str(hand.execute_task(task))

    lead = native.agent("Lead", ("ask", {}), "done", tools=[ask])
    task = task_of(lead)
    guard_crew(Crew(name="report", agents=[lead], tasks=[task]), traced_team.guard).kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool ask
      invoke_agent hand
        execute_tool read_file
""")


# --- threads, tasks and streams -------------------------------------------------------------------


async def read_all(streaming):
    async for _chunk in streaming:
        pass


BEGINNINGS = {
    "kickoff": lambda crew: crew.kickoff(),
    "kickoff_async": lambda crew: asyncio.run(crew.kickoff_async()),
    "akickoff": lambda crew: asyncio.run(crew.akickoff()),
}


@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("limit", [None, 60])
def test_however_a_crew_is_begun(traced_team, native, spans, begin, limit):
    lead = traced_team.agent(native, "Lead", READ, "done", max_execution_time=limit)
    BEGINNINGS[begin](guard_crew(native.crew(lead, name="report"), traced_team.guard))
    assert spans.tree() == ONE


def test_copies_of_a_crew_are_crews_of_their_own(traced_team, native, spans):
    crew = traced_team.crew(native, READ, "done", READ, "done")
    with trace.get_tracer("the application").start_as_current_span("request"):
        crew.kickoff_for_each(inputs=[{}, {}])
    assert spans.tree() == ["request", *(f"  {line}" for line in [*ONE, *ONE])]
    assert len({s.attributes["agentguard.agent.id"] for s in spans.named("invoke_agent lead")}) == 2


async def test_crews_at_once_on_a_loop_have_traces_of_their_own(traced_team, native, spans):
    crews = [traced_team.crew(native, READ, "done") for _ in range(3)]
    await asyncio.gather(*(crew.akickoff() for crew in crews))
    assert sorted(spans.tree()) == sorted(ONE * 3)
    assert len({span.context.trace_id for span in spans.all()}) == 3


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_tasks_that_are_executed_at_once(traced_team, native, spans, begin):
    together = threading.Barrier(2, timeout=120)

    @tool
    def meet() -> str:
        """Wait for the other one."""
        together.wait()
        return "met"

    lead, hand = (native.agent(r, ("meet", {}), "done", tools=[meet]) for r in ("Lead", "Hand"))
    last = native.agent("Crew manager", "done")
    tasks = [task_of(one, async_execution=True) for one in (lead, hand)]
    crew = Crew(name="report", agents=[lead, hand, last], tasks=[*tasks, task_of(last)])
    BEGINNINGS[begin](guard_crew(crew, traced_team.guard))
    assert spans.tree() in [
        tree(f"""
invoke_workflow report
  invoke_agent {first}
    execute_tool meet
  invoke_agent {second}
    execute_tool meet
  invoke_agent crew-manager
""")
        for first, second in (("lead", "hand"), ("hand", "lead"))
    ]


def test_calls_that_a_model_makes_at_once(traced_team, native, spans):
    together = threading.Barrier(2, timeout=120)

    @tool
    def meet(name: str) -> str:
        """Wait for the other one."""
        together.wait()
        return name

    both = [("meet", {"name": name}) for name in ("a", "b")]
    lead = native.agent("Lead", both, "done", tools=[meet])
    guard_crew(native.crew(lead, name="report"), traced_team.guard).kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool meet
    execute_tool meet
""")


def test_the_steps_of_a_planner(traced_team, native, spans):
    steps = [
        {"step_number": at, "description": what, "tool_to_use": None, "depends_on": after}
        for at, what, after in ((1, "first", []), (2, "second", [1]))
    ]
    plan = native.model(json.dumps({"plan": "a plan", "ready": True, "steps": steps}))
    planning = PlanningConfig(reasoning_effort="low", max_attempts=1, llm=plan)
    said = (READ, "the first is done", SECRET, "the second is done", "done")
    lead = traced_team.agent(native, "Lead", *said, planning_config=planning)
    guard_crew(native.crew(lead, name="report"), traced_team.guard).kickoff()
    assert spans.tree() == [*ONE, "    execute_tool read_file"]


STREAMS = {
    "kickoff": lambda crew: list(crew.kickoff()),
    "kickoff_async": lambda crew: asyncio.run(streamed(crew.kickoff_async)),
    "akickoff": lambda crew: asyncio.run(streamed(crew.akickoff)),
}


async def streamed(begin):
    await read_all(await begin())


@pytest.mark.parametrize("begin", STREAMS)
def test_a_stream_is_inside_what_reads_it(traced_team, native, spans, begin):
    lead = traced_team.agent(native, "Lead", READ, "done")
    crew = Crew(name="report", agents=[lead], tasks=[task_of(lead)], stream=True)
    guard_crew(crew, traced_team.guard)
    with trace.get_tracer("the application").start_as_current_span("request"):
        STREAMS[begin](crew)
    assert spans.tree() == ["request", *(f"  {line}" for line in ONE)]


@pytest.mark.parametrize("begin", AGENT_WAYS)
def test_an_agent_without_a_crew(traced_team, native, spans, begin):
    lead = guard_agent(traced_team.agent(native, "Lead", READ, "done"), traced_team.guard)
    AGENT_WAYS[begin](lead)
    assert spans.tree() == ["invoke_agent lead", "  execute_tool read_file"]


async def test_an_agent_that_is_kicked_off_on_a_loop_has_one_span(traced_team, native, spans):
    lead = guard_agent(traced_team.agent(native, "Lead", READ, "done"), traced_team.guard)
    output = await lead.kickoff("go on")
    assert output.raw == "done"
    assert spans.tree() == ["invoke_agent lead", "  execute_tool read_file"]


# --- failures -------------------------------------------------------------------------------------


def test_a_denial_is_an_error_of_the_call_alone(traced_team, way, spans):
    traced_team.crew(way, READ, SECRET, "done").kickoff()
    assert statuses(spans, "execute_tool read_file") == [
        (StatusCode.UNSET, None),
        (StatusCode.ERROR, "policy.denied"),
    ]
    assert statuses(spans, "invoke_agent lead") == [(StatusCode.UNSET, None)]
    assert statuses(spans, "invoke_workflow report") == [(StatusCode.UNSET, None)]


def test_what_a_tool_raises_is_an_error_of_the_call_alone(traced_team, native, spans):
    traced_team.crew(native, BREAK, "done").kickoff()
    assert statuses(spans, "execute_tool break_it") == [(StatusCode.ERROR, "LookupError")]
    assert statuses(spans, "invoke_agent lead") == [(StatusCode.UNSET, None)]


def test_what_a_model_raises_is_an_error_of_the_agent_and_of_the_crew(traced_team, native, spans):
    crew = traced_team.crew(native, READ, ZeroDivisionError("the model is down"))
    with pytest.raises(ZeroDivisionError):
        crew.kickoff()
    for name in ("invoke_agent lead", "invoke_workflow report"):
        assert statuses(spans, name) == [(StatusCode.ERROR, "ZeroDivisionError")]
    assert statuses(spans, "execute_tool read_file") == [(StatusCode.UNSET, None)]


def test_a_second_try_is_the_same_work(traced_team, native, spans):
    lead = traced_team.agent(
        native, "Lead", READ, OSError("again"), READ, "done", max_retry_limit=1
    )
    guard_crew(native.crew(lead, name="report"), traced_team.guard).kickoff()
    assert spans.tree() == [*ONE, "    execute_tool read_file"]
    assert statuses(spans, "invoke_agent lead") == [(StatusCode.UNSET, None)]


def test_what_a_coworker_fails_at_is_an_error_of_the_handing_on(traced_team, native, spans):
    crew = traced_team.pair(native, [hands(), "done"], [ZeroDivisionError("down")])
    crew.kickoff()
    assert statuses(spans, "invoke_agent hand") == [(StatusCode.ERROR, "ZeroDivisionError")]
    ((code, _kind),) = statuses(spans, "execute_tool delegate_work_to_coworker")
    assert code == StatusCode.ERROR
    assert statuses(spans, "invoke_agent lead") == [(StatusCode.UNSET, None)]


class Broken(SpanProcessor):
    """A span processor in which all that concerns spans raises."""

    def on_start(self, span, parent_context=None):
        raise RuntimeError("on_start")

    def on_end(self, span):
        raise RuntimeError("on_end")


def test_telemetry_that_fails_changes_nothing(traced_team, native, spans):
    spans.provider.add_span_processor(Broken())
    with resumable("order-1"):
        output = traced_team.pair(native, [READ, hands(), "done"], [READ, SECRET, "done"]).kickoff()
    assert output.raw == "done"
    assert [call.decision for call in traced_team.made.calls()] == [
        "allow",
        "allow",
        "allow",
        "deny",
    ]


def test_without_an_sdk_there_is_nothing(traced_team, native):
    output = traced_team.crew(native, READ, "done").kickoff()
    assert output.raw == "done"
    assert not trace.get_current_span().get_span_context().is_valid


# --- what is in no span ---------------------------------------------------------------------------


PLANTED = {
    name: f"PLANTED-{name}-{os.urandom(8).hex()}"
    for name in (
        "argument",
        "result",
        "exception",
        "reason",
        "requirement",
        "task",
        "context",
        "goal",
        "backstory",
        "answer",
        "input",
        "role",
        "tool",
    )
}


@pytest.mark.parametrize("opted_in", [False, True])
def test_what_is_planted_is_not_exported(recorded, way, spans, opted_in):
    made = recorded(agents=AGENTS, telemetry={"arguments": opted_in, "results": opted_in})

    def decide(document):
        if document["args"].get("path") == "deny":
            return Decision.deny(PLANTED["reason"])
        if document["args"].get("path") == "ask":
            return Decision.require_approval(Requirement(PLANTED["requirement"]))
        return Decision.allow()

    made.decide = decide

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        if path == "raise":
            raise LookupError(PLANTED["exception"])
        return PLANTED["result"]

    read_file.description += PLANTED["tool"]
    paths = (PLANTED["argument"], "deny", "ask", "raise")
    hand = way.agent("Hand", *(("read_file", {"path": path}) for path in paths), PLANTED["answer"])
    hand.tools = [read_file]
    work = {"task": PLANTED["task"], "context": PLANTED["context"], "coworker": "Hand"}
    told = {"goal": PLANTED["goal"], "backstory": PLANTED["backstory"]}
    said = [("delegate_work_to_coworker", work), ValueError(PLANTED["exception"])]
    lead = way.agent("{who}", *said, allow_delegation=True, max_retry_limit=0, **told)
    guard_agent(lead, made.guard, name="lead")
    task = Task(description="{what}", expected_output="words", agent=lead)
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task]), made.guard, timeout=0)
    with pytest.raises(ValueError, match="PLANTED"):
        crew.kickoff(inputs={"what": PLANTED["input"], "who": PLANTED["role"]})
    assert {"invoke_agent lead", "invoke_agent hand", "execute_tool read_file"} <= {
        span.name for span in spans.all()
    }
    assert len(made.calls()) >= 4
    sent = "\n".join(span.to_json() for span in spans.all())
    sent += encode_spans(spans.all()).SerializeToString().decode("utf-8", "replace")
    found = {name for name, secret in PLANTED.items() if secret in sent}
    shown = {"argument", "result", "task", "context", "answer"}  # of the calls, that of handing on
    assert found == (shown if opted_in else set())
