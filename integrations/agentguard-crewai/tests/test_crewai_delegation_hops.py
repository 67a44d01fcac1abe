"""For whom a crew acts: how what a user lends goes from agent to agent, and what ends it.

What was lent is narrowed at each hop, and each hop is signed by who hands the work on, when that is
done. Which ways a call can take stands in ``test_crewai_paths.py``.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from crewai import Crew, Process, Task
from crewai.tools import tool

from agentguard import ConfigError, Decision, Guard, current_delegation
from agentguard.audit.entry import parse_entry
from agentguard.delegation import verification
from agentguard.domain import administration, config, domain
from agentguard.identity import credential
from agentguard.policy.function import FunctionEngine
from agentguard_crewai import guard_agent, guard_crew

AGENTS = {
    "lead": {"max_scope": ["read", "write", "publish"]},
    "hand": {"max_scope": ["read", "write"]},
    "third": {"max_scope": ["read"]},
    "crew-manager": {"max_scope": ["read", "write", "publish"]},
}
ALL = ("read", "write", "publish", "pay")
CREW = ("user:alice", "crew:report")
DELEGATE, ASK = "delegate_work_to_coworker", "ask_question_to_coworker"
READ: Any = ("read_file", {"path": "plan"})


def hands(coworker, by=DELEGATE):
    """What a model says to hand work on to a coworker, by either of CrewAI's tools."""
    what = "task" if by == DELEGATE else "question"
    return (by, {what: "read it", "context": "none", "coworker": coworker})


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


def codes(output):
    return [one.failure.code for task in output.tasks_output for one in task.tool_failures]


def hops(guard):
    """The chains that were handed on, each verified, by the names of those in it."""
    found = []
    with closing(guard.reader()) as reader:
        for shard in reader.shards():
            for _index, body in reader.entries(shard):
                read = parse_entry(body)
                if read.kind == "delegation":
                    at = int(datetime.fromisoformat(read.at).timestamp())
                    members: Any = read.members
                    chain = verification.from_json(members["chain"], guard.trust, at=at)
                    found.append(tuple(credential.agent_name(m) or m for m in chain.members))
    return found


class Desk:
    """A guard and a tool; ``ran`` are the files that were read, and for whom the tool saw it is."""

    def __init__(self, made, signed):
        self.made = made
        self.guard: Guard = made.guard
        self.ran: list[Any] = []
        self._signed = signed

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            lent = current_delegation()
            members = () if lent is None else lent.members
            self.ran.append((path, tuple(credential.agent_name(m) or m for m in members)))
            return f"the content of {path}"

        self.read_file = read_file

    def agent(self, way, role, *steps, **options):
        return way.agent(role, *steps, **{"tools": [self.read_file], **options})

    def three(self, way, by=(DELEGATE, ASK)):
        """A crew whose lead hands work on to a hand, which hands it on to the third."""
        lead = self.agent(way, "Lead", hands("Hand", by[0]), READ, "led", allow_delegation=True)
        hand = self.agent(way, "Hand", READ, hands("Third", by[1]), "handed")
        third = self.agent(way, "Third", READ, "done")
        # CrewAI gives these to who executes a crew's task, and not to its coworkers
        hand.tools = [self.read_file, *hand.get_delegation_tools([third])]
        return guard_crew(Crew(agents=[lead, hand, third], tasks=[task_of(lead)]), self.guard)

    def two(self, way, *steps, hand=(READ, "done")):
        """A crew of two; its task is the lead's, the hand is a coworker."""
        lead = self.agent(way, "Lead", *steps, allow_delegation=True)
        other = self.agent(way, "Hand", *hand)
        return guard_crew(Crew(agents=[lead, other], tasks=[task_of(lead)]), self.guard)

    def lend(self, user="user:alice", scope=ALL, **terms):
        return self.guard.delegate(user, scope=scope, **{"via": "crew:report", **terms})

    def kickoff(self, crew, **terms):
        with self.lend(**terms):
            return crew.kickoff()

    def calls(self):
        return self._signed(self.guard)

    def story(self):
        """Who called what, and what became of it."""
        return [(c.agent, c.tool, c.outcome or c.code) for c in self.calls()]


@pytest.fixture
def inbox(recorded, signed):
    """Makes a desk, with further tables of the configuration."""
    return lambda **tables: Desk(recorded(**{"agents": AGENTS, **tables}), signed)


