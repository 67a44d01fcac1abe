"""Who can write in the state edits a request that waits: it is held against the log first.

The log has the digest of all that a request shows. A request that was edited where it lies, or laid
there, is shown to nobody as good and answered by nobody, and its call does not run on it, whatever
the policy says once people have answered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from approval_desk import keyless_approvals
from state_pages import Page

from agentguard import (
    ApprovalError,
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
)
from agentguard.approvals.answer import read_answer, seal_answer
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.call.invocation import commitment
from agentguard.domain import config
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer

PEOPLE = ("bob", "carol", "dora")
TWO = Requirement("a refund needs two people", roles=("lead",), quorum=2)


class Refunds:
    """A durable domain whose policy asks for two leads, until anybody has approved."""

    def __init__(self, place: Any, **more: Any) -> None:
        self.keys = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PEOPLE}
        people = {
            name: {"keys": [signer.public_key.openssh()], "roles": ["lead"]}
            for name, signer in self.keys.items()
        }
        agents = {"reader": {"authority": "own", "owner": "user:dora"}}
        tables = {
            **canonical.loads_object(place.config.encoded),
            "approvers": people,
            "agents": agents,
            **more,
        }
        place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
        self.place = place
        self.paid: list[int] = []
        self.needed = TWO
        self.folder = Page(place.config.state, "")

    def open(self) -> Guard:
        def policy(document: Any) -> Decision:
            if document.get("approval") is not None:  # as README's: who was asked has answered
                return Decision.allow()
            return Decision.require_approval(self.needed)

        guard: Guard = self.place.open(policy)
        return guard

    def call(self, guard: Guard, cents: int = 500) -> str:
        """Return the code with which a refund is refused, or that it ran."""

        @guard.tool
        def refund(cents: int) -> str:
            self.paid.append(cents)
            return "ran"

        try:
            return guard.new_agent("reader").call(refund, cents)
        except (Denied, ApprovalPending) as refused:
            return refused.code

    def ask(self, guard: Guard, cents: int = 500) -> ApprovalRequest:
        assert self.call(guard, cents) == "approval.pending"
        pending = guard.approvals.pending()
        return [one for one in pending if f":{cents}".encode() in one.arguments][-1]

    def path(self) -> Page:
        (path,) = (self.folder / "requests").iterdir()
        return path

    def answer(self, request: ApprovalRequest, name: str, verdict: Any = "approve") -> None:
        """Lay an answer there, past the desk."""
        sealed = seal_answer(
            request,
            verdict,
            approver=f"user:{name}",
            approval_id=os.urandom(16).hex(),
            at=request.requested_at,
            signer=self.keys[name],
        )
        self.lay(request, sealed)

    def lay(self, request: ApprovalRequest, sealed: Envelope) -> None:
        """Lay what is an answer, by its form, beside a request."""
        path = self.folder / "answers" / request.request_id / read_answer(sealed).approval_id
        path.write_bytes(canonical.dumps(sealed.as_json()))


@pytest.fixture
def refunds(place: Any) -> Refunds:
    return Refunds(place)


def test_two_people_are_asked_and_the_call_runs_once(refunds):
    """The twin of all below."""
    with refunds.open() as guard:
        request = refunds.ask(guard)
        assert guard.approvals.altered() == []
        guard.approvals.approve(request, refunds.keys["bob"])
        assert refunds.call(guard) == "approval.pending"
        guard.approvals.approve(request, refunds.keys["carol"])
        assert refunds.call(guard) == "ran"
    assert refunds.paid == [500]


def test_a_request_that_asks_for_nothing_lets_nothing_run(refunds):
    """An approval of two became none: ``requirements`` was the empty list."""
    with refunds.open() as guard:
        refunds.ask(guard)
        document: Any = canonical.loads(refunds.path().read_bytes())
        refunds.path().write_bytes(canonical.dumps({**document, "requirements": []}))
        assert refunds.call(guard) == "approval.malformed"
        assert guard.approvals.pending() == []
        assert guard.approvals.altered() == [refunds.path().name]
    assert refunds.paid == []


def of(name: str, value: Any) -> Callable[[ApprovalRequest], ApprovalRequest]:
    return lambda request: replace(request, **{name: value})


EDITS: dict[str, Callable[[ApprovalRequest], ApprovalRequest]] = {
    "one person is enough": of("requirements", (replace(TWO, quorum=1),)),
    "no role is needed": of("requirements", (replace(TWO, roles=None),)),
    "whoever asks may approve": of("requirements", (replace(TWO, allow_self=True),)),
    "another reason": of("requirements", (replace(TWO, reason="a stamp"),)),
    "half is left out": of("requirements", (Requirement("a stamp"),)),
    "another agent": of("agent", "spiffe://acme.example/agent/auditor/x"),
    "another agent's name": of("agent_name", "auditor"),
    "another principal": of("principal", "user:erin"),
    "others in the chain": of("actors", ("service:chat",)),
    "nobody who may not answer": of("requesters", ()),
    "another who may not answer": of("requesters", ("user:erin",)),
    "another tool": of("tool", "read_refund"),
    "another description": of("description", "Reads, and no more."),
    "another tool's digest": of("tool_digest", "0" * 64),
    "another resource": of("resource", "order:1"),
    "another task": of("task_id", "t-1"),
    "other arguments": of("arguments", b'{"cents":1}'),
    "other unbound names": of("unbound", ("runtime",)),
    "another salt": of("salt", b"\0" * 32),
    "another site": of("call_site", "0" * 64),
    "another policy": of("policy_sha256", "0" * 64),
    "another trace": of("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"),
    "asked earlier": lambda one: replace(one, requested_at=one.requested_at - 60),
    "a year to answer": lambda one: replace(one, expires_at=one.expires_at + 31_536_000),
    "another id": of("request_id", "0" * 32),
    "another domain": of("trust_domain", "other.example"),
}


def refusals(guard: Guard) -> list[Mapping[str, Any]]:
    """Return what the log has of the calls that were refused."""
    entries = [parse_entry(body) for _index, body in guard.reader().entries()]
    calls = [one for one in entries if isinstance(one, CallEntry)]
    return [call.predicate for call in calls if not call.allowed]


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_request_that_was_edited_is_named_as_such_and_lets_nothing_run(refunds, edit):
    with refunds.open() as guard:
        request = refunds.ask(guard)
        inbox = guard.approvals
        key = inbox.key_of(request)  # it knows from now on where the request lies
        assert key is not None
        assert inbox.request_at(key) == request
        edited = edit(request)
        refunds.path().write_bytes(edited.dumps())
        for one in (request, edited):  # whoever was shown the one or the other has answered
            refunds.answer(one, "bob")
            refunds.answer(one, "carol")
        assert inbox.pending() == []
        assert inbox.altered() == [edited.request_id]
        for refused in (
            lambda: inbox.find(edited.request_id),
            lambda: inbox.approve(edited, refunds.keys["dora"]),
        ):
            with pytest.raises(ApprovalError) as caught:
                refused()
            assert caught.value.code == "request.altered"
        assert inbox.answers(edited) == []
        assert not inbox.is_waiting(edited)
        assert inbox.request_at(key) is None
        assert refunds.call(guard) == "approval.altered"
        said = refusals(guard)[-1]  # with nothing of the edited one in it
        assert said["call_site"] != edited.call_site or edited.call_site == request.call_site
        assert said["arguments"] != commitment(edited.salt, request.arguments)
        assert refunds.paid == []
        again = refunds.ask(guard)  # the edited one is gone, and the call asks anew
        assert again.requirements == (TWO,)
        assert guard.verify().problems == ()


def test_a_request_that_has_expired_is_nobodys_edit(refunds):
    """By its own word, true or not: the log's index forgets it a day later. It lets nothing run."""
    with refunds.open() as guard:
        request = refunds.ask(guard)
        over = replace(request, requested_at=1, expires_at=2)
        refunds.path().write_bytes(over.dumps())
        refunds.answer(over, "bob")
        refunds.answer(over, "carol")
        assert guard.approvals.pending() == []
        assert guard.approvals.altered() == []
        assert refunds.call(guard) == "approval.expired"
        refunds.ask(guard)
    assert refunds.paid == []


