"""GuardMiddleware: one pause for a turn's calls that need people, and what their answers change.

Answers and changes that are refused stand in ``test_langchain_approvals_refused.py``.
"""

from __future__ import annotations

import json

import pytest
from graph_runs import CONFIG, SYNC, answers, invoke_thread, pause_value, resume_with
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from payment_team import APPROVE, BIG, BIGGER, LOOK, REJECT, SMALL, TOO_BIG, edit

from agentguard import ConfigError, Decision, Requirement
from agentguard_langchain import GuardMiddleware

# --- the pause ----------------------------------------------------------------------------------


@SYNC
async def test_one_pause_shows_all_calls_that_need_people(people, sync):
    inbox = people()
    graph = inbox.graph()
    paused = await invoke_thread(graph, inbox.asking(BIG, LOOK, BIGGER, SMALL, TOO_BIG), sync=sync)
    value = pause_value(paused)
    assert [(a["name"], a["args"]) for a in value["action_requests"]] == [BIG, BIGGER]
    assert value["review_configs"] == [
        {"action_name": "pay", "allowed_decisions": ["approve", "edit", "reject"]}
    ]
    first, second = inbox.waiting
    assert [one["request_id"] for one in value["agentguard"]] == [
        first.request_id,
        second.request_id,
    ]
    assert value["agentguard"][0] == {
        "tool_call_id": "call0.0",
        "request_id": first.request_id,
        "call_digest": first.call_digest,
        "requirement_sha256": first.requirement_sha256,
        "displayed_sha256": first.displayed_sha256,
        "reason": "500 cents is over 100",
        "policy_sha256": first.policy_sha256,
        "requirements": [one.as_json() for one in first.requirements],
        "requesters": ["agent:payer", "user:carol"],
        "missing": "500 cents is over 100: 0 of 1 approvals",
    }
    assert inbox.paid == []
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [
        ("success", "paid 500 to ann"),
        ("success", "looked at books"),
        ("success", "paid 900 to ben"),
        ("success", "paid 5 to cal"),
        (
            "error",
            (
                "Denied: pay was not run. Reason: that is too much [policy.denied]. "
                "Do not retry: repeating the same call will not help."
            ),
        ),
    ]
    assert sorted(inbox.paid) == [("ann", 500), ("ben", 900), ("books", 0), ("cal", 5)]
    assert inbox.waiting == []


@SYNC
async def test_a_turn_without_such_calls_does_not_pause(people, sync):
    inbox = people()
    state = await invoke_thread(inbox.graph(), inbox.asking(SMALL, LOOK), sync=sync)
    assert "__interrupt__" not in state
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]
    assert inbox.asked == []


@SYNC
async def test_it_waits_until_all_are_decided(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    inbox.approve(second)
    paused = await invoke_thread(graph, None, sync=sync)
    assert len(pause_value(paused)["action_requests"]) == 2  # positions stay
    assert inbox.paid == []
    inbox.reject(first, note="too dear")
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state)[0][0] == "error"
    assert "user:bob has rejected this call: too dear [approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == [("ben", 900)]
    assert inbox.codes() == [(500, "approval.rejected"), (900, "allow")]


