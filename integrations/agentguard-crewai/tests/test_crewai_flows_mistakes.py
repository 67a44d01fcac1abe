"""Mistakes in flows with guarded crews: what is refused, and what is allowed beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crewai.flow import Flow, and_, listen, or_, router, start
from crewai_firm import LENT, LOOK, PAY, Firm, ordering, payments

from agentguard import ConfigError
from agentguard_crewai import (
    akickoff_or_pause,
    answered,
    kickoff_or_pause,
    resumable,
)


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