def test_a_request_of_another_call_lies_in_its_place(refunds):
    with refunds.open() as guard:
        small = refunds.ask(guard, 1)
        refunds.answer(small, "bob")
        refunds.answer(small, "carol")
        kept = refunds.path()
        refunds.ask(guard, 90_000)
        (other,) = set((refunds.folder / "requests").iterdir()) - {kept}
        other.write_bytes(kept.read_bytes())
        assert guard.approvals.pending() == [small]  # and not twice
        assert refunds.call(guard, 90_000) == "approval.altered"
        assert refunds.call(guard, 1) == "ran"
    assert refunds.paid == [1]


def test_what_was_rejected_stays_rejected(refunds):
    """The old request is laid there again, without the answer that had rejected it."""
    with refunds.open() as guard:
        request, path = refunds.ask(guard), refunds.path()
        kept = path.read_bytes()
        guard.approvals.reject(request, refunds.keys["carol"])
        assert refunds.call(guard) == "approval.rejected"
        path.write_bytes(kept)
        assert guard.approvals.pending() == []
        refunds.answer(request, "bob")
        refunds.answer(request, "carol")
        assert refunds.call(guard) == "approval.consumed"
        again = refunds.ask(guard)  # the twin: a new question may be answered otherwise
        guard.approvals.approve(again, refunds.keys["bob"])
        guard.approvals.approve(again, refunds.keys["carol"])
        assert refunds.call(guard) == "ran"
    assert refunds.paid == [500]


