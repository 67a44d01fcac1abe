"""A guard whose policy asks people before a crew pays, and the ways to begin such a crew.

The tests ``test_crewai_approvals_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import tool

from agentguard import (
    Decision,
    Ed25519Signer,
    Guard,
    Requirement,
)
from agentguard_crewai import guard_agent, guard_crew

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
