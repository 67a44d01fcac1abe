"""The spans of crews and flows that wait for people or pause, and go on."""

from __future__ import annotations

from typing import Any

import pytest
from crewai import Crew
from crewai.flow import Flow, listen, or_, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai_traces import AGENT_WAYS, ONE, READ, hands, one_trace, task_of, tree
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from agentguard import ApprovalPending
from agentguard_crewai import (
    akickoff_or_pause,
    answered,
    guard_agent,
    guard_crew,
    kickoff_or_pause,
    resumable,
)

PAY: Any = ("pay", {"to": "ann"})


def linked(span, how="paused"):
    """The spans that a span is linked to in this way, by their ids."""
    links = [link for link in span.links if link.attributes["agentguard.link"] == how]
    return [link.context.span_id for link in links]


# --- approvals ------------------------------------------------------------------------------------


def test_a_call_that_waits_is_no_error(traced_team, native, spans):
    traced_team.crew(native, PAY, "done", timeout=0).kickoff()
    assert spans.tree() == [*ONE[:2], "    execute_tool pay"]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    assert spans.one("execute_tool pay").attributes["agentguard.approval.status"] == "pending"


def test_a_pause_is_no_error(traced_team, native, spans):
    crew = traced_team.pair(native, [hands(), "done"], [PAY, "done"], on_approval="pause")
    with pytest.raises(ApprovalPending) as pending:
        crew.kickoff()
    assert spans.tree() == tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool delegate_work_to_coworker
      invoke_agent hand
        execute_tool pay
""")
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    asked = spans.one("execute_tool pay").context
    parts = str(pending.value.request.traceparent).split("-")
    assert parts[1:3] == [f"{asked.trace_id:032x}", f"{asked.span_id:016x}"]
    handed = spans.one("execute_tool delegate_work_to_coworker").attributes
    assert handed["agentguard.outcome.status"] == "suspended"


def test_a_run_that_goes_on_is_in_the_same_trace(traced_team, native, spans):
    def order():
        crew = traced_team.pair(native, [READ, hands(), "done"], [PAY, "done"], on_approval="pause")
        with traced_team.alice(), resumable("order-1"):
            return crew.kickoff()

    with pytest.raises(ApprovalPending):
        order()
    (asked,) = spans.named("execute_tool pay")
    (paused,) = spans.named("invoke_workflow report")
    traced_team.made.approve()
    assert order().raw == "done"
    one_trace(spans)
    first = tree("""
invoke_workflow report
  invoke_agent lead
    execute_tool read_file
    execute_tool delegate_work_to_coworker
      invoke_agent hand
        execute_tool pay
