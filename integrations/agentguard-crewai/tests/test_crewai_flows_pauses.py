"""Crews in Flows that pause: resumed here and in another process, in loops and side by side.

The flows are CrewAI's own, and so is what persists them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from crewai import Task
from crewai.flow import Flow, and_, listen, or_, router, start
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.tools import tool
from pydantic import BaseModel

from agentguard import ApprovalPending, ConfigError, Decision, Ed25519Signer, Guard
from agentguard.domain import config, domain
from agentguard_crewai import (
    akickoff_or_pause,
    answered,
    guard_agent,
    guard_crew,
    kickoff_or_pause,
    resumable,
)

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {"what": "books"})
LENT = ("user:alice", "crew:report")
DELEGATE = (
    "delegate_work_to_coworker",
    {"task": "pay ann", "context": "now", "coworker": "Worker"},
)


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


@pytest.fixture
def firm(recorded, native, tmp_path) -> Firm:
    return Firm(recorded, native, tmp_path)


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


# --- pause, answer, resume ------------------------------------------------------------------------


def test_a_flow_pauses_and_goes_on_once_it_is_answered(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        paused = flow.kickoff()
    assert isinstance(paused, HumanFeedbackPending)
    (request,) = firm.guard.approvals.pending()
    assert paused.context.method_name == "order"
    assert paused.context.metadata == {
        "run": f"order {flow.flow_id}",
        "request_id": request.request_id,
    }
    assert "pay waits for approval" in paused.context.message
    assert firm.ran == ["books"]
    assert payments(signed, firm) == []
    firm.log.approve()
    resumed = firm.pending(kind, flow)
    with firm.lent():
        assert resumed.resume() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain, paid.outcome) == ("lead", (*LENT, "lead"), "ok")
    assert (resumed.state["begun"], resumed.state["ended"]) == (1, 1)
    with pytest.raises(ValueError, match="No pending feedback"):
        firm.pending(kind, flow)


async def test_an_async_flow_pauses_and_goes_on_once_it_is_answered(firm, signed):
    kind = aordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        paused = await flow.kickoff_async()
    assert isinstance(paused, HumanFeedbackPending)
    assert (paused.context.method_name, firm.ran) == ("order", ["books"])
    firm.log.approve()
    with firm.lent():
        assert await firm.pending(kind, flow).resume_async() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain, paid.outcome) == ("lead", (*LENT, "lead"), "ok")


def test_a_flow_in_which_nobody_is_asked_does_not_pause(firm, signed):
    firm.log.decide = lambda _call: Decision.allow()
    with firm.lent():
        assert firm.flow(ordering(firm)).kickoff() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert paid.chain == (*LENT, "lead")


def test_a_flow_that_is_rejected_goes_on_without_the_call(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
        (request,) = firm.guard.approvals.pending()
        firm.guard.approvals.reject(request, firm.log.approver, note="too dear")
        assert firm.pending(kind, flow).resume() == "ended done"
    assert firm.ran == ["books"]
    (paid,) = payments(signed, firm)
    assert (paid.code, paid.chain) == ("approval.rejected", (*LENT, "lead"))


def test_a_flow_that_is_resumed_too_early_pauses_again(firm):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        first = flow.kickoff()
        second = firm.pending(kind, flow).resume()
        assert isinstance(second, HumanFeedbackPending)
        assert second.context.metadata == first.context.metadata
        assert firm.ran == ["books"]
        assert firm.ended(kind, flow, second) == ("ended done", ["order"])
    assert firm.ran == ["books", "ann"]


def test_a_flow_pauses_for_each_call_that_needs_people(firm, signed):
    kind = ordering(firm, LOOK, PAY, LOOK, BEN, "done")
    flow = firm.flow(kind)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(kind, flow, said) == ("ended done", ["order", "order"])
    assert firm.ran == ["books", "ann", "books", "ben"]
    done = [call.arguments["to"] for call in payments(signed, firm) if call.outcome == "ok"]
    assert done == ["ann", "ben"]


def test_a_coworkers_call_pauses_the_flow(firm, native, signed):
    class Handing(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            lead = native.agent("Lead", DELEGATE, "done", allow_delegation=True)
            worker = native.agent("Worker", LOOK, PAY, "is paid", tools=firm.tools)
            tasks = [Task(description="a task", expected_output="words", agent=lead)]
            crew = guard_crew(
                native.crew(lead, worker, tasks=tasks), firm.guard, on_approval="pause"
            )
            return kickoff_or_pause(self, crew, run="order").raw

    flow = firm.flow(Handing)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Handing, flow, said) == ("done", ["order"])
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


def test_a_crew_that_is_kicked_off_by_itself_stops_its_flow(firm):
    class Plain(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return firm.crew(PAY, "done").kickoff().raw

    class ByAgent(Flow[dict[str, Any]]):
        @start()
        async def begin(self):
            agent = firm.way.agent("Lead", PAY, "done", tools=firm.tools)
            guard_agent(agent, firm.guard, on_approval="pause")
            return (await agent.kickoff_async("go")).raw

    for kind in (Plain, ByAgent):
        with firm.lent(), pytest.raises(ApprovalPending):
            firm.flow(kind).kickoff()
    assert firm.ran == []


def test_a_flow_keeps_its_state_over_a_pause(firm):
    class Order(BaseModel):
        id: str = ""
        seen: list[str] = []

    class Stateful(Flow[Order]):
        @start()
        def begin(self):
            self.state.seen.append("begin")

        @listen(or_("begin", answered("order")))
        def order(self):
            self.state.seen.append("order")
            return kickoff_or_pause(self, firm.crew(PAY, "{name} is done"), run="order").raw

    flow = firm.flow(Stateful)
    with firm.lent():
        said = flow.kickoff()
        firm.log.approve()
        resumed = firm.pending(Stateful, flow)
        said = resumed.resume()
    assert said == "{name} is done"
    assert resumed.state.seen == ["begin", "order", "order"]
    assert firm.ran == ["ann"]


def test_inputs_reach_the_crew(firm, native):
    class Given(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            lead = native.agent("Lead", PAY, "done", tools=firm.tools)
            task = Task(description="pay {who}", expected_output="words", agent=lead)
            crew = guard_crew(native.crew(lead, tasks=[task]), firm.guard, on_approval="pause")
            kickoff_or_pause(self, crew, {"who": "ann, please"}, run="order")
            return task.description

    flow = firm.flow(Given)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Given, flow, said) == ("pay ann, please", ["order"])


# --- several in one flow --------------------------------------------------------------------------


def test_two_crews_of_a_method_pause_one_after_the_other(firm, signed):
    class Two(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order of ann")
            return kickoff_or_pause(self, firm.crew(LOOK, BEN, "done"), run="order of ben").raw

    flow = firm.flow(Two)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Two, flow, said) == ("done", ["order", "order"])
    assert firm.ran == ["books", "ann", "books", "ben"]
    done = [call.arguments["to"] for call in payments(signed, firm) if call.outcome == "ok"]
    assert done == ["ann", "ben"]


def test_two_methods_pause_one_after_the_other(firm, signed):
    class Two(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("first")))
        def first(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="first").raw

        @listen(or_("first", answered("second")))
        def second(self):
            return kickoff_or_pause(self, firm.crew(LOOK, BEN, "done"), run="second").raw

        @listen("second")
        def end(self, said):
            return f"ended {said}"

    flow = firm.flow(Two)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Two, flow, said) == ("ended done", ["first", "second"])
    assert firm.ran == ["books", "ann", "books", "ben"]
    assert {call.chain for call in payments(signed, firm)} == {(*LENT, "lead")}


def test_of_methods_that_pause_at_once_none_pays_twice(firm):
    # CrewAI keeps the pause of one of them; the flow is then kicked off anew for the other

    class AtOnce(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("first")))
        def first(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="first").raw

        @listen(or_("begin", answered("second")))
        def second(self):
            return kickoff_or_pause(self, firm.crew(LOOK, BEN, "done"), run="second").raw

    for _ in range(3):
        flow = firm.flow(AtOnce)
        with firm.lent():
            said = flow.kickoff()
        firm.ended(AtOnce, flow, said)
    assert sorted(firm.ran) == ["ann", "ben", "books", "books"]


@pytest.mark.parametrize("asked", [True, False])
def test_each_round_of_a_loop_is_a_run_of_its_own(firm, signed, asked):
    if not asked:
        firm.log.decide = lambda _call: Decision.allow()

    class Loop(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            self.state["round"] = 1

        @listen(or_("begin", "again", answered("order")))
        def order(self):
            name = f"{self.state['id']} {self.state['round']}"
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run=name).raw

        @router("order")
        def choose(self):
            self.state["round"] += 1
            return "again" if self.state["round"] <= 3 else "enough"

        @listen("enough")
        def end(self):
            return "ended"

    flow = firm.flow(Loop)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Loop, flow, said) == ("ended", ["order"] * 3 if asked else [])
    assert firm.ran == ["books", "ann"] * 3
    done = [call for call in payments(signed, firm) if call.outcome == "ok"]
    assert [call.chain for call in done] == [(*LENT, "lead")] * 3
    assert len({call.site for call in done}) == 3


def test_a_run_that_is_named_once_more_is_the_same_run(firm):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        said = flow.kickoff()
    firm.ended(kind, flow, said)
    again = firm.flow(kind)
    with firm.lent():  # as a flow that is kicked off anew after a crash
        said = again.kickoff(inputs={"id": flow.flow_id})
    assert said == "ended done"
    assert firm.ran == ["books", "ann"]


def test_a_flow_that_was_lost_is_begun_again_under_its_name(firm):
    # CrewAI strikes a pause off its list before it goes on with the flow
    kind = ordering(firm, LOOK, PAY, RuntimeError("the model is down"))
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
        firm.log.approve()
        with pytest.raises(RuntimeError, match="down"):
            firm.pending(kind, flow).resume()
        assert firm.ran == ["books", "ann"]
        with pytest.raises(ValueError, match="No pending feedback"):
            firm.pending(kind, flow)
        anew = firm.flow(ordering(firm))
        assert anew.kickoff(inputs={"id": flow.flow_id}) == "ended done"
    assert firm.ran == ["books", "ann"]


def test_two_flows_pause_and_go_on_in_whatever_order(firm, signed):
    kind = ordering(firm)
    flows = [firm.flow(kind) for _ in range(3)]
    with firm.lent():
        paused = [flow.kickoff() for flow in flows]
    requests = {one.context.metadata["request_id"] for one in paused}
    assert requests == {one.request_id for one in firm.guard.approvals.pending()}
    assert len(requests) == 3
    last = firm.guard.approvals.find(paused[2].context.metadata["request_id"])
    firm.guard.approvals.approve(last, firm.log.approver)
    with firm.lent():
        for flow in flows[:2]:  # that of another is no answer to theirs
            assert isinstance(firm.pending(kind, flow).resume(), HumanFeedbackPending)
        assert firm.pending(kind, flows[2]).resume() == "ended done"
    assert firm.ran == ["books"] * 3 + ["ann"]
    for flow, said in zip(flows[:2], paused[:2], strict=True):
        assert firm.ended(kind, flow, said)[0] == "ended done"
    assert firm.ran == ["books"] * 3 + ["ann"] * 3
    assert {call.chain for call in payments(signed, firm)} == {(*LENT, "lead")}


def test_flows_of_several_people_go_on_at_once(firm, signed):
    kind = ordering(firm)
    people = [f"user:u{at}" for at in range(4)]

    def begin(principal: str) -> Any:
        flow = firm.flow(kind)
        with firm.lent(principal):
            assert isinstance(flow.kickoff(), HumanFeedbackPending)
        return flow

    def go_on(principal: str, flow: Any) -> Any:
        with firm.lent(principal):
            return firm.pending(kind, flow).resume()

    with ThreadPoolExecutor(4) as threads:
        flows = list(threads.map(begin, people))
        firm.log.approve()
        assert list(threads.map(go_on, people, flows)) == ["ended done"] * 4
    assert sorted(firm.ran) == ["ann"] * 4 + ["books"] * 4
    paid = payments(signed, firm)
    assert sorted(call.chain for call in paid) == [(one, "crew:report", "lead") for one in people]


async def test_flows_of_one_loop_go_on_at_once(firm):
    kind = aordering(firm)

    async def one() -> str:
        flow = firm.flow(kind)
        assert isinstance(await flow.kickoff_async(), HumanFeedbackPending)
        firm.log.approve()
        said = await firm.pending(kind, flow).resume_async()
        return str(said)

    with firm.lent():
        assert await asyncio.gather(one(), one(), one()) == ["ended done"] * 3
    assert sorted(firm.ran) == ["ann"] * 3 + ["books"] * 3


# --- for whom -------------------------------------------------------------------------------------


def test_a_flow_that_goes_on_for_nobody_does_nothing(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    firm.log.approve()
    assert firm.pending(kind, flow).resume() == "ended done"  # the model is told
    assert firm.ran == ["books"]
    assert [call.code for call in signed(firm.guard)][1:] == ["delegation.missing"] * 2


def test_a_flow_that_goes_on_for_another_does_nothing_that_was_approved(firm, signed):
    kind = ordering(firm, PAY, "done")
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    firm.log.approve()
    with firm.lent("user:mallory"):
        asked = firm.pending(kind, flow).resume()
    assert isinstance(asked, HumanFeedbackPending)  # for mallory it is another call
    request = firm.guard.approvals.find(asked.context.metadata["request_id"])
    assert (request.principal, firm.ran) == ("user:mallory", [])
    assert payments(signed, firm) == []
    with firm.lent():
        assert firm.pending(kind, flow).resume() == "ended done"
    assert firm.ran == ["ann"]
    (paid,) = payments(signed, firm)
    assert paid.chain == (*LENT, "lead")


def test_a_delegation_that_lies_in_the_state_is_taken_up(firm, signed):
    class Kept(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            with firm.guard.resume(self.state["lent"].encode()):
                return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    flow = firm.flow(Kept)
    said = flow.kickoff(inputs={"lent": firm.lent().dumps().decode()})
    assert isinstance(said, HumanFeedbackPending)
    firm.log.approve()
    assert firm.pending(Kept, flow).resume() == "done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.chain, paid.scope) == ((*LENT, "lead"), ("pay",))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["", None, 7, "order \ud800"])
def test_what_names_no_run_is_refused(firm, run):
    class Wrong(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run=run)

    with firm.lent(), pytest.raises(ConfigError, match="name of a run"):
        firm.flow(Wrong).kickoff()
    assert firm.ran == []


def crew_that_waits(firm: Firm) -> Any:
    firm.terms = {"on_approval": "wait", "timeout": 0}
    return firm.crew(LOOK, PAY, "done")


def crew_without_a_guard(firm: Firm) -> Any:
    return firm.way.crew(firm.way.agent("Lead", LOOK, PAY, "done", tools=firm.tools))


@pytest.mark.parametrize("make", [crew_that_waits, crew_without_a_guard])
def test_a_crew_that_would_not_pause_the_flow_is_refused(firm, make):
    class Wrong(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            return kickoff_or_pause(self, make(firm), run="order").raw

    with firm.lent(), pytest.raises(ConfigError, match=r"guard it with|not guarded"):
        firm.flow(Wrong).kickoff()
    assert firm.ran == []


def test_a_method_that_would_not_run_again_is_refused(firm):
    # what was approved would never be done
    class Start(Flow[dict[str, Any]]):
        @start()
        def order(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    class Deaf(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen("begin")
        def order(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    class OfAnother(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("begin")))
        def order(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    class Asking(Flow[dict[str, Any]]):
        @start()
        async def order(self):
            return (await akickoff_or_pause(self, firm.crew(PAY, "done"), run="order")).raw

    for kind in (Start, Deaf, OfAnother, Asking):
        with firm.lent(), pytest.raises(ConfigError, match="would not run again"):
            firm.flow(kind).kickoff()
    assert firm.ran == []


def test_a_method_may_listen_to_whatever_else(firm):
    class Joining(Flow[dict[str, Any]]):
        @start()
        def left(self):
            return "left"

        @start()
        def right(self):
            return "right"

        @listen(or_(and_("left", "right"), "never", answered("order")))
        def order(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    flow = firm.flow(Joining)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Joining, flow, said) == ("done", ["order"])
    assert firm.ran == ["books", "ann"]


def test_a_router_pauses_and_chooses_once_it_is_answered(firm, signed):
    class Choosing(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @router(or_("begin", answered("choose")))
        def choose(self):
            return kickoff_or_pause(self, firm.crew(LOOK, PAY, "enough"), run="choose").raw

        @listen("enough")
        def end(self):
            return "ended"

    flow = firm.flow(Choosing)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Choosing, flow, said) == ("ended", ["choose"])
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert paid.chain == (*LENT, "lead")


def test_a_run_is_not_begun_inside_of_another(firm):
    with firm.lent(), resumable("order"), pytest.raises(ConfigError, match="inside of another"):
        firm.flow(ordering(firm)).kickoff()
    assert firm.ran == []


def test_what_is_no_method_of_a_flow_pauses_none(firm):
    # in a thread of one's own CrewAI does not say which method it is: nothing would listen

    class Threaded(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            with ThreadPoolExecutor(1) as threads:
                kicked_off = threads.submit(
                    firm.lent().bind(kickoff_or_pause),
                    *(self, firm.crew(PAY, "done")),
                    run="order",
                )
                return kicked_off.result().raw

    with firm.lent(), pytest.raises(ConfigError, match="outside of the flow's methods"):
        firm.flow(Threaded).kickoff()
    assert firm.ran == []


def test_an_answer_in_words_does_not_go_on_with_the_flow(firm, monkeypatch):
    # CrewAI asks a model what outcome they are, and there is none to ask
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
        firm.log.approve()
        with pytest.raises(Exception, match="classify human feedback"):
            firm.pending(kind, flow).resume("go ahead")
        assert firm.ran == ["books"]
        assert firm.pending(kind, flow).resume() == "ended done"
    assert firm.ran == ["books", "ann"]


# --- another process ------------------------------------------------------------------------------

PROGRAM = '''
import json

from crewai import Agent, Crew, Task
from crewai.flow import Flow, listen, or_, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import Decision, Guard
from agentguard_crewai import answered, guard_crew, kickoff_or_pause


def decide(document):
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Model(BaseLLM):
    steps: list = []

    def call(self, messages, *args, **kwargs):
        step = self.steps.pop(0)
        if isinstance(step, str):
            return step
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return True


def note(text):
    with open("effects", "a") as effects:
        effects.write(text + "\\n")
    return text


@tool
def pay(to: str) -> str:
    """Pay somebody."""
    return note(to)


@tool
def look(what: str) -> str:
    """Look at something."""
    return note(what)


class Ordering(Flow):
    @start()
    def begin(self):
        return note("begin")

    @listen(or_("begin", answered("order")))
    def order(self):
        steps = [("look", {"what": "books"}), ("pay", {"to": "ann"}), "done"]
        model = Model(model="scripted", steps=steps)
        lead = Agent(role="Lead", goal="g", backstory="b", llm=model, tools=[look, pay])
        task = Task(description="a task", expected_output="words", agent=lead)
        with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
            crew = guard_crew(Crew(agents=[lead], tasks=[task]), guard, on_approval="pause")
            with guard.resume(self.state["lent"].encode()):
                return kickoff_or_pause(self, crew, run=self.state["id"]).raw

    @listen("order")
    def end(self, said):
        return f"{note('end')}ed {said}"


def begin():
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        lent = guard.delegate("user:alice", scope=["pay"], via="crew:report").dumps().decode()
    flow = Ordering(persistence=SQLiteFlowPersistence("flows.db"), suppress_flow_events=True)
    return flow.flow_id, flow.kickoff(inputs={"lent": lent})


def resume(flow_id):
    store = SQLiteFlowPersistence("flows.db")
    return Ordering.from_pending(flow_id, store, suppress_flow_events=True).resume()


def main(flow_id):
    print(resume(flow_id))
'''

TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "flow_program:decide"

[agents.lead]
max_scope = ["pay"]
"""


