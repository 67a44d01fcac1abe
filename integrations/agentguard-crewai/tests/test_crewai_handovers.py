"""Work that is handed over is complete once every call in it is: what waits in it is not lost.

By CrewAI's tools for handing over, a manager, a crew or a Flow in a tool; in this process. Another
process stands in test_crewai_crashes.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.flow import Flow, start
from crewai.tools import tool
from crewai.tools.agent_tools.agent_tools import AgentTools

from agentguard import Decision
from agentguard_crewai import guard_agent, guard_crew, resumable

BOOK = ("book", {"what": "a cab"})
PAY = ("pay", {"to": "ann"})
ORDER = ("order", {"what": "a cab"})
SAID = [BOOK, PAY, "that is all"]
DOWN = RuntimeError("the model is down")


def asked_of(who: str, name: str = "delegate_work_to_coworker", **given: str) -> Any:
    return name, {"context": "now", "coworker": who, **(given or {"task": "pay ann"})}


DELEGATE = asked_of("Worker")
QUESTION = asked_of("Worker", "ask_question_to_coworker", question="is ann paid?")


class Office:
    """A guard that asks people before anybody pays, and what its tools have done."""

    def __init__(self, make: Callable[..., Any]) -> None:
        names = ("lead", "worker", "clerk", "crew-manager")
        self.log = make(agents={name: {"max_scope": ["pay"]} for name in names})
        self.guard = self.log.guard
        self.asks = True
        self.log.decide = self.decide
        self.ran: list[str] = []
        self.failing: list[Exception] = []
        self.timeout: float = 0

        @tool
        def book(what: str) -> str:
            """Book something."""
            self.ran.append(what)
            return f"booked {what}"

        @tool
        def pay(to: str) -> str:
            """Pay somebody."""
            if self.failing:
                raise self.failing.pop()
            self.ran.append(to)
            return f"paid {to}"

        self.tools = [book, pay]

    def decide(self, call: Any) -> Decision:
        asked = self.asks and call["action"] == "pay"
        return Decision.require_approval() if asked else Decision.allow()

    def lent(self) -> Any:
        return self.guard.delegate("user:alice", scope=["pay"], via="crew:report")

    def reject(self) -> None:
        for request in self.guard.approvals.pending():
            self.guard.approvals.reject(request, self.log.approver)

    def crew(self, crew: Crew) -> Crew:
        return guard_crew(crew, self.guard, timeout=self.timeout)


@dataclass
class Work:
    """Work that ``begin`` begins, in which a worker books, and then pays.

    ``models`` are those that are asked, the worker's first, with what each says in a try.
    """

    begin: Callable[[], Any]
    models: list[tuple[Any, list[Any]]]
    heard: list[int] = field(default_factory=list)

    def tried(self, office: Office, name: str | None = "order-1") -> list[str]:
        """Try it, the models from their beginning; return what was done in this try."""
        for model, said in self.models:
            model.steps[:] = said
        worker, _said = self.models[0]
        before, asked = len(office.ran), len(worker.heard)
        with office.lent():
            if name is None:
                self.begin()
            else:
                with resumable(name):
                    self.begin()
        self.heard.append(len(worker.heard) - asked)
        return office.ran[before:]


def task(agent: Any = None) -> Task:
    return Task(description="a task", expected_output="words", agent=agent)


def soon(coming: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda crew: asyncio.run(coming(crew))


def coworker(how: Callable[[Crew], Any], call: Any = DELEGATE, **options: Any) -> Any:
    def make(office: Office, way: Any) -> Work:
        worker = way.agent("Worker", tools=office.tools)
        lead = way.agent("Lead", allow_delegation=True)
        crew = office.crew(way.crew(lead, worker, tasks=[task(lead)], **options))
        return Work(lambda: how(crew), [(worker.llm, SAID), (lead.llm, [call, "done"])])

    return make


def two_deep(office: Office, way: Any) -> Work:
    worker = way.agent("Worker", tools=office.tools)
    clerk = way.agent("Clerk", tools=AgentTools(agents=[worker]).tools())
    lead = way.agent("Lead", allow_delegation=True)
    crew = office.crew(way.crew(lead, clerk, worker, tasks=[task(lead)]))
    models = [
        (worker.llm, SAID),
        (clerk.llm, [DELEGATE, "so"]),
        (lead.llm, [asked_of("Clerk"), "x"]),
    ]
    return Work(crew.kickoff, models)


def managed(how: Callable[[Crew], Any]) -> Any:
    def make(office: Office, way: Any) -> Work:
        worker, manager = way.agent("Worker", tools=office.tools), way.model()
        options = {"process": Process.hierarchical, "manager_llm": manager}
        crew = office.crew(Crew(agents=[worker], tasks=[task()], **options))
        return Work(lambda: how(crew), [(worker.llm, SAID), (manager, [DELEGATE, "done"])])

    return make


def in_a_tool(how: Callable[[Office, Any, Any], Any]) -> Any:
    """What a tool of the lead's begins, in which the worker books and pays."""

    def make(office: Office, way: Any) -> Work:
        worker = way.agent("Worker", tools=office.tools)
        work = how(office, way, worker)

        @tool
        def order(what: str) -> str:
            """Have somebody else see to something."""
            return f"{what}: {work()}"

        lead = way.agent("Lead", tools=[order])
        crew = office.crew(way.crew(lead))
        return Work(crew.kickoff, [(worker.llm, SAID), (lead.llm, [ORDER, "done"])])

    return make


