"""A guard, and crews in flows whose payments wait for people.

The tests ``test_crewai_flows_*.py`` share these. The fixture is in ``conftest.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crewai.flow import Flow, listen, or_, start
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.tools import tool

from agentguard import Decision, Guard
from agentguard_crewai import (
    akickoff_or_pause,
    answered,
    guard_crew,
    kickoff_or_pause,
)

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {"what": "books"})
LENT = ("user:alice", "crew:report")


class Firm:
    """A guard that asks before anybody pays, crews that do, and where their flows are kept."""

    def __init__(self, make: Callable[..., Any], way: Any, folder: Path) -> None:
        agents = {name: {"max_scope": ["pay"]} for name in ("lead", "worker")}
        self.log = make(agents=agents)
        self.log.decide = lambda call: (
            Decision.require_approval() if call["action"] == "pay" else Decision.allow()
        )
        self.guard: Guard = self.log.guard
        self.way = way
        self.store = SQLiteFlowPersistence(str(folder / "flows.db"))
        self.ran: list[str] = []
        self.terms: dict[str, Any] = {"on_approval": "pause"}

        @tool
        def pay(to: str) -> str:
            """Pay somebody."""
            self.ran.append(to)
            return f"paid {to}"

        @tool
        def look(what: str) -> str:
            """Look at something."""
            self.ran.append(what)
            return f"looked at {what}"

        self.tools = [pay, look]

    def crew(self, *said: Any) -> Any:
        lead = self.way.agent("Lead", *said, tools=self.tools, max_retry_limit=0)
        return guard_crew(self.way.crew(lead), self.guard, **self.terms)

    def lent(self, principal: str = "user:alice") -> Any:
        return self.guard.delegate(principal, scope=["pay"], via="crew:report")

    def flow(self, kind: type[Flow[Any]], **options: Any) -> Any:
        return kind(persistence=self.store, suppress_flow_events=True, **options)

    def pending(self, kind: type[Flow[Any]], flow: Any) -> Any:
        return kind.from_pending(flow.flow_id, self.store, suppress_flow_events=True)

    def ended(self, kind: type[Flow[Any]], flow: Any, said: Any) -> tuple[Any, list[str]]:
        """Approve and resume until the flow is done; return its output, and where it paused."""
        paused = []
        while isinstance(said, HumanFeedbackPending):
            assert len(paused) < 8, "it never ends"
            paused.append(str(said.context.method_name))
            self.log.approve()
            with self.lent():
                said = self.pending(kind, flow).resume()
        return said, paused


def payments(signed: Any, firm: Firm) -> list[Any]:
    return [call for call in signed(firm.guard) if call.tool == "pay"]


def ordering(firm: Firm, *said: Any) -> type[Flow[Any]]:
    """A flow with one method that pauses, between two that do not."""

    class Ordering(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            self.state["begun"] = self.state.get("begun", 0) + 1
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            crew = firm.crew(*(said or (LOOK, PAY, "done")))
            return kickoff_or_pause(self, crew, run=f"order {self.state['id']}").raw

        @listen("order")
        def end(self, said):
            self.state["ended"] = self.state.get("ended", 0) + 1
            return f"ended {said}"

    return Ordering


def aordering(firm: Firm) -> type[Flow[Any]]:
    class Ordering(Flow[dict[str, Any]]):
        @start()
        async def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        async def order(self):
            crew = firm.crew(LOOK, PAY, "done")
            output = await akickoff_or_pause(self, crew, run=f"order {self.state['id']}")
            return output.raw

        @listen("order")
        async def end(self, said):
            return f"ended {said}"

    return Ordering