# --- from hand to hand --------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_work_goes_from_hand_to_hand(inbox, way, begin):
    inbox = inbox()
    crew = inbox.three(way)
    with inbox.lend():
        output = crew.kickoff() if begin == "kickoff" else asyncio.run(crew.akickoff())
    assert (output.raw, codes(output)) == ("led", [])
    lead, hand, third = (*CREW, "lead"), (*CREW, "lead", "hand"), (*CREW, "lead", "hand", "third")
    assert [(c.tool, c.chain) for c in inbox.calls()] == [
        (DELEGATE, lead),
        ("read_file", hand),
        (ASK, hand),
        ("read_file", third),
        ("read_file", lead),  # what a coworker was lent is not left in force
    ]
    assert inbox.ran == [("plan", hand), ("plan", third), ("plan", lead)]
    for call in inbox.calls():
        assert call.agent == call.chain[-1]
        assert set(call.scope) == set(AGENTS[call.agent]["max_scope"])
        assert call.outcome == "ok"
    assert hops(inbox.guard) == [lead, hand, third]


@pytest.mark.parametrize("by", [DELEGATE, ASK])
def test_a_hop_is_signed_when_work_is_handed_over(inbox, native, by):
    inbox = inbox()
    crew = inbox.two(native, hands("Hand", by), "led", hand=("I make no call",))
    inbox.kickoff(crew)
    assert inbox.story() == [("lead", by, "ok")]
    assert hops(inbox.guard) == [(*CREW, "lead"), (*CREW, "lead", "hand")]


def test_nobody_gets_more_than_the_user_has_lent(inbox, native):
    inbox = inbox()
    inbox.kickoff(inbox.three(native), scope=["read"])
    assert {call.scope for call in inbox.calls()} == {("read",)}


def test_what_is_lent_without_a_service_is_lent_by_the_application(inbox, native):
    inbox = inbox()
    crew = inbox.two(native, hands("Hand"), "led")
    with inbox.guard.delegate("user:alice", scope=ALL):
        crew.kickoff()
    assert [call.chain[0] for call in inbox.calls()] == ["user:alice"] * 2
    assert [call.chain[2:] for call in inbox.calls()] == [("lead",), ("lead", "hand")]


def test_the_policy_sees_who_is_in_the_chain(inbox, native):
    inbox = inbox()
    inbox.kickoff(inbox.three(native))
    seen = [
        (
            document["agent"]["name"],
            document["delegation"]["subject"],
            document["delegation"]["scope"],
        )
        for document in inbox.made.asked
    ]
    assert seen == [
        (call.agent, "user:alice", sorted(AGENTS[call.agent]["max_scope"]))
        for call in inbox.calls()
    ]


def test_the_agents_of_two_tasks_were_not_handed_work_by_each_other(inbox, native):
    inbox = inbox()
    lead, hand = (inbox.agent(native, role, READ, "done") for role in ("Lead", "Hand"))
    inbox.kickoff(guard_crew(native.crew(lead, hand), inbox.guard))
    assert [call.chain for call in inbox.calls()] == [(*CREW, "lead"), (*CREW, "hand")]


def test_work_that_is_handed_to_several_at_once(inbox, native):
    inbox = inbox()
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()  # both coworkers are at work
        return path

    lead = native.agent("Lead", [hands("Hand"), hands("Third", ASK)], "led", allow_delegation=True)
    others = [native.agent(role, READ, "done", tools=[read_file]) for role in ("Hand", "Third")]
    crew = guard_crew(Crew(agents=[lead, *others], tasks=[task_of(lead)]), inbox.guard)
    inbox.kickoff(crew)
    assert sorted((c.agent, c.tool, c.chain, c.outcome) for c in inbox.calls()) == [
        ("hand", "read_file", (*CREW, "lead", "hand"), "ok"),
        ("lead", ASK, (*CREW, "lead"), "ok"),
        ("lead", DELEGATE, (*CREW, "lead"), "ok"),
        ("third", "read_file", (*CREW, "lead", "third"), "ok"),
    ]


