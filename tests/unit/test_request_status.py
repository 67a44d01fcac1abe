"""What became of a request: ``guard.approvals.status``, and what a second answer is told.

While a request waits the store tells, and afterwards the log, in whatever process.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentguard import (
    ApprovalError,
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    RequestEndedError,
    Requirement,
)
from agentguard.guard import process

ROLES = {"user:dora": ["manager"], "user:erin": ["manager"]}
WORD = {"application": True, "application_roles": ["manager"]}


class Shop:
    """A guard whose policy asks for a manager, and a tool that may fail."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.inbox = guard, guard.approvals
        self.agent = guard.new_agent("support")
        self.fails = False
        self.denies = False

        @guard.tool
        def refund(order: str) -> str:
            if self.fails:
                raise ConnectionError(order)
            return f"refunded {order}"

        self.refund = refund

    def ask(self, order: str = "A-1") -> ApprovalRequest:
        with pytest.raises(ApprovalPending) as pending:
            self.agent.call(self.refund, order)
        return pending.value.request

    def click(self, request: ApprovalRequest, who: str = "user:dora", verdict: Any = "approve"):
        return self.inbox.vouch(request, verdict, principal=who)

    def late(self, request: ApprovalRequest, verdict: Any = "approve") -> str:
        """What a second click is told."""
        with pytest.raises(RequestEndedError) as ended:
            self.click(request, "user:erin", verdict)
        assert ended.value.code == "request.ended"
        assert ended.value.status == self.inbox.status(request.request_id)
        again = pickle.loads(pickle.dumps(ended.value))  # noqa: S301  of this very process
        assert (str(again), again.status) == (str(ended.value), ended.value.status)
        return str(ended.value)


@pytest.fixture
def shop():
    def policy(call):
        if made[0].denies and "approval" in call:
            return Decision.deny("the shop is closed")
        return Decision.require_approval(Requirement("a manager", roles=("manager",)))

    made: list[Shop] = []
    with Guard.ephemeral(policy, config={"approvals": WORD}, approver_roles=ROLES.get) as guard:
        made.append(Shop(guard))
        yield made[0]


def short(text: str) -> str:
    """A sentence without ids and times."""
    return " ".join(
        word
        for word in text.removeprefix("this answer comes too late: ").split()
        if not (word[0].isdigit() and ("-" in word or ":" in word))
        if len(word) != 32 and word.strip(",") != "UTC"
    )


def test_a_request_that_waits(shop):
    request = shop.ask()
    status = shop.inbox.status(request.request_id)
    assert (status.state, status.call, status.answers) == ("waiting", "not_made", ())
    assert str(status) == f"the request {request.request_id} waits"


def test_a_call_that_ran(shop):
    request = shop.ask()
    shop.click(request)
    assert shop.inbox.status(request.request_id).state == "approved"
    told = "the request was approved by user:dora at and its call has not been made again yet"
    assert short(shop.late(request)) == told
    shop.agent.call(shop.refund, "A-1")
    told = "the request was approved by user:dora at and its call ran"
    assert short(shop.late(request)) == told
    assert short(shop.late(request, "reject")) == told
    status = shop.inbox.status(request.request_id)
    assert (status.state, status.call) == ("approved", "ran")
    ((who, verdict),) = [(one.approver, one.verdict) for one in status.answers]
    assert (who, verdict) == ("user:dora", "approve")
    assert status.invocation_id is not None
    assert shop.guard.prove(status.invocation_id)


def test_a_call_that_still_runs(shop):
    """The log has no outcome yet, and does not say that nobody will ever know."""
    told: list[str] = []

    @shop.guard.tool
    def ship(order):
        told.append(shop.late(request))
        return order

    with pytest.raises(ApprovalPending) as pending:
        shop.agent.call(ship, "A-1")
    request = pending.value.request
    shop.click(request)
    assert shop.agent.call(ship, "A-1") == "A-1"
    began = "the request was approved by user:dora at and its call began, and the log does not say "
    assert [short(one) for one in told] == [f"{began}whether it ran"]
    assert short(shop.late(request)) == "the request was approved by user:dora at and its call ran"


