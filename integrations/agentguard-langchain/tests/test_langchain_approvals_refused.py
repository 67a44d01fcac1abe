"""GuardMiddleware: answers, edits of the state and ids that do not count, and what they leave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from graph_runs import CONFIG, SYNC, answers, invoke_thread, pause_value, resume_with
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.types import Command, interrupt
from payment_team import APPROVE, BIG, BIGGER, LOOK, REJECT, SMALL, edit

from agentguard import ApprovalPending, Decision, Requirement
from agentguard.adapters import CallSite
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.audit.kinds.announcements import ExpiryEntry
from agentguard.audit.state import State
from agentguard.guard import process
from agentguard.store.transaction import Transaction
from agentguard_langchain import GuardedToolDenied, approval_step, guard_tools

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
async def test_an_answer_of_another_form_leaves_the_calls_waiting(people, sync, wrong):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    paused = await invoke_thread(graph, Command(resume=wrong), sync=sync)
    named = pause_value(paused)["agentguard"]
    assert [one["problem_code"] for one in named] == ["approval.malformed"] * 2
    assert "with 2 decisions," in named[0]["problem"]
    assert (inbox.paid, len(inbox.waiting)) == ([], 2)
    state = await invoke_thread(graph, resume_with(APPROVE, REJECT), sync=sync)
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
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    if way == "store":
        inbox.approve()
    await changed(graph, sync=sync, to="mallory", cents=501)
    given = None if way == "store" else resume_with(APPROVE)
    state = await invoke_thread(graph, given, sync=sync)
    assert "[approval.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_answer_is_not_one_to_what_it_was_not_shown(people, sync):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await invoke_thread(graph, inbox.asking(SMALL, BIG), sync=sync)
    await changed(graph, sync=sync, number=0, to="mallory", cents=502)
    # two calls wait now, and a person has seen one
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert [a["args"]["to"] for a in pause_value(paused)["action_requests"]] == ["mallory", "ann"]
    assert inbox.paid == []
    state = await invoke_thread(graph, resume_with(REJECT, APPROVE), sync=sync)
    assert [status for status, _text in answers(state)] == ["error", "success"]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_a_state_that_is_written_anew_is_shown_anew(people, sync):
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:dora")
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    await changed(graph, sync=sync, **BIG[1])  # the same
    paused = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert len(pause_value(paused)["action_requests"]) == 1
    assert inbox.paid == []
    state = await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert [status for status, _text in answers(state)] == ["success"]


@SYNC
@pytest.mark.parametrize(("hours", "status"), [(2, "error"), (0.5, "success")])
async def test_an_expired_request_is_refused(people, sync, monkeypatch, hours, status):
    passed = []
    monkeypatch.setattr(process, "clock", lambda: datetime.now(UTC) + sum(passed, timedelta()))
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    passed.append(timedelta(hours=hours))
    ((found, text),) = answers(await invoke_thread(graph, None, sync=sync))
    assert found == status
    assert ("[approval.expired]" in text) is (status == "error")
    assert "Do not retry" not in text
    assert inbox.paid == ([("ann", 500)] if status == "success" else [])


class Killed(BaseException):
    """Ends a run between a tool's work and the checkpoint, as the end of the process does."""


@SYNC
async def test_after_a_crash_the_model_is_not_told_that_a_tool_has_not_run(people, sync):
    """Else the model would make the call once more."""
    inbox = people()

    def pay(to: str, cents: int) -> str:
        inbox.paid.append((to, cents))
        raise Killed

    async def apay(to: str, cents: int) -> str:
        return pay(to, cents)

    killed = inbox.pay.model_copy(update={"func": pay, "coroutine": apay})
    graph = inbox.graph(tools=[killed, inbox.look])
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    with pytest.raises(Killed):
        await invoke_thread(graph, None, sync=sync)
    assert inbox.paid == [("ann", 500)]
    ((status, text),) = answers(await invoke_thread(graph, inbox.asking(LOOK), sync=sync))[:1]
    assert status == "error"
    assert "was not run" not in text
    assert "nobody knows here whether it was run" in text


