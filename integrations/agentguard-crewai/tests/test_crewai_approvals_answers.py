"""Whose answer to a crew's call counts, after a change of the policy too, and the evidence of it.

The rules are the core's; the tests hold them against calls of a crew.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from crewai_payments import (
    BEN,
    LENT,
    LOOK,
    PAY,
    Office,
    failures,
    handed_on,
    kickoff,
    managed,
    payments,
    single,
    within,
)

from agentguard import (
    ApprovalError,
    ApprovalPending,
    Decision,
    Requirement,
    verify_evidence,
)

# --- who may answer -------------------------------------------------------------------------------


def test_an_answer_of_another_role_is_refused(office, native, signed):
    office.needed = (Requirement("payments need an auditor", roles=("auditor",)),)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError) as refused:
            office.approve("bob")
        assert refused.value.code == "approval.refused"
        with pytest.raises(ApprovalPending):
            work.tried()
        assert office.ran == []
        office.approve("carol")
        assert work.tried() == "done"
    (paid,) = payments(signed, office)
    assert (paid.chain, office.ran) == ((*LENT, "lead"), ["ann", "books"])


def test_an_answer_of_somebody_else_than_who_is_named_is_refused(office, native):
    office.needed = (Requirement(approvers=("carol",)),)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError):
            office.approve("bob")
        office.approve("carol")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_two_people_are_two_people(office, native):
    office.needed = (Requirement(quorum=2),)
    work = single(kickoff)(office, native)
    with office.lent():
        for by in ("bob", "bob", "carol"):
            with pytest.raises(ApprovalPending):
                work.tried()
            office.approve(by)
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff), managed(kickoff)])
def test_for_whom_a_call_is_made_does_not_approve_it(office, native, signed, make):
    work = make(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError) as refused:
            office.approve("alice")
        assert refused.value.code == "approval.refused"
        with pytest.raises(ApprovalPending):
            work.tried()
        assert office.ran == []
        office.approve("bob")
        assert work.tried() == "done"
    (paid,) = payments(signed, office)
    assert (paid.chain, office.ran) == (LENT + work.chain, ["ann", "books"])


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff), managed(kickoff)])
def test_for_whom_a_call_is_made_may_approve_it_where_the_policy_says_so(office, native, make):
    office.needed = (Requirement(allow_self=True),)
    work = make(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve("alice")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_who_owns_the_agent_does_not_approve_its_calls(offices, native):
    agents = {"lead": {"max_scope": ["pay"], "owner": "user:bob"}}
    office = offices(agents=agents)
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        with pytest.raises(ApprovalError):
            office.approve("bob")
        office.approve("carol")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_without_a_roster_there_is_nobody_to_wait_for(offices, native, signed, mode):
    office = offices(approvers={})
    office.terms = {"on_approval": mode} | ({"timeout": math.inf} if mode == "wait" else {})
    lead = native.agent("Lead", PAY, LOOK, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent():
        output = within(crew.kickoff)
    assert output.raw == "done"
    (failure,) = failures(output)
    assert (failure.code, failure.retryable) == ("approval.unavailable", False)
    assert "no approvers are configured" in failure.details["reason"]
    assert office.ran == ["books"]
    (paid,) = payments(signed, office)
    assert (paid.agent, paid.code) == ("lead", "approval.unavailable")
    assert paid.chain == (*LENT, "lead")


def test_the_applications_word_counts_where_it_is_to(offices, native):
    office = offices(approvals={"application": True}, approvers={})
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        (request,) = office.waiting
        office.guard.approvals.vouch(request, "approve", principal="user:dora")
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


def test_only_so_many_requests_of_an_agent_wait(offices, native, signed):
    office = offices(approvals={"pending_per_agent": 1})
    office.terms = {"on_approval": "wait", "timeout": 0}
    lead = native.agent("Lead", PAY, BEN, "done", tools=office.tools)
    crew = office.crew(native.crew(lead))
    with office.lent():
        first, second = failures(crew.kickoff())
    assert (first.code, second.code) == ("approval.pending", "approval.limit")
    assert [call.code for call in payments(signed, office)] == ["approval.limit"]


# --- a policy that changes meanwhile --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_what_is_denied_by_now_does_not_run_though_it_was_approved(office, native, signed, mode):
    office.terms = {"on_approval": mode} | ({"timeout": 30} if mode == "wait" else {})

    def somebody() -> None:
        office.approve()
        office.answer = lambda *_needed: Decision.deny("not any more")

    lead = native.agent("Lead", tools=office.tools)
    crew = office.crew(native.crew(lead))

    def tried() -> list[Any]:
        lead.llm.steps[:] = [PAY, "done"]
        return failures(crew.kickoff())

    with office.lent():
        if mode == "pause":
            with pytest.raises(ApprovalPending):
                tried()
            somebody()
            (failure,) = tried()
        else:
            office.answer = _denies_once_asked(office)
            (failure,) = tried()
        assert (failure.code, office.ran) == ("policy.denied", [])
        assert "not any more" in failure.message
        office.answer = Decision.require_approval  # and the approval was not used up by that
        assert tried() == []
    assert office.ran == ["ann"]
    calls = [(call.code, call.chain) for call in payments(signed, office)]
    assert calls == [("policy.denied", (*LENT, "lead")), ("", (*LENT, "lead"))]


def _denies_once_asked(office: Office) -> Callable[..., Decision]:
    """A policy that asks for an approval, and once it is there, denies."""
    asked: list[Any] = []

    def answer(*needed: Requirement) -> Decision:
        asked.append(needed)
        if len(asked) == 1:
            threading.Timer(0.1, office.approve).start()
            return Decision.require_approval(*needed)
        return Decision.deny("not any more")

    return answer


def test_a_policy_that_asks_for_more_by_now_is_not_met(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve()
        office.needed = (Requirement(quorum=2),)
        assert work.tried() == "done"
    assert office.ran == ["books"]
    assert [call.code for call in office.log.calls()] == ["approval.insufficient", ""]


def test_what_was_shown_is_to_be_met_though_the_policy_allows_by_now(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.answer = lambda *_needed: Decision.allow()
        with pytest.raises(ApprovalPending):
            work.tried()
        office.approve()
        assert work.tried() == "done"
    assert office.ran == ["ann", "books"]


# --- what can be shown afterwards -----------------------------------------------------------------


@pytest.mark.parametrize("make", [single(kickoff), handed_on(kickoff)])
@pytest.mark.parametrize("mode", ["wait", "pause"])
def test_the_evidence_names_who_approved(office, native, make, mode):
    office.terms = {"on_approval": mode}
    office.needed = (Requirement("payments need two people", quorum=2),)
    work = make(office, native)

    def somebody() -> None:
        office.approve("bob", note="checked")
        office.approve("carol")

    with office.lent():
        if mode == "pause":
            with pytest.raises(ApprovalPending):
                work.tried()
            somebody()
            assert work.tried() == "done"
        else:
            with office.answered(somebody):
                assert work.tried() == "done"
    (call,) = [one for one in office.log.calls() if one.tool == "pay"]
    trust = office.guard.trust
    proved = verify_evidence(office.guard.prove(call.invocation_id), trust)
    assert {answer.approval.approver for answer in proved.answers} == {"user:bob", "user:carol"}
    assert {answer.approver.name for answer in proved.answers} == {"bob", "carol"}
    assert "checked" in {answer.approval.note for answer in proved.answers}
    assert [needed.reason for needed in proved.requirements] == ["payments need two people"]
    assert proved.outcome.status == "ok"
    assert proved.chain.principal == "user:alice"
    assert proved.chain.members[1] == "crew:report"
    assert len(proved.chain.members) == 2 + len(work.chain)


def test_the_evidence_of_one_that_was_rejected_names_who(office, native):
    work = single(kickoff)(office, native)
    with office.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        office.reject("carol", note="too dear")
        work.tried()
    call = office.log.calls()[0]
    proved = verify_evidence(office.guard.prove(call.invocation_id), office.guard.trust)
    (answer,) = proved.answers
    assert (answer.approval.verdict, answer.approval.approver) == ("reject", "user:carol")
    assert proved.outcome is None
