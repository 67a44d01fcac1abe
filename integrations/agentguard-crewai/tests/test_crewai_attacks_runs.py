"""Attacks on the places of calls in runs that worked once, each with what goes through beside."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import nullcontext
from typing import Any

import pytest
from crewai.tools import tool
from crewai_attacks import BEN, LOOK, PAY, asks_for_pay, failures, lent, own, paying, work

from agentguard import ApprovalPending, Decision
from agentguard_crewai import guard_crew, resumable

DOWN = RuntimeError("the model is down")
"""Ends a try: agents here are not asked to try it again by themselves."""


class Killed(BaseException):
    """Ends a try as Ctrl-C does: nothing in between takes it for an error."""


def hand_on(what: str) -> tuple[str, dict[str, str]]:
    """Handing this on to the worker, as a model says it."""
    given = {"task": what, "context": "now", "coworker": "Worker"}
    return "delegate_work_to_coworker", given


def test_an_equal_call_after_a_replayed_delegation_is_really_made(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    made.decide = lambda document: (
        Decision.require_approval() if document["action"] == "pay" and paid else Decision.allow()
    )

    def tried(*steps: Any) -> str:
        said = hand_on("invoice 1"), hand_on("invoice 2"), "both are settled"
        lead = native.agent("Lead", *said, allow_delegation=True, max_retry_limit=0)
        worker = native.agent("Worker", *steps, tools=[paying(paid)], max_retry_limit=0)
        made_up = native.crew(lead, worker, tasks=[work(lead)])
        team = guard_crew(made_up, made.guard, on_approval="pause")
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(ApprovalPending):
        tried(PAY, "invoice 1 is paid", PAY, "invoice 2 is paid")
    made.approve()
    # the first delegation is replayed: the worker is only asked for the second
    assert tried(PAY, "invoice 2 is paid") == "both are settled"
    assert paid == ["ann", "ann"]
    assert made.guard.approvals.pending() == []


def test_an_equal_call_after_a_replayed_tool_that_kicks_a_crew_off_is_really_made(native, recorded):
    made, paid = recorded(agents=own("lead", "worker")), []

    @tool
    def settle(invoice: int) -> str:
        """Settle an invoice, with a crew."""
        worker = native.agent("Worker", PAY, f"invoice {invoice} is paid", tools=[paying(paid)])
        return guard_crew(native.crew(worker), made.guard).kickoff().raw

    def tried(*steps: Any) -> str:
        lead = native.agent("Lead", *steps, tools=[settle], max_retry_limit=0)
        with resumable("order-1"):
            return guard_crew(native.crew(lead), made.guard).kickoff().raw

    first, second = ("settle", {"invoice": 1}), ("settle", {"invoice": 2})
    with pytest.raises(RuntimeError, match="the model is down"):
        tried(first, DOWN)
    assert paid == ["ann"]
    assert tried(first, second, "both") == "both"
    assert paid == ["ann", "ann"]
    assert tried(first, second, "both") == "both"
    assert paid == ["ann", "ann"]


def test_places_are_those_of_the_whole_call_whatever_was_called_before(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []

    def tried(said: list[Any], done: list[Any]) -> str:
        lead = native.agent("Lead", *said, allow_delegation=True, max_retry_limit=0)
        worker = native.agent("Worker", *done, tools=[paying(paid)], max_retry_limit=0)
        team = guard_crew(native.crew(lead, worker, tasks=[work(lead), work(worker)]), made.guard)
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(RuntimeError, match="the model is down"):
        tried([hand_on("settle it"), "done"], [PAY, "paid", PAY, DOWN])
    assert paid == ["ann", "ann"]
    # the lead does not hand on any more; the worker makes what it has completed, and once more
    assert tried(["I leave it to the worker"], [PAY, "done"]) == "done"
    assert paid == ["ann", "ann"]
    assert tried(["I leave it to the worker"], [PAY, BEN, PAY, "done"]) == "done"
    assert paid == ["ann", "ann", "ben", "ann"]


def test_places_of_two_users_in_one_run_are_their_own_in_any_order(native, recorded):
    made, paid = recorded(agents=lent("worker")), []

    def batch(*people: str) -> None:
        with resumable("nightly"):
            for one in people:
                worker = native.agent(
                    "Worker", PAY, "done", tools=[paying(paid)], max_retry_limit=0
                )
                with made.guard.delegate(one, scope=["pay"]):
                    guard_crew(native.crew(worker), made.guard).kickoff()

    batch("user:alice", "user:bob")
    assert paid == ["ann", "ann"]
    batch("user:bob", "user:alice")
    assert paid == ["ann", "ann"]
    batch("user:carol", "user:bob", "user:alice")
    assert paid == ["ann", "ann", "ann"]


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
@pytest.mark.parametrize("named", [True, False])
def test_what_crewai_tries_again_by_itself_repeats_no_call_of_a_run(way, recorded, named, begin):
    made, paid = recorded(agents=own("lead")), []
    said = PAY, BEN, DOWN, PAY, DOWN, PAY, PAY, "done"
    lead = way.agent("Lead", *said, tools=[paying(paid)])
    # in text CrewAI answers an identical call right after the first: another one lies between
    if not way.native:
        lead.llm.steps[6:6] = [BEN]
    team = guard_crew(way.crew(lead), made.guard)
    with resumable("order-1") if named else nullcontext():
        output = team.kickoff() if begin == "kickoff" else asyncio.run(team.akickoff())
    assert output.raw == "done"
    # what the last attempt asks for twice is paid twice; without a run CrewAI does as it does
    every = ["ann", "ben", "ann", "ann", *([] if way.native else ["ben"]), "ann"]
    assert paid == (["ann", "ben", "ann"] if named else every)


def test_a_coworker_that_crewai_lets_try_again_repeats_no_call(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    made.decide = asks_for_pay

    def tried(*steps: Any) -> str:
        lead = native.agent("Lead", hand_on("settle it"), "settled", allow_delegation=True)
        worker = native.agent("Worker", *steps, tools=[paying(paid)])
        made_up = native.crew(lead, worker, tasks=[work(lead)])
        team = guard_crew(made_up, made.guard, on_approval="pause")
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(ApprovalPending):
        tried(PAY, "paid")
    made.approve()
    assert tried(PAY, DOWN, PAY, "paid") == "settled"
    assert (paid, made.guard.approvals.pending()) == (["ann"], [])


def test_a_lead_that_crewai_lets_try_again_hands_nothing_on_again(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    said = hand_on("one"), DOWN, hand_on("one"), hand_on("two"), "settled"
    lead = native.agent("Lead", *said, allow_delegation=True)
    worker = native.agent("Worker", *[PAY, "paid"] * 3, tools=[paying(paid)])
    team = guard_crew(native.crew(lead, worker, tasks=[work(lead)]), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
        assert team.kickoff().raw == "settled"
    assert paid == ["ann", "ann"]  # one for each of the two


def test_a_request_of_another_user_in_a_run_of_one_name_does_not_block_mine(native, recorded):
    made, paid = recorded(agents=lent("lead")), []
    made.decide = asks_for_pay

    def order(who: str) -> Any:
        lead = native.agent("Lead", PAY, "done", tools=[paying(paid)])
        team = guard_crew(native.crew(lead), made.guard, on_approval="pause")
        with made.guard.delegate(who, scope=["pay"]), resumable("order-7"):
            return team.kickoff()

    for who in ("user:bob", "user:alice"):
        with pytest.raises(ApprovalPending) as waits:
            order(who)
        assert waits.value.request.principal == who
    made.approve()
    for count, who in enumerate(["user:alice", "user:bob"], 1):
        assert failures(order(who)) == []
        assert paid == ["ann"] * count


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (TimeoutError("the bank did not answer in time"), "journal.cut_short"),
        (Killed(), "journal.cut_short"),
        (None, "journal.unreplayable"),
    ],
)
def test_a_call_that_may_have_run_is_refused_however_often_it_is_made(way, recorded, ends, code):
    made, paid = recorded(agents=own("lead")), []

    @tool
    def pay(to: str) -> object:
        """Pay somebody."""
        paid.append(to)
        if to == "ann" and ends is not None:
            raise ends
        return dt.date(2026, 1, 1)

    @tool
    def look() -> str:
        """Look."""
        return "looked"

    def tried(*steps: Any) -> Any:
        lead = way.agent("Lead", *steps, tools=[pay, look], max_retry_limit=0)
        with resumable("order-1"):
            return guard_crew(way.crew(lead), made.guard).kickoff()

    with pytest.raises((RuntimeError, Killed)):
        tried(PAY, DOWN)
    assert failures(tried(PAY, LOOK, PAY, LOOK, PAY, "done")) == [code] * 3
    assert paid == ["ann"]
    # another payment is no repetition
    assert failures(tried(PAY, BEN, "done")) == [code]
    assert paid == ["ann", "ben"]


def test_a_model_that_repeats_what_has_timed_out_in_the_same_try_is_refused(way, recorded):
    made, paid = recorded(agents=own("lead")), []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        paid.append(to)
        raise TimeoutError("the bank did not answer in time")

    lead = way.agent("Lead", PAY, PAY, "done", tools=[pay])
    with resumable("order-1"):
        output = guard_crew(way.crew(lead), made.guard).kickoff()
    assert (paid, made.outcomes()) == (["ann"], ["unknown"])
    assert "journal.cut_short" in failures(output)
