"""Calls of a crew that wait for people: in their thread for a while, or with the whole crew paused.

Who may answer and what an answer lets run is the core's; here it is held against every way in which
CrewAI comes to run a tool. How a paused run goes on without doing anything twice stands in
test_crewai_runs.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import commands
import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.events import AgentExecutionErrorEvent
from crewai.events.event_bus import crewai_event_bus
from crewai.tools import tool
from crewai.tools.tool_failure import ToolExecutionFailedError

from agentguard import (
    ApprovalError,
    ApprovalPending,
    Decision,
    Ed25519Signer,
    Guard,
    Requirement,
    verify_evidence,
)
from agentguard.domain import config, domain
from agentguard_crewai import guard_agent, guard_crew, resumable
from agentguard_crewai.denial import denied

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {"what": "books"})
SAID = [PAY, LOOK, "done"]
ROLES = {"bob": ["release-manager"], "carol": ["auditor"], "alice": ["release-manager"]}
LENT = ("user:alice", "crew:report")
MANAGER = "crew-manager"


def within(work: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what ``work`` does in a thread of its own: one that hangs fails its test alone."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised again for the test
            done.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True).start()
    return done.result(seconds)


class Office:
    """A guard whose policy asks people before anybody pays, and what its tools have done."""

    def __init__(self, make: Callable[..., Any], **tables: Any) -> None:
        self.keys = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in ROLES}
        approvers = {
            name: {
                "principal": f"user:{name}",
                "keys": [key.public_key.openssh()],
                "roles": ROLES[name],
            }
            for name, key in self.keys.items()
        }
        agents = {name: {"max_scope": ["pay"]} for name in ("lead", "worker", MANAGER)}
        self.log = make(**{"agents": agents, "approvers": approvers, **tables})
        self.guard: Guard = self.log.guard
        self.log.decide = self.decide
        self.needed: tuple[Requirement, ...] = (Requirement(),)
        self.answer = Decision.require_approval
        self.ran: list[str] = []
        self.members: list[Any] = []
        self.terms: dict[str, Any] = {"on_approval": "pause"}
        self.tools = [self.paying(), self.looking()]

    def decide(self, document: Any) -> Decision:
        return self.answer(*self.needed) if document["action"] == "pay" else Decision.allow()

    def paying(self, description: str = "Pay somebody.") -> Any:
        def pay(to: str) -> str:
            self.ran.append(to)
            return f"paid {to}"

        pay.__doc__ = description
        return tool(pay)

    def looking(self, then: Callable[[], Any] = lambda: None) -> Any:
        @tool
        def look(what: str) -> str:
            """Look at something."""
            then()
            self.ran.append(what)
            return f"looked at {what}"

        return look

    def lent(self, principal: str = "user:alice") -> Any:
        return self.guard.delegate(principal, scope=["pay"], via="crew:report")

    def crew(self, crew: Crew) -> Crew:
        self.members += crew.agents
        return guard_crew(crew, self.guard, **self.terms)

    @property
    def waiting(self) -> list[Any]:
        return self.guard.approvals.pending()

    def approve(self, by: str = "bob", **said: str) -> None:
        for request in self.waiting:
            self.guard.approvals.approve(request, self.keys[by], **said)

    def reject(self, by: str = "bob", **said: str) -> None:
        for request in self.waiting:
            self.guard.approvals.reject(request, self.keys[by], **said)

    def await_requests(self, many: int) -> None:
        """Return as soon as so ``many`` wait."""
        until = time.monotonic() + 120
        while len(self.waiting) < many:
            assert time.monotonic() < until, "nobody has asked"
            time.sleep(0.01)

    @contextmanager
    def answered(self, how: Callable[[], Any] | None = None, many: int = 1) -> Iterator[None]:
        """Have somebody answer in another thread, as soon as so ``many`` wait."""

        def somebody() -> None:
            self.await_requests(many)
            (how or self.approve)()

        with ThreadPoolExecutor(1) as threads:
            answering = threads.submit(somebody)
            yield
            answering.result()


@pytest.fixture
def office(recorded) -> Office:
    return Office(recorded)


@pytest.fixture
def offices(recorded) -> Callable[..., Office]:
    return lambda **tables: Office(recorded, **tables)


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


@dataclass
class Work:
    """A way in which CrewAI comes to call ``pay``, and then ``look``.

    ``models`` are all that are asked in it, the payer's first, with what each says in a try;
    ``chain`` is that of the payer, below whom it was lent.
    """

    begin: Callable[[], Any]
    models: list[tuple[Any, list[Any]]]
    chain: tuple[str, ...]

    @property
    def payer(self) -> str:
        return self.chain[-1]

    def tried(self) -> str:
        """Try it, the models from their beginning; return the last words."""
        for model, said in self.models:
            model.steps[:] = said
        output = within(self.begin)
        (output,) = output if isinstance(output, list) else [output]
        # what ends a plan CrewAI takes as it was written
        return getattr(output, "raw", output).removeprefix("Thought: I know.\nFinal Answer: ")


async def drained(coming: Any) -> Any:
    stream = await coming
    async for _chunk in stream:
        pass
    return stream.result


def drained_here(stream: Any) -> Any:
    for _chunk in stream:
        pass
    return stream.result


def single(how: Callable[[Crew], Any], agent: Any = (), **options: Any) -> Callable[..., Work]:
    """One agent, in a crew that is begun in some way."""

    def make(office: Office, way: Any) -> Work:
        lead = way.agent("Lead", tools=office.tools, **dict(agent))
        crew = office.crew(way.crew(lead, **options))
        return Work(lambda: how(crew), [(lead.llm, SAID)], ("lead",))

    return make


def by_itself(how: Callable[[Any], Any]) -> Callable[..., Work]:
    """An agent without a crew."""

    def make(office: Office, way: Any) -> Work:
        lead = way.agent("Lead", tools=office.tools)
        guard_agent(lead, office.guard, **office.terms)
        return Work(lambda: how(lead), [(lead.llm, SAID)], ("lead",))

    return make


def task(agent: Any = None, **options: Any) -> Task:
    return Task(**{"description": "a task", "expected_output": "words", "agent": agent, **options})


def asked_of(name: str, **arguments: str) -> tuple[str, dict[str, str]]:
    return name, {"context": "now", "coworker": "Worker", **arguments}


DELEGATE = asked_of("delegate_work_to_coworker", task="pay ann")
QUESTION = asked_of("ask_question_to_coworker", question="is ann paid?")


def handed_on(how: Callable[[Crew], Any], call: Any = DELEGATE) -> Callable[..., Work]:
    """A coworker who pays."""

    def make(office: Office, way: Any) -> Work:
        lead = way.agent("Lead", allow_delegation=True)
        worker = way.agent("Worker", tools=office.tools)
        crew = office.crew(way.crew(lead, worker, tasks=[task(lead)]))
        models = [(worker.llm, SAID), (lead.llm, [call, "done"])]
        return Work(lambda: how(crew), models, ("lead", "worker"))

    return make


def managed(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """A manager that the crew makes when it is kicked off, and somebody who pays for it."""

    def make(office: Office, way: Any) -> Work:
        worker, manager = way.agent("Worker", tools=office.tools), way.model()
        crew = Crew(
            agents=[worker], tasks=[task()], process=Process.hierarchical, manager_llm=manager
        )
        office.crew(crew)
        models = [(worker.llm, SAID), (manager, [DELEGATE, "done"])]
        return Work(lambda: how(crew), models, (MANAGER, "worker"))

    return make


def beside_another(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """A task in a thread or on a loop of its own, before one that waits for it."""

    def make(office: Office, way: Any) -> Work:
        lead, worker = way.agent("Lead", tools=office.tools), way.agent("Worker")
        first = task(lead, async_execution=True)
        crew = office.crew(way.crew(lead, worker, tasks=[first, task(worker, context=[first])]))
        return Work(lambda: how(crew), [(lead.llm, SAID), (worker.llm, ["done"])], ("lead",))

    return make


def plan(way: Any, *needs: list[int]) -> Any:
    """A model that answers with a plan; ``needs`` are the steps that each step comes after."""
    steps = [
        {"step_number": at, "description": f"step {at}", "depends_on": before}
        for at, before in enumerate(needs, 1)
    ]
    return type(way)(native=True).model(), [json.dumps({"plan": "p", "steps": steps, "ready": 1})]


def planned(how: Callable[[Crew], Any]) -> Callable[..., Work]:
    """The steps of a plan, one after the other."""

    def make(office: Office, way: Any) -> Work:
        planner, planning = plan(way, [], [1])
        planned = PlanningConfig(reasoning_effort="low", max_attempts=1, llm=planner)
        lead = way.agent("Lead", tools=office.tools, planning_config=planned)
        crew = office.crew(way.crew(lead))
        said = [PAY, "paid", LOOK, "looked", "done"]
        return Work(lambda: how(crew), [(lead.llm, said), (planner, planning)], ("lead",))

    return make


def soon(coming: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda crew: asyncio.run(coming(crew))


async def each_async(crew: Crew) -> Any:
    return await crew.kickoff_for_each_async([{}])


async def each_natively_async(crew: Crew) -> Any:
    return await crew.akickoff_for_each([{}])


def kickoff(crew: Any) -> Any:
    return crew.kickoff()


async def kickoff_async(crew: Any) -> Any:
    return await crew.kickoff_async()


async def akickoff(crew: Any) -> Any:
    return await crew.akickoff()


LIMIT = {"max_execution_time": 60}
WAYS: dict[str, Callable[..., Work]] = {
    "kickoff": single(kickoff),
    "kickoff_async": single(soon(kickoff_async)),
    "akickoff": single(soon(akickoff)),
    "for_each": single(lambda crew: crew.kickoff_for_each([{}])),
    "for_each_async": single(soon(each_async)),
    "akickoff_for_each": single(soon(each_natively_async)),
    "stream": single(lambda crew: drained_here(crew.kickoff()), stream=True),
    "stream_async": single(soon(lambda crew: drained(crew.kickoff_async())), stream=True),
    "astream": single(soon(lambda crew: drained(crew.akickoff())), stream=True),
    "limit": single(kickoff, LIMIT),
    "alimit": single(soon(akickoff), LIMIT),
    "agent": by_itself(lambda agent: agent.kickoff("go")),
    "agent_async": by_itself(soon(lambda agent: agent.kickoff_async("go"))),
    "agent_akickoff": by_itself(soon(lambda agent: agent.akickoff("go"))),
    "agent_message": by_itself(lambda agent: agent.message("go")),
    "coworker": handed_on(kickoff),
    "coworker_async": handed_on(soon(akickoff)),
    "question": handed_on(kickoff, QUESTION),
    "manager": managed(kickoff),
    "manager_async": managed(soon(akickoff)),
    "async_task": beside_another(kickoff),
    "async_task_async": beside_another(soon(akickoff)),
    "plan": planned(kickoff),
    "plan_async": planned(soon(akickoff)),
}
SOME = ("kickoff", "akickoff", "agent", "stream", "coworker", "manager", "async_task", "plan")
FEW = rounds.some(SOME, each=2)


def begun(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [WAYS[name] for name in names], ids=names)


def payments(signed: Any, office: Office) -> list[Any]:
    return [call for call in signed(office.guard) if call.tool == "pay"]


def failures(output: Any) -> list[Any]:
    return [each.failure for task in output.tasks_output for each in task.tool_failures]


# --- waiting in the thread ------------------------------------------------------------------------


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


# --- the crew is paused ---------------------------------------------------------------------------


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
    [("approval.altered", True), ("approval.expired", True), ("approval.rejected", False)],
)
def test_a_model_is_told_whether_the_same_call_may_be_made_again(code, again):
    failure = denied("pay", Decision.refusal("why", code=code))
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


# --- who may answer -------------------------------------------------------------------------------


def test_an_answer_of_another_role_is_refused(office, native, signed):
    office.needed = (Requirement("payments need an auditor", roles=("auditor",)),)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError) as refused:
            office.approve("bob")
        assert refused.value.code == "approval.refused"
        with pytest.raises(ApprovalPending):
            work.tried()
        assert office.ran == []
        office.approve("carol")
        assert work.tried() == "done"
    (paid,) = payments(signed, office)
    assert (paid.chain, office.ran) == ((*LENT, "lead"), ["ann", "books"])


def test_an_answer_of_somebody_else_than_who_is_named_is_refused(office, native):
    office.needed = (Requirement(approvers=("carol",)),)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError):
            office.approve("bob")
        office.approve("carol")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_two_people_are_two_people(office, native):
    office.needed = (Requirement(quorum=2),)
    work = single(kickoff)(office, native)
    with office.lent():
        for by in ("bob", "bob", "carol"):
            with pytest.raises(ApprovalPending):
                work.tried()
            office.approve(by)
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff), managed(kickoff)])
def test_for_whom_a_call_is_made_does_not_approve_it(office, native, signed, make):
    work = make(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError) as refused:
            office.approve("alice")
        assert refused.value.code == "approval.refused"
        with pytest.raises(ApprovalPending):
            work.tried()
        assert office.ran == []
        office.approve("bob")
        assert work.tried() == "done"
    (paid,) = payments(signed, office)
    assert (paid.chain, office.ran) == (LENT + work.chain, ["ann", "books"])


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff), managed(kickoff)])
def test_for_whom_a_call_is_made_may_approve_it_where_the_policy_says_so(office, native, make):
    office.needed = (Requirement(allow_self=True),)
    work = make(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve("alice")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_who_owns_the_agent_does_not_approve_its_calls(offices, native):
    agents = {"lead": {"max_scope": ["pay"], "owner": "user:bob"}}
    office = offices(agents=agents)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError):
            office.approve("bob")
        office.approve("carol")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_without_a_roster_there_is_nobody_to_wait_for(offices, native, signed, mode):
    office = offices(approvers={})
    office.terms = {"on_approval": mode} | ({"timeout": math.inf} if mode == "wait" else {})
    lead = native.agent("Lead", PAY, LOOK, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent():
        output = within(crew.kickoff)
    assert output.raw == "done"
    (failure,) = failures(output)
    assert (failure.code, failure.retryable) == ("approval.unavailable", False)
    assert "no approvers are configured" in failure.message
    assert office.ran == ["books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.code) == ("lead", "approval.unavailable")
    assert paid.chain == (*LENT, "lead")


def test_the_applications_word_counts_where_it_is_to(offices, native):
    office = offices(approvals={"application": True}, approvers={})
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        (request,) = office.waiting
        office.guard.approvals.vouch(request, "approve", principal="user:dora")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_only_so_many_requests_of_an_agent_wait(offices, native, signed):
    office = offices(approvals={"pending_per_agent": 1})
    office.terms = {"on_approval": "wait", "timeout": 0}
    lead = native.agent("Lead", PAY, BEN, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent():
        first, second = failures(crew.kickoff())
    assert (first.code, second.code) == ("approval.pending", "approval.limit")
    assert [call.code for call in payments(signed, office)] == ["approval.limit"]


# --- a policy that changes meanwhile --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_what_is_denied_by_now_does_not_run_though_it_was_approved(office, native, signed, mode):
    office.terms = {"on_approval": mode} | ({"timeout": 30} if mode == "wait" else {})

    def somebody() -> None:
        office.approve()
        office.answer = lambda *_needed: Decision.deny("not any more")

    lead = native.agent("Lead", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def tried() -> list[Any]:
        lead.llm.steps[:] = [PAY, "done"]
        return failures(crew.kickoff())

    with office.lent():
        if mode == "pause":
            with pytest.raises(ApprovalPending):
                tried()
            somebody()
            (failure,) = tried()
        else:
            office.answer = _denies_once_asked(office)
            (failure,) = tried()
        assert (failure.code, office.ran) == ("policy.denied", [])
        assert "not any more" in failure.message
        office.answer = Decision.require_approval  # and the approval was not used up by that
        assert tried() == []
    assert office.ran == ["ann"]
    calls = [(call.code, call.chain) for call in payments(signed, office)]
    assert calls == [("policy.denied", (*LENT, "lead")), ("", (*LENT, "lead"))]


def _denies_once_asked(office: Office) -> Callable[..., Decision]:
    """A policy that asks for an approval, and once it is there, denies."""
    asked: list[Any] = []

    def answer(*needed: Requirement) -> Decision:
        asked.append(needed)
        if len(asked) == 1:
            threading.Timer(0.1, office.approve).start()
            return Decision.require_approval(*needed)
        return Decision.deny("not any more")

    return answer


def test_a_policy_that_asks_for_more_by_now_is_not_met(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve()
        office.needed = (Requirement(quorum=2),)
        assert work.tried() == "done"
    assert office.ran == ["books"]
    assert [call.code for call in office.log.calls()] == ["approval.insufficient", ""]


def test_what_was_shown_is_to_be_met_though_the_policy_allows_by_now(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.answer = lambda *_needed: Decision.allow()
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve()
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


# --- what can be shown afterwards -----------------------------------------------------------------


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff)])
@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_the_evidence_names_who_approved(office, native, make, mode):
    office.terms = {"on_approval": mode}
    office.needed = (Requirement("payments need two people", quorum=2),)
    work = make(office, native)

    def somebody() -> None:
        office.approve("bob", note="checked")
        office.approve("carol")

    with office.lent():
        if mode == "pause":
            with pytest.raises(ApprovalPending):
                work.tried()
            somebody()
            assert work.tried() == "done"
        else:
            with office.answered(somebody):
                assert work.tried() == "done"
    (call,) = [one for one in office.log.calls() if one.tool == "pay"]
    trust = office.guard.trust
    proved = verify_evidence(office.guard.prove(call.invocation_id), trust)
    assert {answer.approval.approver for answer in proved.approved} == {"user:bob", "user:carol"}
    assert {answer.approver.name for answer in proved.approved} == {"bob", "carol"}
    assert "checked" in {answer.approval.note for answer in proved.approved}
    assert [needed.reason for needed in proved.required] == ["payments need two people"]
    assert proved.outcome.status == "ok"
    assert proved.chain.principal == "user:alice"
    assert proved.chain.members[1] == "crew:report"
    assert len(proved.chain.members) == 2 + len(work.chain)


def test_the_evidence_of_one_that_was_rejected_names_who(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.reject("carol", note="too dear")
        work.tried()
    call = office.log.calls()[0]
    proved = verify_evidence(office.guard.prove(call.invocation_id), office.guard.trust)
    (answer,) = proved.approved
    assert (answer.approval.verdict, answer.approval.approver) == ("reject", "user:carol")
    assert proved.outcome is None


# --- the command line -----------------------------------------------------------------------------

PASSPHRASE = b"of this test"
TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "rego"
path = "authz.rego"

[agents.lead]
max_scope = ["pay"]

[agents.worker]
max_scope = ["pay"]
"""
POLICY = """package agent.authz
default allow := false
allow if input.action in {"look", "delegate_work_to_coworker"}
approval := {"reason": "payments need a release manager", "roles": ["release-manager"]} if {
    input.action == "pay"
}
"""