@pytest.mark.parametrize("given", [True, False], ids=["manager", "made-by-the-crew"])
@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_manager_hands_work_on(inbox, native, given, begin):
    inbox = inbox()
    steps = (hands("Hand"), "led")
    manager: dict[str, Any] = (
        {"manager_agent": native.agent("Crew Manager", *steps)}
        if given
        else {"manager_llm": native.model(*steps)}
    )
    hand = inbox.agent(native, "Hand", READ, "done")
    crew = Crew(agents=[hand], tasks=[task_of(hand)], process=Process.hierarchical, **manager)
    guard_crew(crew, inbox.guard)
    with inbox.lend():
        output: Any = crew.kickoff() if begin == "kickoff" else asyncio.run(crew.akickoff())
    assert output.raw == "led"
    assert [(c.agent, c.tool, c.chain, c.outcome) for c in inbox.calls()] == [
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
def test_a_tool_that_begins_another_agent_hands_work_on(inbox, native, begin, table):
    inbox = inbox(**({} if table is None else {"delegation": table}))
    hand = guard_agent(inbox.agent(native, "Hand", READ, "done"), inbox.guard)

    @tool
    def begin_work(what: str) -> str:
        """Begin another agent's work."""
        NESTED[begin](hand)
        return what

    lead = native.agent("Lead", ("begin_work", {"what": "it"}), "led", tools=[begin_work])
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    if table == {}:
        assert inbox.story() == [("lead", "begin_work", "error")]
        assert (inbox.ran, hops(inbox.guard)) == ([], [(*CREW, "lead")])
    else:
        assert [(c.tool, c.chain, c.outcome) for c in inbox.calls()] == [
            ("begin_work", (*CREW, "lead"), "ok"),
            ("read_file", (*CREW, "lead", "hand"), "ok"),
        ]


def test_an_async_tool_that_begins_another_agent_hands_work_on(inbox, native):
    inbox = inbox()
    hand: Any = guard_agent(inbox.agent(native, "Hand", READ, "done"), inbox.guard)

    @tool
    async def begin_work(what: str) -> str:
        """Begin another agent's work."""
        await hand.kickoff(what)  # a coroutine there, which runs later than it was made
        return what

    lead = native.agent("Lead", ("begin_work", {"what": "it"}), READ, "led")
    lead.tools = [begin_work, inbox.read_file]
    inbox.kickoff(guard_crew(native.crew(lead), inbox.guard))
    assert [(c.tool, c.chain, c.outcome) for c in inbox.calls()] == [
        ("begin_work", (*CREW, "lead"), "ok"),
        ("read_file", (*CREW, "lead", "hand"), "ok"),
        ("read_file", (*CREW, "lead"), "ok"),
    ]


def test_work_that_comes_back_to_who_is_still_at_it_is_not_done_as_somebody_else(inbox, native):
    inbox = inbox()
    lead = inbox.agent(native, "Lead", hands("Hand"), READ, "led", allow_delegation=True)
    hand = inbox.agent(native, "Hand", hands("Lead"), READ, "handed")
    hand.tools = [inbox.read_file, *hand.get_delegation_tools([lead])]
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), inbox.guard)
    inbox.kickoff(crew)  # CrewAI has one executor for an agent, which is busy
    for call in inbox.calls():
        assert call.agent == call.chain[-1]
    assert [(c.agent, c.tool) for c in inbox.calls()] == [
        ("lead", DELEGATE),
        ("hand", DELEGATE),
        ("hand", "read_file"),
        ("lead", "read_file"),
    ]
    assert inbox.calls()[-1].chain == (*CREW, "lead")


# --- what a tool requires -----------------------------------------------------------------------

REQUIRES = {"read_file": {"requires": ["write"]}}


def test_a_tool_is_refused_without_the_scope_that_it_requires(inbox, native):
    inbox = inbox(tools=REQUIRES)
    inbox.kickoff(inbox.three(native))
    assert inbox.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", ASK, "ok"),
        ("third", "read_file", "scope.exceeded"),  # its max_scope has no more than read
        ("lead", "read_file", "ok"),
    ]
    asked = [(document["agent"]["name"], document["action"]) for document in inbox.made.asked]
    assert ("third", "read_file") not in asked
    assert ("hand", "read_file") in asked
    assert [path for path, _members in inbox.ran] == ["plan", "plan"]


