"""A guard whose policy asks people, and the people with their keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import pytest

from agentguard import (
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
)
from agentguard.adapters import Arguments, CallSite, Invocation
from agentguard.approvals.answer import seal_answer
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer

Policy = Callable[[Mapping[str, Any]], Decision]


class People:
    """The roster of a test, each with a key that is made now."""

    def __init__(self) -> None:
        self.keys = {name: key() for name in ("bob", "carol", "al", "mallory")}

    def table(self) -> dict[str, Any]:
        """The tables of a configuration: mallory is not on it, and al is alice."""
        principals = {"bob": "user:bob", "carol": "user:carol", "al": "user:alice"}
        return {
            name: {
                "principal": principal,
                "keys": [self.keys[name].public_key.openssh()],
                "roles": ["release-manager"] if name != "carol" else [],
            }
            for name, principal in principals.items()
        }


def key() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


class Place:
    """A guard whose policy asks, an agent, and a tool whose runs are counted."""

    def __init__(self, policy: Policy, **tables: Any) -> None:
        self.people = People()
        self.policy, self.told = policy, ""
        self.ran: list[tuple[Any, ...]] = []
        self.under({"approvers": self.people.table(), **tables})

    def under(self, tables: Mapping[str, Any], **options: Any) -> Place:
        """Have another guard, with these tables and these options of ``Guard.ephemeral``."""
        self.guard = Guard.ephemeral(self.policy, config=tables, **options)
        self.agent = self.guard.new_agent("coder")

        @self.guard.tool
        def merge(branch: str) -> str:
            self.ran.append((branch,))
            return f"merged {branch}"

        self.merge = merge
        return self

    def ask(self, branch: str = "main") -> ApprovalRequest:
        with pytest.raises(ApprovalPending) as pending:
            self.agent.call(self.merge, branch)
        return pending.value.request

    def approve(self, request: ApprovalRequest, name: str = "bob", **how: Any) -> None:
        self.guard.approvals.approve(request, self.people.keys[name], **how)

    def call(self, branch: str = "main") -> str:
        return self.agent.call(self.merge, branch)

    def denied(self, branch: str = "main") -> str:
        with pytest.raises(Denied) as denied:
            self.agent.call(self.merge, branch)
        return denied.value.code

    def logged_answers(self) -> list[tuple[str, str]]:
        """Who has answered, and what, by the newest authorization in the log."""
        with closing(self.guard.reader()) as reader:
            entries = map(parse_entry, (data for _, data in reader.entries(newest_first=True)))
            newest = next(entry for entry in entries if isinstance(entry, CallEntry))
        return [(answer.approver, answer.verdict) for answer in newest.answers]

    def at(self, branch: str, call_id: str = "call_1", thread: str = "t") -> Invocation:
        """The call as a framework names it: its site is the same when it is made again."""
        return Invocation.bind(
            self.merge.spec,
            lambda: Arguments.of({"branch": branch}),
            CallSite(call_id, thread=thread, turn="m1"),
        )


def asking(*needed: Requirement) -> Policy:
    return lambda _input: Decision.require_approval(*(needed or (Requirement("a person"),)))


def answer(request: ApprovalRequest, signer: Ed25519Signer | None, approver: str) -> Envelope:
    return seal_answer(
        request,
        "approve",
        approver=approver,
        approval_id=os.urandom(16).hex(),
        at=request.requested_at,
        signer=signer,
    )
