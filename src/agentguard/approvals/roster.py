"""The roster: who may approve, with which keys and in which roles; and when answers are enough.

It comes from ``[approvers]`` of the configuration; the issuer signs it into the log, so that an
approval verifies later against the roster of its day. What an answer is stands in ``request.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from agentguard.approvals import request as approval
from agentguard.approvals.request import Approval, ApprovalRequest
from agentguard.call.decision import Requirement
from agentguard.errors import ConfigError, DecodeError, KeyMaterialError, VerificationError
from agentguard.identity.principal import require_principal
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey


@dataclass(frozen=True, slots=True)
class Approver:
    """Somebody who may approve: a ``name`` of the roster, the principal behind it, the keys.

    Raises ``ConfigError`` (``principal.malformed``).
    """

    name: str
    principal: str
    keys: tuple[PublicKey, ...]
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_principal(self.principal, "principal", ConfigError)

    def as_json(self) -> dict[str, JSON]:
        """Return the members of the roster's entry for it."""
        return {
            "principal": self.principal,
            "keys": [{**key.jwk()} for key in self.keys],
            "roles": list(self.roles),
        }


class Answer(NamedTuple):
    """An answer that was verified; ``approver`` is None where the application alone vouches."""

    said: Approval
    approver: Approver | None
    sealed: Envelope


@dataclass(frozen=True, slots=True)
class Roster:
    """All who may approve, by name.

    ``application`` says whether an unsigned answer, for which the embedding program vouches,
    counts where nobody is named. Raises ``ConfigError`` where two have one key: a signature must
    say who has signed.
    """

    approvers: Mapping[str, Approver] = field(default_factory=dict)
    application: bool = False

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for approver in self.approvers.values():
            for key in approver.keys:
                other = owners.setdefault(key.thumbprint, approver.name)
                if other != approver.name:
                    message = f"the approvers {other} and {approver.name} have the same key"
                    raise ConfigError(message)

    @property
    def can_answer(self) -> bool:
        """Whether there is anybody whose answer could count."""
        return bool(self.approvers) or self.application

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical roster."""
        return canonical.digest(self.as_json())

    def as_json(self) -> dict[str, JSON]:
        """Return the roster as it is signed into the log."""
        approvers: dict[str, JSON] = {
            name: approver.as_json() for name, approver in self.approvers.items()
        }
        return {"approvers": approvers, "application": self.application}

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> Roster:
        """Read a roster of the log; raises ``DecodeError`` (``roster.malformed``)."""
        match value:
            case {"approvers": dict(approvers), "application": bool(application), **others} if (
                not others
            ):
                try:
                    named = {name: _approver(name, one) for name, one in approvers.items()}
                    return cls(named, application)
                except (ConfigError, KeyMaterialError) as error:
                    raise _malformed() from error
        raise _malformed()

    def verify(self, sealed: Envelope, request: ApprovalRequest, *, at: int) -> Answer:
        """Return an answer if it is one to ``request``, by somebody on the roster, and counts now.

        Raises ``DecodeError``, or ``VerificationError``: ``approval.unknown`` for a key that is
        not on the roster, ``approval.unsigned`` where the application's word does not count,
        ``approval.mismatch``, ``approval.expired``, ``approval.not_yet_valid``,
        ``signature.invalid``.
        """
        found = self.identify(sealed)
        found.said.check_answers(request)
        found.said.check(at)
        return found

    def identify(self, sealed: Envelope) -> Answer:
        """Return an answer with who has signed it, whatever it answers; raises as ``verify``."""
        said = approval.read(sealed)
        if said.method == "application":
            if not self.application:
                message = (
                    "the answer is not signed: answer with agentguard approvals approve, or let "
                    "the application's word count with [approvals] application = true"
                )
                raise VerificationError(message, code="approval.unsigned")
            if sealed.signatures:
                message = "an answer that is the application's word is not signed"
                raise VerificationError(message, code="approval.mismatch")
            return Answer(said, None, sealed)
        approver, key = self._signer(sealed)
        sealed.verify(key)
        if said.approver != approver.principal:
            message = f"{approver.name} of the roster answers as {said.approver}"
            raise VerificationError(message, code="approval.mismatch")
        return Answer(said, approver, sealed)

    def of_key(self, key: PublicKey) -> Approver:
        """Return whose key it is; raises ``VerificationError`` (``approval.unknown``)."""
        for approver in self.approvers.values():
            if key in approver.keys:
                return approver
        message = f"the key {key.thumbprint} is nobody's on the roster: see [approvers]"
        raise VerificationError(message, code="approval.unknown")

    def _signer(self, sealed: Envelope) -> tuple[Approver, PublicKey]:
        named = {key_id for key_id, _signature in sealed.signatures}
        for approver in self.approvers.values():
            for key in approver.keys:
                if named == {key.thumbprint}:
                    return approver, key
        message = "the answer is signed with a key that is not on the roster: see [approvers]"
        raise VerificationError(message, code="approval.unknown")


def missing(
    requirements: Iterable[Requirement],
    answers: Sequence[Answer],
    *,
    requesters: AbstractSet[str],
) -> str | None:
    """Return what is still missing, in words; None where each requirement is met.

    ``answers`` are verified, and approve; one person counts once for a requirement, whatever the
    number of names and keys.
    """
    for needed in requirements:
        people = {
            answer.said.approver
            for answer in answers
            if answer.said.verdict == "approve" and counts(needed, answer, requesters) is None
        }
        if len(people) < needed.quorum:
            who = " ".join(_who(needed))
            return f"{needed.reason}: {len(people)} of {needed.quorum} approvals{who and f' {who}'}"
    return None


def requesters(principal: str, owner: str | None) -> frozenset[str]:
    """Return who may not approve a call: for whom it is made, and who owns the agent."""
    return frozenset({principal} if owner is None else {principal, owner})


def counts(needed: Requirement, answer: Answer, requesters: AbstractSet[str]) -> str | None:
    """Return why an answer does not count for a requirement, in words; None where it does."""
    principal, approver = answer.said.approver, answer.approver
    if principal in requesters and not needed.allow_self:
        return f"{principal} asks for this call, or owns the agent: somebody else approves it"
    if approver is None:
        if needed.approvers or needed.roles or needed.quorum > 1:
            return "where approvers, roles or a quorum are asked for, an answer has to be signed"
        return None
    if needed.approvers and approver.name not in needed.approvers:
        return f"{approver.name} is none of {', '.join(needed.approvers)}"
    if needed.roles and not set(needed.roles) & set(approver.roles):
        return f"{approver.name} has none of the roles {', '.join(needed.roles)}"
    return None


def _who(needed: Requirement) -> Iterable[str]:
    if needed.approvers:
        yield f"by {' or '.join(needed.approvers)}"
    if needed.roles:
        yield f"in the role {' or '.join(needed.roles)}"


def _approver(name: str, value: JSON) -> Approver:
    match value:
        case {
            "principal": str(principal),
            "keys": [*keys],
            "roles": [*roles],
            **others,
        } if not others and all(isinstance(role, str) for role in roles):
            found = tuple(PublicKey.from_jwk(key) for key in keys if isinstance(key, dict))
            if len(found) == len(keys):
                return Approver(name, principal, found, tuple(map(str, roles)))
    raise _malformed()


def _malformed() -> DecodeError:
    return DecodeError("not a roster of approvers", code="roster.malformed")
