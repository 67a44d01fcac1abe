"""One answer of a person to a request for an approval: written as a signed statement, and read.

``roster.py`` says who may answer and when the answers are enough. The format of the statement
stands in docs/explanation/records.md, "Approval".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from agentguard.approvals.request import ApprovalRequest
from agentguard.errors import ApprovalError, DecodeError, EncodeError, VerificationError
from agentguard.identity.principal import is_principal, require_principal
from agentguard.signing import declared, dsse
from agentguard.signing.declared import Declared, Id
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Signer

MAX_SKEW: Final = 60
"""Seconds by which the approver's clock may be ahead of the verifier's."""

MAX_NOTE: Final = 1024
"""The longest note beside a verdict, in characters."""

_ANSWER: Final = "a well-formed answer to a request for an approval"

Verdict = Literal["approve", "reject"]
"""How an approver answers a request."""

Method = Literal["ed25519", "application"]


class Approval(Declared, frozen=True):
    """The content of one answer to a request (docs/explanation/records.md, "Approval").

    ``approver`` is a principal, such as ``user:bob``. With the ``method`` ``ed25519`` the approver
    has signed the answer; with ``application`` the embedding program vouches for the answer.
    ``roles`` are the approver's roles by the application's word, sorted; a signed answer has none,
    because the roster has the roles of a signer. Times are seconds since the epoch.
    ``subject_sha256`` is the digest of the call (hex), the subject of the statement.
    """

    approval_id: Id
    request_id: Id
    subject_sha256: str
    requirement_sha256: str
    displayed_sha256: str
    verdict: Verdict
    approver: str
    method: Method
    roles: tuple[str, ...]
    not_before: int
    expires_at: int
    note: str

    def __post_init__(self) -> None:
        if self.roles != tuple(sorted(set(self.roles))):
            raise ValueError("its roles are not sorted, each once")
        if self.roles and self.method != "application":
            raise ValueError("a signed answer has roles of its own")
        if not is_principal(self.approver):
            raise ValueError("its approver is no principal")

    def check_request(self, request: ApprovalRequest) -> None:
        """Raise ``VerificationError`` (``approval.mismatch``) unless it answers ``request``."""
        expected = (
            request.request_id,
            request.call_digest,
            request.requirement_sha256,
            request.displayed_sha256,
        )
        actual = (
            self.request_id,
            self.subject_sha256,
            self.requirement_sha256,
            self.displayed_sha256,
        )
        if actual != expected:
            message = "the answer is to another request, or to this one as it was not shown"
            raise VerificationError(message, code="approval.mismatch")

    def check_time(self, at: int) -> None:
        """Raise ``VerificationError`` (``approval.expired``, ``approval.not_yet_valid``)."""
        if at >= self.expires_at:
            raise VerificationError("the approval has expired", code="approval.expired")
        if at < self.not_before - MAX_SKEW:
            message = "the approval is not valid yet: look at the two machines' clocks"
            raise VerificationError(message, code="approval.not_yet_valid")


def seal_answer(
    request: ApprovalRequest,
    verdict: Verdict,
    *,
    approver: str,
    approval_id: str,
    at: int,
    note: str = "",
    roles: Iterable[str] = (),
    signer: Signer | None = None,
) -> Envelope:
    """Return the answer of the principal ``approver`` to a request, in an envelope.

    ``approval_id`` is 32 random hex digits. Without a ``signer`` the envelope is unsigned, and the
    application vouches for the approver (``method: application``) and for the approver's ``roles``;
    with one, leave ``roles`` out. The answer counts from ``at`` (seconds since the epoch) until the
    request expires. Raises ``ApprovalError`` (``principal.malformed``) for an approver that is no
    principal, and
    ``EncodeError`` (``approval.malformed``) for a note that is too long or for roles beside a key.
    """
    require_principal(approver, "person", ApprovalError)
    named = tuple(sorted(set(roles)))
    if named and signer is not None:
        message = "a signed answer names no roles: the approver's are in [approvers]"
        raise EncodeError(message, code="approval.malformed")
    if len(note) > MAX_NOTE:
        message = f"a note has {MAX_NOTE} characters at most"
        raise EncodeError(message, code="approval.malformed")
    predicate = Approval(
        approval_id=approval_id,
        request_id=request.request_id,
        subject_sha256=request.call_digest,
        requirement_sha256=request.requirement_sha256,
        displayed_sha256=request.displayed_sha256,
        verdict=verdict,
        approver=approver,
        method="ed25519" if signer is not None else "application",
        roles=named,
        not_before=at,
        expires_at=request.expires_at,
        note=note,
    ).as_json()
    subject = predicate.pop("subject_sha256")
    payload = dsse.statement("approval", subject, "call", predicate)
    return dsse.seal(payload, signer) if signer is not None else dsse.unsigned(payload)


def read_answer(envelope: Envelope) -> Approval:
    """Read an answer without verifying the signature; raises ``DecodeError``."""
    statement = dsse.parse_statement(envelope.payload, "approval")
    members = {**statement.predicate, "subject_sha256": statement.subject_sha256}
    if len(members) == len(statement.predicate):
        raise DecodeError("an answer names its subject twice", code="approval.malformed")
    return declared.read(Approval, members, _ANSWER, code="approval.malformed")