""")
    assert spans.tree() == [*first, *(f"  {line}" for line in first)]
    again, pays = spans.named("invoke_workflow report")[1], spans.named("execute_tool pay")[1]
    assert linked(again) == [paused.context.span_id]
    assert linked(pays) == [asked.context.span_id]
    assert {linked(span) == [] for span in spans.named("invoke_agent hand")} == {True}
    assert pays.attributes["agentguard.approval.status"] == "approved"
    replayed = spans.named("execute_tool read_file")[1]
    assert "agentguard.outcome.replay_of" in replayed.attributes
    for name in ("invoke_workflow report", "invoke_agent lead", "invoke_agent hand"):
        told = [span.attributes["gen_ai.conversation.id"] for span in spans.named(name)]
        assert told == ["order-1", "order-1"]


def test_a_run_of_another_name_is_in_a_trace_of_its_own(traced_team, native, spans):
    for name in ("order-1", "order-2"):
        with resumable(name), pytest.raises(ApprovalPending):
            traced_team.crew(native, PAY, "done", on_approval="pause").kickoff()
    assert len({span.context.trace_id for span in spans.all()}) == 2
    assert [linked(span) for span in spans.all()] == [[]] * 6


def test_a_run_that_is_taken_up_by_another_request_links_to_it(traced_team, native, spans):
    def order():
        with resumable("order-1"):
            return traced_team.crew(native, PAY, "done", on_approval="pause").kickoff()

    with pytest.raises(ApprovalPending):
        order()
    trace_id = one_trace(spans)
    traced_team.made.approve()
    with trace.get_tracer("the application").start_as_current_span("second request") as second:
        order()
    again = spans.named("invoke_workflow report")[1]
    assert f"{again.context.trace_id:032x}" == trace_id
    assert linked(again, "caller") == [second.get_span_context().span_id]


@pytest.mark.parametrize("begin", AGENT_WAYS)
def test_an_agent_without_a_crew_goes_on_as_well(traced_team, native, spans, begin):
    def order():
        lead = traced_team.agent(native, "Lead", PAY, "done")
        with resumable("order-1"):
            AGENT_WAYS[begin](guard_agent(lead, traced_team.guard, on_approval="pause"))

    with pytest.raises(ApprovalPending):
        order()
    traced_team.made.approve()
    order()
    one_trace(spans)
    first, again = spans.named("invoke_agent lead")
    assert linked(again) == [first.context.span_id]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}


def test_a_task_by_itself_that_pauses(traced_team, native, spans):
    lead = traced_team.agent(native, "Lead", PAY, "done")
    hand = traced_team.agent(native, "Hand", "done")
    tasks = [task_of(lead, async_execution=True), task_of(hand)]
    crew = Crew(name="report", agents=[lead, hand], tasks=tasks)
    with pytest.raises(ApprovalPending):
        guard_crew(crew, traced_team.guard, on_approval="pause").kickoff()
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    one_trace(spans)


# --- flows ----------------------------------------------------------------------------------------


def test_crews_of_a_flow_have_its_id(traced_team, native, spans):
    class Twice(Flow[Any]):
        @start()
        def first(self):
            return traced_team.crew(native, READ, "done").kickoff().raw

        @listen(first)
        async def second(self, _said):
            lead = guard_agent(traced_team.agent(native, "Lead", READ, "done"), traced_team.guard)
            return (await lead.kickoff("go on")).raw

    flow = Twice(suppress_flow_events=True)
    with trace.get_tracer("the application").start_as_current_span("request"):
        assert flow.kickoff() == "done"
    assert spans.tree() == [
        "request",
        *(f"  {line}" for line in [*ONE, "invoke_agent lead", "  execute_tool read_file"]),
    ]
    told = [s.attributes["gen_ai.conversation.id"] for s in spans.named("invoke_agent lead")]
    assert told == [flow.flow_id] * 2


@pytest.mark.parametrize("sync", [True, False])
def test_a_flow_that_pauses_goes_on_in_the_same_trace(traced_team, native, spans, tmp_path, sync):
    def crew():
        return traced_team.crew(native, READ, PAY, "done", on_approval="pause")

    class Sync(Flow[Any]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_(begin, answered("order")))
        def order(self):
            return kickoff_or_pause(self, crew(), run="order-8").raw

    class Async(Flow[Any]):
        @start()
        async def begin(self):
            return "begun"

        @listen(or_(begin, answered("order")))
        async def order(self):
            return (await akickoff_or_pause(self, crew(), run="order-8")).raw

    kind = Sync if sync else Async
    store = SQLiteFlowPersistence(str(tmp_path / "flows.db"))
    flow = kind(persistence=store, suppress_flow_events=True)
    flow.kickoff()
    traced_team.made.approve()
    resumed = kind.from_pending(flow.flow_id, store, suppress_flow_events=True)
    assert resumed.resume() == "done"
    one_trace(spans)
    paused = [*ONE, "    execute_tool pay"]
    assert spans.tree() == [*paused, *(f"  {line}" for line in paused)]
    first, again = spans.named("invoke_workflow report")
    assert linked(again) == [first.context.span_id]
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    assert {s.attributes["gen_ai.conversation.id"] for s in (first, again)} == {"order-8"}