def begin_elsewhere(inbox, request):
    """Use the approval of a request up, as another process that makes the call does first."""

    ports = inbox.guard._parts.runtime.current_ports()
    remove = ports.approvals.removal(request.call_site)

    def use(tx: Transaction) -> None:
        remove(tx)
        State(tx).close(request.request_id, "used")
        tx.append(ExpiryEntry.new([], at=tx.at))

    ports.log._store.run(use)


@SYNC
async def test_of_a_call_that_has_begun_elsewhere_new_input_does_not_say_it_was_not_run(
    people, sync
):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    begin_elsewhere(inbox, inbox.waiting[0])
    ((status, text), _paid) = answers(await invoke_thread(graph, inbox.asking(SMALL), sync=sync))
    assert status == "error"
    assert "nobody knows here whether it was run" in text


@SYNC
@pytest.mark.parametrize(
    "answer", [REJECT, edit(to="ann", cents=5)], ids=["a rejection", "an edit"]
)
async def test_an_answer_to_a_call_that_begins_elsewhere_meanwhile_comes_too_late(
    people, sync, answer, monkeypatch
):
    """Else the model would be told that nothing ran, or an edited call would run as well."""
    inbox, withdraw = people(), ApprovalInbox.withdraw
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)

    def late(approvals, request):
        begin_elsewhere(inbox, request)
        return withdraw(approvals, request)

    monkeypatch.setattr(ApprovalInbox, "withdraw", late)
    paused = await invoke_thread(graph, resume_with(answer), sync=sync)
    (named,) = pause_value(paused)["agentguard"]
    assert named["problem_code"] == "request.ended"
    assert named["problem"].startswith("this answer comes too late: a call has used the approval")
    assert inbox.paid == []


@SYNC
async def test_an_answer_to_a_call_that_has_begun_elsewhere_counts_for_no_other(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    begin_elsewhere(inbox, request)
    paused = await invoke_thread(graph, resume_with(REJECT), sync=sync)
    (named,) = pause_value(paused)["agentguard"]
    assert named["request_id"] != request.request_id
    assert inbox.paid == []


@SYNC
async def test_new_input_withdraws_what_waits(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG, LOOK), sync=sync)
    (request,) = inbox.waiting
    inbox.approve(request)
    state = await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    kinds = [m.type for m in state["messages"]]
    assert kinds == ["human", "ai", "tool", "tool", "human", "ai", "tool", "ai"]
    withdrawn, open_, paid = answers(state)
    assert withdrawn == (
        "error",
        "Withdrawn: pay was not run, because the conversation went on before it could.",
    )
    assert open_[0] == "error"
    assert "nobody knows here whether it was run" in open_[1]  # no request of it waited
    assert paid == ("success", "paid 5 to cal")
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
    state = await invoke_thread(graph, {"messages": [HumanMessage("go")]}, sync=sync)
    if same:
        assert "__interrupt__" not in state
        assert [status for status, _text in answers(state)] == ["error", "error", "success"]
        assert all("[call.duplicate]" in text for _status, text in answers(state)[:2])
        assert inbox.paid == [("books", 0)]
    else:
        inbox.approve()
        state = await invoke_thread(graph, None, sync=sync)
        assert [status for status, _text in answers(state)] == ["success"] * 3


