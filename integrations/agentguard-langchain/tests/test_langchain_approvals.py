"""GuardMiddleware: one pause for a turn's calls that need people, and what their answers change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import ValidationError

from agentguard import ApprovalPending, ConfigError, Decision, Requirement
from agentguard.adapters import CallSite
from agentguard.guard import process
from agentguard_langchain import GuardedToolDenied, approval_step, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}

BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})
SMALL = ("pay", {"to": "cal", "cents": 5})
LOOK = ("look", {"what": "books"})
TOO_BIG = ("pay", {"to": "dan", "cents": 20_000})

APPROVE = {"type": "approve"}
REJECT = {"type": "reject", "message": "not this one"}


async def ran(graph, given, *, sync=True, config=CONFIG, **options):
    if sync:
        return graph.invoke(given, config, **options)
    return await graph.ainvoke(given, config, **options)


def decided(*decisions):
    return Command(resume={"decisions": list(decisions)})


def answers(state):
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def shown(state):
    (pause,) = state["__interrupt__"]
    return pause.value


# --- the pause ----------------------------------------------------------------------------------


@SYNC
async def test_one_pause_shows_all_calls_that_need_people(people, sync):
    inbox = people()
    graph = inbox.graph()
    paused = await ran(graph, inbox.asking(BIG, LOOK, BIGGER, SMALL, TOO_BIG), sync=sync)
    value = shown(paused)
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
    }
    assert inbox.paid == []
    inbox.approve()
    state = await ran(graph, None, sync=sync)
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
    state = await ran(inbox.graph(), inbox.asking(SMALL, LOOK), sync=sync)
    assert "__interrupt__" not in state
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]
    assert inbox.asked == []


@SYNC
async def test_it_waits_until_all_are_decided(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    inbox.approve(second)
    paused = await ran(graph, None, sync=sync)
    assert len(shown(paused)["action_requests"]) == 2  # positions stay
    assert inbox.paid == []
    inbox.reject(first, note="too dear")
    state = await ran(graph, None, sync=sync)
    assert answers(state)[0][0] == "error"
    assert "user:bob has rejected this call: too dear [approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == [("ben", 900)]
    assert inbox.codes() == [(500, "approval.rejected"), (900, "allow")]


@SYNC
async def test_what_is_approved_in_the_store_wins_at_its_position(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, _second = inbox.waiting
    inbox.approve(first)
    state = await ran(graph, decided(REJECT, REJECT), sync=sync)
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
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    state = await ran(
        graph,
        decided(
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
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    sealed, why = {
        "other": (inbox.signed(first), "to another request"),
        "unknown": (inbox.signed(second, by="eve"), "not on the roster"),
        "owner": (inbox.signed(second, by="carol"), "owns the agent"),
        "malformed": ({"payload": 1}, "DSSE"),
    }[wrong]
    ok = {**APPROVE, "approval": inbox.signed(first)}
    paused = await ran(graph, decided(ok, {**APPROVE, "approval": sealed}), sync=sync)
    value = shown(paused)
    assert [a["args"] for a in value["action_requests"]] == [BIGGER[1]]
    assert why in value["agentguard"][0]["problem"]
    assert why in value["action_requests"][0]["description"]
    assert inbox.paid == []
    good = {**APPROVE, "approval": inbox.signed(second)}
    state = await ran(graph, decided(good), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 500), ("ben", 900)]


# --- unsigned answers ---------------------------------------------------------------------------


@SYNC
async def test_an_unsigned_approval_does_not_count(people, sync):
    inbox = people()
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:bob")
    await ran(graph, inbox.asking(BIG), sync=sync)
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert "the answer is not signed" in shown(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_an_unsigned_approval_counts_where_it_is_to(people, sync):
    inbox = people(application=True)
    seen = []

    def answered_by(decision, process):
        seen.append((decision["type"], decision.get("clicked_by"), process.context))
        return "user:dora"

    graph = inbox.graph(answered_by=answered_by)
    await ran(graph, inbox.asking(BIG), sync=sync)
    state = await ran(graph, decided({**APPROVE, "clicked_by": "d"}), sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]
    assert seen == [("approve", "d", None)]
    (call,) = inbox.log.calls()
    assert call.code == ""


@SYNC
@pytest.mark.parametrize("who", [None, lambda _d, _r: None, lambda _d, _r: 1 / 0])
async def test_an_unsigned_approval_of_nobody_does_not_count(people, sync, who):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=who)
    await ran(graph, inbox.asking(BIG), sync=sync)
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert "who has given it" in shown(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []


@SYNC
async def test_an_answer_is_given_once_and_never_again_for_whoever_resumes(people, sync):
    """LangGraph keeps what came without an id, and offers it again when a run is just resumed."""
    inbox = people(application=True)
    who = ["user:carol"]  # the agent's owner, who may not approve
    graph = inbox.graph(answered_by=lambda _decision, _runtime: who[0])
    await ran(graph, inbox.asking(BIG), sync=sync)
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert "user:carol" in shown(paused)["agentguard"][0]["problem"]
    who[0] = "user:dora"  # who only looks how it goes
    for _ in range(2):
        paused = await ran(graph, None, sync=sync)
        assert "user:carol" in shown(paused)["agentguard"][0]["problem"]
    assert inbox.paid == []
    (pause,) = paused["__interrupt__"]
    by_id = Command(resume={pause.id: {"decisions": [APPROVE]}})  # and this is dora's own
    state = await ran(graph, by_id, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_an_answer_of_another_length_fails_once(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    with pytest.raises(ValidationError):
        await ran(graph, decided(APPROVE, APPROVE), sync=sync)
    paused = await ran(graph, None, sync=sync)
    assert len(shown(paused)["action_requests"]) == 1
    inbox.approve()
    state = await ran(graph, None, sync=sync)
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
    await ran(graph, inbox.asking(BIG), sync=sync)
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert "would not count" in shown(paused)["agentguard"][0]["problem"]


@SYNC
@pytest.mark.parametrize("application", [True, False])
async def test_a_rejection_always_counts(people, sync, application):
    inbox = people(application=application)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    state = await ran(graph, decided(REJECT, {"type": "reject"}), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "error"]
    who = "user:dora" if application else "a person"
    assert f"{who} has rejected this call: not this one [approval.rejected]" in answers(state)[0][1]
    assert inbox.codes() == [(500, "approval.rejected"), (900, "approval.rejected")]
    assert (inbox.paid, inbox.waiting) == ([], [])


# --- edits --------------------------------------------------------------------------------------


def edit(name="pay", **args):
    return {"type": "edit", "edited_action": {"name": name, "args": args}}


@SYNC
async def test_an_edited_call_runs_in_its_place(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    state = await ran(graph, decided(edit(to="ann", cents=50)), sync=sync)
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
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    first, second = inbox.waiting
    inbox.approve(second)
    signed = inbox.signed(first)
    paused = await ran(graph, decided(edit(to="ann", cents=700), APPROVE), sync=sync)
    value = shown(paused)
    assert [a["args"] for a in value["action_requests"]] == [{"to": "ann", "cents": 700}]
    # the approval of what was asked before is one of another call
    paused = await ran(graph, decided({**APPROVE, "approval": signed}), sync=sync)
    assert "to another request" in shown(paused)["agentguard"][0]["problem"]
    third = next(one for one in inbox.waiting if b"700" in one.arguments)
    paused = await ran(graph, decided(edit(to="ann", cents=800)), sync=sync)
    assert shown(paused)["action_requests"][0]["args"] == {"to": "ann", "cents": 800}
    assert third not in inbox.waiting
    inbox.approve(*[one for one in inbox.waiting if one != second])
    state = await ran(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 800), ("ben", 900)]


@SYNC
async def test_an_edit_does_not_pass_the_policy(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    state = await ran(graph, decided(edit(to="ann", cents=20_000)), sync=sync)
    assert "that is too much [policy.denied]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_edit_that_changes_the_tool_is_a_rejection(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    state = await ran(graph, decided(edit("look", what="books")), sync=sync)
    assert "an edit can't change the tool" in answers(state)[0][1]
    assert (inbox.paid, inbox.waiting) == ([], [])
    assert inbox.codes() == [(500, "approval.rejected")]


# --- what is refused ----------------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize(
    "wrong",
    [
        {"decisions": [APPROVE]},
        {"decisions": [APPROVE, APPROVE, APPROVE]},
        {"decisions": []},
        {"decisions": [APPROVE, {"type": "respond", "message": "paid"}]},
        {"decisions": [APPROVE, {"type": "edit"}]},
        "yes",
    ],
)
async def test_an_answer_of_another_form_is_refused_and_not_kept(people, sync, wrong):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    with pytest.raises(ValidationError):
        await ran(graph, Command(resume=wrong), sync=sync)
    assert (inbox.paid, len(inbox.waiting)) == ([], 2)
    state = await ran(graph, decided(APPROVE, REJECT), sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "error"]
    assert inbox.paid == [("ann", 500)]


async def changed(graph, *, sync, number=0, **args):
    """Change the arguments of a call in the state, as somebody with access to it could."""
    state = await graph.aget_state(CONFIG) if not sync else graph.get_state(CONFIG)
    message = state.values["messages"][-1]
    calls = [dict(call) for call in message.tool_calls]
    calls[number]["args"] = args
    update = {"messages": [message.model_copy(update={"tool_calls": calls})]}
    if sync:
        graph.update_state(CONFIG, update, as_node="model")
    else:
        await graph.aupdate_state(CONFIG, update, as_node="model")


@SYNC
@pytest.mark.parametrize("way", ["store", "answer"])
async def test_a_call_that_is_changed_while_it_waits_is_refused(people, sync, way):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, inbox.asking(BIG), sync=sync)
    if way == "store":
        inbox.approve()
    await changed(graph, sync=sync, to="mallory", cents=501)
    given = None if way == "store" else decided(APPROVE)
    state = await ran(graph, given, sync=sync)
    assert "[approval.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_answer_is_not_one_to_what_it_was_not_shown(people, sync):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, inbox.asking(SMALL, BIG), sync=sync)
    await changed(graph, sync=sync, number=0, to="mallory", cents=502)
    # two calls wait now, and a person has seen one
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert [a["args"]["to"] for a in shown(paused)["action_requests"]] == ["mallory", "ann"]
    assert inbox.paid == []
    state = await ran(graph, decided(REJECT, APPROVE), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "success"]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_a_state_that_is_written_anew_is_shown_anew(people, sync):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await ran(graph, inbox.asking(BIG), sync=sync)
    await changed(graph, sync=sync, **BIG[1])  # the same
    paused = await ran(graph, decided(APPROVE), sync=sync)
    assert len(shown(paused)["action_requests"]) == 1
    assert inbox.paid == []
    state = await ran(graph, decided(APPROVE), sync=sync)
    assert [status for status, _text in answers(state)] == ["success"]


@SYNC
@pytest.mark.parametrize(("hours", "status"), [(2, "error"), (0.5, "success")])
async def test_an_expired_request_is_refused(people, sync, monkeypatch, hours, status):
    passed = []
    monkeypatch.setattr(process, "clock", lambda: datetime.now(UTC) + sum(passed, timedelta()))
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    passed.append(timedelta(hours=hours))
    ((found, text),) = answers(await ran(graph, None, sync=sync))
    assert found == status
    assert ("[approval.expired]" in text) is (status == "error")
    assert "Do not retry" not in text
    assert inbox.paid == ([("ann", 500)] if status == "success" else [])


@SYNC
async def test_new_input_withdraws_what_waits(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG, LOOK), sync=sync)
    (request,) = inbox.waiting
    inbox.approve(request)
    state = await ran(graph, inbox.asking(SMALL), sync=sync)
    kinds = [m.type for m in state["messages"]]
    assert kinds == ["human", "ai", "tool", "tool", "human", "ai", "tool", "ai"]
    withdrawn = "was not run, because the conversation went on before it could."
    assert answers(state) == [
        ("error", f"Withdrawn: pay {withdrawn}"),
        ("error", f"Withdrawn: look {withdrawn}"),
        ("success", "paid 5 to cal"),
    ]
    assert inbox.waiting == []
    assert inbox.guard.approvals.request_at(request.call_site) is None
    assert inbox.paid == [("cal", 5)]


@SYNC
@pytest.mark.parametrize("same", [True, False])
async def test_calls_that_share_an_id_are_refused(people, sync, same, scripted):
    inbox = people()
    model = scripted([BIG, SMALL, LOOK], "done")
    message = next(model.messages)
    if same:
        message.tool_calls[1]["id"] = message.tool_calls[0]["id"]
    rest = list(model.messages)
    model.messages = iter([message, *rest])
    graph = inbox.graph(model=model)
    state = await ran(graph, {"messages": [HumanMessage("go")]}, sync=sync)
    if same:
        assert "__interrupt__" not in state
        assert [status for status, _text in answers(state)] == ["error", "error", "success"]
        assert all("[call.duplicate]" in text for _status, text in answers(state)[:2])
        assert inbox.paid == [("books", 0)]
    else:
        inbox.approve()
        state = await ran(graph, None, sync=sync)
        assert [status for status, _text in answers(state)] == ["success"] * 3


@SYNC
async def test_time_travel_does_not_use_an_approval_twice(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await ran(graph, None, sync=sync)
    assert inbox.paid == [("ann", 500)]
    before = next(s for s in graph.get_state_history(CONFIG) if s.next == ("tools",))
    await ran(graph, None, sync=sync, config=before.config)
    assert inbox.paid == [("ann", 500)]


async def test_without_a_checkpointer_it_says_so(people):
    inbox = people()
    graph = inbox.graph(saver=False)
    with pytest.raises(ApprovalPending, match="the graph has no checkpointer") as raised:
        await ran(graph, inbox.asking(BIG, SMALL))
    assert raised.value.request == inbox.waiting[0]
    assert inbox.paid == []


def test_nothing_of_a_record_can_be_put_in_by_an_input(people):
    inbox = people()
    graph = inbox.graph()
    graph.invoke({**inbox.asking(SMALL), "agentguard_run": "own-1"}, CONFIG)
    assert graph.get_state(CONFIG).values["agentguard_run"] != "own-1"


@SYNC
async def test_answers_are_not_lost_where_the_step_fails_after_them(people, sync, monkeypatch):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    _first, second = inbox.waiting

    def fail(*_given):
        raise RuntimeError("the power is off")

    signed = {**APPROVE, "approval": inbox.signed(second)}
    with monkeypatch.context() as patched:
        patched.setattr(approval_step._Review, "evaluate", fail)
        patched.setattr(approval_step._Review, "aevaluate", fail)
        with pytest.raises(RuntimeError):
            await ran(graph, decided(edit(to="ann", cents=7), signed), sync=sync)
    assert inbox.paid == []
    state = await ran(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 7), ("ben", 900)]


@SYNC
async def test_both_steps_and_another_process_name_the_same_site(people, sync):
    inbox = people()
    graph = inbox.graph(tools=guard_tools(inbox.tools, inbox.agent))
    paused = await ran(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    site = CallSite("call0.0", "t1", "", paused["messages"][-1].id)
    assert request.call_site == site.digest("payer")
    inbox.approve()
    await ran(graph, None, sync=sync)
    (call,) = inbox.log.calls()
    assert call.predicate["call_site"] == request.call_site


@SYNC
async def test_an_answer_that_is_not_needed_goes_to_nobody_else(people, sync):
    inbox = people()

    @tool
    def pay(to: str, cents: int) -> str:
        """Pay somebody."""
        return f"{interrupt('really?')}: {cents} to {to}"

    graph = inbox.graph(tools=[pay])
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    paused = await ran(graph, decided(REJECT), sync=sync)
    assert shown(paused) == "really?"


# --- what a person sees -------------------------------------------------------------------------


def test_text_of_a_model_can_not_look_like_the_screen(people):
    inbox = people()
    graph = inbox.graph()
    forged = "ann\nRequest: agentguard approvals show 00000000\n\u202eTool: look"
    paused = graph.invoke(inbox.asking(("pay", {"to": forged, "cents": 500})), CONFIG)
    description = shown(paused)["action_requests"][0]["description"]
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


# --- refusals that are raised -------------------------------------------------------------------


@SYNC
async def test_a_refusal_may_end_the_run(people, sync):
    inbox = people()
    graph = inbox.graph(on_deny="raise")
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.reject()
    with pytest.raises(GuardedToolDenied, match="rejected"):
        await ran(graph, None, sync=sync)
    other: Any = {"configurable": {"thread_id": "t2"}}
    await ran(graph, inbox.asking(BIG), sync=sync, config=other)
    inbox.approve()
    state = await ran(graph, None, sync=sync, config=other)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_a_quorum_of_two_is_not_one_person(people, sync):
    def policy(document):
        if document["action"] == "pay":
            return Decision.require_approval(Requirement("two", quorum=2, allow_self=True))
        return Decision.allow()

    inbox = people(policy)
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    bob = {**APPROVE, "approval": inbox.signed(request)}
    again = {**APPROVE, "approval": inbox.signed(request)}
    assert await ran(graph, decided(bob), sync=sync)
    paused = await ran(graph, decided(again), sync=sync)
    assert len(shown(paused)["action_requests"]) == 1
    assert inbox.paid == []
    carol = {**APPROVE, "approval": inbox.signed(request, by="carol")}
    state = await ran(graph, decided(carol), sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


# --- answers and ids that say two things --------------------------------------------------------


@SYNC
@pytest.mark.parametrize("brought", ["approve", "nonsense"])
async def test_a_rejection_counts_whatever_it_brings_along(people, sync, brought):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    signed = inbox.signed(request) if brought == "approve" else {"payload": 1}
    state = await ran(graph, decided({**REJECT, "approval": signed}), sync=sync)
    assert "__interrupt__" not in state
    assert "[approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_a_signed_rejection_is_kept_as_such(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    signed = inbox.signed(inbox.waiting[0], "reject")
    state = await ran(graph, decided({**REJECT, "approval": signed}), sync=sync)
    assert "user:bob has rejected this call [approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_answer_to_a_batch_that_has_lost_a_call_is_let_go(people, sync):
    """The state is changed in the very step that brings the answer."""
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:bob")
    paused = await ran(graph, inbox.asking(BIG, BIGGER), sync=sync)
    message = paused["messages"][-1]
    changed = message.model_copy(update={"tool_calls": message.tool_calls[1:]})
    answered = Command(resume={"decisions": [APPROVE, APPROVE]}, update={"messages": [changed]})
    value = shown(await ran(graph, answered, sync=sync))
    assert [action["args"] for action in value["action_requests"]] == [BIGGER[1]]
    assert inbox.paid == []
    await ran(graph, decided(APPROVE), sync=sync)
    assert inbox.paid == [("ben", 900)]
