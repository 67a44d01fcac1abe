"""Calls that need people and pause the whole crew, which is begun again after the answer.

How a paused run goes on without doing anything twice is in ``test_crewai_runs_pauses.py``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from crewai import Crew
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import tool
from crewai.tools.tool_failure import ToolExecutionFailedError
from crewai_payments import (
    BEN,
    FEW,
    LENT,
    LOOK,
    PAY,
    WAYS,
    Office,
    Work,
    akickoff,
    begun,
    failures,
    handed_on,
    kickoff,
    payments,
    plan,
    planned,
    single,
    soon,
    task,
    within,
)

from agentguard import (
    ApprovalPending,
    Decision,
    Requirement,
)
from agentguard_crewai import resumable
from agentguard_crewai.denial import denial_failure


@pytest.fixture
def clock(monkeypatch) -> Any:
    """The wall clock of guards that are made from here on; ``clock.ahead`` is a ``timedelta``."""

    class Clock:
        ahead = timedelta()

        def __call__(self) -> datetime:
            return datetime.now(UTC) + self.ahead

    clock = Clock()
    monkeypatch.setattr("agentguard.guard.process.clock", clock)
    return clock


@pytest.mark.parametrize(
    ("way", "make"),
    [*[("native", name) for name in WAYS], *[("text", name) for name in FEW]],
    indirect=["way"],
)
def test_a_call_pauses_all_that_was_begun_and_it_can_be_begun_again(office, way, signed, make):
    work = WAYS[make](office, way)
    with office.lent():
        with pytest.raises(ApprovalPending) as paused:
            work.tried()
        (request,) = office.waiting
        assert paused.value.request.request_id == request.request_id
        assert office.ran == []
        assert payments(signed, office) == []
        model, said = work.models[0]
        assert model.steps == said[1:]  # and asked no further
        with pytest.raises(ApprovalPending) as again:
            work.tried()
        assert again.value.request.request_id == request.request_id
        office.approve()
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == (work.payer, LENT + work.chain)
    assert (paid.decision, paid.outcome) == ("allow", "ok")


@begun(FEW)
def test_one_that_is_rejected_after_the_pause_is_told_to_the_model(office, text, signed, make):
    work = make(office, text)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.reject()
        assert work.tried() == "done"
    assert office.ran == ["books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == (work.payer, LENT + work.chain)
    assert (paid.decision, paid.code) == ("deny", "approval.rejected")


@begun(FEW)
def test_where_nobody_is_asked_nothing_pauses(office, text, signed, make):
    office.answer = lambda *_needed: Decision.allow()
    work = make(office, text)
    with office.lent():
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == (work.payer, LENT + work.chain)


def turn(office: Office, way: Any) -> Work:
    """Two calls at once in one turn of a model."""
    lead = way.agent("Lead", tools=office.tools)
    crew = office.crew(way.crew(lead))
    return Work(crew.kickoff, [(lead.llm, [(PAY, BEN), "done"])], ("lead",))


def aturn(office: Office, way: Any) -> Work:
    lead = way.agent("Lead", tools=office.tools)
    crew = office.crew(way.crew(lead))
    begin = soon(akickoff)
    return Work(lambda: begin(crew), [(lead.llm, [(PAY, BEN), "done"])], ("lead",))


def steps(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """Two steps of a plan at once."""

    def make(office: Office, way: Any) -> Work:
        planner, planning = plan(way, [], [])
        planned = PlanningConfig(reasoning_effort="low", max_attempts=1, llm=planner)
        lead = way.agent("Lead", tools=office.tools, planning_config=planned)
        crew = office.crew(way.crew(lead))
        said = [PAY, BEN, "paid", "paid", "done"]
        return Work(lambda: how(crew), [(lead.llm, said), (planner, planning)], ("lead",))

    return make


def tasks_at_once(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """Two tasks at once, each of another agent."""

    def make(office: Office, way: Any) -> Work:
        lead, worker = (way.agent(role, tools=office.tools) for role in ("Lead", "Worker"))
        tasks = [task(lead, async_execution=True), task(worker, async_execution=True)]
        last = way.agent("Lead")
        crew = office.crew(way.crew(lead, worker, last, tasks=[*tasks, task(last)]))
        models = [(lead.llm, [PAY, "done"]), (worker.llm, [BEN, "done"]), (last.llm, ["done"])]
        return Work(lambda: how(crew), models, ("lead",))

    return make


def each_at_once(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """Copies of a crew, for two inputs."""

    def make(office: Office, way: Any) -> Work:
        lead = way.agent("Lead", tools=office.tools)
        crew = office.crew(way.crew(lead))
        return Work(lambda: how(crew)[-1:], [(lead.llm, [PAY, BEN, "done", "done"])], ("lead",))

    return make


async def two_async(crew: Crew) -> Any:
    return await crew.kickoff_for_each_async([{}, {}])


async def two_natively_async(crew: Crew) -> Any:
    return await crew.akickoff_for_each([{}, {}])


@pytest.mark.parametrize(
    "make",
    [
        turn,
        aturn,
        steps(kickoff),
        steps(soon(akickoff)),
        tasks_at_once(kickoff),
        tasks_at_once(soon(akickoff)),
        each_at_once(soon(two_async)),
        each_at_once(soon(two_natively_async)),
    ],
    ids=["turn", "aturn", "plan", "plan_async", "tasks", "tasks_async", "each", "each_async"],
)
def test_calls_at_the_same_time_pause_and_each_runs_once(office, native, signed, make):
    work = make(office, native)
    tries, said = 0, None
    with office.lent():
        while said is None and tries < 6:
            tries += 1
            with resumable("orders"):
                try:
                    said = work.tried()
                except ApprovalPending:
                    # the others that were begun end by themselves, and then it is nobody's turn
                    settled(office)
                    office.approve()
    assert said == "done"
    assert tries > 1  # how often depends on whether the second one asks before it is stopped
    assert sorted(office.ran) == ["ann", "ben"]
    done = [call for call in payments(signed, office) if call.outcome == "ok"]
    assert sorted(call.arguments["to"] for call in done) == ["ann", "ben"]
    assert {call.chain[:2] for call in done} == {LENT}
    assert {call.chain[2:] for call in done} <= {("lead",), ("worker",)}


def settled(office: Office) -> None:
    """Wait until all have ended, and no more requests come in: copies of a crew's are not known."""
    for member in office.members:
        ended(member)
    seen = -1
    while seen != len(office.waiting):
        seen = len(office.waiting)
        time.sleep(0.1)


