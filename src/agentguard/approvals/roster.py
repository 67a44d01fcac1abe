"""The roster: who may approve, with which keys and in which roles.

The roster comes from ``[approvers]`` of the configuration. The issuer signs each roster into the
log, so that an approval verifies later against the roster of its time. ``answer.py`` has the format
of an answer, and ``quorum.py`` the rules by which answers count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agentguard.approvals.answer import Approval, read_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.errors import ConfigError, DecodeError, KeyMaterialError, VerificationError
from agentguard.identity.principal import require_principal
from agentguard.signing import canonical, declared
from agentguard.signing.canonical import JSON
from agentguard.signing.declared import Declared
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey


class _Approver(Declared, frozen=True):
    """An approver as the issuer signs one into the log."""

    principal: str
    keys: tuple[dict[str, str], ...]
    roles: tuple[str, ...]


class _Roster(Declared, frozen=True):
    """A roster as the issuer signs it into the log."""

    approvers: dict[str, _Approver]
    application: bool
    application_roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Approver:
    """Somebody who may approve: a ``name`` on the roster, a principal, and the principal's keys.

    An approver without keys answers through the application alone. Raises ``ConfigError``
    (``principal.malformed``).
    """

    name: str
    principal: str
    keys: tuple[PublicKey, ...]
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_principal(self.principal, "principal", ConfigError)

    def as_json(self) -> dict[str, JSON]:
        """Return the approver as a member of the roster's JSON."""
        return {
            "principal": self.principal,
            "keys": [{**key.jwk()} for key in self.keys],
            "roles": list(self.roles),
        }


class Answer(NamedTuple):
    """A verified answer, with its envelope.

    ``approver`` is None where the application alone vouches for the answer. ``roles`` are the roles
    that count for the answer: the approver's on the roster, or by the application's word those that
    the roster lists as ``application_roles``.
    """

    approval: Approval
    approver: Approver | None
    envelope: Envelope
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Roster:
    """All approvers, by name.

    ``application`` is true where an unsigned answer counts: the embedding program vouches for the
    answer, and the requirement names no approvers. ``application_roles`` are the roles for which
    the application's word counts. Raises ``ConfigError`` where two approvers have the same key,
    because a signature must identify one approver.
    """

    approvers: Mapping[str, Approver] = field(default_factory=dict)
    application: bool = False
    application_roles: tuple[str, ...] = ()

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
        """Whether the answer of anybody could count."""
        return bool(self.approvers) or self.application

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical roster."""
        return canonical.digest(self.as_json())

    def as_json(self) -> dict[str, JSON]:
        """Return the roster in the form that the issuer signs into the log."""
        approvers: dict[str, JSON] = {
            name: approver.as_json() for name, approver in self.approvers.items()
        }
        return {
            "approvers": approvers,
            "application": self.application,
            "application_roles": [*sorted(set(self.application_roles))],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> Roster:
        """Read what ``as_json`` has written; raises ``DecodeError`` (``roster.malformed``)."""
        read = declared.read(_Roster, value, "a roster of approvers", code="roster.malformed")
        try:
            approvers = {
                name: Approver(
                    name, one.principal, tuple(map(PublicKey.from_jwk, one.keys)), one.roles
                )
                for name, one in read.approvers.items()
            }
            return cls(approvers, read.application, read.application_roles)
        except (ConfigError, KeyMaterialError) as error:
            message = f"not a roster of approvers: {error}"
            raise DecodeError(message, code="roster.malformed") from error

    def verify(self, envelope: Envelope, request: ApprovalRequest, *, at: int) -> Answer:
        """Return the answer in ``envelope``, to ``request``, by an approver, valid ``at`` a time.

        ``at`` is in seconds since the epoch. Raises ``DecodeError``, or ``VerificationError``:
        ``approval.unknown`` for a key that is not on the roster, ``approval.unsigned`` where an
        unsigned answer does not count, ``approval.mismatch``, ``approval.expired``,
        ``approval.not_yet_valid``, ``signature.invalid``.
        """
        answer = self.identify(envelope)
        answer.approval.check_request(request)
        answer.approval.check_time(at)
        return answer

    def identify(self, envelope: Envelope) -> Answer:
        """Return an answer, with its approver, to any request; raises as ``verify``."""
        approval = read_answer(envelope)
        if approval.method == "application":
            if not self.application:
                message = (
                    "the answer is not signed: answer with agentguard approvals approve, or let "
                    "the application's word count with [approvals] application = true"
                )
                raise VerificationError(message, code="approval.unsigned")
            if envelope.signatures:
                message = "an answer that is the application's word is not signed"
                raise VerificationError(message, code="approval.mismatch")
            roles = tuple(role for role in approval.roles if role in self.application_roles)
            return Answer(approval, None, envelope, roles)
        approver, key = self._signer(envelope)
        envelope.verify(key)
        if approval.approver != approver.principal:
            message = f"{approver.name} of the roster answers as {approval.approver}"
            raise VerificationError(message, code="approval.mismatch")
        return Answer(approval, approver, envelope, approver.roles)

    def roles_of(self, principal: str) -> frozenset[str]:
        """Return the roles that a principal has on the roster, under all names."""
        people = [one for one in self.approvers.values() if one.principal == principal]
        return frozenset(role for approver in people for role in approver.roles)

    def approver_of(self, key: PublicKey) -> Approver:
        """Return the approver who has ``key``.

        Raises ``VerificationError`` (``approval.unknown``).
        """
        for approver in self.approvers.values():
            if key in approver.keys:
                return approver
        message = (
            f"the key {key.thumbprint} (ssh-keygen: {key.fingerprint}) is nobody's on the roster: "
            "see [approvers]"
        )
        raise VerificationError(message, code="approval.unknown")

    def _signer(self, envelope: Envelope) -> tuple[Approver, PublicKey]:
        key_ids = {key_id for key_id, _signature in envelope.signatures}
        for approver in self.approvers.values():
            for key in approver.keys:
                if key_ids == {key.thumbprint}:
                    return approver, key
        message = "the answer is signed with a key that is not on the roster: see [approvers]"
        raise VerificationError(message, code="approval.unknown")
