"""What one signed statement of the log must hold, whoever asks: the log's verifier, or a proof.

Every statement is checked against the credential, the keys and the digests that it is said to have;
calls, which it takes, are read in ``calls.py``. What must stand before what in a log is
``verify.py``'s business, what one call's proof must hold ``evidence.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentguard.audit import checkpoint
from agentguard.audit.calls import Authorization, Commitments, Outcome
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, CallPlace, Entry, parse_time
from agentguard.call.invocation import SALT_SIZE, call_digest, commitment
from agentguard.delegation import verification
from agentguard.delegation.chain import Chain, hops_digest
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument, TrustedKey, Use
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.dsse import Envelope, Statement
from agentguard.signing.keys import PublicKey


@dataclass(frozen=True, slots=True)
class Administered:
    """What a resolution or an erasure says of a call, and the id of the admin key that it names.

    ``ran`` says of a resolution whether the call ran; of an erasure it is None.
    """

    call: CallPlace
    ran: bool | None
    note: str
    key_id: str

    def is_of(self, shard: int, index: int, call: Authorization) -> bool:
        """Whether it speaks of this call: by its place and the digest of its invocation."""
        place = (shard, index, call.invocation_sha256)
        return place == (self.call.shard, self.call.index, self.call.invocation_sha256)


class Credentials:
    """The verified credentials of agent instances, in the order in which they stand in a log."""

    def __init__(self) -> None:
        self._known: dict[str, list[Credential]] = {}

    def add(self, verified: Credential) -> None:
        """Take one more, newer than those before."""
        self._known.setdefault(verified.uri, []).append(verified)

    def of_call(self, call: Authorization, at: int) -> Credential:
        """Return the credential of the instance that made a call which was logged ``at``.

        It must cover that time; a refusal may be signed after the last one ran out, for want of a
        new one. Raises ``VerificationError``.
        """
        known = self._known.get(call.agent)
        if not known:
            raise _mismatch(f"no credential of the agent {call.agent} stands before")
        for issued in reversed(known):
            if not call.allowed or issued.issued_at <= at < issued.expires_at:
                return issued
        raise _mismatch(f"no credential of {call.agent} was valid then")

    def holder(self, sealed: Envelope) -> Credential:
        """Return the credential of the key that a statement names, at whatever time.

        Raises ``VerificationError``.
        """
        key_ids = {key_id for key_id, _signature in sealed.signatures}
        for known in self._known.values():
            if known[-1].key.thumbprint in key_ids:
                return known[-1]
        raise _mismatch("no credential of a statement's signer stands before")


def check_call(
    call: Authorization,
    issued: Credential,
    chain: Chain | None,
    at: int,
    *,
    signatures: bool = True,
) -> None:
    """Check that the instance has signed its call, may act for whom it says, and names it rightly.

    ``chain`` is the one that the call names, verified; ``at`` when the call was logged. A refusal
    for want of a signer (``signature.failed``) is unsigned. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    if call.signed or call.allowed or call.code != "signature.failed":
        check_signed(call.sealed, issued, signatures=signatures)
    name = issued.profile.name
    if chain is None:
        if call.principal != f"agent:{name}":
            raise _mismatch("an agent acts for a principal that no chain names")
    else:
        chain.check(at)
        if (call.principal, call.agent) != (chain.principal, chain.leaf.delegatee):
            raise _mismatch("its chain is of another principal, or ends with another agent")
        if chain.root.task_id is not None and call.predicate.get("task_id") != chain.root.task_id:
            raise _mismatch("its chain is for another task")
    try:
        digest = call_digest(name, call.predicate, chain.actors if chain is not None else ())
    except (KeyError, TypeError) as error:
        raise DecodeError("an invocation lacks what its digest is made of") from error
    if digest != call.call_sha256:
        raise _mismatch("an invocation does not have its call digest")


def check_place(outcome: Outcome, shard: int, index: int) -> None:
    """Check that an outcome names no other place for its authorization than this one."""
    place = outcome.predicate.get("authorization")
    named = place if isinstance(place, dict) else {}
    same = named == {"shard": shard, "index": index}
    if place is not None and not (same and all(map(is_integer, named.values()))):  # true is 1
        raise _mismatch("an outcome names another place for its authorization")


def check_signed(sealed: Envelope, issued: Credential, *, signatures: bool = True) -> None:
    """Check that an instance has signed a statement; raises ``VerificationError``."""
    if signatures:
        sealed.verify(issued.key)


def check_delegation(parsed: Entry, trust: TrustDocument, at: int) -> Chain:
    """Return the chain that a delegation entry keeps, verified as of ``at``.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    members = parsed.members["chain"]
    if not isinstance(members, dict):
        raise DecodeError("a delegation entry keeps a chain", code="entry.malformed")
    return verification.from_json(members, trust, at=at)


def chain_tokens(parsed: Entry) -> tuple[list[str], list[str]]:
    """Return the hops and the credentials that a delegation entry keeps, unverified."""
    match parsed.members["chain"]:
        case {"hops": [*hops], "credentials": [*credentials]}:
            return list(map(str, hops)), list(map(str, credentials))
    return [], []


def chain_digest(parsed: Entry) -> str:
    """Return the digest of the chain that a delegation entry keeps, unverified."""
    return hops_digest(chain_tokens(parsed)[0])


def mode_of(parsed: Entry) -> str:
    """Return the mode in which the policy is asked under a config entry's configuration."""
    match parsed.members["config"]:
        case {"policy": {"mode": str(mode)}}:
            return mode
    return "enforce"