def test_a_tool_is_refused_where_the_user_has_not_lent_what_it_requires(inbox, native):
    inbox = inbox(tools=REQUIRES)
    output = inbox.kickoff(inbox.two(native, READ, hands("Hand"), "led"), scope=["read"])
    assert codes(output)[0] == "scope.exceeded"
    assert inbox.story() == [
        ("lead", "read_file", "scope.exceeded"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "scope.exceeded"),
    ]
    assert inbox.ran == []
    assert [document["action"] for document in inbox.made.asked] == [DELEGATE]


@pytest.mark.parametrize("scope", [ALL, ("read",)], ids=["allowed", "denied"])
def test_handing_work_on_can_require_a_scope_as_well(inbox, native, scope):
    inbox = inbox(tools={DELEGATE: {"requires": ["publish"]}})
    output = inbox.kickoff(inbox.two(native, hands("Hand"), "led"), scope=scope)
    if scope == ALL:
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert codes(output) == ["scope.exceeded"]
        assert inbox.story() == [("lead", DELEGATE, "scope.exceeded")]
        assert (inbox.ran, hops(inbox.guard)) == ([], [(*CREW, "lead")])


@pytest.mark.parametrize("to", ["Hand", "Third"])
def test_the_policy_decides_to_whom_work_is_handed(inbox, way, to):
    inbox = inbox()
    inbox.made.decide = lambda document: (
        Decision.deny("not to the third")
        if document["args"].get("coworker") == "Third"
        else Decision.allow()
    )
    lead = way.agent("Lead", hands(to), "led", allow_delegation=True)
    others = [inbox.agent(way, role, READ, "done") for role in ("Hand", "Third")]
    crew = guard_crew(Crew(agents=[lead, *others], tasks=[task_of(lead)]), inbox.guard)
    output = inbox.kickoff(crew)
    if to == "Hand":
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert codes(output) == ["policy.denied"]
        assert inbox.story() == [("lead", DELEGATE, "policy.denied")]
        assert (inbox.ran, hops(inbox.guard)) == ([], [(*CREW, "lead")])


# --- who may hand on to whom --------------------------------------------------------------------


@pytest.mark.parametrize("by", [DELEGATE, ASK])
@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ({"lead": ["hand"]}, True),
        ({"lead": ["third", "hand"]}, True),
        ({"lead": ["third"]}, False),
        ({"hand": ["lead"], "third": ["hand"]}, False),
        ({}, False),
    ],
)
def test_an_agent_hands_on_to_whom_the_configuration_says(inbox, native, by, table, allowed):
    inbox = inbox(delegation=table)
    output = inbox.kickoff(inbox.two(native, hands("Hand", by), "led"))
    first = inbox.calls()[0]
    assert (first.agent, first.chain) == ("lead", (*CREW, "lead"))
    if allowed:
        assert inbox.story() == [("lead", by, "ok"), ("hand", "read_file", "ok")]
        assert codes(output) == []
    else:
        assert inbox.story() == [("lead", by, "delegation.delegatee")]
        assert codes(output) == ["delegation.delegatee"]
        assert (inbox.ran, hops(inbox.guard)) == ([], [(*CREW, "lead")])
        assert inbox.made.asked == []


def test_a_coworker_hands_on_no_further_than_it_may(inbox, native):
    inbox = inbox(delegation={"lead": ["hand", "third"]})
    inbox.kickoff(inbox.three(native))
    assert inbox.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", ASK, "delegation.delegatee"),
        ("lead", "read_file", "ok"),
    ]
    assert inbox.calls()[2].chain == (*CREW, "lead", "hand")


@pytest.mark.parametrize("to", ["Hand", "Third"])
def test_a_manager_hands_on_to_whom_it_may(inbox, native, to):
    inbox = inbox(delegation={"crew-manager": ["hand"]})
    hand, third = (inbox.agent(native, role, READ, "done") for role in ("Hand", "Third"))
    crew = Crew(
        agents=[hand, third],
        tasks=[Task(description="a task", expected_output="words")],
        process=Process.hierarchical,
        manager_llm=native.model(hands(to), "led"),
    )
    output = inbox.kickoff(guard_crew(crew, inbox.guard))
    if to == "Hand":
        assert inbox.story() == [("crew-manager", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert inbox.story() == [("crew-manager", DELEGATE, "delegation.delegatee")]
        assert inbox.ran == []


SPELLED = ["hand", "HAND", "  Hand ", '"Hand"', 'Ha"nd', "Hand\n", "[Hand, Third]", "\tHAND"]


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {"lead": ["third"]}], ids=["", "denied"])
def test_a_role_that_crewai_takes_for_a_coworkers_is_that_coworkers(inbox, native, spelled, table):
    inbox = inbox(delegation=table)
    lead = native.agent("Lead", hands(spelled), "led", allow_delegation=True)
    others = [inbox.agent(native, role, READ, "done") for role in (" Hand", "Third")]
    crew = guard_crew(Crew(agents=[lead, *others], tasks=[task_of(lead)]), inbox.guard)
    output = inbox.kickoff(crew)
    if table == {"lead": ["hand"]}:
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert inbox.story() == [("lead", DELEGATE, "delegation.delegatee")]
        assert inbox.ran == []