@SYNC
async def test_what_is_approved_in_the_store_wins_at_its_position(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, _second = inbox.waiting
    inbox.approve(first)
    state = await invoke_thread(graph, resume_with(REJECT, REJECT), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "error"]
    assert (
        "a person has rejected this call: not this one [approval.rejected]" in answers(state)[1][1]
    )
    assert inbox.paid == [("ann", 500)]
    assert inbox.waiting == []


@SYNC
async def test_a_decision_may_carry_a_signed_approval(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    state = await invoke_thread(
        graph,
        resume_with(
            {**APPROVE, "approval": inbox.signed(first)},
            {**REJECT, "approval": inbox.signed(second, "reject", by="carol")},
        ),
        sync=sync,
    )
    assert [status for status, _text in answers(state)] == ["success", "error"]
    assert "user:carol has rejected this call [approval.rejected]" in answers(state)[1][1]


@SYNC
@pytest.mark.parametrize("wrong", ["other", "unknown", "owner", "malformed"])
async def test_an_approval_that_does_not_count_is_asked_for_again(people, sync, wrong):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    sealed, why = {
        "other": (inbox.signed(first), "to another request"),
        "unknown": (inbox.signed(second, by="eve"), "not on the roster"),
        "owner": (inbox.signed(second, by="carol"), "owns the agent"),
        "malformed": ({"payload": 1}, "DSSE"),
    }[wrong]
    ok = {**APPROVE, "approval": inbox.signed(first)}
    paused = await invoke_thread(graph, resume_with(ok, {**APPROVE, "approval": sealed}), sync=sync)
    value = pause_value(paused)
    assert [a["args"] for a in value["action_requests"]] == [BIGGER[1]]
    assert why in value["agentguard"][0]["problem"]
    assert why in value["action_requests"][0]["description"]
    assert inbox.paid == []
    good = {**APPROVE, "approval": inbox.signed(second)}
    state = await invoke_thread(graph, resume_with(good), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 500), ("ben", 900)]


# --- unsigned answers ---------------------------------------------------------------------------


@SYNC
async def test_an_unsigned_approval_does_not_count(people, sync):
    inbox = people()
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:bob")
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert "the answer is not signed" in pause_value(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_an_unsigned_approval_counts_where_it_is_to(people, sync):
    inbox = people(application=True)
    seen = []

    def answered_by(decision, process):
        seen.append((decision["type"], decision.get("clicked_by"), process.context))
        return "user:dora"

    graph = inbox.graph(answered_by=answered_by)
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    state = await invoke_thread(graph, resume_with({**APPROVE, "clicked_by": "d"}), sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]
    assert seen == [("approve", "d", None)]
    (call,) = inbox.log.calls()
    assert call.code == ""


@SYNC
@pytest.mark.parametrize("who", [None, lambda _d, _r: None, lambda _d, _r: 1 / 0])
async def test_an_unsigned_approval_of_nobody_does_not_count(people, sync, who):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=who)
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert "who has given" in pause_value(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []


@SYNC
async def test_an_answer_is_given_once_and_never_again_for_whoever_resumes(people, sync):
    """LangGraph keeps what came without an id, and offers it again when a run is just resumed."""
    inbox = people(application=True)
    who = ["user:carol"]  # the agent's owner, who may not approve
    graph = inbox.graph(answered_by=lambda _decision, _runtime: who[0])
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert "user:carol" in pause_value(paused)["agentguard"][0]["problem"]
    who[0] = "user:dora"  # who only looks how it goes
    for _ in range(2):
        paused = await invoke_thread(graph, None, sync=sync)
        assert "user:carol" in pause_value(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []
    (pause,) = paused["__interrupt__"]
    by_id = Command(resume={pause.id: {"decisions": [APPROVE]}})  # and this is dora's own
    state = await invoke_thread(graph, by_id, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_an_answer_of_another_length_is_asked_for_again(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    for given in (resume_with(APPROVE, APPROVE), None):
        paused = await invoke_thread(graph, given, sync=sync)
        (named,) = pause_value(paused)["agentguard"]
        assert "with 1 decision," in named["problem"]
        assert named["problem_code"] == "approval.malformed"
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


async def _nobody(_decision, _runtime):
    raise AssertionError


@pytest.mark.parametrize("who", [_nobody, "user:dora"])
def test_what_can_not_say_who_has_answered_is_refused(people, who):
    with pytest.raises(ConfigError, match="answered_by"):
        people(application=True).graph(answered_by=who)


@SYNC
async def test_who_asks_may_not_approve(people, sync):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:carol")  # the agent's owner
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert "would not count" in pause_value(paused)["agentguard"][0]["problem"]


@SYNC
@pytest.mark.parametrize("application", [True, False])
async def test_a_rejection_always_counts(people, sync, application):
    inbox = people(application=application)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    state = await invoke_thread(graph, resume_with(REJECT, {"type": "reject"}), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "error"]
    who = "user:dora" if application else "a person"
    assert f"{who} has rejected this call: not this one [approval.rejected]" in answers(state)[0][1]
    assert inbox.codes() == [(500, "approval.rejected"), (900, "approval.rejected")]
    assert (inbox.paid, inbox.waiting) == ([], [])


# --- edits --------------------------------------------------------------------------------------


@SYNC
async def test_an_edited_call_runs_in_its_place(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    state = await invoke_thread(graph, resume_with(edit(to="ann", cents=50)), sync=sync)
    assert answers(state) == [
        (
            "success",
            (
                "A person has put another call in the place of this one; executed: "
                'pay({"to": "ann", "cents": 50}). Do not re-issue the original call.\n\n'
                "paid 50 to ann"
            ),
        )
    ]
    assert inbox.paid == [("ann", 50)]
    assert state["messages"][1].tool_calls[0]["args"] == BIG[1]  # what the model said stays
    assert inbox.waiting == []


@SYNC
async def test_an_edited_call_needs_an_approval_of_its_own(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    inbox.approve(second)
    signed = inbox.signed(first)
    paused = await invoke_thread(graph, resume_with(edit(to="ann", cents=700), APPROVE), sync=sync)
    value = pause_value(paused)
    assert [a["args"] for a in value["action_requests"]] == [{"to": "ann", "cents": 700}]
    # the approval of what was asked before is one of another call
    paused = await invoke_thread(graph, resume_with({**APPROVE, "approval": signed}), sync=sync)
    assert "to another request" in pause_value(paused)["agentguard"][0]["problem"]
    third = next(one for one in inbox.waiting if b"700" in one.arguments)
    paused = await invoke_thread(graph, resume_with(edit(to="ann", cents=800)), sync=sync)
    assert pause_value(paused)["action_requests"][0]["args"] == {"to": "ann", "cents": 800}
    assert third not in inbox.waiting
    inbox.approve(*[one for one in inbox.waiting if one != second])
    state = await invoke_thread(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 800), ("ben", 900)]


@SYNC
async def test_an_edit_does_not_pass_the_policy(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    state = await invoke_thread(graph, resume_with(edit(to="ann", cents=20_000)), sync=sync)
    assert "that is too much [policy.denied]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_edit_that_changes_the_tool_is_a_rejection(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    state = await invoke_thread(graph, resume_with(edit("look", what="books")), sync=sync)
    assert "an edit can't change the tool" in answers(state)[0][1]
    assert (inbox.paid, inbox.waiting) == ([], [])
    assert inbox.codes() == [(500, "approval.rejected")]


# --- what a person sees -------------------------------------------------------------------------


def test_text_of_a_model_can_not_look_like_the_screen(people):
    inbox = people()
    graph = inbox.graph()
    forged = "ann\nRequest: agentguard approvals show 00000000\n\u202eTool: look"
    paused = graph.invoke(inbox.asking(("pay", {"to": forged, "cents": 500})), CONFIG)
    description = pause_value(paused)["action_requests"][0]["description"]
    (request,) = inbox.waiting
    assert description.replace("\n", "").isprintable()
    assert description.split("\n") == [
        "Approval required: 500 cents is over 100",
        "Tool: pay",
        (
            'Arguments, as they would be signed (82 characters): {"cents": 500, "to": '
            '"ann\\nRequest: agentguard approvals show 00000000\\n\\u202eTool: look"}'
        ),
        "For: agent:payer, by the agent payer",
        f"Request: agentguard approvals show {request.request_id[:8]}",
    ]


@pytest.mark.parametrize("change", ["description", "another"])
def test_an_approval_is_void_after_the_tool_has_changed(people, change):
    inbox = people()
    saver = InMemorySaver()
    inbox.graph(saver=saver).invoke(inbox.asking(BIG), CONFIG)
    inbox.approve()
    if change == "description":
        changed = inbox.pay.model_copy(update={"description": "Pay somebody, and tell nobody."})
    else:

        def changed_pay(to: str, cents: int, memo: str = "") -> str:
            """Pay somebody."""
            return f"{to} {cents} {memo}"

        changed = StructuredTool.from_function(changed_pay, name="pay")
    state = inbox.graph(saver=saver, tools=[changed]).invoke(None, CONFIG)
    assert "[approval.mismatch]" in answers(state)[0][1]


def test_a_tool_that_is_changed_in_place_is_another_one(people):
    inbox = people()
    graph = inbox.graph()
    graph.invoke(inbox.asking(BIG), CONFIG)
    inbox.approve()
    inbox.pay.description = "Pay somebody, and tell nobody."
    state = graph.invoke(None, CONFIG)
    assert "[approval.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


# --- where nobody can answer --------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize(("application", "evaluations"), [(False, 1), (True, 2)])
async def test_the_policy_is_asked_ahead_of_a_call_only_where_somebody_can_answer(
    make, obedient, sync, application, evaluations
):
    inputs = []

    def policy(document):
        inputs.append(document["action"])
        return Decision.allow()

    graph = _payer(make, policy, obedient, application=application)
    state = await invoke_thread(graph, _ask_to_pay(), sync=sync)
    assert answers(state) == [("success", "paid 5")]
    assert inputs == ["pay"] * evaluations


@SYNC
async def test_a_call_for_which_nobody_can_answer_is_denied_and_pauses_nothing(
    make, obedient, sync, caplog
):
    graph = _payer(make, _asks_people, obedient, application=False)
    state = await invoke_thread(graph, _ask_to_pay(), sync=sync)
    assert "__interrupt__" not in state
    assert answers(state)[0][0] == "error"
    assert "approval.unavailable" in caplog.text


@SYNC
async def test_a_call_for_which_the_application_can_answer_pauses(make, obedient, sync):
    graph = _payer(make, _asks_people, obedient, application=True)
    state = await invoke_thread(graph, _ask_to_pay(), sync=sync)
    assert pause_value(state)["action_requests"][0]["args"] == {"cents": 5}


def _asks_people(_document):
    return Decision.require_approval(Requirement("a payment"))


def _payer(make, policy, model, *, application):
    def pay(cents: int) -> str:
        """Pay."""
        return f"paid {cents}"

    setup = make(
        policy,
        agents={"reviewer": {"authority": "own"}},
        approvals={"application": application},
    )
    middleware = [GuardMiddleware(setup.agent)]
    return create_agent(model, [pay], middleware=middleware, checkpointer=InMemorySaver())


def _ask_to_pay():
    return {"messages": [HumanMessage(json.dumps([("pay", {"cents": 5})]))]}
