"""Approvals of a crew's calls by clicks in an application: a wrong click harms no call.

The crew pauses, waits, or has a named run; the answers come through ``guard.approvals.vouch``.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from crewai_payments import LOOK, PAY, failures, kickoff, payments, single, within

from agentguard import ApprovalError, ApprovalPending, Requirement
from agentguard_crewai import resumable

STAFF = {"user:dora": ["manager"], "user:carl": ["clerk"]}
WRONG = {
    "user:carl": "approval.refused",
    "user:alice": "approval.unknown",  # for whom the call is made
    "user:zoe": "approval.unknown",
    "carl": "principal.malformed",
}


def roles(principal: str) -> list[str] | None:
    return STAFF.get(principal)


@pytest.fixture
def clicks(offices) -> Any:
    """A guard whose policy asks for a manager, and whose application knows the managers."""
    word = {
        "application": True,
        "application_roles": ["manager"],
        "roles": f"{__name__}:roles",
    }
    office = offices(approvals=word)
    office.needed = (Requirement("payments need a manager", roles=("manager",)),)
    return office


def click_wrongly(office: Any) -> None:
    """Have each wrong person answer the one request, which stays open."""
    (request,) = office.waiting
    for principal, code in WRONG.items():
        for verdict in ("approve",) if principal == "user:alice" else ("approve", "reject"):
            with pytest.raises(ApprovalError) as refused:
                office.guard.approvals.vouch(request, verdict, principal=principal)
            assert refused.value.code == code
    assert office.waiting == [request]
    assert office.guard.approvals.missing(request) == (
        "payments need a manager: 0 of 1 approvals in the role manager"
    )


def test_a_crew_that_pauses(clicks, native, signed):
    work = single(kickoff)(clicks, native)
    with clicks.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        click_wrongly(clicks)
        with pytest.raises(ApprovalPending):
            work.tried()
        assert clicks.ran == []
        (request,) = clicks.waiting
        clicks.guard.approvals.vouch(request, "approve", principal="user:dora")
        assert work.tried() == "done"
    (paid,) = payments(signed, clicks)
    assert (paid.outcome, clicks.ran) == ("ok", ["ann", "books"])


def test_a_crew_that_waits(clicks, native):
    clicks.terms = {"on_approval": "wait", "timeout": 30}
    lead = native.agent("Lead", PAY, LOOK, "done", tools=clicks.tools)
    crew = clicks.crew(native.crew(lead))

    def people() -> None:
        while not clicks.waiting:
            time.sleep(0.01)
        click_wrongly(clicks)
        (request,) = clicks.waiting
        clicks.guard.approvals.vouch(request, "approve", principal="user:dora")

    answering = threading.Thread(target=people)
    with clicks.lent():
        answering.start()
        output = within(crew.kickoff)
        answering.join()
    assert (output.raw, failures(output)) == ("done", [])
    assert clicks.ran == ["ann", "books"]


def test_a_named_run_is_named_in_its_request(clicks, native):
    def tried() -> Any:
        lead = native.agent("Lead", PAY, LOOK, "done", tools=clicks.tools)
        crew = clicks.crew(native.crew(lead))
        with clicks.lent(), resumable("order-7"):
            return within(crew.kickoff)

    with pytest.raises(ApprovalPending):
        tried()
    (request,) = clicks.waiting
    assert (request.thread, request.args) == ("order-7", {"to": "ann"})
    click_wrongly(clicks)
    with pytest.raises(ApprovalPending):
        tried()
    clicks.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert tried().raw == "done"
    assert clicks.ran == ["ann", "books"]


def test_a_manager_rejects(clicks, native):
    work = single(kickoff)(clicks, native)
    with clicks.lent():
        with pytest.raises(ApprovalPending):
            work.tried()
        (request,) = clicks.waiting
        clicks.guard.approvals.vouch(request, "reject", principal="user:dora", note="too dear")
        assert work.tried() == "done"
    assert clicks.ran == ["books"]
