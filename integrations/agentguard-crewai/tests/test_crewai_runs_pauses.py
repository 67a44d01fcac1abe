"""Named runs that pause for an approval: what was done before is not done again."""

from __future__ import annotations

from typing import Any

import pytest
from crewai_shop import BEN, DELEGATE, LENT, LOOK, PAY, calls_of, task

from agentguard import ApprovalPending, Decision
from agentguard_crewai import resumable


def test_what_was_done_before_a_pause_is_not_done_again(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    said = (LOOK, PAY, LOOK, BEN, "done")
    for _ in range(2):
        with pytest.raises(ApprovalPending):
            shop.tried(native, *said)
        shop.log.approve()
    assert shop.tried(native, *said).raw == "done"
    assert shop.ran == ["books", "ann", "books", "ben"]
    calls = calls_of(signed, shop)
    assert [(call.arguments["to"], call.outcome) for call in calls] == [
        ("ann", "ok"),
        ("ann", "not_run"),
        ("ben", "ok"),
    ]
    assert {call.chain for call in calls} == {(*LENT, "lead")}


def test_a_run_that_has_paused_stays_so_in_its_block(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    paused = shop.crew(native.crew(shop.agent(native, PAY, "done")))
    other = shop.agent(native, LOOK, "done")
    another = shop.crew(native.crew(other))
    with shop.lent(), resumable("order-1"):
        with pytest.raises(ApprovalPending) as first:
            paused.kickoff()
        shop.log.approve()  # which comes too late for this try
        for begin in (another.kickoff, lambda: other.kickoff("go"), paused.kickoff):
            with pytest.raises(ApprovalPending) as again:
                begin()
            assert again.value.request.request_id == first.value.request.request_id
    assert shop.ran == []
    assert len(other.llm.heard) == 0
    with shop.lent():  # outside of the block it is nobody's turn to wait
        assert another.kickoff().raw == "done"
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["books", "ann"]


def test_one_run_that_has_paused_holds_no_other(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    assert shop.tried(native, LOOK, "done", name="order-2").raw == "done"
    assert shop.ran == ["books"]


def test_each_run_needs_an_approval_of_its_own(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    for name in ("order-1", "order-2"):
        with pytest.raises(ApprovalPending):
            shop.tried(native, PAY, "done", name=name)
    first, _second = shop.guard.approvals.pending()
    shop.guard.approvals.approve(first, shop.log.approver)
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done", name="order-2")
    shop.tried(native, PAY, "done", name="order-1")
    assert shop.ran == ["ann"]


def test_what_was_asked_in_a_run_is_for_no_other_tool(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    shop.log.approve()
    lead = shop.agent(native, PAY, "done", tools=[shop.paying("Pay, or do not.")])
    told = shop.run(lead, shop.crew(native.crew(lead)))
    assert (told.codes, shop.ran) == (["approval.mismatch"], [])
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["ann"]
    assert [call.code for call in calls_of(signed, shop)] == ["approval.mismatch", ""]


def test_what_was_asked_in_a_run_is_for_no_other_user(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    shop.log.approve()
    lead = shop.agent(native, PAY, "done", tools=shop.tools)
    with pytest.raises(ApprovalPending):  # a request of its own
        shop.run(lead, shop.crew(native.crew(lead)), principal="user:mallory")
    assert shop.ran == []
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["ann"]
    assert [(call.chain[0], call.code) for call in calls_of(signed, shop)] == [("user:alice", "")]


def test_what_was_rejected_in_a_run_is_not_asked_again_in_it(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()

    def answer(how: Any) -> None:
        (request,) = shop.guard.approvals.pending()
        how(request, shop.log.approver)

    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, LOOK, BEN, "done")
    answer(shop.guard.approvals.reject)
    with pytest.raises(ApprovalPending) as paused:
        shop.tried(native, PAY, LOOK, BEN, "done")
    assert paused.value.request.arguments == b'{"cents":100,"to":"ben"}'
    answer(shop.guard.approvals.approve)
    told = shop.tried(native, PAY, LOOK, BEN, "done")
    assert (told.raw, told.codes) == ("done", ["approval.rejected"])
    assert shop.ran == ["books", "ben"]
    assert shop.guard.approvals.pending() == []
    assert [(call.arguments["to"], call.code) for call in calls_of(signed, shop)] == [
        ("ann", "approval.rejected"),
        ("ann", "approval.rejected"),
        ("ben", ""),
    ]


def test_what_was_rejected_in_one_run_is_asked_in_another(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    for name in ("order-1", "order-2"):
        with pytest.raises(ApprovalPending):
            shop.tried(native, PAY, "done", name=name)
        if name == "order-1":
            (request,) = shop.guard.approvals.pending()
            shop.guard.approvals.reject(request, shop.log.approver)
            assert shop.tried(native, PAY, "done").codes == ["approval.rejected"]
    shop.log.approve()
    assert shop.tried(native, PAY, "done", name="order-2").codes == []
    assert shop.tried(native, PAY, "done", name="order-1").codes == ["approval.rejected"]
    assert shop.ran == ["ann"]


def test_what_was_rejected_is_refused_however_often_the_model_makes_it(shop, way):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(way, PAY, "done")
    (request,) = shop.guard.approvals.pending()
    shop.guard.approvals.reject(request, shop.log.approver)
    told = shop.tried(way, PAY, LOOK, PAY, "done")
    assert told.codes == ["approval.rejected"] * 2
    assert shop.guard.approvals.pending() == []
    shop.answers.clear()  # and whatever the policy says by now
    assert shop.tried(way, PAY, "done").codes == ["approval.rejected"]
    assert shop.ran == ["books"]


def test_a_coworker_that_pauses_goes_on(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()

    def tried() -> Any:
        lead = shop.agent(native, LOOK, DELEGATE, "done", allow_delegation=True)
        worker = shop.agent(native, LOOK, PAY, "ann is paid", role="Worker")
        return shop.run(lead, shop.crew(native.crew(lead, worker, tasks=[task(lead)])))

    with pytest.raises(ApprovalPending):
        tried()
    assert shop.ran == ["books", "books"]
    shop.log.approve()
    assert tried().raw == "done"
    assert tried().raw == "done"
    assert shop.ran == ["books", "books", "ann"]
    handed = calls_of(signed, shop, DELEGATE[0])
    assert [one.outcome for one in handed] == ["unknown", "ok", "not_run"]
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))