def check_config(parsed: Entry) -> str:
    """Return the digest of a config entry, which its configuration has."""
    digest = str(parsed.members["config_sha256"])
    if canonical.digest(parsed.members["config"]) != digest:
        raise _mismatch("the configuration does not have its digest")
    return digest


def read_sealed(parsed: Entry) -> tuple[str, Statement]:
    """Return the key id and the statement of an entry that embeds one, unverified.

    Raises ``DecodeError``, and ``VerificationError`` (``signature.missing``) where it has no
    signature.
    """
    key_id, statement, _sealed = _read_sealed(parsed)
    return key_id, statement


def _read_sealed(parsed: Entry) -> tuple[str, Statement, Envelope]:
    sealed = Envelope.parse(parsed.members["statement"])
    if not sealed.signatures:
        message = f"the {parsed.kind} entry is not signed"
        raise VerificationError(message, code="signature.missing")
    statement = dsse.parse_statement(sealed.payload, parsed.kind)
    return sealed.signatures[0][0], statement, sealed


def check_issued(
    parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> tuple[PublicKey, Mapping[str, JSON]]:
    """Return the issuer's key and what it says in an entry of a kind that the issuer signs."""
    key, statement = check_by("issuer", parsed, trust, at, signatures=signatures)
    return key, statement.predicate


def check_revocation(
    parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> str:
    """Return the name that is revoked; raises ``DecodeError`` or ``VerificationError``."""
    _key, statement = check_by("admin", parsed, trust, at, signatures=signatures)
    match statement.predicate:
        case {"name": str(name), "note": str(), **others} if not others:
            if statement.subject_sha256 == canonical.sha256_hex(name.encode()):
                return name
    raise DecodeError("not a statement of a revocation", code="entry.malformed")


def check_freeze(
    parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> tuple[int, bool]:
    """Return a freeze's number and whether it freezes; raises as ``check_revocation`` does."""
    _key, statement = check_by("admin", parsed, trust, at, signatures=signatures)
    match statement.predicate:
        case {
            "frozen": bool(frozen),
            "sequence": sequence,
            "note": str(),
            **others,
        } if not others and is_integer(sequence):
            if statement.subject_sha256 == canonical.sha256_hex(trust.trust_domain.encode()):
                return sequence, frozen
    raise DecodeError("not a statement of a freeze", code="entry.malformed")


def check_administered(
    parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> Administered:
    """Return what the admin key says of a call, in a resolution or an erasure.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    check_by("admin", parsed, trust, at, signatures=signatures)
    return read_administered(parsed)


def counts(parsed: Entry, trust: TrustDocument) -> bool:
    """Whether a resolution or an erasure verifies; one that does not says nothing of its call."""
    try:
        check_administered(parsed, trust, parse_time(parsed.at))
    except (DecodeError, VerificationError):
        return False
    return True


def read_administered(parsed: Entry) -> Administered:
    """Read a resolution or an erasure, unverified; raises as ``read_sealed`` does."""
    key_id, statement = read_sealed(parsed)
    match statement.predicate:
        case {
            "invocation_id": str(invocation_id),
            "authorization": {"shard": shard, "index": index},
            "note": str(note),
            **others,
        } if is_integer(shard) and is_integer(index):
            ran = others.pop("ran", None)
            if not others and isinstance(ran, bool) is (parsed.kind == "resolution"):
                place = CallPlace(shard, index, invocation_id, statement.subject_sha256)
                return Administered(place, ran if isinstance(ran, bool) else None, note, key_id)
    raise DecodeError(f"not a statement of a call's {parsed.kind}", code="entry.malformed")


def check_by(
    use: Use, parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool
) -> tuple[PublicKey, Statement]:
    """Return the key that ``trust`` has for ``use``, and what it says in an entry.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    key_id, statement, sealed = _read_sealed(parsed)
    key = trust.key(use, key_id, at=at)
    if signatures:
        sealed.verify(key)
    return key, statement


def check_opening(said: Mapping[str, JSON], origin: str, shard: int) -> None:
    """Check that an opening entry's statement names this shard of this log."""
    number = said.get("shard")
    if said.get("origin") != origin or not is_integer(number) or number != shard:
        raise _mismatch("the opening entry belongs to another shard or log")


def read_heads(said: Mapping[str, JSON]) -> list[Checkpoint]:
    """Return the other shards' checkpoints that an opening entry's statement embeds.

    Their signatures are not looked at. Raises ``DecodeError``.
    """
    notes = said.get("heads")
    if not isinstance(notes, list):
        raise DecodeError("an opening entry without heads", code="entry.malformed")
    return [checkpoint.parse(str(note).encode()).checkpoint for note in notes]


def check_attachments(attachments: Sequence[Attachment], commitments: Commitments) -> None:
    """Check what stands beside an entry against what the entry commits to."""
    for role, stated, salt, data in attachments:
        if commitments.get(role) != stated:
            raise _mismatch(f"the {role} kept beside it are not what it commits to")
        # a salt of another length would leave open where the data begins
        if len(salt) != SALT_SIZE or commitment(salt, data) != stated:
            raise _mismatch(f"the {role} kept beside it were changed")


def check_checkpoint(
    note: bytes, trust: TrustDocument, origin: str
) -> tuple[Checkpoint, TrustedKey]:
    """Return a checkpoint of ``origin`` and the trusted log key that has signed it.

    Whether that key counted then is the caller's question. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    known = list(trust.keys_for("log"))
    point, key = checkpoint.verify_any(note, (trusted.key for trusted in known), origin=origin)
    return point, next(trusted for trusted in known if trusted.key == key)


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="statement.mismatch")
