"""Checks that several kinds of entries share: who made a call, and for whom; data.

``kinds/`` has the rule of each kind. The verifier of a log (``contents.py``) and the verifier of
evidence (``evidence.py``) apply both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentguard.audit.entry import Attachment, Commitments, mismatch
from agentguard.call.invocation import REFUSED_CHAIN, SALT_SIZE, call_digest, commitment
from agentguard.delegation import verification
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.principal import require_principal
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope


class Credentials:
    """The verified credentials of agent instances, in the order of a log."""

    def __init__(self) -> None:
        self._by_agent: dict[str, list[Credential]] = {}

    def add(self, issued: Credential) -> None:
        """Add a credential that is newer than those before."""
        self._by_agent.setdefault(issued.uri, []).append(issued)

    def of_call(self, agent: str, at: int, *, allowed: bool) -> Credential:
        """Return the credential of the instance that made a call; the call was logged ``at``.

        The credential must be valid at that time. A refusal may also be signed after the last
        credential expired. Raises ``VerificationError``.
        """
        credentials = self._by_agent.get(agent)
        if not credentials:
            raise mismatch(f"no credential of the agent {agent} stands before")
        for issued in reversed(credentials):
            if not allowed or issued.issued_at <= at < issued.expires_at:
                return issued
        raise mismatch(f"no credential of {agent} was valid then")

    def holder(self, envelope: Envelope) -> Credential:
        """Return the newest credential of the key that an envelope names, valid or expired.

        Raises ``VerificationError``.
        """
        key_ids = envelope.key_ids
        for credentials in self._by_agent.values():
            if credentials[-1].key.thumbprint in key_ids:
                return credentials[-1]
        raise mismatch("no credential of a statement's signer stands before")


def check_authority(
    predicate: Mapping[str, JSON],
    call_sha256: str,
    name: str,
    chain: Chain | None,
    trust: TrustDocument,
    at: int,
    *,
    may_run: bool,
) -> Chain | None:
    """Check that the agent ``name`` may act for the principal of a call, and the call's digest.

    ``predicate`` is that of the invocation or the evaluation, ``chain`` the verified chain that it
    names, and ``at`` the time when it was logged. Returns the verified chain of a delegation that
    was refused. Raises ``DecodeError`` or ``VerificationError``.
    """
    refused = None
    if chain is None:
        refused = _check_without_chain(predicate, name, trust, at, may_run=may_run)
    else:
        if REFUSED_CHAIN in predicate:
            raise mismatch("a call is under a chain, and under a delegation that was refused")
        chain.check(at)
        principal, agent = str(predicate["principal"]), str(predicate["agent"])
        task = predicate.get("task_id")
        problem = chain.mismatch(principal, agent, task)
        if problem is not None:
            raise mismatch(problem)
    try:
        digest = call_digest(name, predicate, tuple(chain.actors) if chain is not None else ())
    except (KeyError, TypeError) as error:
        raise DecodeError("an invocation lacks what its digest is made of") from error
    if digest != call_sha256:
        raise mismatch("a call does not have its call digest")
    return refused


def _check_without_chain(
    predicate: Mapping[str, JSON], name: str, trust: TrustDocument, at: int, *, may_run: bool
) -> Chain | None:
    """Check for whom a call without a chain is: the agent ``name``, or whose delegation is refused.

    A delegation that was refused is in ``refused_chain``: a chain, which may have ended, or None
    where the principal is only claimed. Returns the chain. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    principal = predicate["principal"]
    if REFUSED_CHAIN not in predicate:
        if principal != f"agent:{name}":
            raise mismatch("an agent acts for a principal that no chain names")
        return None
    if may_run:
        raise mismatch("a call that may run is under a delegation that was refused")
    members = predicate[REFUSED_CHAIN]
    if members is None:
        require_principal(principal, "principal", VerificationError)
        return None
    if not isinstance(members, dict):
        raise DecodeError("a delegation that was refused is a chain", code="entry.malformed")
    refused = verification.from_json(members, trust, at=at, may_have_ended=True)
    if refused.principal != principal:
        raise mismatch("the delegation that was refused is of another principal")
    return refused


def check_attachments(attachments: Sequence[Attachment], commitments: Commitments) -> None:
    """Check the attachments of an entry against the entry's commitments."""
    for role, stated, salt, data in attachments:
        if commitments.get(role) != stated:
            verb = "are" if role == "arguments" else "is"
            raise mismatch(f"the {role} kept beside the entry {verb} not what it commits to")
        # a salt of another length would move the boundary between salt and data
        if len(salt) != SALT_SIZE or commitment(salt, data) != stated:
            verb = "were" if role == "arguments" else "was"
            raise mismatch(f"the {role} kept beside the entry {verb} changed")
