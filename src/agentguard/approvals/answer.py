"""One answer of a person to a request for an approval: written as a signed statement, and read.

``roster.py`` says who may answer and when the answers are enough. The format of the statement
stands in docs/explanation/records.md, "Approval".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from agentguard.approvals.request import ApprovalRequest, canonical_id
from agentguard.errors import ApprovalError, DecodeError, EncodeError, VerificationError
from agentguard.identity.principal import is_principal, require_principal
from agentguard.signing import dsse
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Signer

MAX_SKEW: Final = 60
"""Seconds by which the approver's clock may be ahead of the verifier's."""

MAX_NOTE: Final = 1024
"""The longest note beside a verdict, in characters."""

Verdict = Literal["approve", "reject"]
"""How an approver answers a request."""

Method = Literal["ed25519", "application"]

_VERDICTS: Final[Mapping[str, Verdict]] = {verdict: verdict for verdict in get_args(Verdict)}
_METHODS: Final[Mapping[str, Method]] = {method: method for method in get_args(Method)}


class Approval(NamedTuple):
    """The content of one answer to a request (docs/explanation/records.md, "Approval").

    ``approver`` is a principal, such as ``user:bob``. With the ``method`` ``ed25519`` the approver
    has signed the answer; with ``application`` the embedding program vouches for the answer.
    ``roles`` are the approver's roles by the application's word, sorted; a signed answer has none,
    because the roster has the roles of a signer. Times are seconds since the epoch.
    ``subject_sha256`` is the digest of the call (hex).
    """

    approval_id: str
    request_id: str
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
    application vouches for the approver (``method: application``) and for the approver's ``roles``.
    The answer counts from ``at`` (seconds since the epoch) until the request expires. Raises
    ``ApprovalError`` (``principal.malformed``) for an approver that is no principal, and
    ``EncodeError`` (``approval.malformed``) for a note that is too long.
    """
    require_principal(approver, "person", ApprovalError)
    if len(note) > MAX_NOTE:
        message = f"a note has {MAX_NOTE} characters at most"
        raise EncodeError(message, code="approval.malformed")
    predicate: dict[str, object] = {
        "approval_id": approval_id,
        "request_id": request.request_id,
        "requirement_sha256": request.requirement_sha256,
        "displayed_sha256": request.displayed_sha256,
        "verdict": verdict,
        "approver": approver,
        "method": "ed25519" if signer is not None else "application",
        "roles": sorted(set(roles)),
        "not_before": at,
        "expires_at": request.expires_at,
        "note": note,
    }
    payload = dsse.statement("approval", request.call_digest, "call", predicate)
    return dsse.seal(payload, signer) if signer is not None else dsse.unsigned(payload)


def read_answer(envelope: Envelope) -> Approval:
    """Read an answer without verifying the signature; raises ``DecodeError``."""
    statement = dsse.parse_statement(envelope.payload, "approval")
    match statement.predicate:
        case {
            "approval_id": str(approval_id),
            "request_id": str(request_id),
            "requirement_sha256": str(requirement_sha256),
            "displayed_sha256": str(displayed_sha256),
            "verdict": str(verdict),
            "approver": str(approver),
            "method": str(method),
            "roles": [*roles],
            "not_before": not_before,
            "expires_at": expires_at,
            "note": str(note),
            **others,
        } if (
            not others
            and verdict in _VERDICTS
            and method in _METHODS
            and _is_canonical(roles, method)
            and is_principal(approver)
            and is_integer(not_before)
            and is_integer(expires_at)
        ):
            try:
                ids = canonical_id(approval_id), canonical_id(request_id)
            except ValueError as error:
                raise _malformed() from error
            return Approval(
                *ids,
                statement.subject_sha256,
                requirement_sha256,
                displayed_sha256,
                _VERDICTS[verdict],
                approver,
                _METHODS[method],
                tuple(map(str, roles)),
                not_before,
                expires_at,
                note,
            )
    raise _malformed()


def _is_canonical(roles: Sequence[JSON], method: str) -> bool:
    """Return whether these are sorted texts, each one once, and none of them in a signed answer."""
    texts = [role for role in roles if isinstance(role, str)]
    return sorted(set(texts)) == roles and (not roles or method == "application")


def _malformed() -> DecodeError:
    message = "not a well-formed answer to a request for an approval"
    return DecodeError(message, code="approval.malformed")
