"""A guard, and tools that pay and look, whose calls are recorded: for runs that are begun again.

The tests ``test_crewai_runs_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from crewai import Crew, Task
from crewai.tools import tool

from agentguard import Decision
from agentguard_crewai import guard_crew, resumable

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {"what": "books"})
LENT = ("user:alice", "crew:report")
DOWN = RuntimeError("the model is down")
"""Ends a try: agents here are not asked to try it again by themselves."""


DELEGATE = (
    "delegate_work_to_coworker",
    {"task": "pay ann", "context": "now", "coworker": "Worker"},
)


class Shop:
    """A guard, the tools of its agents, and what these have done."""

    def __init__(self, make: Callable[..., Any], **tables: Any) -> None:
        agents = {name: {"max_scope": ["pay"]} for name in ("lead", "worker", "crew-manager")}
        self.log = make(**{"agents": agents, **tables})
        self.guard = self.log.guard
        self.answers: dict[str, Decision] = {}
        self.log.decide = self.decide
        self.ran: list[str] = []
        self.terms: dict[str, Any] = {"on_approval": "pause"}
        self.failing: list[BaseException] = []
        self.results: Callable[[str, int], Any] = lambda to, at: f"paid {to} as number {at}"
        self.then: Callable[[], Any] = lambda: None
        self.tools = [self.paying(), self.looking()]

    def decide(self, document: Any) -> Decision:
        return self.answers.get(document["action"], Decision.allow())

    def paying(self, description: str = "Pay somebody.") -> Any:
        def pay(to: str, cents: int = 100) -> Any:
            if self.failing:
                raise self.failing.pop(0)
            self.ran.append(to)
            return self.results(to, len(self.ran))

        pay.__doc__ = description
        return tool(pay)

    def looking(self) -> Any:
        @tool
        def look(what: str) -> str:
            """Look at something."""
            self.ran.append(what)
            self.then()
            return f"looked at {what} as number {len(self.ran)}"

        return look

    def lent(self, principal: str = "user:alice", **terms: Any) -> Any:
        return self.guard.delegate(principal, **{"scope": ["pay"], "via": "crew:report", **terms})

    def crew(self, crew: Crew) -> Crew:
        return guard_crew(crew, self.guard, **self.terms)

    def agent(self, way: Any, *said: Any, role: str = "Lead", **options: Any) -> Any:
        return way.agent(role, *said, **{"tools": self.tools, "max_retry_limit": 0, **options})

    def tried(self, way: Any, *said: Any, name: str = "order-1", **options: Any) -> Any:
        """Try a run with a new crew of one agent; return what is known of it."""
        lead = self.agent(way, *said, **options)
        return self.run(lead, self.crew(way.crew(lead)), name)

    def run(self, lead: Any, crew: Crew, name: str = "order-1", **lent: Any) -> Any:
        output: Any = None
        with self.lent(**lent), resumable(name):
            try:
                output = crew.kickoff()
            except RuntimeError as error:
                assert error is DOWN  # noqa: PT017  it is how a try ends here
        failures = [
            one.failure
            for task in (output.tasks_output if output else [])
            for one in task.tool_failures
        ]
        return SimpleNamespace(
            raw=output.raw if output else None,
            codes=[failure.code for failure in failures],
            failures=failures,
            heard=" ".join(map(str, [*lead.llm.heard, *lead.tools_results])),
        )


def calls_of(signed: Any, shop: Shop, name: str = "pay") -> list[Any]:
    return [call for call in signed(shop.guard) if call.tool == name]


def task(agent: Any = None, **options: Any) -> Task:
    return Task(description="a task", expected_output="words", agent=agent, **options)