@pytest.mark.parametrize("coworker", ["nobody", "", "[]", "[nobody, Hand]", "Han d"])
def test_work_for_a_coworker_that_is_not_there_is_done_by_nobody(inbox, native, coworker):
    inbox = inbox(delegation={"lead": ["hand"]})
    inbox.kickoff(inbox.two(native, hands(coworker), "led"))
    assert (inbox.ran, hops(inbox.guard)) == ([], [(*CREW, "lead")])
    assert [(c.agent, c.tool) for c in inbox.calls()] == [("lead", DELEGATE)]


@pytest.mark.parametrize("order", [1, -1], ids=["allowed", "denied"])
def test_of_two_agents_with_one_role_the_first_is_given_the_work(inbox, native, order):
    inbox = inbox(delegation={"lead": ["hand"]})
    lead = native.agent("Lead", hands("Twin"), "led", allow_delegation=True)
    twins = [inbox.agent(native, "Twin", READ, "done") for _twin in range(2)]
    for twin, name in zip(twins, ("hand", "third"), strict=True):
        guard_agent(twin, inbox.guard, name=name)
    crew = guard_crew(Crew(agents=[lead, *twins[::order]], tasks=[task_of(lead)]), inbox.guard)
    output = inbox.kickoff(crew)
    if order == 1:
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
        # no hop for whom there was no work
        assert hops(inbox.guard) == [(*CREW, "lead"), (*CREW, "lead", "hand")]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert inbox.ran == []


def test_an_agent_is_who_its_role_was_written_as_whatever_inputs_make_of_it(inbox, native):
    inbox = inbox(delegation={"lead": ["hand"]})
    lead = native.agent("{who}", hands("Third"), "led", allow_delegation=True)
    guard_agent(lead, inbox.guard, name="lead")
    hand = guard_agent(inbox.agent(native, "The {other}", READ, "done"), inbox.guard, name="hand")
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), inbox.guard)
    lead.llm.steps[0] = hands("the third")
    with inbox.lend():
        crew.kickoff(inputs={"who": "Third", "other": "Third"})
    assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    assert lead.role == "Third"


@pytest.mark.parametrize("who", ["Lead", "Third"])
def test_an_agent_is_not_whom_inputs_have_made_of_its_role(inbox, native, who):
    inbox = inbox(agents={**AGENTS, "who": {"max_scope": ["read"]}})
    lead = inbox.agent(native, "{who}", "done", READ, "done")
    crew = native.crew(lead)
    crew.kickoff(inputs={"who": who})  # before it is guarded
    assert lead.role == who
    inbox.kickoff(guard_crew(crew, inbox.guard))
    assert [call.chain for call in inbox.calls()] == [(*CREW, "who")]


DIRECT = {
    "by-name": lambda t: t.run(task="t", context="c", coworker="Hand"),
    "_run": lambda t: t._run(task="t", context="c", coworker="Hand"),
    "co_worker": lambda t: t._run(task="t", context="c", co_worker="Hand"),
    "by-position": lambda t: t._run("t", "c", "Hand"),
    "run-by-position": lambda t: t.run("t", "c", "Hand"),
}


@pytest.mark.parametrize("how", DIRECT)
@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {"lead": ["third"]}], ids=["", "denied"])
def test_however_the_tool_is_called_it_hands_on_to_whom_it_may(inbox, native, how, table):
    inbox = inbox(delegation=table)
    crew = inbox.two(native)
    lead, hand = crew.agents
    lead.create_agent_executor(lead.get_delegation_tools([hand]))
    delegate = lead.agent_executor.original_tools[0]
    with inbox.lend():
        said = DIRECT[how](delegate)
    if table == {"lead": ["hand"]}:
        assert said == "done"
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert said.code == "delegation.delegatee"
        assert inbox.ran == []
        assert "ok" not in [became for *_who, became in inbox.story()]


