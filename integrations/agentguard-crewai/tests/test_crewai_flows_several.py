"""Several crews, methods, rounds and flows that pause: one after another, and at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crewai.flow import Flow, listen, or_, router, start
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai_firm import BEN, LENT, LOOK, PAY, aordering, ordering, payments

from agentguard import Decision
from agentguard_crewai import (
    answered,
    kickoff_or_pause,
)


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