def test_another_process_goes_on_with_a_flow(tmp_path, signed, preloaded, monkeypatch):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    people = f'[approvers.bob]\nprincipal = "user:bob"\nkeys = ["{bob.public_key.openssh()}"]\n'
    (tmp_path / "flow_program.py").write_text(PROGRAM, "utf-8")
    (tmp_path / "agentguard.toml").write_text(TABLES + people, "utf-8")
    domain.found(config.load(tmp_path / "agentguard.toml"), b"of this test", now=datetime.now(UTC))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("flow_program")
    flow_id, paused = program.begin()
    assert isinstance(paused, HumanFeedbackPending)
    early = program.resume(flow_id)
    assert early.context.metadata == paused.context.metadata
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        request = guard.approvals.find(paused.context.metadata["request_id"])
        guard.approvals.approve(request, bob)
    main = "import flow_program, sys; flow_program.main(*sys.argv[1:])"
    done = preloaded.run("-c", main, flow_id, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["ended done"], done.stderr
    assert (tmp_path / "effects").read_text().split() == ["begin", "books", "ann", "end"]
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        assert guard.verify().ok
        paid = [call for call in signed(guard) if call.tool == "pay"]
    assert [(call.chain, call.outcome) for call in paid] == [((*LENT, "lead"), "ok")]


def test_what_a_flow_keeps_of_a_pause_is_plain_and_holds_no_argument(firm):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    _state, context = firm.store.load_pending_feedback(flow.flow_id)
    kept = json.dumps(context.to_dict())
    assert "ann" not in kept
    assert json.loads(kept)["metadata"]["run"] == f"order {flow.flow_id}"