# --- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("copes", [True, False])
def test_a_failure_that_a_coworker_copes_with_is_none_of_what_was_handed_over(inbox, way, copes):
    inbox = inbox()
    third = guard_agent(
        inbox.agent(way, "Third", RuntimeError("the model is down"), max_retry_limit=0), inbox.guard
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
    lead = inbox.agent(way, "Lead", hands("Hand"), "led", allow_delegation=True)
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), inbox.guard)
    assert inbox.kickoff(crew).raw == "led"
    told = "ok" if copes else "error"
    assert inbox.story() == [("lead", DELEGATE, told), ("hand", "ask_third", "ok")]


# --- what ends it -------------------------------------------------------------------------------


def test_without_a_delegation_nobody_acts(inbox, native, caplog):
    inbox = inbox()
    output = inbox.two(native, READ, hands("Hand"), "led").kickoff()
    assert codes(output) == ["delegation.missing"] * 2
    told = output.tasks_output[0].tool_failures[0].failure.message
    assert "kick off the crew inside a block of guard.delegate(...)" in told
    logged = [one.getMessage() for one in caplog.records if one.name == "agentguard"]
    assert len(logged) == 2
    assert [line.count("[delegation.missing]") for line in logged] == [1, 1]
    assert inbox.story() == [
        ("lead", "read_file", "delegation.missing"),
        ("lead", DELEGATE, "delegation.missing"),
    ]
    assert (inbox.ran, hops(inbox.guard), inbox.made.asked) == ([], [], [])
    assert {call.chain for call in inbox.calls()} == {()}


@pytest.mark.parametrize(("depth", "became"), [(4, "ok"), (3, "ok"), (2, "denied"), (1, "denied")])
def test_a_chain_that_is_too_long_is_told_as_a_failure(inbox, native, depth, became):
    inbox = inbox()
    output = inbox.kickoff(inbox.two(native, hands("Hand"), "led"), max_depth=depth)
    if became == "ok":
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
        assert codes(output) == []
    else:
        assert codes(output) == ["delegation.depth"]
        assert inbox.ran == []
        assert "ok" not in [outcome for *_who, outcome in inbox.story()]


def test_a_delegation_that_has_ended_is_no_longer_one(monkeypatch, inbox, native):
    ahead = timedelta()
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: datetime.now(UTC) + ahead)
    inbox = inbox()

    @tool
    def wait(what: str) -> str:
        """Wait until what was lent has ended."""
        nonlocal ahead
        ahead = timedelta(hours=1)
        return what

    crew = inbox.two(native, READ, ("wait", {"what": "it"}), READ, hands("Hand"), "led")
    crew.agents[0].tools.append(wait)
    output = inbox.kickoff(crew, expires_in=3600)
    assert codes(output) == ["delegation.expired"] * 2
    assert inbox.story() == [
        ("lead", "read_file", "ok"),
        ("lead", "wait", "ok"),
        ("lead", "read_file", "delegation.expired"),
        ("lead", DELEGATE, "delegation.expired"),
    ]
    assert [path for path, _members in inbox.ran] == ["plan"]


def test_no_more_calls_are_made_than_were_lent(inbox, native):
    inbox = inbox()
    output = inbox.kickoff(inbox.two(native, hands("Hand"), READ, "led"), max_calls=2)
    assert codes(output) == ["calls.exceeded"]
    assert inbox.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("lead", "read_file", "calls.exceeded"),
    ]


PASSPHRASE = b"of this test"


class Place(Desk):
    """A desk whose guard is a durable one; ``revoke`` is what an administrator does meanwhile."""

    def __init__(self, folder, signed):
        self._settings = settings_of(folder)
        home = domain.take_up(self._settings, PASSPHRASE)
        engine = FunctionEngine(lambda _document: Decision.allow())
        super().__init__(SimpleNamespace(guard=Guard(self._settings, engine, home)), signed)

    def revoke(self, what):
        at = datetime.now(UTC)
        if what == "everything":
            administration.freeze(self._settings, PASSPHRASE, frozen=True, note="n", now=at)
        else:
            administration.revoke(self._settings, PASSPHRASE, what, note="n", now=at)