def test_the_applications_word_is_the_word_of_who_holds_the_logs_key(place):
    """Whoever can write in the state wrote an answer there that nobody has signed: it counted."""
    refunds = Refunds(place, approvals={"application": True})
    refunds.needed = Requirement("a person")
    with refunds.open() as guard:
        request = refunds.ask(guard)
        unsigned = seal_answer(
            request, "approve", approver="user:bob", approval_id="1" * 32, at=request.requested_at
        )
        folder = refunds.folder / "answers" / request.request_id
        refunds.lay(request, unsigned)
        assert refunds.call(guard) == "approval.pending"
        keyless = keyless_approvals(place)
        with pytest.raises(ApprovalError) as refused:
            keyless.answer(request, unsigned)
        assert refused.value.code == "approval.unsigned"
        other = refunds.ask(guard, 1)
        guard.approvals.vouch(other, "approve", principal="user:bob")
        (good,) = (refunds.folder / "answers" / other.request_id).iterdir()
        (folder / good.name).write_bytes(good.read_bytes())  # one that was given to another call
        assert refunds.call(guard) == "approval.pending"
        assert refunds.call(guard, 1) == "ran"
        guard.approvals.vouch(request, "approve", principal="user:bob")  # the twin
        (kept,) = {*folder.iterdir()} - {folder / ("1" * 32), folder / good.name}
        data = kept.read_bytes()
        kept.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])  # the log key's signature
        assert refunds.call(guard) == "approval.pending"
        kept.write_bytes(data)
    with refunds.open() as guard:
        assert refunds.call(guard) == "ran"
    assert refunds.paid == [1, 500]


def test_another_process_finds_its_request_in_the_log(refunds):
    """The twin: a guard that has read the log before a request was written reads on."""
    with refunds.open() as guard, refunds.open() as other:
        request = refunds.ask(guard)
        assert refunds.call(other) == "approval.pending"  # it waits for the same answers
        assert other.approvals.pending() == [request]
        assert other.approvals.altered() == []
        other.approvals.approve(request, refunds.keys["bob"])
        other.approvals.approve(request, refunds.keys["carol"])
        assert refunds.call(guard) == "ran"
