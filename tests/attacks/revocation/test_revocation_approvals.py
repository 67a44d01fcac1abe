"""Approvals during a freeze and after a revocation: nobody's approval is used up in vain.

A rejection counts at any time. A request that could not be approved waits on, and can be approved
after the thaw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from revoked_agents import PASSPHRASE

from agentguard import (
    Agent,
    ApprovalError,
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
)
from agentguard.domain import administration, config
from agentguard.signing.canonical import loads_object

SCOPE = ["pay"]


class Till:
    """A guard whose policy asks people about each payment, and the payments that ran."""

    def __init__(self, place, guard: Guard) -> None:
        self.place = place
        self.guard = guard
        self.paid: list[int] = []
        self.pay = guard.tool(name="pay", requires=SCOPE)(self.paid.append)
        self.worker: Agent = guard.new_agent("worker").under(
            guard.delegate("user:alice", scope=SCOPE)
        )

    def ask(self, amount: int) -> ApprovalRequest:
        with pytest.raises(ApprovalPending) as pending:
            self.worker.call(self.pay, amount)
        return pending.value.request

    def approve(self, request: ApprovalRequest) -> None:
        self.guard.approvals.vouch(request, "approve", principal="user:dora")

    def freeze(self, *, frozen: bool) -> None:
        now = datetime.now(UTC)
        administration.freeze(self.place.config, PASSPHRASE, frozen=frozen, note="n", now=now)

    def revoke(self, name: str) -> None:
        now = datetime.now(UTC)
        administration.revoke(self.place.config, PASSPHRASE, name, note="n", now=now)


@pytest.fixture
def till(place) -> Iterator[Till]:
    changed = {
        **loads_object(place.config.encoded),
        "agents": {"worker": {"max_scope": SCOPE}},
        "approvals": {"application": True},
    }
    place = replace(
        place, config=config.parse(changed, source="agentguard.toml", base=place.config.base)
    )
    with place.open(lambda _: Decision.require_approval(Requirement("a payment"))) as guard:
        yield Till(place, guard)


def test_an_approval_during_a_freeze_is_refused_and_its_request_waits_on(till):
    request = till.ask(5)
    till.freeze(frozen=True)
    with pytest.raises(ApprovalError, match="nobody can approve this call now") as refused:
        till.approve(request)
    assert refused.value.code == "domain.frozen"
    with pytest.raises(ApprovalError):
        till.guard.approvals.check(request, "approve", principal="user:dora")
    assert till.guard.approvals.status(request.request_id).state == "waiting"
    till.freeze(frozen=False)
    till.approve(request)
    till.worker.call(till.pay, 5)
    assert till.paid == [5]


def test_an_approval_from_before_a_freeze_lets_the_same_call_run_after_the_thaw(till):
    till.approve(till.ask(5))
    till.freeze(frozen=True)
    with pytest.raises(Denied) as denied:
        till.worker.call(till.pay, 5)
    assert denied.value.code == "domain.frozen"
    till.freeze(frozen=False)
    till.worker.call(till.pay, 5)
    assert till.paid == [5]
    till.ask(5)  # the approval is used up


def test_a_rejection_during_a_freeze_counts(till):
    request = till.ask(5)
    till.freeze(frozen=True)
    till.guard.approvals.vouch(request, "reject", principal="user:dora")
    till.freeze(frozen=False)
    with pytest.raises(Denied) as denied:
        till.worker.call(till.pay, 5)
    assert denied.value.code == "approval.rejected"
    assert till.paid == []


@pytest.mark.parametrize("name", ["user:alice", "agent:worker"])
def test_nobody_approves_a_call_of_somebody_revoked(till, name):
    request = till.ask(5)
    till.revoke("user:bob")
    till.guard.approvals.check(request, "approve", principal="user:dora")  # the twin
    till.revoke(name)
    with pytest.raises(ApprovalError) as refused:
        till.approve(request)
    assert refused.value.code == "delegation.revoked"
    assert till.paid == []


def test_an_approval_under_a_revoked_delegation_lets_nothing_run(till):
    """The request does not name the delegation, so the inbox takes the approval."""
    delegations = [till.guard.delegate("user:alice", scope=SCOPE) for _ in range(2)]
    worker = till.guard.new_agent("worker")
    said = []
    for amount, delegation in enumerate(delegations):
        till.worker = worker.under(delegation)
        request = till.ask(amount)
        if amount == 0:
            till.revoke(delegation.id)
        till.approve(request)
        try:
            said.append(till.worker.call(till.pay, amount))
        except Denied as denied:
            said.append(denied.code)
            assert till.guard.approvals.status(request.request_id).state == "approved"
    assert said == ["delegation.revoked", None]
    assert till.paid == [1]  # the twin