def settings_of(folder):
    tables = {"trust_domain": "acme.example", "anchor": "", "agents": AGENTS}
    return config.parse(tables, source="agentguard.toml", base=folder)


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A domain that nobody has used yet."""
    settings = settings_of(tmp_path_factory.mktemp("founded"))
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return settings.base


@pytest.fixture
def place(tmp_path, founded, signed):
    """A desk with a durable guard."""
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    made = Place(tmp_path, signed)
    yield made
    assert made.guard.verify().ok
    made.guard.close()


@pytest.mark.parametrize(
    ("what", "code", "stopped"),
    [
        ("agent:hand", "delegation.revoked", {"hand"}),
        ("agent:lead", "delegation.revoked", {"hand", "lead"}),
        ("user:alice", "delegation.revoked", {"hand", "lead"}),
        ("crew:report", "delegation.revoked", {"hand", "lead"}),
        ("this delegation", "delegation.revoked", {"hand", "lead"}),
        ("everything", "domain.frozen", {"hand", "lead"}),
        ("agent:third", "", set()),
        ("user:bob", "", set()),
    ],
)
def test_what_is_revoked_stops_at_its_next_call(place, native, what, code, stopped):
    names: list[str] = []

    @tool
    def meanwhile(what: str) -> str:
        """Let an administrator act meanwhile."""
        place.revoke(*names)
        return what

    hand = (READ, ("meanwhile", {"what": "it"}), ("read_file", {"path": "paper"}), "done")
    crew = place.two(native, hands("Hand"), READ, hands("Hand"), "led", hand=(*hand, "done again"))
    crew.agents[1].tools.append(meanwhile)
    with place.lend() as lent:
        names.append(lent.id if what == "this delegation" else what)
        output = crew.kickoff()

    def became(agent):
        return code if agent in stopped else "ok"

    assert place.story()[:5] == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", "meanwhile", "ok"),
        ("hand", "read_file", became("hand")),
        ("lead", "read_file", became("lead")),
    ]
    assert [path for path, _members in place.ran] == [
        "plan",
        *["paper"] * ("hand" not in stopped),
        *["plan"] * ("lead" not in stopped),
    ]
    # the second handing over: a call of the lead's, or one that has failed for the hand's sake
    again = code if "lead" in stopped else "error" if stopped else "ok"
    assert place.story()[5:] == [("lead", DELEGATE, again)]
    refused = {0: 0, 1: 2, 2: 3}[len(stopped)]
    assert [one for one in codes(output) if one] == [code] * refused


# --- an authority of one's own ------------------------------------------------------------------

OWN = {**AGENTS, "lead": {"authority": "own", "max_scope": ["read", "write"]}}


def test_an_agent_with_an_authority_of_its_own_acts_by_itself(inbox, native):
    inbox = inbox(agents=OWN)
    crew = inbox.two(native, READ, hands("Hand"), "led")
    crew.kickoff()
    # what it does by itself it can't lend on
    assert inbox.story() == [
        ("lead", "read_file", "ok"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "delegation.missing"),
    ]
    assert {call.chain for call in inbox.calls()} == {()}
    assert hops(inbox.guard) == []


def test_two_agents_with_an_authority_of_their_own(inbox, native):
    own = {**OWN, "hand": {"authority": "own", "max_scope": ["read"]}}
    inbox = inbox(agents=own, tools={"read_file": {"requires": ["write"]}})
    inbox.two(native, READ, hands("Hand"), "led").kickoff()
    assert inbox.story() == [
        ("lead", "read_file", "ok"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "scope.exceeded"),
    ]


@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {}], ids=["allowed", "denied"])
def test_whom_it_hands_work_on_to_is_said_for_one_that_acts_by_itself_too(inbox, native, table):
    own = {**OWN, "hand": {"authority": "own", "max_scope": ["read"]}}
    inbox = inbox(agents=own, delegation=table)
    output = inbox.two(native, hands("Hand"), "led").kickoff()
    if table:
        assert inbox.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert (inbox.story(), inbox.ran) == ([("lead", DELEGATE, "delegation.delegatee")], [])


def test_a_delegation_in_force_is_that_of_an_agent_with_its_own_authority_too(inbox, native):
    inbox = inbox(agents=OWN, tools={"read_file": {"requires": ["write"]}})
    crew = inbox.two(native, READ, hands("Hand"), "led")
    inbox.kickoff(crew, scope=["read"])
    assert [(c.chain, c.outcome or c.code) for c in inbox.calls()] == [
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
def test_two_users_one_after_another_with_one_crew(inbox, native, begin):
    inbox = inbox()
    steps = (hands("Hand"), "led")
    crew = inbox.two(native, *steps, *steps, *steps, hand=(READ, "done") * 3)
    for user in ("user:alice", "user:bob", "user:alice"):
        with inbox.lend(user, scope=LENT[user]):
            if begin == "kickoff":
                crew.kickoff()
            else:
                asyncio.run(crew.akickoff())
    calls = inbox.calls()
    assert [call.chain[0] for call in calls] == [
        *["user:alice"] * 2,
        *["user:bob"] * 2,
        *["user:alice"] * 2,
    ]
    for user, times in (("user:alice", 2), ("user:bob", 1)):
        assert of_user(calls, user) == expected(user) * times
    assert [members for _path, members in inbox.ran] == [
        call.chain for call in calls if call.tool == "read_file"
    ]
    assert len({call.instance for call in calls}) == len(("lead", "hand"))


def together(inbox, number):
    """A tool that is called by as many at once, and tells for whom it was."""
    barrier = threading.Barrier(number, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        barrier.wait()
        lent = current_delegation()
        assert lent is not None
        inbox.ran.append(lent.principal)
        return path

    return read_file


@pytest.mark.parametrize("sync", [True, False], ids=["threads", "tasks"])
def test_two_users_at_once_with_copies_of_one_crew(inbox, native, sync):
    inbox = inbox()
    crew = inbox.two(native, hands("Hand"), "led")
    crew.agents[1].tools = [together(inbox, 2)]
    copies = {user: crew.copy() for user in LENT}
    for copied in copies.values():
        for agent, steps in zip(
            copied.agents, [(hands("Hand"), "led"), (READ, "done")], strict=True
        ):
            agent.llm = native.model(*steps)

    def one(user):
        with inbox.lend(user, scope=LENT[user]):
            return copies[user].kickoff().raw

    async def aone(user):
        with inbox.lend(user, scope=LENT[user]):
            return (await copies[user].akickoff()).raw

    async def both():
        return await asyncio.gather(*map(aone, LENT))

    if sync:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(one, LENT)) == ["led", "led"]
    else:
        assert asyncio.run(both()) == ["led", "led"]
    for user in LENT:
        assert of_user(inbox.calls(), user) == expected(user)
    assert sorted(inbox.ran) == sorted(LENT)


def test_two_users_at_once_with_one_agent(inbox, native):
    inbox = inbox()
    lead: Any = guard_agent(native.agent("Lead", tools=[together(inbox, 2)]), inbox.guard)
    # both read first: what either of them is told does not depend on who was faster
    lead.llm.steps = [READ, READ, "done", "done"]

    def one(user):
        with inbox.lend(user, scope=LENT[user]):
            return lead.kickoff("go on").raw

    with ThreadPoolExecutor(2) as threads:
        assert all("done" in said for said in threads.map(one, LENT))
    assert sorted(call.chain for call in inbox.calls()) == [
        (user, "crew:report", "lead") for user in sorted(LENT)
    ]
    assert sorted(inbox.ran) == sorted(LENT)
    assert len({call.instance for call in inbox.calls()}) == 1


def test_two_users_at_once_with_the_same_crew_are_not_mixed_up(inbox, native):
    inbox = inbox()
    entered, leave = threading.Event(), threading.Event()

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        entered.set()
        assert leave.wait(120)
        lent = current_delegation()
        assert lent is not None
        inbox.ran.append(lent.principal)
        return path

    lead = native.agent("Lead", READ, *["done"] * 6, tools=[read_file])
    crew = guard_crew(native.crew(lead), inbox.guard)

    def one(user):
        with inbox.lend(user, scope=LENT[user]):
            return crew.kickoff()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one, "user:alice")
        assert entered.wait(120)
        # CrewAI has one executor for an agent
        with pytest.raises(ConfigError, match="being kicked off already"):
            threads.submit(one, "user:bob").result()
        leave.set()
        first.result()
    assert [call.chain for call in inbox.calls()] == [(*CREW, "lead")]
    assert inbox.ran == ["user:alice"]