def test_nothing_runs_in_another_task_after_the_pause(office, native):
    going, held = threading.Event(), threading.Event()

    @tool
    def hold(what: str) -> str:
        """Hold on until somebody lets go."""
        held.set()
        assert going.wait(120)
        return f"held {what}"

    @tool
    def follow(what: str) -> str:
        """Go on once another holds on."""
        assert held.wait(120)
        return f"followed {what}"

    lead = native.agent(
        "Lead", ("follow", {"what": "up"}), PAY, "done", tools=[follow, *office.tools]
    )
    holding = [("hold", {"what": "on"}), LOOK, "done"]
    worker = native.agent("Worker", *holding, tools=[hold, *office.tools])
    last = native.agent("Lead", LOOK, "done", tools=office.tools)
    tasks = [task(worker, async_execution=True), task(lead, async_execution=True), task(last)]
    crew = office.crew(native.crew(lead, worker, last, tasks=tasks))

    def let_go() -> None:
        ended(lead)
        going.set()

    with office.lent(), office.answered(let_go), pytest.raises(ApprovalPending):
        within(crew.kickoff)
    ended(worker)
    assert office.ran == []
    assert worker.llm.steps == ["done"]  # it has asked for LOOK, which did not run
    assert len(last.llm.steps) == 2


def ended(agent: Any) -> None:
    until = time.monotonic() + 120
    while agent.agent_executor is not None and agent.agent_executor._is_executing:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_input_after_the_one_that_pauses_is_not_begun(office, native):
    lead = native.agent("Lead", PAY, LOOK, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent(), pytest.raises(ApprovalPending):
        within(lambda: crew.kickoff_for_each([{}, {}]))
    assert office.ran == []
    assert lead.llm.steps == [LOOK, "done"]


@pytest.mark.parametrize(
    "make",
    [
        single(kickoff),
        single(soon(akickoff)),
        handed_on(kickoff),
        handed_on(soon(akickoff)),
        planned(kickoff),
        steps(kickoff),
        steps(soon(akickoff)),
    ],
    ids=["kickoff", "akickoff", "coworker", "coworker_async", "plan", "steps", "steps_async"],
)
def test_a_pause_ends_all_that_crewai_has_announced(office, native, capsys, make):
    work = make(office, native)
    with office.lent(), pytest.raises(ApprovalPending):
        work.tried()
    said = capsys.readouterr()
    assert "CrewAIEventsBus" not in said.out + said.err  # it warns of events without a pair


def test_what_ran_before_the_pause_runs_again_in_a_run_without_a_name(office, native):
    lead = native.agent("Lead", LOOK, PAY, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent():
        with pytest.raises(ApprovalPending):
            crew.kickoff()
        office.approve()
        lead.llm.steps[:] = [LOOK, PAY, "done"]
        assert crew.kickoff().raw == "done"
    assert office.ran == ["books", "books", "ann"]  # resumable is for this


def test_who_catches_the_pause_learns_what_is_asked(office, native):
    office.needed = (Requirement("payments need two people", quorum=2),)
    crew = office.crew(native.crew(native.agent("Lead", PAY, "done", tools=office.tools)))
    with office.lent(), pytest.raises(ApprovalPending) as paused:
        crew.kickoff()
    asked = paused.value.request
    assert (asked.tool, asked.arguments, asked.principal) == ("pay", b'{"to":"ann"}', "user:alice")
    assert (asked.agent_name, asked.actors) == ("lead", ("crew:report", "agent:lead"))
    assert asked.description.startswith("Tool Name: pay") or "Pay somebody." in asked.description
    office.approve("bob")
    with office.lent(), pytest.raises(ApprovalPending, match="1 of 2") as paused:
        office.crew(native.crew(native.agent("Lead", PAY, "done", tools=office.tools))).kickoff()
    assert str(paused.value).count("payments need two people") == 1
    assert "1 of 2" in paused.value.missing


def test_a_request_that_nobody_answers_in_time_is_over(offices, clock, native, signed):
    office = offices()
    office.needed = (Requirement(ttl=60),)
    lead = native.agent("Lead", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def tried() -> list[str]:
        lead.llm.steps[:] = [PAY, "done"]
        with office.lent():
            return [failure.code for failure in failures(crew.kickoff())]

    with pytest.raises(ApprovalPending):
        tried()
    (request,) = office.waiting
    clock.ahead = timedelta(seconds=61)
    assert office.waiting == []
    with pytest.raises(ApprovalPending) as anew:
        tried()
    assert anew.value.request.request_id != request.request_id
    office.approve()
    assert tried() == []
    assert office.ran == ["ann"]
    calls = payments(signed, office)
    assert [(call.code, call.chain) for call in calls] == [
        ("approval.expired", (*LENT, "lead")),
        ("", (*LENT, "lead")),
    ]


@pytest.mark.parametrize(
    ("code", "again"),
    [
        ("approval.altered", True),
        ("approval.expired", True),
        ("approval.rejected", False),
        ("engine.timeout", True),
        ("engine.unreachable", True),
        ("engine.unauthorized", False),
    ],
)
def test_a_model_is_told_whether_the_same_call_may_be_made_again(code, again):
    failure = denial_failure("pay", Decision.refusal("why", code=code))
    assert failure.retryable is again
    assert ("Do not retry" in failure.message) is not again


def test_an_approval_that_comes_too_late_lets_nothing_run(offices, clock, native):
    office = offices()
    office.needed = (Requirement(ttl=60),)
    lead = native.agent("Lead", PAY, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent(), pytest.raises(ApprovalPending):
        crew.kickoff()
    office.approve()
    clock.ahead = timedelta(seconds=61)
    lead.llm.steps[:] = [PAY, "done"]
    with office.lent(), pytest.raises(ApprovalPending):  # anew: that one is over
        crew.kickoff()
    assert office.ran == []


def test_a_call_does_not_wait_for_a_request_that_is_over(offices, clock, native, signed):
    office = offices()
    office.terms = {"on_approval": "wait", "timeout": math.inf}
    office.needed = (Requirement(ttl=60),)
    lead = native.agent("Lead", PAY, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def later() -> None:
        clock.ahead = timedelta(seconds=61)

    with office.lent(), office.answered(later):
        (failure,) = failures(within(crew.kickoff))  # nobody can answer any more
    assert (failure.code, office.ran) == ("approval.expired", [])
    assert [call.code for call in payments(signed, office)] == ["approval.expired"]


def test_a_crew_that_is_replayed_from_a_task_pauses_and_goes_on(office, native, signed):
    office.answer = lambda *_needed: Decision.allow()
    lead = native.agent("Lead", LOOK, "done", tools=office.tools)
    worker = native.agent("Worker", PAY, "done", tools=office.tools)
    tasks = [task(lead), task(worker, description="another task")]
    crew = office.crew(native.crew(lead, worker, tasks=tasks))
    with office.lent():
        crew.kickoff()
        office.answer = Decision.require_approval
        for _ in range(2):
            worker.llm.steps[:] = [BEN, "done"]
            with pytest.raises(ApprovalPending):
                within(lambda: crew.replay(str(tasks[1].id)))
        office.approve()
        worker.llm.steps[:] = [BEN, "done"]
        assert crew.replay(str(tasks[1].id)).raw == "done"
    assert office.ran == ["books", "ann", "ben"]
    assert [call.chain for call in payments(signed, office)] == [(*LENT, "worker")] * 2


def test_a_crew_in_a_tool_pauses_what_the_tool_is_part_of(office, native, signed):
    @tool
    def order(what: str) -> str:
        """Have another crew see to something."""
        inner = native.agent("Worker", LOOK, PAY, f"{what} is ordered", tools=office.tools)
        return office.crew(native.crew(inner)).kickoff().raw

    def tried() -> str:
        lead = native.agent("Lead", ("order", {"what": "a cab"}), LOOK, "done", tools=[order])
        with office.lent(), resumable("order-1"):
            return office.crew(native.crew(lead)).kickoff().raw

    with pytest.raises(ApprovalPending):
        within(tried)
    assert office.ran == ["books"]
    office.approve()
    assert tried() == "done"
    assert tried() == "done"
    assert office.ran == ["books", "ann"]
    ordered = [call for call in signed(office.guard) if call.tool == "order"]
    assert [(call.chain, call.outcome) for call in ordered] == [
        ((*LENT, "lead"), "unknown"),
        ((*LENT, "lead"), "ok"),
        ((*LENT, "lead"), "not_run"),
    ]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_a_crew_that_is_to_fail_with_its_tools_fails_once_it_is_refused(office, way, mode):
    office.terms = {"on_approval": mode} | ({"timeout": 0} if mode == "wait" else {})
    lead = way.agent("Lead", tools=office.tools, tool_failure_policy="raise")
    crew = office.crew(way.crew(lead))
    with office.lent():
        lead.llm.steps[:] = [PAY, LOOK, "done"]
        if mode == "pause":
            with pytest.raises(ApprovalPending):
                crew.kickoff()
        else:
            with pytest.raises(ToolExecutionFailedError) as failed:
                crew.kickoff()
            assert failed.value.record.failure.code == "approval.pending"
        assert office.ran == []
        office.approve()
        lead.llm.steps[:] = [PAY, LOOK, "done"]
        assert crew.kickoff().raw == "done"
    assert office.ran == ["ann", "books"]


def test_what_is_lent_no_more_when_the_answer_comes_does_not_run(offices, clock, native, signed):
    office = offices()
    office.terms = {"on_approval": "wait", "timeout": 120}
    lead = native.agent("Lead", PAY, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def later() -> None:
        clock.ahead = timedelta(seconds=120)
        office.approve()

    lent = office.guard.delegate("user:alice", scope=["pay"], via="crew:report", expires_in=60)
    with lent, office.answered(later):
        (failure,) = failures(crew.kickoff())
    assert (failure.code, office.ran) == ("delegation.expired", [])
    (paid,) = payments(signed, office)
    assert (paid.decision, paid.code) == ("deny", "delegation.expired")