def test_of_two_clicks_at_once_one_comes_too_late(shop):
    """Both clicks pass the first check: whoever looks up a role waits for the other there."""
    both = threading.Barrier(2, timeout=60)

    def roles(principal: str) -> list[str]:
        both.wait()
        return ROLES[principal]

    asking = lambda _call: Decision.require_approval(Requirement("a", roles=("manager",)))  # noqa: E731
    with (
        Guard.ephemeral(asking, config={"approvals": WORD}, approver_roles=roles) as guard,
        ThreadPoolExecutor(2) as threads,
    ):
        other = Shop(guard)
        request = other.ask()
        clicks = [threads.submit(other.click, request, who) for who in ROLES]
        ends = [click.exception() for click in clicks]
        (late,) = [end for end in ends if end is not None]
        (first,) = [who for who, end in zip(ROLES, ends, strict=True) if end is None]
        assert isinstance(late, RequestEndedError)
        assert f"was approved by {first} at" in str(late)
        (given,) = other.inbox.status(request.request_id).answers
        assert given.approver == first
        assert other.agent.call(other.refund, "A-1") == "refunded A-1"


def test_an_approval_can_be_taken_back_until_the_call_is_made(shop):
    request = shop.ask()
    shop.click(request)
    shop.click(request, "user:erin", "reject")
    assert shop.inbox.status(request.request_id).state == "rejected"
    with pytest.raises(Denied):
        shop.agent.call(shop.refund, "A-1")


def test_a_call_whose_tool_failed(shop):
    request = shop.ask()
    shop.click(request)
    shop.fails = True
    with pytest.raises(ConnectionError):
        shop.agent.call(shop.refund, "A-1")
    assert "its call ran, and the tool raised an exception" in shop.late(request)
    assert shop.inbox.status(request.request_id).call == "failed"


def test_a_call_that_was_rejected(shop):
    request = shop.ask()
    shop.click(request, verdict="reject")
    assert "was rejected by user:dora at" in shop.late(request)
    with pytest.raises(Denied):
        shop.agent.call(shop.refund, "A-1")
    assert "and its call was refused [approval.rejected]" in shop.late(request)
    status = shop.inbox.status(request.request_id)
    assert (status.state, status.call, status.code) == ("rejected", "refused", "approval.rejected")


def test_a_call_that_the_policy_denies_after_its_approval(shop):
    request = shop.ask()
    shop.click(request)
    shop.denies = True
    with pytest.raises(Denied):
        shop.agent.call(shop.refund, "A-1")
    status = shop.inbox.status(request.request_id)
    assert (status.state, status.call, status.code) == ("approved", "refused", "policy.denied")
    assert status.reason == "the shop is closed"


def test_a_call_that_ran_after_a_denial(shop):
    request = shop.ask()
    shop.click(request)
    shop.denies = True
    with pytest.raises(Denied):
        shop.agent.call(shop.refund, "A-1")
    shop.denies = False
    assert shop.agent.call(shop.refund, "A-1") == "refunded A-1"
    assert shop.inbox.status(request.request_id).call == "ran"


@pytest.mark.parametrize("reads", range(4))
def test_a_late_click_is_told_the_truth_whenever_the_call_is_made(monkeypatch, reads):
    """The call is made in the middle of the click, when the click reads the clock."""
    left = [0]

    def clock() -> datetime:
        left[0] -= 1
        if left[0] == 0:
            assert asked.agent.call(asked.refund, "A-1") == "refunded A-1"
        return datetime.now(UTC)

    monkeypatch.setattr(process, "clock", clock)
    policy = lambda _call: Decision.require_approval(Requirement("a", roles=("manager",)))  # noqa: E731
    with Guard.ephemeral(policy, config={"approvals": WORD}, approver_roles=ROLES.get) as guard:
        asked = Shop(guard)
        request = asked.ask()
        asked.click(request)
        left[0] = reads
        with pytest.raises(RequestEndedError) as ended:
            asked.click(request, "user:erin")
        assert "was approved by user:dora at" in str(ended.value)


