"""How a user's delegation goes from agent to agent: each hop is signed and narrows what was lent.

The paths of a call are in ``test_crewai_paths_*.py``.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from crewai import Crew, Process
from crewai.tools import tool
from crewai_coworkers import AGENTS, ALL, ASK, CREW, DELEGATE, READ, codes, hands, hops, task_of

from agentguard_crewai import guard_agent, guard_crew

# --- from hand to hand --------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_work_goes_from_hand_to_hand(make_delegating_team, way, begin):
    make_delegating_team = make_delegating_team()
    crew = make_delegating_team.three(way)
    with make_delegating_team.lend():
        output = crew.kickoff() if begin == "kickoff" else asyncio.run(crew.akickoff())
    assert (output.raw, codes(output)) == ("led", [])
    lead, hand, third = (*CREW, "lead"), (*CREW, "lead", "hand"), (*CREW, "lead", "hand", "third")
    assert [(c.tool, c.chain) for c in make_delegating_team.calls()] == [
        (DELEGATE, lead),
        ("read_file", hand),
        (ASK, hand),
        ("read_file", third),
        ("read_file", lead),  # what a coworker was lent is not left in force
    ]
    assert make_delegating_team.ran == [("plan", hand), ("plan", third), ("plan", lead)]
    for call in make_delegating_team.calls():
        assert call.agent == call.chain[-1]
        assert set(call.scope) == set(AGENTS[call.agent]["max_scope"])
        assert call.outcome == "ok"
    assert hops(make_delegating_team.guard) == [lead, hand, third]


@pytest.mark.parametrize("by", [DELEGATE, ASK])
def test_a_hop_is_signed_when_work_is_handed_over(make_delegating_team, native, by):
    make_delegating_team = make_delegating_team()
    crew = make_delegating_team.two(native, hands("Hand", by), "led", hand=("I make no call",))
    make_delegating_team.kickoff(crew)
    assert make_delegating_team.story() == [("lead", by, "ok")]
    assert hops(make_delegating_team.guard) == [(*CREW, "lead"), (*CREW, "lead", "hand")]


def test_nobody_gets_more_than_the_user_has_lent(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    make_delegating_team.kickoff(make_delegating_team.three(native), scope=["read"])
    assert {call.scope for call in make_delegating_team.calls()} == {("read",)}


def test_what_is_lent_without_a_service_is_lent_by_the_application(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    crew = make_delegating_team.two(native, hands("Hand"), "led")
    with make_delegating_team.guard.delegate("user:alice", scope=ALL):
        crew.kickoff()
    assert [call.chain[0] for call in make_delegating_team.calls()] == ["user:alice"] * 2
    assert [call.chain[2:] for call in make_delegating_team.calls()] == [
        ("lead",),
        ("lead", "hand"),
    ]


def test_the_policy_sees_who_is_in_the_chain(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    make_delegating_team.kickoff(make_delegating_team.three(native))
    seen = [
        (
            document["agent"]["name"],
            document["delegation"]["subject"],
            document["delegation"]["scope"],
        )
        for document in make_delegating_team.made.policy_inputs
    ]
    assert seen == [
        (call.agent, "user:alice", sorted(AGENTS[call.agent]["max_scope"]))
        for call in make_delegating_team.calls()
    ]


def test_the_agents_of_two_tasks_were_not_handed_work_by_each_other(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    lead, hand = (
        make_delegating_team.agent(native, role, READ, "done") for role in ("Lead", "Hand")
    )
    make_delegating_team.kickoff(guard_crew(native.crew(lead, hand), make_delegating_team.guard))
    assert [call.chain for call in make_delegating_team.calls()] == [
        (*CREW, "lead"),
        (*CREW, "hand"),
    ]


def test_work_that_is_handed_to_several_at_once(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()  # both coworkers are at work
        return path

    lead = native.agent("Lead", [hands("Hand"), hands("Third", ASK)], "led", allow_delegation=True)
    others = [native.agent(role, READ, "done", tools=[read_file]) for role in ("Hand", "Third")]
    crew = guard_crew(
        Crew(agents=[lead, *others], tasks=[task_of(lead)]), make_delegating_team.guard
    )
    make_delegating_team.kickoff(crew)
    assert sorted((c.agent, c.tool, c.chain, c.outcome) for c in make_delegating_team.calls()) == [
        ("hand", "read_file", (*CREW, "lead", "hand"), "ok"),
        ("lead", ASK, (*CREW, "lead"), "ok"),
        ("lead", DELEGATE, (*CREW, "lead"), "ok"),
        ("third", "read_file", (*CREW, "lead", "third"), "ok"),
    ]


@pytest.mark.parametrize("given", [True, False], ids=["manager", "made-by-the-crew"])
@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_manager_hands_work_on(make_delegating_team, native, given, begin):
    make_delegating_team = make_delegating_team()
    steps = (hands("Hand"), "led")
    manager: dict[str, Any] = (
        {"manager_agent": native.agent("Crew Manager", *steps)}
        if given
        else {"manager_llm": native.model(*steps)}
    )
    hand = make_delegating_team.agent(native, "Hand", READ, "done")
    crew = Crew(agents=[hand], tasks=[task_of(hand)], process=Process.hierarchical, **manager)
    guard_crew(crew, make_delegating_team.guard)
    with make_delegating_team.lend():
        output: Any = crew.kickoff() if begin == "kickoff" else asyncio.run(crew.akickoff())
    assert output.raw == "led"
    assert [(c.agent, c.tool, c.chain, c.outcome) for c in make_delegating_team.calls()] == [
        ("crew-manager", DELEGATE, (*CREW, "crew-manager"), "ok"),
        ("hand", "read_file", (*CREW, "crew-manager", "hand"), "ok"),
    ]


NESTED = {
    "agent": lambda hand: hand.kickoff("go on"),
    "crew": lambda hand: Crew(agents=[hand], tasks=[task_of(hand)]).kickoff(),
    "task": lambda hand: task_of(hand).execute_sync(),
    "thread": lambda hand: task_of(hand, async_execution=True).execute_async().result(),
}


@pytest.mark.parametrize("begin", NESTED)
@pytest.mark.parametrize("table", [None, {"lead": ["hand"]}, {}], ids=["", "allowed", "denied"])
def test_a_tool_that_begins_another_agent_hands_work_on(make_delegating_team, native, begin, table):
    make_delegating_team = make_delegating_team(**({} if table is None else {"delegation": table}))
    hand = guard_agent(
        make_delegating_team.agent(native, "Hand", READ, "done"), make_delegating_team.guard
    )

    @tool
    def begin_work(what: str) -> str:
        """Begin another agent's work."""
        NESTED[begin](hand)
        return what

    lead = native.agent("Lead", ("begin_work", {"what": "it"}), "led", tools=[begin_work])
    make_delegating_team.kickoff(guard_crew(native.crew(lead), make_delegating_team.guard))
    if table == {}:
        assert make_delegating_team.story() == [("lead", "begin_work", "error")]
        assert (make_delegating_team.ran, hops(make_delegating_team.guard)) == (
            [],
            [(*CREW, "lead")],
        )
    else:
        assert [(c.tool, c.chain, c.outcome) for c in make_delegating_team.calls()] == [
            ("begin_work", (*CREW, "lead"), "ok"),
            ("read_file", (*CREW, "lead", "hand"), "ok"),
        ]


