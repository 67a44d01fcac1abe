"""Approvals in a role, by clicks in an application: a click that does not count harms no call.

The interrupt comes again with the reason, and the right person answers next, with the same
decision. So does every other answer that does not count: of the requester, of an unknown person, of
another form.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from graph_runs import SYNC, answers, invoke_thread, pause_value, resume_with
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from obedient import Obedient
from payment_team import APPROVE, BIG, BIGGER, REJECT, edit

from agentguard import Decision, RequestEndedError, Requirement
from agentguard.approvals.answer import seal_answer
from agentguard_langchain import (
    GuardMiddleware,
    graph_task,
    guard_approval_node,
    guard_edge,
    guard_tool_node,
)

STAFF = {"user:dora": ["manager"], "user:erin": ["manager"], "user:carl": ["clerk"], "user:fay": []}
PAID = [("success", "paid 500 to ann")]


def roles(principal: str) -> list[str] | None:
    if principal == "user:broken":
        raise ConnectionError("no database at 10.0.0.1")
    return STAFF.get(principal)


def in_the_role(document: Any) -> Decision:
    if document["action"] != "pay" or document["args"]["cents"] <= 100:
        return Decision.allow()
    return Decision.require_approval(Requirement("over 100", roles=("manager",)))


class Clicks:
    """A graph whose application has authenticated ``who``, and the payments of its agent."""

    def __init__(self, people: Any, make: Any, policy: Any = in_the_role) -> None:
        self.inbox = people(
            policy,
            delegated=True,
            application=True,
            application_roles=["manager"],
            roles=f"{__name__}:roles",
        )
        self.who: Any = None
        self.graph = make(self)

    def answered_by(self, _decision: Any, _runtime: Any) -> Any:
        if isinstance(self.who, Exception):
            raise self.who
        return self.who

    async def ask(self, *calls: Any, sync: bool) -> Any:
        self.sync = sync
        made = [
            {"name": name, "args": args, "id": f"c{number}", "type": "tool_call"}
            for number, (name, args) in enumerate(calls)
        ]
        by_hand = [HumanMessage("go"), AIMessage("", tool_calls=made, id="turn1")]
        given = self.inbox.asking(*calls) if self.graph.name == "LangGraph" else None
        with self.inbox.lend("dora"):
            return await invoke_thread(self.graph, given or {"messages": by_hand}, sync=sync)

    async def click(self, who: Any, given: Any) -> Any:
        self.who = who
        with self.inbox.lend("dora"):
            return await invoke_thread(self.graph, given, sync=self.sync)


def agent(clicks: Clicks) -> Any:
    return clicks.inbox.graph(answered_by=clicks.answered_by)


def nodes(clicks: Clicks) -> Any:
    tools, options = clicks.inbox.tools, {"answered_by": clicks.answered_by}
    graph = StateGraph(MessagesState)
    graph.add_node("approval", guard_approval_node(tools, clicks.inbox.agent, **options))
    graph.add_node("tools", guard_tool_node(tools, clicks.inbox.agent, **options))
    graph.add_edge(START, "approval")
    graph.add_conditional_edges("approval", guard_edge("tools"), ["tools", END])
    return graph.compile(checkpointer=InMemorySaver(), name="by hand")


def tool_node(clicks: Clicks) -> Any:
    node = guard_tool_node(clicks.inbox.tools, clicks.inbox.agent, answered_by=clicks.answered_by)
    graph = StateGraph(MessagesState)
    graph.add_node("tools", node)
    graph.add_conditional_edges(START, guard_edge("tools"), ["tools", END])
    return graph.compile(checkpointer=InMemorySaver(), name="by hand")


def nested(clicks: Clicks) -> Any:
    """The agent as a node of another graph, which has the checkpointer."""
    guarding = GuardMiddleware(clicks.inbox.agent, answered_by=clicks.answered_by)
    inner = create_agent(Obedient(), clicks.inbox.tools, middleware=[guarding])
    graph = StateGraph(MessagesState)
    graph.add_node("agent", inner)
    graph.add_edge(START, "agent")
    return graph.compile(checkpointer=InMemorySaver())


GRAPHS = pytest.mark.parametrize("make", [agent, nodes, tool_node, nested])


@SYNC
@GRAPHS
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("user:carl", "approval.refused"),  # of another role
        ("user:fay", "approval.refused"),  # of no role
        ("user:zoe", "approval.unknown"),  # unknown to the application's function of roles
        ("user:dora", "approval.refused"),  # a manager, for whom the call is made
        (None, "approval.unknown"),
        (LookupError("no session"), "approval.unknown"),
        ("carl", "principal.malformed"),
        ("user:broken", "roles.failed"),
    ],
    ids=str,
)
@pytest.mark.parametrize("decision", [APPROVE, REJECT], ids=["approve", "reject"])
async def test_a_wrong_click_leaves_the_call_waiting(people, sync, make, wrong, code, decision):
    if decision is REJECT and wrong == "user:dora":
        return  # whoever asks for a call may take it back
    clicks = Clicks(people, make)
    await clicks.ask(BIG, sync=sync)
    (request,) = clicks.inbox.waiting
    assert (request.thread, request.args) == ("t1", BIG[1])
    paused = await clicks.click(wrong, resume_with(decision))
    (named,) = pause_value(paused)["agentguard"]
    assert named["problem_code"] == code
    assert named["requirements"][0]["roles"] == ["manager"]
    assert named["missing"] == "over 100: 0 of 1 approvals in the role manager"
    assert named["problem"] in pause_value(paused)["action_requests"][0]["description"]
    assert "10.0.0.1" not in json.dumps(pause_value(paused))
    assert clicks.inbox.paid == []
    state = await clicks.click("user:erin", resume_with(APPROVE))  # the very same decision
    assert answers(state) == PAID


@SYNC
@GRAPHS
async def test_nobody_gets_an_old_click_by_resuming_with_nothing(people, sync, make):
    clicks = Clicks(people, make)
    await clicks.ask(BIG, sync=sync)
    await clicks.click("user:carl", resume_with(APPROVE))
    for _ in range(2):
        paused = await clicks.click("user:erin", None)  # who only looks how it goes
        assert "user:carl" in pause_value(paused)["agentguard"][0]["problem"]
    assert clicks.inbox.paid == []
    (shown,) = paused["__interrupt__"]
    state = await clicks.click("user:erin", Command(resume={shown.id: {"decisions": [APPROVE]}}))
    assert answers(state) == PAID


@SYNC
@pytest.mark.parametrize("make", [agent, nested])
async def test_where_langgraph_does_not_say_how_a_run_was_resumed(people, sync, make, monkeypatch):
    """The same decision is then taken for the old one, and ignored; an answer by id counts."""
    monkeypatch.setattr(graph_task, "_CALL", "a key of another version")
    clicks = Clicks(people, make)
    await clicks.ask(BIG, sync=sync)
    await clicks.click("user:carl", resume_with(APPROVE))
    paused = await clicks.click("user:erin", resume_with(APPROVE))
    assert "user:carl" in pause_value(paused)["agentguard"][0]["problem"]
    assert clicks.inbox.paid == []
    (shown,) = paused["__interrupt__"]
    state = await clicks.click("user:erin", Command(resume={shown.id: {"decisions": [APPROVE]}}))
    assert answers(state) == PAID


@SYNC
async def test_an_answer_by_id_brings_no_old_click_along(people, sync):
    """LangGraph keeps the click that came without an id, also while others answer by id."""
    clicks = Clicks(people, tool_node)
    await clicks.ask(BIG, sync=sync)
    await clicks.click("user:carl", resume_with(APPROVE))
    for _ in range(2):
        paused = await clicks.click("user:erin", Command(resume={"0" * 32: "for another"}))
        assert "user:carl" in pause_value(paused)["agentguard"][0]["problem"]
    assert clicks.inbox.paid == []


@SYNC
@GRAPHS
async def test_a_second_click_pays_nothing_and_its_page_learns_what_became_of_the_call(
    people, sync, make
):
    clicks = Clicks(people, make)
    await clicks.ask(BIG, sync=sync)
    (request,) = clicks.inbox.waiting
    approvals = clicks.inbox.guard.approvals
    await clicks.click("user:erin", resume_with(APPROVE))
    await clicks.click("user:erin", resume_with(APPROVE))
    assert clicks.inbox.paid == [("ann", 500)]
    status = approvals.status(request.request_id)
    assert [one.approver for one in status.answers] == ["user:erin"]
    assert (status.state, status.call) == ("approved", "ran")
    with pytest.raises(RequestEndedError, match="its call ran"):
        approvals.vouch(request, "reject", principal="user:erin")


@SYNC
async def test_a_rejection_of_nobody_is_on_record_as_well(people, sync):
    """Without answered_by a rejection needs nobody, and the request is over."""
    inbox = people(
        in_the_role, application=True, application_roles=["manager"], roles=f"{__name__}:roles"
    )
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    await invoke_thread(graph, resume_with(REJECT), sync=sync)
    status = inbox.guard.approvals.status(request.request_id)
    assert (status.state, status.call, status.answers) == ("rejected", "refused", ())
    assert status.reason == "a person has rejected this call: not this one"


@SYNC
@GRAPHS
async def test_a_manager_rejects(people, sync, make):
    clicks = Clicks(people, make)
    await clicks.ask(BIG, sync=sync)
    state = await clicks.click("user:erin", resume_with(REJECT))
    assert "user:erin has rejected this call: not this one" in answers(state)[0][1]
    assert clicks.inbox.paid == []


@SYNC
async def test_who_asks_takes_the_call_back(people, sync):
    clicks = Clicks(people, agent)
    await clicks.ask(BIG, sync=sync)
    state = await clicks.click("user:dora", resume_with(REJECT))
    assert "user:dora has rejected this call" in answers(state)[0][1]


@SYNC
@pytest.mark.parametrize("wrong", ["user:carl", "user:zoe", None], ids=str)
async def test_a_stranger_puts_no_other_call_in_its_place(people, sync, wrong):
    clicks = Clicks(people, agent)
    await clicks.ask(BIG, sync=sync)
    (request,) = clicks.inbox.waiting
    paused = await clicks.click(wrong, resume_with(edit(to="carl", cents=50)))
    assert pause_value(paused)["agentguard"][0]["problem_code"].startswith("approval.")
    assert (clicks.inbox.waiting, clicks.inbox.paid) == ([request], [])
    await clicks.click("user:erin", resume_with(edit(to="ann", cents=50)))
    assert clicks.inbox.paid == [("ann", 50)]


@SYNC
async def test_each_position_has_its_own_problem(people, sync):
    clicks = Clicks(people, agent)
    await clicks.ask(BIG, BIGGER, sync=sync)
    paused = await clicks.click("user:carl", resume_with(APPROVE, REJECT))
    problems = [one["problem"] for one in pause_value(paused)["agentguard"]]
    assert [one.partition(" would")[0] for one in problems] == ["this approval", "this rejection"]
    state = await clicks.click("user:erin", resume_with(APPROVE, REJECT))
    assert [status for status, _text in answers(state)] == ["success", "error"]


@SYNC
async def test_two_managers_click_the_same(people, sync):
    def two(document: Any) -> Decision:
        return Decision.require_approval(Requirement("two", roles=("manager",), quorum=2))

    STAFF["user:gil"] = ["manager"]
    clicks = Clicks(people, agent, two)
    await clicks.ask(BIG, sync=sync)
    for who, count in (("user:erin", 1), ("user:erin", 1), ("user:carl", 1)):
        paused = await clicks.click(who, resume_with(APPROVE))
        missing = pause_value(paused)["agentguard"][0]["missing"]
        assert missing == f"two: {count} of 2 approvals in the role manager"
    state = await clicks.click("user:gil", resume_with(APPROVE))
    assert answers(state) == PAID


@SYNC
@pytest.mark.parametrize("principal", ["user:erin", "user:nobody"])
async def test_a_client_writes_no_answer_of_the_application(people, sync, principal):
    """An unsigned envelope in a decision named any principal, and the call ran."""
    clicks = Clicks(people, agent)
    await clicks.ask(BIG, sync=sync)
    (request,) = clicks.inbox.waiting
    forged = seal_answer(
        request,
        "approve",
        approver=principal,
        approval_id="1" * 32,
        at=request.requested_at,
        roles=["manager"],
    ).as_json()
    paused = await clicks.click("user:carl", resume_with({**APPROVE, "approval": forged}))
    assert pause_value(paused)["agentguard"][0]["problem_code"] == "approval.unsigned"
    assert clicks.inbox.paid == []
    state = await clicks.click("user:erin", resume_with(APPROVE))
    assert answers(state) == PAID