def a_crew(office: Office, way: Any, worker: Any) -> Any:
    crew = office.crew(way.crew(worker))
    return lambda: crew.kickoff().raw


def an_agent(office: Office, _way: Any, worker: Any) -> Any:
    guard_agent(worker, office.guard, timeout=office.timeout)
    return lambda: worker.kickoff("go").raw


def a_flow(office: Office, way: Any, worker: Any) -> Any:
    crew = office.crew(way.crew(worker))

    class Ordering(Flow):
        @start()
        def begin(self) -> str:
            return crew.kickoff().raw

    return lambda: Ordering(suppress_flow_events=True).kickoff()


def an_async_flow(office: Office, way: Any, worker: Any) -> Any:
    crew = office.crew(way.crew(worker))

    class Ordering(Flow):
        @start()
        async def begin(self) -> str:
            return (await crew.akickoff()).raw

    return lambda: asyncio.run(Ordering(suppress_flow_events=True).kickoff_async())


def a_crew_in_a_thread(office: Office, way: Any, worker: Any) -> Any:
    """As docs/how-to/crewai-limits.md has it: the thread's work is run with the tool's context."""
    crew = office.crew(way.crew(worker))

    def work() -> str:
        with ThreadPoolExecutor() as pool:
            return pool.submit(contextvars.copy_context().run, crew.kickoff).result().raw

    return work


def a_crew_in_a_bare_thread(office: Office, way: Any, worker: Any) -> Any:
    """As docs/how-to/crewai-limits.md says it is lost: both blocks are begun in the thread."""
    crew = office.crew(way.crew(worker))

    def kickoff() -> str:
        with office.lent(), resumable("inner-1"):
            return crew.kickoff().raw

    def work() -> str:
        with ThreadPoolExecutor() as pool:
            return pool.submit(kickoff).result()

    return work


def a_crew_and_a_call_of_its_own(office: Office, way: Any, worker: Any) -> Any:
    """A guarded call that no journal has, and then a crew."""
    crew, clerk = office.crew(way.crew(worker)), office.guard.new_agent("clerk")

    @office.guard.tool
    def mail(to: str) -> None:
        office.ran.append(f"mail to {to}")

    def work() -> str:
        clerk.call(mail, to="ann")
        return crew.kickoff().raw

    return work