def test_an_async_tool_that_begins_another_agent_hands_work_on(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    hand: Any = guard_agent(
        make_delegating_team.agent(native, "Hand", READ, "done"), make_delegating_team.guard
    )

    @tool
    async def begin_work(what: str) -> str:
        """Begin another agent's work."""
        await hand.kickoff(what)  # a coroutine there, which runs later than it was made
        return what

    lead = native.agent("Lead", ("begin_work", {"what": "it"}), READ, "led")
    lead.tools = [begin_work, make_delegating_team.read_file]
    make_delegating_team.kickoff(guard_crew(native.crew(lead), make_delegating_team.guard))
    assert [(c.tool, c.chain, c.outcome) for c in make_delegating_team.calls()] == [
        ("begin_work", (*CREW, "lead"), "ok"),
        ("read_file", (*CREW, "lead", "hand"), "ok"),
        ("read_file", (*CREW, "lead"), "ok"),
    ]


def test_work_that_comes_back_to_who_is_still_at_it_is_not_done_as_somebody_else(
    make_delegating_team, native
):
    make_delegating_team = make_delegating_team()
    lead = make_delegating_team.agent(
        native, "Lead", hands("Hand"), READ, "led", allow_delegation=True
    )
    hand = make_delegating_team.agent(native, "Hand", hands("Lead"), READ, "handed")
    hand.tools = [make_delegating_team.read_file, *hand.get_delegation_tools([lead])]
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), make_delegating_team.guard)
    make_delegating_team.kickoff(crew)  # CrewAI has one executor for an agent, which is busy
    for call in make_delegating_team.calls():
        assert call.agent == call.chain[-1]
    assert [(c.agent, c.tool) for c in make_delegating_team.calls()] == [
        ("lead", DELEGATE),
        ("hand", DELEGATE),
        ("hand", "read_file"),
        ("lead", "read_file"),
    ]
    assert make_delegating_team.calls()[-1].chain == (*CREW, "lead")


# --- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("copes", [True, False])
def test_a_failure_that_a_coworker_copes_with_is_none_of_what_was_handed_over(
    make_delegating_team, way, copes
):
    make_delegating_team = make_delegating_team()
    third = guard_agent(
        make_delegating_team.agent(
            way, "Third", RuntimeError("the model is down"), max_retry_limit=0
        ),
        make_delegating_team.guard,
    )

    @tool
    def ask_third(what: str) -> str:
        """Ask the third."""
        try:
            return str(third.execute_task(task_of(third)))
        except RuntimeError:
            return "the third is away"

    down = RuntimeError("the model is down")
    hand = way.agent(
        "Hand",
        ("ask_third", {"what": "it"}),
        "done" if copes else down,
        tools=[ask_third],
        max_retry_limit=0,
    )
    lead = make_delegating_team.agent(way, "Lead", hands("Hand"), "led", allow_delegation=True)
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), make_delegating_team.guard)
    assert make_delegating_team.kickoff(crew).raw == "led"
    told = "ok" if copes else "error"
    assert make_delegating_team.story() == [("lead", DELEGATE, told), ("hand", "ask_third", "ok")]
