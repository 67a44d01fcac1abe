"""Named runs in which coworkers work: what a coworker completed is not asked of it again."""

from __future__ import annotations

from contextlib import closing

import pytest
from crewai import Crew, Process
from crewai_shop import DELEGATE, DOWN, LENT, LOOK, PAY, calls_of, task

from agentguard.audit.kinds import parse_entry
from agentguard_crewai import resumable

QUESTION = (
    "ask_question_to_coworker",
    {"question": "is ann paid?", "context": "now", "coworker": "Worker"},
)


@pytest.mark.parametrize("call", [DELEGATE, QUESTION], ids=["work", "question"])
def test_what_a_coworker_has_completed_is_not_asked_of_it_again(shop, native, signed, call):
    heard = []
    for last in (DOWN, "done"):
        lead = shop.agent(native, call, last, allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, "ann is paid", role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
        heard.append((len(worker.llm.heard), "ann is paid" in told.heard))
    assert told.raw == "done"
    assert heard == [(2, True), (0, True)]
    assert shop.ran == ["ann"]
    handed = calls_of(signed, shop, call[0])
    assert [(one.agent, one.outcome) for one in handed] == [("lead", "ok"), ("lead", "not_run")]
    assert {one.chain for one in handed} == {(*LENT, "lead")}
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


def test_a_coworkers_call_names_the_call_that_handed_work_on(shop, native):
    lead = shop.agent(native, DELEGATE, PAY, "done", allow_delegation=True)
    worker = shop.agent(native, PAY, "ann is paid", role="Worker")
    shop.run(lead, shop.crew(native.crew(lead, worker, tasks=[task(lead)])))
    with closing(shop.guard.reader()) as reader:
        entries = [parse_entry(body) for _index, body in reader.entries()]
    calls = [entry for entry in entries if entry.kind == "call"]
    (handed_on,) = [call.invocation_id for call in calls if call.tool == DELEGATE[0]]
    assert [(call.agent.split("/")[-2], call.tool, call.inside) for call in calls] == [
        ("lead", DELEGATE[0], None),
        ("worker", "pay", handed_on),
        ("lead", "pay", None),
    ]


def test_a_coworker_that_failed_goes_on_in_the_next_try(shop, native, signed):
    # CrewAI tells the error of a coworker as the result of the delegation
    for said, then in ((DOWN, DOWN), ("ann is paid", "done")):
        lead = shop.agent(native, DELEGATE, then, allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, LOOK, said, role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert "ann is paid" in told.heard
    assert shop.ran == ["ann", "books"]
    assert [(call.agent, call.outcome) for call in signed(shop.guard)] == [
        ("lead", "error"),
        ("worker", "ok"),
        ("worker", "ok"),
        ("lead", "ok"),
        ("worker", "not_run"),
        ("worker", "not_run"),
    ]


def test_a_coworker_that_is_stopped_goes_on(shop, native):
    # a person's interrupt is no failure of the delegation
    for stop in (KeyboardInterrupt(), None):
        lead = shop.agent(native, DELEGATE, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, LOOK, PAY, "ann is paid", role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        if stop is not None:
            shop.failing = [stop]
            with shop.lent(), resumable("order-1"), pytest.raises(KeyboardInterrupt):
                crew.kickoff()
        else:
            told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["books"]  # and of the payment nobody knows
    assert "nobody knows whether it ran" in " ".join(
        map(str, [*worker.llm.heard, *worker.tools_results])
    )


def test_what_lies_in_a_delegation_that_is_handed_out_keeps_its_place(shop, native, signed):
    # the coworker pays the same person in two delegations, and the second one is cut short
    other = (DELEGATE[0], {**DELEGATE[1], "task": "pay ann once more"})
    told = None
    for said in ((PAY, "first", DOWN), (PAY, "second")):
        lead = shop.agent(native, DELEGATE, other, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, *said, role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["ann", "ann"]  # the second one is no repetition of the first
    paid = calls_of(signed, shop)
    assert [call.outcome for call in paid] == ["ok", "ok"]
    assert len({call.site for call in paid}) == 2
    assert {call.chain for call in paid} == {(*LENT, "lead", "worker")}
    for _ in range(2):  # and by then both are complete
        lead = shop.agent(native, DELEGATE, other, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, role="Worker")
        shop.run(lead, shop.crew(native.crew(lead, worker, tasks=[task(lead)])))
        assert len(worker.llm.heard) == 0
    assert shop.ran == ["ann", "ann"]


def test_a_coworker_that_does_it_itself_afterwards_does_it_once_more(shop, native):
    # a delegation in which it has paid is handed out, and then it has a task of its own
    for last in (DOWN, "done"):
        lead = shop.agent(native, DELEGATE, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, "is paid", PAY, last, role="Worker")
        if last == "done":
            worker = shop.agent(native, PAY, last, role="Worker")
        crew = shop.crew(native.crew(lead, worker))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_what_a_manager_has_given_away_is_not_asked_again(shop, native, signed):
    for last in (DOWN, "done"):
        worker = shop.agent(native, PAY, "ann is paid", role="Worker")
        crew = shop.crew(
            Crew(
                agents=[worker],
                tasks=[task()],
                process=Process.hierarchical,
                manager_llm=native.model(DELEGATE, last, last, last),
            )
        )
        with shop.lent(), resumable("order-1"):
            try:
                told = crew.kickoff().raw
            except RuntimeError:
                told = None
    assert (told, shop.ran) == ("done", ["ann"])
    assert len(worker.llm.heard) == 0
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "crew-manager", "worker"))
