"""Crews that act for two users, and agents that act by an authority of their own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crewai.tools import tool
from crewai_coworkers import AGENTS, ALL, CREW, DELEGATE, READ, codes, hands, hops

from agentguard import ConfigError, current_delegation
from agentguard_crewai import guard_agent, guard_crew

# --- an authority of one's own ------------------------------------------------------------------


OWN = {**AGENTS, "lead": {"authority": "own", "max_scope": ["read", "write"]}}


def test_an_agent_with_an_authority_of_its_own_acts_by_itself(make_delegating_team, native):
    make_delegating_team = make_delegating_team(agents=OWN)
    crew = make_delegating_team.two(native, READ, hands("Hand"), "led")
    crew.kickoff()
    # what it does by itself it can't lend on
    assert make_delegating_team.story() == [
        ("lead", "read_file", "ok"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "delegation.missing"),
    ]
    assert {call.chain for call in make_delegating_team.calls()} == {()}
    assert hops(make_delegating_team.guard) == []


def test_two_agents_with_an_authority_of_their_own(make_delegating_team, native):
    own = {**OWN, "hand": {"authority": "own", "max_scope": ["read"]}}
    make_delegating_team = make_delegating_team(
        agents=own, tools={"read_file": {"requires": ["write"]}}
    )
    make_delegating_team.two(native, READ, hands("Hand"), "led").kickoff()
    assert make_delegating_team.story() == [
        ("lead", "read_file", "ok"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "scope.exceeded"),
    ]


@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {}], ids=["allowed", "denied"])
def test_whom_it_hands_work_on_to_is_said_for_one_that_acts_by_itself_too(
    make_delegating_team, native, table
):
    own = {**OWN, "hand": {"authority": "own", "max_scope": ["read"]}}
    make_delegating_team = make_delegating_team(agents=own, delegation=table)
    output = make_delegating_team.two(native, hands("Hand"), "led").kickoff()
    if table:
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert (make_delegating_team.story(), make_delegating_team.ran) == (
            [("lead", DELEGATE, "delegation.delegatee")],
            [],
        )


def test_a_delegation_in_force_is_that_of_an_agent_with_its_own_authority_too(
    make_delegating_team, native
):
    make_delegating_team = make_delegating_team(
        agents=OWN, tools={"read_file": {"requires": ["write"]}}
    )
    crew = make_delegating_team.two(native, READ, hands("Hand"), "led")
    make_delegating_team.kickoff(crew, scope=["read"])
    assert [(c.chain, c.outcome or c.code) for c in make_delegating_team.calls()] == [
        ((*CREW, "lead"), "scope.exceeded"),
        ((*CREW, "lead"), "ok"),
        ((*CREW, "lead", "hand"), "scope.exceeded"),
    ]


# --- two users ----------------------------------------------------------------------------------


LENT = {"user:alice": ALL, "user:bob": ("read",)}


def of_user(calls, user):
    return [(c.agent, c.chain[1:], c.scope) for c in calls if c.chain[0] == user]


def expected(user):
    allowed = [sorted(set(LENT[user]) & set(AGENTS[agent]["max_scope"])) for agent in AGENTS]
    lead, hand = (tuple(scope) for scope in allowed[:2])
    via = ("crew:report", "lead")
    return [("lead", via, lead), ("hand", (*via, "hand"), hand)]


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_two_users_one_after_another_with_one_crew(make_delegating_team, native, begin):
    make_delegating_team = make_delegating_team()
    steps = (hands("Hand"), "led")
    crew = make_delegating_team.two(native, *steps, *steps, *steps, hand=(READ, "done") * 3)
    for user in ("user:alice", "user:bob", "user:alice"):
        with make_delegating_team.lend(user, scope=LENT[user]):
            if begin == "kickoff":
                crew.kickoff()
            else:
                asyncio.run(crew.akickoff())
    calls = make_delegating_team.calls()
    assert [call.chain[0] for call in calls] == [
        *["user:alice"] * 2,
        *["user:bob"] * 2,
        *["user:alice"] * 2,
    ]
    for user, times in (("user:alice", 2), ("user:bob", 1)):
        assert of_user(calls, user) == expected(user) * times
    assert [members for _path, members in make_delegating_team.ran] == [
        call.chain for call in calls if call.tool == "read_file"
    ]
    assert len({call.instance for call in calls}) == len(("lead", "hand"))


def together(make_delegating_team, number):
    """A tool that is called by as many at once, and tells for whom it was."""
    barrier = threading.Barrier(number, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        barrier.wait()
        lent = current_delegation()
        assert lent is not None
        make_delegating_team.ran.append(lent.principal)
        return path

    return read_file


@pytest.mark.parametrize("sync", [True, False], ids=["threads", "tasks"])
def test_two_users_at_once_with_copies_of_one_crew(make_delegating_team, native, sync):
    make_delegating_team = make_delegating_team()
    crew = make_delegating_team.two(native, hands("Hand"), "led")
    crew.agents[1].tools = [together(make_delegating_team, 2)]
    copies = {user: crew.copy() for user in LENT}
    for copied in copies.values():
        for agent, steps in zip(
            copied.agents, [(hands("Hand"), "led"), (READ, "done")], strict=True
        ):
            agent.llm = native.model(*steps)

    def one(user):
        with make_delegating_team.lend(user, scope=LENT[user]):
            return copies[user].kickoff().raw

    async def aone(user):
        with make_delegating_team.lend(user, scope=LENT[user]):
            return (await copies[user].akickoff()).raw

    async def both():
        return await asyncio.gather(*map(aone, LENT))

    if sync:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(one, LENT)) == ["led", "led"]
    else:
        assert asyncio.run(both()) == ["led", "led"]
    for user in LENT:
        assert of_user(make_delegating_team.calls(), user) == expected(user)
    assert sorted(make_delegating_team.ran) == sorted(LENT)


def test_two_users_at_once_with_one_agent(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    lead: Any = guard_agent(
        native.agent("Lead", tools=[together(make_delegating_team, 2)]), make_delegating_team.guard
    )
    # both read first: what either of them is told does not depend on who was faster
    lead.llm.steps = [READ, READ, "done", "done"]

    def one(user):
        with make_delegating_team.lend(user, scope=LENT[user]):
            return lead.kickoff("go on").raw

    with ThreadPoolExecutor(2) as threads:
        assert all("done" in said for said in threads.map(one, LENT))
    assert sorted(call.chain for call in make_delegating_team.calls()) == [
        (user, "crew:report", "lead") for user in sorted(LENT)
    ]
    assert sorted(make_delegating_team.ran) == sorted(LENT)
    assert len({call.instance for call in make_delegating_team.calls()}) == 1


def test_two_users_at_once_with_the_same_crew_are_not_mixed_up(make_delegating_team, native):
    make_delegating_team = make_delegating_team()
    entered, leave = threading.Event(), threading.Event()

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        entered.set()
        assert leave.wait(120)
        lent = current_delegation()
        assert lent is not None
        make_delegating_team.ran.append(lent.principal)
        return path

    lead = native.agent("Lead", READ, *["done"] * 6, tools=[read_file])
    crew = guard_crew(native.crew(lead), make_delegating_team.guard)

    def one(user):
        with make_delegating_team.lend(user, scope=LENT[user]):
            return crew.kickoff()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one, "user:alice")
        assert entered.wait(120)
        # CrewAI has one executor for an agent
        with pytest.raises(ConfigError, match="being kicked off already"):
            threads.submit(one, "user:bob").result()
        leave.set()
        first.result()
    assert [call.chain for call in make_delegating_team.calls()] == [(*CREW, "lead")]
    assert make_delegating_team.ran == ["user:alice"]