WAYS = {
    "coworker": coworker(lambda crew: crew.kickoff()),
    "question": coworker(lambda crew: crew.kickoff(), QUESTION),
    "kickoff_async": coworker(soon(lambda crew: crew.kickoff_async())),
    "akickoff": coworker(soon(lambda crew: crew.akickoff())),
    "for_each": coworker(lambda crew: crew.kickoff_for_each([{}])),
    "cached": coworker(lambda crew: crew.kickoff(), cache=True),
    "two_deep": two_deep,
    "manager": managed(lambda crew: crew.kickoff()),
    "amanager": managed(soon(lambda crew: crew.akickoff())),
    "crew_in_a_tool": in_a_tool(a_crew),
    "crew_in_a_thread_of_a_tool": in_a_tool(a_crew_in_a_thread),
    "agent_in_a_tool": in_a_tool(an_agent),
    "flow_in_a_tool": in_a_tool(a_flow),
    "async_flow_in_a_tool": in_a_tool(an_async_flow),
}
EVERY = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
FEW = ("coworker", "two_deep", "crew_in_a_tool")
SOME = pytest.mark.parametrize("make", [WAYS[name] for name in FEW], ids=FEW)
MOST = EVERY if rounds.ALL else SOME


@pytest.fixture
def office(recorded) -> Office:
    return Office(recorded)


@EVERY
def test_a_call_that_waited_in_vain_runs_once_it_is_approved(office, native, make):
    work = make(office, native)
    assert work.tried(office) == ["a cab"]
    office.log.approve()
    assert work.tried(office) == ["ann"]  # and nothing is booked again
    assert work.tried(office) == []
    assert [heard > 0 for heard in work.heard] == [True, True, False]
    assert office.guard.approvals.pending() == []


@MOST
def test_work_in_which_nothing_waits_is_handed_out_and_not_done_again(office, native, make):
    work = make(office, native)
    office.asks = False
    assert work.tried(office) == ["a cab", "ann"]
    assert work.tried(office) == []
    assert [heard > 0 for heard in work.heard] == [True, False]


IN_A_BARE_THREAD = "outside of any guarded call"


def test_the_limit_what_waits_in_a_bare_thread_of_a_tool_is_not_made_again(office, native, caplog):
    work = in_a_tool(a_crew_in_a_bare_thread)(office, native)
    assert work.tried(office) == ["a cab"]
    assert IN_A_BARE_THREAD in caplog.text
    assert "contextvars.copy_context().run" in caplog.text
    office.log.approve()
    assert work.tried(office) == []


@pytest.mark.parametrize("how", [a_crew, a_crew_in_a_thread])
def test_what_waits_within_a_call_is_no_cause_to_warn_of_threads(office, native, how, caplog):
    """The twin."""
    assert in_a_tool(how)(office, native).tried(office) == ["a cab"]
    assert IN_A_BARE_THREAD not in caplog.text


def test_nor_is_what_waits_in_a_thread_where_no_tool_runs(office, native, caplog):
    worker = native.agent("Worker", tools=office.tools)
    begin = a_crew_in_a_bare_thread(office, native, worker)
    worker.llm.steps[:] = SAID
    begin()
    assert office.ran == ["a cab"]
    office.log.approve()
    worker.llm.steps[:] = SAID
    begin()
    assert office.ran == ["a cab", "ann"]
    assert IN_A_BARE_THREAD not in caplog.text


def test_the_limit_a_tool_is_not_made_again_once_a_call_of_no_journal_has_run(
    office, native, caplog
):
    work = in_a_tool(a_crew_and_a_call_of_its_own)(office, native)
    assert work.tried(office) == ["mail to ann", "a cab"]
    assert "has ended, although a call" in caplog.text
    office.log.approve()
    assert work.tried(office) == []


@SOME
def test_as_long_as_nobody_answers_it_is_asked_again_and_not_done(office, native, make):
    work = make(office, native)
    assert [work.tried(office) for _ in range(3)] == [["a cab"], [], []]
    assert len(office.guard.approvals.pending()) == 1
    assert all(work.heard)


@SOME
def test_a_call_that_was_rejected_is_told_once_and_has_ended(office, native, make):
    work = make(office, native)
    assert work.tried(office) == ["a cab"]
    office.reject()
    assert [work.tried(office) for _ in range(2)] == [[], []]
    assert "has rejected this call" in " ".join(work.models[0][0].heard)
    assert [heard > 0 for heard in work.heard] == [True, True, False]