class Desk:
    """A durable guard in a folder, and the command line that answers its requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {}
        people = ""
        for name in ("bob", "alice", "carol"):
            key = Ed25519Signer.from_seed(os.urandom(32))
            (folder / name).write_bytes(key.to_openssh(PASSPHRASE))
            line = key.public_key.openssh()
            roles = json.dumps(ROLES[name])
            people += f'\n[approvers.{name}]\nprincipal = "user:{name}"\n'
            people += f'keys = ["{line}"]\nroles = {roles}\n'
        (folder / "authz.rego").write_text(POLICY)
        (folder / "agentguard.toml").write_text(TABLES + people)
        settings = config.load(folder / "agentguard.toml")
        domain.found(settings, PASSPHRASE, now=datetime.now(UTC))

    def open(self) -> Guard:
        return Guard.open(self.folder / "agentguard.toml", passphrase=PASSPHRASE)

    def run(self, *args: str, by: str | None = None, run: Any = commands.run) -> Any:
        """Run ``agentguard approvals``, as ``by`` where somebody answers."""
        words = ["approvals", *args]
        if by is not None:
            words += ["--key", str(self.folder / by), "--yes"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "COLUMNS": "240",
            "LC_ALL": "C.UTF-8",
            "AGENTGUARD_APPROVER_PASSPHRASE": PASSPHRASE.decode(),
        }
        return run(words, env=environment, cwd=self.folder)

    def listed(self) -> list[Any]:
        return [json.loads(line) for line in self.run("list", "--json").stdout.splitlines()]


def another_process(words: list[str], **options: Any) -> Any:
    """Run ``agentguard`` beside this process, which goes on meanwhile."""
    command = [sys.executable, "-m", "agentguard.cli", *words]
    pipes: Any = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, check=False, **options, **pipes)


@pytest.fixture
def inbox(tmp_path) -> Desk:
    return Desk(tmp_path)


def test_a_paused_crew_is_listed_shown_and_approved_on_the_command_line(inbox, text, signed):
    ran: list[str] = []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    with inbox.open() as guard:
        lead = text.agent("Lead", allow_delegation=True)
        worker = text.agent("Worker", tools=[pay])
        crew = text.crew(lead, worker, tasks=[task(lead)])
        guard_crew(crew, guard, on_approval="pause")

        def tried() -> Any:
            lead.llm.steps[:] = [DELEGATE, "done"]
            worker.llm.steps[:] = [("pay", {"to": "ann\x1b[2J\nApproved by bob"}), "done"]
            with guard.delegate("user:alice", scope=["pay"], via="crew:report"):
                return crew.kickoff()

        with pytest.raises(ApprovalPending) as paused:
            tried()
        request = paused.value.request.request_id
        (listed,) = inbox.listed()
        assert listed["request_id"] == request
        assert listed["missing"].startswith("payments need a release manager: 0 of 1")
        shown = inbox.run("show", request[:8]).stdout
        assert "\x1b" not in shown
        for told in ("pay", "Pay somebody.", "agent:worker", "user:alice", "crew:report"):
            assert told in shown, told
        for by, why in (("alice", "user:alice asks for this call"), ("carol", "none of the roles")):
            refused = inbox.run("approve", request[:8], by=by)
            assert refused.returncode == 2
            assert why in refused.stderr, refused.stderr
        with pytest.raises(ApprovalPending):
            tried()
        assert ran == []
        said = inbox.run("approve", request[:8], by="bob")
        assert "approved by user:bob: pay" in said.stdout, said.stderr
        assert tried().raw == "done"
        assert len(ran) == 1
        assert inbox.listed() == []
        (paid,) = [call for call in signed(guard) if call.tool == "pay"]
        assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))
        assert guard.verify().ok


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_crew_that_waits_learns_what_was_said_on_the_command_line(inbox, native, verdict):
    ran: list[str] = []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    def somebody() -> None:
        while not guard.approvals.pending():
            time.sleep(0.01)
        (request,) = guard.approvals.pending()
        said.append(inbox.run(verdict, request.request_id, by="bob", run=another_process))

    said: list[Any] = []
    with inbox.open() as guard:
        lead = native.agent("Lead", PAY, "done", tools=[pay])
        crew = guard_crew(native.crew(lead), guard, timeout=120)
        answering = threading.Thread(target=somebody)
        answering.start()
        with guard.delegate("user:alice", scope=["pay"], via="crew:report"):
            output = crew.kickoff()
        answering.join()
        assert said[0].returncode == 0, said[0].stderr
        codes = [failure.code for failure in failures(output)]
        assert (ran, codes) == (
            (["ann"], []) if verdict == "approve" else ([], ["approval.rejected"])
        )
        assert guard.verify().ok
