"""Requests that end while a run waits: the model is told what has ended them, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from agentguard import Decision, Requirement

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "1"}}
BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})
TTL = 60


def brief(_document):
    return Decision.require_approval(Requirement("a person", ttl=TTL))


@pytest.fixture
def later(monkeypatch):
    """Let the time of a request pass, for guards that are made from here on."""
    over: list[bool] = []
    ahead = timedelta(seconds=TTL + 1)
    monkeypatch.setattr(
        "agentguard.guard.process.clock", lambda: datetime.now(UTC) + len(over) * ahead
    )
    return lambda: over.append(True)


async def ran(graph, given, *, sync):
    return graph.invoke(given, CONFIG) if sync else await graph.ainvoke(given, CONFIG)


def answers(state):
    return [m.text for m in state["messages"] if m.type == "tool"]


@SYNC
@pytest.mark.parametrize("end", ["withdrawn", "expired", "expired and on record"])
async def test_the_model_hears_what_has_ended_a_call(later, people, end, sync):
    """New input withdraws what waits; what has expired before was not withdrawn."""
    inbox = people(brief)
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    names = [one.request_id for one in inbox.waiting]
    if end != "withdrawn":
        later()
    if end == "expired and on record":
        assert inbox.waiting == []
    state = await ran(graph, {"messages": [HumanMessage("[]")]}, sync=sync)
    begins = "Withdrawn: pay was not run" if end == "withdrawn" else "Expired: pay was not run"
    assert [one[: len(begins)] for one in answers(state)] == [begins, begins]
    inbox_states = [inbox.guard.approvals.status(name).state for name in names]
    assert inbox_states == [end.partition(" ")[0]] * 2
    assert inbox.paid == []


@SYNC
async def test_a_call_whose_tool_was_renamed_while_it_waited_says_so(people, sync):
    """Another process has the new code; the model's message names the old tool."""
    inbox, saver = people(), InMemorySaver()
    await ran(inbox.graph(saver=saver), inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    inbox.approve()
    renamed = inbox.pay.model_copy(update={"name": "pay_out"})
    again = inbox.graph(saver=saver, tools=[renamed, inbox.look])
    state = await ran(again, None, sync=sync)
    (said,) = answers(state)
    assert said.startswith("pay was not run: people were asked about this call, and no tool has")
    assert inbox.paid == []
    assert inbox.waiting == []
    assert inbox.guard.approvals.status(request.request_id).state == "withdrawn"


@SYNC
async def test_a_tool_that_was_never_there_is_langgraphs_to_report(people, sync):
    inbox = people()
    state = await ran(inbox.graph(), inbox.asking(("pay_out", {})), sync=sync)
    (said,) = answers(state)
    assert "pay_out is not a valid tool" in said