@SOME
def test_a_call_that_the_policy_denied_has_ended(office, native, make):
    work = make(office, native)
    office.log.decide = lambda call: (
        Decision.deny("no") if call["action"] == "pay" else Decision.allow()
    )
    assert [work.tried(office) for _ in range(2)] == [["a cab"], []]
    assert [heard > 0 for heard in work.heard] == [True, False]


@SOME
def test_a_call_of_which_nobody_knows_whether_it_ran_is_told_again(office, native, make):
    work = make(office, native)
    office.asks = False
    office.failing = [TimeoutError("the bank is slow")]
    assert [work.tried(office) for _ in range(3)] == [["a cab"], [], []]
    assert all(work.heard)
    assert "nobody knows whether it ran" in " ".join(work.models[0][0].heard)


@SOME
def test_a_policy_that_could_not_be_asked_has_not_answered(office, native, make):
    work, decide = make(office, native), office.log.decide

    def failing(call: Any) -> Decision:
        if call["action"] == "pay":
            raise RuntimeError("no policy today")
        return Decision.allow()

    office.log.decide = failing
    assert work.tried(office) == ["a cab"]
    office.asks, office.log.decide = False, decide
    assert work.tried(office) == ["ann"]
    assert work.tried(office) == []


@pytest.mark.parametrize("cache", [False, True])
def test_in_a_run_without_a_name_the_approved_call_runs_too(office, native, cache):
    work = coworker(lambda crew: crew.kickoff(), cache=cache)(office, native)
    assert work.tried(office, None) == ["a cab"]
    office.log.approve()
    done = work.tried(office, None)  # a booking that CrewAI has kept is handed out
    assert done == (["ann"] if cache else ["a cab", "ann"])


def test_work_that_is_handed_over_again_in_the_same_try_books_nothing_twice(office, native):
    worker = native.agent("Worker", tools=office.tools)
    lead = native.agent("Lead", allow_delegation=True)
    crew = office.crew(native.crew(lead, worker, tasks=[task(lead)]))
    models = [(worker.llm, [*SAID, *SAID]), (lead.llm, [DELEGATE, DELEGATE, "done"])]
    work = Work(crew.kickoff, models)
    assert work.tried(office) == ["a cab"]
    office.log.approve()
    assert work.tried(office) == ["ann", "a cab"]  # the second one is another one by now


def test_a_coworker_that_failed_and_is_asked_again_books_nothing_twice(office, native):
    worker = native.agent("Worker", tools=office.tools, max_retry_limit=0)
    lead = native.agent("Lead", allow_delegation=True)
    crew = office.crew(native.crew(lead, worker, tasks=[task(lead)]))
    models = [(worker.llm, [BOOK, DOWN, BOOK, "booked"]), (lead.llm, [DELEGATE, DELEGATE, "done"])]
    work = Work(crew.kickoff, models)
    assert work.tried(office) == ["a cab"]
    work.models[1][1][:] = [DELEGATE, "done"]
    assert work.tried(office) == []


def test_other_work_of_the_same_coworker_is_other_work(office, native):
    # both book a cab and pay ann: the first waits, and is no reason to leave out the second
    other = asked_of("Worker", task="pay ann once more")
    worker = native.agent("Worker", tools=office.tools)
    lead = native.agent("Lead", allow_delegation=True)
    crew = office.crew(native.crew(lead, worker, tasks=[task(lead)]))
    models = [(worker.llm, [*SAID, BOOK, "booked"]), (lead.llm, [DELEGATE, other, "done"])]
    work = Work(crew.kickoff, models)
    assert work.tried(office) == ["a cab", "a cab"]
    office.log.approve()
    assert work.tried(office) == ["ann"]
    assert work.tried(office) == []


def test_a_call_that_is_approved_while_it_waits_completes_the_work(office, native):
    office.timeout = 120
    work = coworker(lambda crew: crew.kickoff())(office, native)
    asked = office.guard.approvals

    def approve() -> None:
        while not asked.pending():
            time.sleep(0.01)
        office.log.approve()

    somebody = threading.Thread(target=approve)
    somebody.start()
    assert work.tried(office) == ["a cab", "ann"]
    somebody.join()
    assert work.tried(office) == []
    assert work.heard[1] == 0