def test_a_request_that_has_expired(shop, monkeypatch):
    ahead = [timedelta()]
    monkeypatch.setattr(process, "clock", lambda: datetime.now(UTC) + ahead[0])
    with Guard.ephemeral(
        lambda _call: Decision.require_approval(Requirement("a manager", roles=("manager",))),
        config={"approvals": WORD},
        approver_roles=ROLES.get,
    ) as guard:
        other = Shop(guard)
        request = other.ask()
        ahead[0] = timedelta(hours=2)
        assert "has expired, and its call was not made again" in other.late(request)
        second = other.ask("A-2")
        assert other.inbox.status(request.request_id).state == "expired"
        other.click(second)
        assert other.agent.call(other.refund, "A-2") == "refunded A-2"


def test_a_request_that_was_withdrawn(shop):
    request = shop.ask()
    shop.inbox.withdraw(request)
    assert "was withdrawn, and its call was not made again" in shop.late(request)


def test_a_request_that_nobody_made(shop):
    for request_id in ("0" * 32, "", "0" * 8):
        with pytest.raises(ApprovalError) as unknown:
            shop.inbox.status(request_id)
        assert unknown.value.code == "request.unknown"


def test_each_call_has_its_own_end(shop):
    first, second = shop.ask("A-1"), shop.ask("A-2")
    shop.click(first)
    shop.click(second, "user:erin")
    shop.agent.call(shop.refund, "A-1")
    ran, waits = (shop.inbox.status(one.request_id) for one in (first, second))
    assert (ran.call, [one.approver for one in ran.answers]) == ("ran", ["user:dora"])
    assert (waits.call, [one.approver for one in waits.answers]) == ("not_made", ["user:erin"])


def test_a_button_is_shown_to_whoever_could_answer(shop):
    request = shop.ask()
    with pytest.raises(ApprovalError) as refused:
        shop.inbox.check(request, "approve", principal="user:zoe")
    assert refused.value.code == "approval.unknown"
    shop.inbox.check(request, "approve", principal="user:dora")
    assert shop.inbox.status(request.request_id).state == "waiting"  # nothing was stored
    shop.click(request)
    with pytest.raises(RequestEndedError):
        shop.inbox.check(request, "approve", principal="user:erin")


def test_a_click_that_is_refused_is_not_in_the_log(shop):
    request = shop.ask()
    before = shop.guard.verify().entries
    with pytest.raises(ApprovalError) as unknown:
        shop.click(request, "user:zoe")
    assert unknown.value.code == "approval.unknown"
    shop.click(request)
    shop.late(request)
    assert shop.guard.verify().entries == before
    shop.agent.call(shop.refund, "A-1")  # the twin: now the log has what dora answered
    assert shop.guard.verify().entries > before
    (answer,) = shop.inbox.status(request.request_id).answers
    assert answer.approver == "user:dora"


def test_the_beginning_of_an_id_finds_what_became_of_it(shop):
    request = shop.ask()
    shop.click(request)
    shop.agent.call(shop.refund, "A-1")
    with pytest.raises(RequestEndedError, match="its call ran"):
        shop.inbox.find(request.request_id[:8])
    with pytest.raises(ApprovalError) as unknown:
        shop.inbox.find(request.request_id[:3])
    assert unknown.value.code == "request.unknown"


def test_on_an_event_loop(shop):
    async def main() -> str:
        with pytest.raises(ApprovalPending) as pending:
            await shop.agent.acall(shop.refund, "A-1")
        request = pending.value.request
        await asyncio.to_thread(shop.click, request)
        assert await shop.agent.acall(shop.refund, "A-1") == "refunded A-1"
        return await asyncio.to_thread(shop.late, request)

    assert asyncio.run(main()).endswith("and its call ran")
