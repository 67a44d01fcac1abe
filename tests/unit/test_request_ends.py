"""What ended each request: ``guard.approvals.ended()``, here and behind a guard server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentguard import ApprovalPending, Decision, Denied, Guard, Requirement
from agentguard.cli.approvals.request import past_as_json, past_row

TTL = 100
CONFIG = {"approvals": {"application": True, "application_roles": ["manager"]}}
MANAGERS = {"user:dora": ["manager"], "user:erin": ["manager"]}


class Shop:
    """A guard that asks a manager about each refund, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime.now(UTC)
        for clock in ("agentguard.guard.process.clock", "agentguard.client.parts._clock"):
            monkeypatch.setattr(clock, lambda: self.now)
        self.is_closed, self.heard = False, list[str]()
        self.answer: Callable[[], object] = lambda: None
        self.guard = Guard.ephemeral(
            self.decide,
            config=CONFIG,
            approver_roles=MANAGERS.get,
            on_expiring=lambda request: self.hear(f"expiring {request.tool}"),
            on_expired=lambda request: self.hear(f"expired {request.tool}"),
        )
        self.agent = self.guard.new_agent("support")
        self.refund = self.guard.tool(name="refund")(lambda order: order)

    def hear(self, what: str) -> object:
        self.heard.append(what)
        return self.answer()

    def decide(self, call: Any) -> Decision:
        if self.is_closed and "approval" in call:
            return Decision.deny("the shop is closed")
        return Decision.require_approval(Requirement("a manager", roles=("manager",), ttl=TTL))

    def call(self, order: str) -> Any:
        try:
            return self.agent.call(self.refund, order)
        except ApprovalPending as pending:
            return pending.request

    def click(self, request: Any, verdict: Any = "approve", who: str = "user:dora") -> None:
        self.guard.approvals.vouch(request, verdict, principal=who)


@pytest.fixture
def shop(monkeypatch):
    shop = Shop(monkeypatch)
    yield shop
    shop.guard.close()


def used(shop: Shop, request: Any) -> None:
    shop.click(request)
    assert shop.call("A-1") == "A-1"


def rejected(shop: Shop, request: Any) -> None:
    shop.click(request, "reject")
    with pytest.raises(Denied):
        shop.call("A-1")


def withdrawn(shop: Shop, request: Any) -> None:
    assert shop.guard.approvals.withdraw(request)


def expired(shop: Shop, request: Any) -> None:
    shop.now += timedelta(seconds=TTL)


def expired_approved(shop: Shop, request: Any) -> None:
    shop.click(request)
    expired(shop, request)


ENDS: dict[str, tuple[Callable[[Shop, Any], None], str, str]] = {
    "used": (used, "used", "was approved by user:dora"),
    "rejected": (rejected, "rejected", "was rejected by user:dora"),
    "withdrawn": (withdrawn, "withdrawn", "was withdrawn, and its call was not made again"),
    "expired": (expired, "expired", "has expired, and its call was not made again"),
    "expired, approved": (expired_approved, "expired", "; user:dora had approved it"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ended_a_request_and_why(shop, end):
    make, word, said = ENDS[end]
    request = shop.call("A-1")
    assert shop.guard.approvals.ended() == []
    make(shop, request)
    (past,) = shop.guard.approvals.ended()
    cells, note = past_row(past)
    assert cells[0] == request.request_id[:8]
    assert cells[2:] == (word, "support", "agent:support", "refund")
    assert said in str(note)
    shown = past_as_json(past)
    assert (shown["request_id"], shown["end"]) == (request.request_id, word)
    answered: Any = shown["answers"]
    has_answer = end not in ("withdrawn", "expired")
    assert [one["approver"] for one in answered] == (["user:dora"] if has_answer else [])
    assert past.status == shop.guard.approvals.status(request.request_id)
    assert ("withdrawn" in str(note)) is (end == "withdrawn")


def test_a_request_whose_call_was_refused_waits_on_until_it_expires(shop):
    request = shop.call("A-1")
    shop.click(request)
    shop.is_closed = True
    with suppress(Denied):
        shop.call("A-1")
    assert shop.guard.approvals.status(request.request_id).state == "approved"
    assert shop.guard.approvals.ended() == []
    shop.now += timedelta(seconds=TTL)
    (past,) = shop.guard.approvals.ended()
    assert (past.status.state, past.status.call) == ("approved", "refused")
    assert past.status.reason == "the shop is closed"


def test_the_newest_are_told_and_the_oldest_of_them_first(shop):
    for number in range(4):
        shop.guard.approvals.withdraw(shop.call(f"A-{number}"))
        shop.now += timedelta(seconds=1)
    times = [one.requested_at for one in shop.guard.approvals.ended(most=3)]
    assert len(times) == 3
    assert times == sorted(times)


def test_the_process_with_the_requests_tells_the_application(shop):
    shop.call("A-1")
    shop.guard.approvals.pending()
    assert shop.heard == []
    shop.now += timedelta(seconds=TTL / 2)
    shop.guard.approvals.pending()
    shop.now += timedelta(seconds=TTL / 2)
    shop.guard.approvals.pending()
    assert shop.heard == ["expiring refund", "expired refund"]


@pytest.mark.parametrize("name", ["on_expiring", "on_expired"])
def test_an_end_that_nobody_is_told_of_is_an_error_in_the_program_s_log(shop, name, caplog):
    async def later() -> None: ...

    shop.call("A-1")
    shop.answer = later
    shop.now += timedelta(seconds=TTL / 2 if name == "on_expiring" else TTL)
    shop.guard.approvals.pending()
    assert f"{name} failed" in caplog.text
