"""Logs of approved and rejected calls, each in an insider's hands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from approval_forgeries import PRINCIPALS, RELEASE, TWO, Insider

from agentguard import ApprovalPending, Decision, Denied, Guard, Requirement
from agentguard.audit.entry import Record, StoredEntry
from agentguard.signing.keys import Ed25519Signer

ROLES = {"bob": [RELEASE], "carol": [RELEASE, "security"], "al": [RELEASE], "olga": [RELEASE]}


@pytest.fixture(scope="module")
def made() -> Iterator[list[Ed25519Signer]]:
    """Every key that is made in these tests, as it is."""
    signers: list[Ed25519Signer] = []
    from_seed = Ed25519Signer.from_seed
    with pytest.MonkeyPatch.context() as patched:

        def recorded(seed: bytes) -> Ed25519Signer:
            signers.append(from_seed(seed))
            return signers[-1]

        patched.setattr(Ed25519Signer, "from_seed", staticmethod(recorded))
        yield signers


@pytest.fixture(scope="module")
def asked(made):
    """Make a log with one call that people were asked about, and have answered."""

    def make(
        *needed: Requirement,
        by: Sequence[str] = (),
        rejected_by: str | None = None,
        vouched: str | None = None,
        asks_for: str | None = "user:alice",
        owner: str = "user:olga",
        by_word: Sequence[str] = (),
    ) -> Insider:
        people = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PRINCIPALS}
        people["mallory"] = Ed25519Signer.from_seed(os.urandom(32))
        tables: dict[str, Any] = {
            "approvers": {
                name: {
                    "principal": principal,
                    "keys": [people[name].public_key.openssh()],
                    "roles": ROLES.get(name, []),
                }
                for name, principal in PRINCIPALS.items()
            },
            "agents": {"coder": {"owner": owner, "authority": "own"}},
            "approvals": {"application": vouched is not None, "application_roles": [*by_word]},
        }
        decision = Decision.require_approval(*(needed or (Requirement("a person"),)))
        with Guard.ephemeral(lambda _: decision, config=tables) as guard:
            agent = guard.new_agent("coder")
            merge = guard.tool(name="merge")(lambda: "merged")
            call = agent.call
            if asks_for is not None:
                call = agent.under(guard.delegate(asks_for, scope=["x"])).call
            with pytest.raises(ApprovalPending) as pending:
                call(merge)
            inbox, request = guard.approvals, pending.value.request
            for name in by:
                inbox.approve(request, people[name])
            if vouched is not None:
                inbox.vouch(request, "approve", principal=vouched)
            if rejected_by is None:
                assert call(merge) == "merged"
            else:
                inbox.reject(request, people[rejected_by], note="no")
                with pytest.raises(Denied):
                    call(merge)
            assert guard.verify().problems == ()
            stored: list[StoredEntry] = list(guard.reader().stored())
        by_id = {signer.key_id: signer for signer in made}
        keys: dict[str, Ed25519Signer] = {
            one.use: by_id[one.key.thumbprint] for one in guard.trust.keys
        }
        keys |= {**people, "coder": by_id[agent.id.rpartition("/")[2]]}
        records = [
            Record(one.body, one.summary, tuple(one.attachments))
            for one in stored
            if one.summary is not None
        ]
        if rejected_by is None:
            records.pop()  # the outcome: the call is in doubt, which is no finding
        return Insider(guard.trust, keys, tuple(records), request)

    return make


@pytest.fixture(scope="module")
def two(asked) -> Insider:
    return asked(*TWO, by=("bob", "carol"))


@pytest.fixture(scope="module")
def vouched(asked) -> Insider:
    return asked(vouched="user:dora")
