"""A durable domain whose policy asks people, and the people who answer."""

from __future__ import annotations

import os
from typing import Any

from state_pages import Page, pages, put_back

from agentguard import (
    Agent,
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
)
from agentguard.approvals.answer import read_answer, seal_answer
from agentguard.domain import config
from agentguard.domain.keystore import load_trust
from agentguard.signing.canonical import dumps, loads_object
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.approvals import LoggedApprovals
from agentguard.store.sealed_pages import Keys
from agentguard.store.state_log import open_log

TOKEN = "s3cret-t0ken-of-a-person"
PEOPLE = {"bob": "user:bob", "carol": "user:carol"}


class Desk:
    """A durable domain with people, a tool that asks for one of them, and what it has done."""

    def __init__(self, place: Any, **tables: Any) -> None:
        self.keys = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PEOPLE}
        self.ran: list[str] = []
        self.told = ""
        self.approvers: dict[str, Any] = {
            name: {
                "principal": PEOPLE[name],
                "keys": [key.public_key.openssh()],
                "roles": ["lead"] if name == "carol" else [],
            }
            for name, key in self.keys.items()
        }
        kept = {**loads_object(place.config.encoded), "approvers": self.approvers, **tables}
        place.config = config.parse(kept, source="agentguard.toml", base=place.config.base)
        self.place = place
        self.needed = Requirement("a person")
        self.folder = Page(place.config.state, "")

    def open(self) -> Guard:
        def policy(_input: Any) -> Decision:
            return Decision.require_approval(self.needed).redacted("/args/token")

        guard: Guard = self.place.open(policy)
        return guard

    def call(self, guard: Guard, what: str = "main", agent: Agent | None = None) -> str:
        """Call the tool; return what it says, or the code with which that is refused.

        A new agent has the guard look for new keys, and one that is there does not.
        """

        @guard.tool
        def merge(what: str, token: str) -> str:
            """Merge a branch."""
            self.ran.append(what)
            return f"merged {what}"

        try:
            return (agent or guard.new_agent("reader")).call(merge, what, token=TOKEN)
        except (Denied, ApprovalPending) as refused:
            self.told = str(refused)
            return refused.code

    def ask(self, guard: Guard, what: str = "main") -> ApprovalRequest:
        assert self.call(guard, what) == "approval.pending"
        (request,) = [one for one in guard.approvals.pending() if what in str(one.arguments)]
        return request

    def path(self, what: str = "main") -> Page:
        """Where the request lies."""
        (path,) = [
            path
            for path in (self.folder / "requests").iterdir()
            if f'"{what}"'.encode() in path.read_bytes()
        ]
        return path

    def kept(self) -> dict[str, bytes]:
        """Return all pages of the state."""
        return pages(self.place.config.state, "")

    def put_back(self, kept: dict[str, bytes]) -> None:
        """Have these pages alone in the state."""
        put_back(self.place.config.state, kept)

    def answer(self, request: ApprovalRequest, name: str) -> None:
        """Lay an answer there, past the desk, which would look at it."""
        sealed = seal_answer(
            request,
            "approve",
            approver=PEOPLE[name],
            approval_id=os.urandom(16).hex(),
            at=request.requested_at,
            signer=self.keys[name],
        )
        path = self.folder / "answers" / request.request_id / read_answer(sealed).approval_id
        path.write_bytes(dumps(sealed.as_json()))


def keyless_approvals(place: Any) -> LoggedApprovals:
    """Return the requests of a domain, as a command without the log's key has them."""
    trust = load_trust(place.config.state)
    state, anchors = place.config.state, place.config.anchor
    log = open_log(state, anchors, trust.log, lambda: trust.keys_for("log"), writes_pages=True)
    return LoggedApprovals(log, Keys(None, lambda: trust))
