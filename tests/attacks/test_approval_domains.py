"""A request and its answer are carried from one domain to another, where the same people approve.

What bob approved for the rehearsal lets nothing run in earnest.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import pytest
from embedded_parts import runtime_of

from agentguard import ApprovalPending, Decision, Denied, Guard, Requirement
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.call.invocation import timestamp
from agentguard.signing.keys import Ed25519Signer

BOB = Ed25519Signer.from_seed(os.urandom(32))


def opened(trust_domain: str) -> tuple[Guard, Any, list[str]]:
    """Return a guard of that domain, a call of its tool, and what has run."""
    guard = Guard.ephemeral(
        lambda _input: Decision.require_approval(Requirement("a person")),
        config={
            "trust_domain": trust_domain,
            "approvers": {"bob": {"principal": "user:bob", "keys": [BOB.public_key.openssh()]}},
        },
    )
    ran: list[str] = []

    @guard.tool
    def deploy(version: str) -> str:
        """Deploy a version."""
        ran.append(version)
        return f"deployed {version}"

    agent = guard.new_agent("deployer")
    return guard, lambda: agent.call(deploy, "v2"), ran


def carried(source: Guard, target: Guard) -> None:
    """Put what waits in ``source`` in the place of what waits in ``target``, and into its log."""
    ours, theirs = (runtime_of(one).current_ports().log for one in (target, source))
    ((place, _page),) = ours.read(lambda view: view.pages("requests")).items()
    ((key, request),) = source.approvals._store.pending()
    (answer,) = theirs.read(lambda view: view.pages("answers")).items()

    def carry(tx: Any) -> None:
        tx.write_page(f"requests/{key}", request.dumps())
        tx.write_page(*answer)

    assert place == f"requests/{key}"
    ours.append(RequestEntry.new(request, None, at=timestamp(datetime.now(UTC))), within=carry)


@pytest.mark.parametrize(
    ("domain", "code"), [("live.example", "approval.mismatch"), ("test.example", None)]
)
def test_an_approval_of_another_domain_lets_nothing_run(domain, code):
    rehearsal, rehearse, _ran = opened("test.example")
    earnest, call, ran = opened(domain)
    with pytest.raises(ApprovalPending) as pending:
        rehearse()
    rehearsal.approvals.approve(pending.value.request, BOB)
    with pytest.raises(ApprovalPending):
        call()
    carried(rehearsal, earnest)
    if code is None:  # the twin: all else is alike
        assert call() == "deployed v2"
        return
    with pytest.raises(Denied) as denied:
        call()
    assert (denied.value.code, ran) == (code, [])
