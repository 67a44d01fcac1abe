"""Calls of a crew that wait for people in their thread, for as long as the wait was set.

Crews that pause as a whole are in ``test_crewai_approvals_pauses.py``.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from typing import Any

import pytest
import rounds
from crewai.events import AgentExecutionErrorEvent
from crewai.events.event_bus import crewai_event_bus
from crewai.tools import tool
from crewai_payments import (
    BEN,
    FEW,
    LENT,
    LOOK,
    PAY,
    SAID,
    SOME,
    WAYS,
    begun,
    failures,
    payments,
    within,
)

from agentguard import (
    ApprovalPending,
    Decision,
    Ed25519Signer,
    Guard,
)
from agentguard_crewai import guard_crew


@begun(WAYS if rounds.ALL else SOME)
def test_a_call_that_is_approved_while_it_waits_runs_once(office, native, signed, make):
    office.terms = {"on_approval": "wait", "timeout": 120}
    work = make(office, native)
    with office.lent(), office.answered():
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == (work.payer, LENT + work.chain)
    assert (paid.decision, paid.outcome, paid.arguments) == ("allow", "ok", {"to": "ann"})
    assert office.waiting == []


def test_where_a_call_pauses_crewai_is_told_that_the_agents_work_has_ended(office, way):
    ended: list[str] = []
    with crewai_event_bus.scoped_handlers(), office.lent():

        @crewai_event_bus.on(AgentExecutionErrorEvent)
        def note(_source: Any, event: AgentExecutionErrorEvent) -> None:
            ended.append(event.error)

        with pytest.raises(ApprovalPending) as paused:
            WAYS[FEW[0]](office, way).tried()
        crewai_event_bus.flush()
    assert ended == [str(paused.value)]


@begun(FEW)
def test_a_call_that_is_rejected_while_it_waits_does_not_run(office, text, signed, make):
    office.terms = {"on_approval": "wait", "timeout": 120}
    work = make(office, text)
    with office.lent(), office.answered(lambda: office.reject(note="not on a Friday")):
        assert work.tried() == "done"
    assert office.ran == ["books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == (work.payer, LENT + work.chain)
    assert (paid.decision, paid.code, paid.outcome) == ("deny", "approval.rejected", None)


@begun(FEW)
def test_a_call_that_nobody_answers_does_not_run_and_the_work_goes_on(office, text, signed, make):
    office.terms = {"on_approval": "wait", "timeout": 0}
    work = make(office, text)
    with office.lent():
        assert work.tried() == "done"
    assert office.ran == ["books"]
    assert payments(signed, office) == []
    (request,) = office.waiting
    assert (request.tool, request.agent_name) == ("pay", work.payer)
    assert request.actors == ("crew:report", *(f"agent:{name}" for name in work.chain))


def test_the_model_is_told_who_rejected_and_why(office, way):
    office.terms = {"on_approval": "wait", "timeout": 120}
    lead = way.agent("Lead", PAY, "done", tools=office.tools)
    crew = office.crew(way.crew(lead))
    with office.lent(), office.answered(lambda: office.reject(note="not on a Friday")):
        (failure,) = failures(crew.kickoff())
    assert (failure.code, failure.retryable) == ("approval.rejected", False)
    assert failure.details == {"reason": "user:bob has rejected this call: not on a Friday"}
    told = " ".join(map(str, [*lead.llm.heard, *lead.tools_results]))
    assert "user:bob has rejected this call: not on a Friday" in told


def test_whoever_runs_a_crew_is_told_once_that_it_waits(office, native, caplog):
    office.terms = {"on_approval": "wait", "timeout": 0}
    crew = office.crew(
        native.crew(native.agent("Lead", PAY, LOOK, PAY, "done", tools=office.tools))
    )
    with office.lent():
        crew.kickoff()
    (request,) = office.waiting
    (line,) = [one.getMessage() for one in caplog.records if one.name == "agentguard"]
    assert line.startswith("pay waits for approval (")
    assert line.endswith(f"see agentguard approvals show {request.request_id[:8]}")


def test_the_model_is_told_which_request_waits(office, way):
    office.terms = {"on_approval": "wait", "timeout": timedelta(seconds=0.1)}
    lead = way.agent("Lead", PAY, "done", tools=office.tools)
    crew = office.crew(way.crew(lead))
    begun = time.monotonic()
    with office.lent():
        (failure,) = failures(crew.kickoff())
    assert time.monotonic() - begun > 0.1
    (request,) = office.waiting
    assert (failure.code, failure.retryable) == ("approval.pending", True)
    assert failure.details == {"request_id": request.request_id}
    assert request.request_id in failure.message
    assert "ann" not in failure.message


def test_a_later_run_finds_the_answer_and_uses_it_once(office, native, signed):
    office.terms = {"on_approval": "wait", "timeout": 0}
    lead = native.agent("Lead", tools=office.tools)
    crew = office.crew(native.crew(lead))
    codes = []
    with office.lent():
        for call in (PAY, BEN, PAY, PAY):
            lead.llm.steps[:] = [call, "done"]
            codes += [failure.code for failure in failures(crew.kickoff())] or ["ran"]
            if call == PAY:
                office.approve()
    # ann's request is answered after the first run, and so is the third run's, anew, after it
    assert codes == ["approval.pending", "approval.pending", "ran", "approval.pending"]
    assert office.ran == ["ann"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == ("lead", (*LENT, "lead"))


def test_an_answer_is_found_by_another_instance_of_the_same_agent(office, native, signed):
    office.terms = {"on_approval": "wait", "timeout": 0}
    for _ in range(2):
        crew = office.crew(native.crew(native.agent("Lead", PAY, "done", tools=office.tools)))
        with office.lent():
            crew.kickoff()
        office.approve()
    assert office.ran == ["ann"]
    (paid,) = payments(signed, office)
    assert paid.chain == (*LENT, "lead")


@pytest.mark.parametrize("other", ["principal", "agent", "description"])
def test_an_answer_is_for_no_other_call(office, native, other):
    office.terms = {"on_approval": "wait", "timeout": 0}
    first = office.crew(native.crew(native.agent("Lead", PAY, "done", tools=office.tools)))
    with office.lent():
        first.kickoff()
    office.approve()
    tools = [office.paying("Pay, or do not.")] if other == "description" else office.tools
    role = "Worker" if other == "agent" else "Lead"
    second = office.crew(native.crew(native.agent(role, PAY, "done", tools=tools)))
    with office.lent("user:dora" if other == "principal" else "user:alice"):
        (failure,) = failures(second.kickoff())
    assert (failure.code, office.ran) == ("approval.pending", [])
    assert len(office.waiting) == 2


def test_a_call_may_be_made_again_in_the_run_in_which_it_was_approved(office, way):
    office.terms = {"on_approval": "wait", "timeout": 0}
    tools = [office.paying(), office.looking(then=office.approve)]
    lead = way.agent("Lead", PAY, LOOK, PAY, LOOK, PAY, "done", tools=tools)
    crew = office.crew(way.crew(lead))
    with office.lent():
        codes = [failure.code for failure in failures(crew.kickoff())]
    # it is asked for again by the third call, since the approval was used by the second one
    assert codes == ["approval.pending", "approval.pending"]
    assert office.ran == ["books", "ann", "books"]


async def test_the_event_loop_goes_on_while_a_call_waits(office, native):
    office.terms = {"on_approval": "wait", "timeout": 120}
    lead = native.agent("Lead", *SAID, tools=office.tools)
    crew = office.crew(native.crew(lead))

    async def somebody() -> None:
        while not office.waiting:  # noqa: ASYNC110  another process would be asked the same way
            await asyncio.sleep(0.01)
        office.approve()

    with office.lent():
        output, _nothing = await asyncio.gather(crew.akickoff(), somebody())
    assert (output.raw, office.ran) == ("done", ["ann", "books"])


def test_calls_of_one_turn_wait_each_for_its_own_answer(office, native, signed):
    office.terms = {"on_approval": "wait", "timeout": 120}
    lead = native.agent("Lead", (PAY, BEN, LOOK), "done", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def somebody() -> None:
        for request in office.waiting:
            answer = office.guard.approvals.approve
            if b"ben" in request.arguments:
                answer = office.guard.approvals.reject
            answer(request, office.keys["bob"])

    with office.lent(), office.answered(somebody, many=2):
        (failure,) = failures(crew.kickoff())
    assert failure.code == "approval.rejected"
    assert sorted(office.ran) == ["ann", "books"]
    paid = {call.arguments["to"]: (call.chain, call.code) for call in payments(signed, office)}
    chain = (*LENT, "lead")
    assert paid == {"ann": (chain, ""), "ben": (chain, "approval.rejected")}


def test_a_wait_past_the_time_of_a_task_runs_nothing(office, native):
    office.terms = {"on_approval": "wait", "timeout": 1.3}
    lead = native.agent("Lead", PAY, "done", tools=office.tools, max_execution_time=1)
    crew = office.crew(native.crew(lead))
    with office.lent(), pytest.raises(TimeoutError):
        within(crew.kickoff)
    office.await_requests(1)
    assert office.ran == []


def test_an_approver_who_is_told_may_answer_at_once(native):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    told, ran = [], []

    def on_request(request: Any) -> None:
        told.append(request.request_id)
        guard.approvals.approve(request, bob)

    people = {"bob": {"principal": "user:bob", "keys": [bob.public_key.openssh()]}}
    guard = Guard.ephemeral(
        lambda _call: Decision.require_approval(),
        config={"approvers": people},
        on_request=on_request,
    )

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    with guard:
        crew = guard_crew(native.crew(native.agent("Lead", PAY, "done", tools=[pay])), guard)
        assert failures(crew.kickoff()) == []
        assert (len(told), ran) == (1, ["ann"])
        assert guard.verify().ok