@SYNC
async def test_time_travel_does_not_use_an_approval_twice(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await invoke_thread(graph, None, sync=sync)
    assert inbox.paid == [("ann", 500)]
    before = next(s for s in graph.get_state_history(CONFIG) if s.next == ("tools",))
    await invoke_thread(graph, None, sync=sync, config=before.config)
    assert inbox.paid == [("ann", 500)]


async def test_without_a_checkpointer_it_says_so(people):
    inbox = people()
    graph = inbox.graph(saver=False)
    with pytest.raises(ApprovalPending, match="the graph has no checkpointer") as raised:
        await invoke_thread(graph, inbox.asking(BIG, SMALL))
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
    await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    _first, second = inbox.waiting

    def fail(*_given):
        raise RuntimeError("the power is off")

    signed = {**APPROVE, "approval": inbox.signed(second)}
    with monkeypatch.context() as patched:
        patched.setattr(approval_step._Review, "pending", fail)
        patched.setattr(approval_step._Review, "apending", fail)
        with pytest.raises(RuntimeError):
            await invoke_thread(graph, resume_with(edit(to="ann", cents=7), signed), sync=sync)
    assert inbox.paid == []
    state = await invoke_thread(graph, None, sync=sync)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert sorted(inbox.paid) == [("ann", 7), ("ben", 900)]


@SYNC
async def test_both_steps_and_another_process_name_the_same_site(people, sync):
    inbox = people()
    graph = inbox.graph(tools=guard_tools(inbox.tools, inbox.agent))
    paused = await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    site = CallSite("call0.0", "t1", "", paused["messages"][-1].id)
    assert request.call_site == site.digest("payer")
    inbox.approve()
    await invoke_thread(graph, None, sync=sync)
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
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    paused = await invoke_thread(graph, resume_with(REJECT), sync=sync)
    assert pause_value(paused) == "really?"


# --- refusals that are raised -------------------------------------------------------------------


@SYNC
async def test_a_refusal_may_end_the_run(people, sync):
    inbox = people()
    graph = inbox.graph(on_deny="raise")
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.reject()
    with pytest.raises(GuardedToolDenied, match="rejected"):
        await invoke_thread(graph, None, sync=sync)
    other: Any = {"configurable": {"thread_id": "t2"}}
    await invoke_thread(graph, inbox.asking(BIG), sync=sync, config=other)
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync, config=other)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
async def test_a_quorum_of_two_is_not_one_person(people, sync):
    def policy(document):
        if document["action"] == "pay":
            return Decision.require_approval(Requirement("two", quorum=2, allow_self=True))
        return Decision.allow()

    inbox = people(policy)
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    bob = {**APPROVE, "approval": inbox.signed(request)}
    again = {**APPROVE, "approval": inbox.signed(request)}
    assert await invoke_thread(graph, resume_with(bob), sync=sync)
    paused = await invoke_thread(graph, resume_with(again), sync=sync)
    assert len(pause_value(paused)["action_requests"]) == 1
    assert inbox.paid == []
    carol = {**APPROVE, "approval": inbox.signed(request, by="carol")}
    state = await invoke_thread(graph, resume_with(carol), sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


# --- answers and ids that say two things --------------------------------------------------------


@SYNC
@pytest.mark.parametrize("brought", ["approve", "nonsense"])
async def test_a_rejection_counts_whatever_it_brings_along(people, sync, brought):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    (request,) = inbox.waiting
    signed = inbox.signed(request) if brought == "approve" else {"payload": 1}
    state = await invoke_thread(graph, resume_with({**REJECT, "approval": signed}), sync=sync)
    assert "__interrupt__" not in state
    assert "[approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_a_signed_rejection_is_kept_as_such(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    signed = inbox.signed(inbox.waiting[0], "reject")
    state = await invoke_thread(graph, resume_with({**REJECT, "approval": signed}), sync=sync)
    assert "user:bob has rejected this call [approval.rejected]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_an_answer_to_a_batch_that_has_lost_a_call_is_let_go(people, sync):
    """The state is changed in the very step that brings the answer."""
    inbox = people(application=True)
    graph = inbox.graph(answered_by=lambda _decision, _runtime: "user:bob")
    paused = await invoke_thread(graph, inbox.asking(BIG, BIGGER), sync=sync)
    message = paused["messages"][-1]
    changed = message.model_copy(update={"tool_calls": message.tool_calls[1:]})
    answered = Command(resume={"decisions": [APPROVE, APPROVE]}, update={"messages": [changed]})
    value = pause_value(await invoke_thread(graph, answered, sync=sync))
    assert [action["args"] for action in value["action_requests"]] == [BIGGER[1]]
    assert inbox.paid == []
    await invoke_thread(graph, resume_with(APPROVE), sync=sync)
    assert inbox.paid == [("ben", 900)]
