"""Checks of single statements in the log, for the verifier of a log and the verifier of evidence.

Each function checks one statement against the keys, the credential and the digests that the
statement names. ``calls.py`` reads authorizations and outcomes, and ``approval_checks.py`` checks
the answers of people. ``contents.py`` checks the order of entries, ``evidence.py`` the proof of a
call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentguard.audit import checkpoint
from agentguard.audit.calls import Authorization, Commitments, Outcome
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, CallPlace, Entry, parse_time
from agentguard.call.invocation import REFUSED_CHAIN, SALT_SIZE, call_digest, commitment
from agentguard.delegation import verification
from agentguard.delegation.chain import Chain, hops_digest
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.principal import require_principal
from agentguard.identity.trust import TrustDocument, TrustedKey, Use
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.dsse import Envelope, Statement
from agentguard.signing.keys import PublicKey


@dataclass(frozen=True, slots=True)
class AdminStatement:
    """The content of a resolution or an erasure of a call, and the id of the admin key.

    ``ran`` states whether the call ran, in a resolution; in an erasure ``ran`` is None.
    """

    call: CallPlace
    ran: bool | None
    note: str
    key_id: str

    def is_of(self, shard: int, index: int, call: Authorization) -> bool:
        """Return whether the statement is about the call at this place."""
        place = (shard, index, call.invocation_sha256)
        return place == (self.call.shard, self.call.index, self.call.invocation_sha256)


class Credentials:
    """The verified credentials of agent instances, in the order of a log."""

    def __init__(self) -> None:
        self._by_agent: dict[str, list[Credential]] = {}

    def add(self, issued: Credential) -> None:
        """Add a credential that is newer than those before."""
        self._by_agent.setdefault(issued.uri, []).append(issued)

    def of_call(self, call: Authorization, at: int) -> Credential:
        """Return the credential of the instance that made a call; the call was logged ``at``.

        The credential must be valid at that time. A refusal may also be signed after the last
        credential expired. Raises ``VerificationError``.
        """
        credentials = self._by_agent.get(call.agent)
        if not credentials:
            raise _mismatch(f"no credential of the agent {call.agent} stands before")
        for issued in reversed(credentials):
            if not call.allowed or issued.issued_at <= at < issued.expires_at:
                return issued
        raise _mismatch(f"no credential of {call.agent} was valid then")

    def holder(self, envelope: Envelope) -> Credential:
        """Return the newest credential of the key that an envelope names, valid or expired.

        Raises ``VerificationError``.
        """
        key_ids = envelope.key_ids
        for credentials in self._by_agent.values():
            if credentials[-1].key.thumbprint in key_ids:
                return credentials[-1]
        raise _mismatch("no credential of a statement's signer stands before")


def check_call(
    call: Authorization,
    issued: Credential,
    chain: Chain | None,
    trust: TrustDocument,
    at: int,
    *,
    signatures: bool = True,
) -> Chain | None:
    """Check that the instance signed the call, may act for the principal, and gives the digest.

    ``chain`` is the verified chain that the call names, and ``at`` the time when the call was
    logged. A refusal whose signer failed (``signature.failed``) is unsigned. Returns the verified
    chain of a delegation that was refused. Raises ``DecodeError`` or ``VerificationError``.
    """
    if signatures and must_be_signed(call):
        call.envelope.verify(issued.key)
    name = issued.profile.name
    refused = None
    if chain is None:
        may_run = call.allowed
        refused = check_without_chain(call.predicate, name, trust, at, may_run=may_run)
    else:
        if REFUSED_CHAIN in call.predicate:
            raise _mismatch("a call is under a chain, and under a delegation that was refused")
        chain.check(at)
        problem = chain.mismatch(call.principal, call.agent, call.predicate.get("task_id"))
        if problem is not None:
            raise _mismatch(problem)
    try:
        digest = call_digest(name, call.predicate, chain.actors if chain is not None else ())
    except (KeyError, TypeError) as error:
        raise DecodeError("an invocation lacks what its digest is made of") from error
    if digest != call.call_sha256:
        raise _mismatch("an invocation does not have its call digest")
    return refused


def check_without_chain(
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
            raise _mismatch("an agent acts for a principal that no chain names")
        return None
    if may_run:
        raise _mismatch("a call that may run is under a delegation that was refused")
    members = predicate[REFUSED_CHAIN]
    if members is None:
        require_principal(principal, "principal", VerificationError)
        return None
    if not isinstance(members, dict):
        raise DecodeError("a delegation that was refused is a chain", code="entry.malformed")
    refused = verification.from_json(members, trust, at=at, may_have_ended=True)
    if refused.principal != principal:
        raise _mismatch("the delegation that was refused is of another principal")
    return refused


def must_be_signed(call: Authorization) -> bool:
    """Return false for a refusal without a signature whose reason is that the signer failed."""
    return call.signed or call.allowed or call.code != "signature.failed"


def is_replay(authorization: Entry) -> bool:
    """Return whether a call gets the result of an earlier one: no delegation counts such a call."""
    return "replay_of" in authorization.members


def check_outcome(
    outcome: Outcome, shard: int, index: int, invocation_id: str | None, *, is_replay: bool
) -> None:
    """Check that an outcome names no other place of the authorization than this, and no other call.

    A call that ``is_replay`` has not run. Raises ``VerificationError``.
    """
    if is_replay and outcome.status != "not_run":
        raise _mismatch("a call that repeats an earlier one, and was not counted, has run")
    if outcome.invocation_id not in (None, invocation_id):
        raise _mismatch("an outcome names another call than the one that it is of")
    place = outcome.predicate.get("authorization")
    members = place if isinstance(place, dict) else {}
    is_same = members == {"shard": shard, "index": index}
    if place is not None and not (is_same and all(map(is_integer, members.values()))):  # True == 1
        raise _mismatch("an outcome names another place for its authorization")


def check_delegation(entry: Entry, trust: TrustDocument, at: int) -> Chain:
    """Return the chain in a delegation entry, verified as of ``at``.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    members = entry.members["chain"]
    if not isinstance(members, dict):
        raise DecodeError("a delegation entry keeps a chain", code="entry.malformed")
    return verification.from_json(members, trust, at=at)


def chain_tokens(entry: Entry) -> tuple[list[str], list[str]]:
    """Return the hops and the credentials in a delegation entry, unverified."""
    return tokens_of_chain(entry.members["chain"])


def tokens_of_chain(members: JSON) -> tuple[list[str], list[str]]:
    """Return the hops and the credentials in the members of a chain, unverified."""
    match members:
        case {"hops": [*hops], "credentials": [*credentials]}:
            return list(map(str, hops)), list(map(str, credentials))
    return [], []


def chain_digest(entry: Entry) -> str:
    """Return the digest of the chain in a delegation entry, unverified."""
    return hops_digest(chain_tokens(entry)[0])


def policy_mode(entry: Entry) -> str:
    """Return the policy's mode (enforce, observe) in a config entry's configuration."""
    match entry.members["config"]:
        case {"policy": {"mode": str(mode)}}:
            return mode
    return "enforce"


def check_config(entry: Entry) -> str:
    """Return the digest in a config entry, after a check against the configuration."""
    digest = str(entry.members["config_sha256"])
    if canonical.digest(entry.members["config"]) != digest:
        raise _mismatch("the configuration does not have its digest")
    return digest


def read_statement(entry: Entry) -> tuple[str, Statement]:
    """Return the key id and the statement that an entry embeds, unverified.

    Raises ``DecodeError``, and ``VerificationError`` (``signature.missing``) without a signature.
    """
    key_id, statement, _envelope = _read_envelope(entry)
    return key_id, statement


def _read_envelope(entry: Entry) -> tuple[str, Statement, Envelope]:
    envelope = Envelope.parse(entry.members["statement"])
    if not envelope.signatures:
        message = f"the {entry.kind} entry is not signed"
        raise VerificationError(message, code="signature.missing")
    statement = dsse.parse_statement(envelope.payload, entry.kind)
    return envelope.signatures[0][0], statement, envelope


def check_issued(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> tuple[PublicKey, Mapping[str, JSON]]:
    """Return the issuer's key and the predicate of an entry that the issuer signs."""
    key, statement = check_signed_by("issuer", entry, trust, at, signatures=signatures)
    return key, statement.predicate


def check_revocation(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> str:
    """Return the name in a revocation; raises ``DecodeError`` or ``VerificationError``."""
    _key, statement = check_signed_by("admin", entry, trust, at, signatures=signatures)
    match statement.predicate:
        case {"name": str(name), "note": str(), **others} if not others:
            if statement.subject_sha256 == canonical.sha256_hex(name.encode()):
                return name
    raise DecodeError("not a statement of a revocation", code="entry.malformed")


def check_freeze(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> tuple[int, bool]:
    """Return the number of a freeze or thaw, and true for a freeze.

    Raises as ``check_revocation`` does.
    """
    _key, statement = check_signed_by("admin", entry, trust, at, signatures=signatures)
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


def check_admin_statement(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> AdminStatement:
    """Return the administrator's statement in a resolution or an erasure.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    check_signed_by("admin", entry, trust, at, signatures=signatures)
    return read_admin_statement(entry)


def is_valid_admin_statement(entry: Entry, trust: TrustDocument, called_at: int) -> bool:
    """Return whether a resolution or an erasure of a call that was logged ``called_at`` verifies.

    The admin key must also count at the time of the call: an entry with an older time would revive
    a key that has ended.
    """
    try:
        check_admin_statement(entry, trust, max(parse_time(entry.at), called_at))
    except (DecodeError, VerificationError):
        return False
    return True


def read_admin_statement(entry: Entry) -> AdminStatement:
    """Read a resolution or an erasure, unverified; raises as ``read_statement`` does."""
    key_id, statement = read_statement(entry)
    match statement.predicate:
        case {
            "invocation_id": str(invocation_id),
            "authorization": {"shard": shard, "index": index},
            "note": str(note),
            **others,
        } if is_integer(shard) and is_integer(index):
            ran = others.pop("ran", None)
            if not others and isinstance(ran, bool) is (entry.kind == "resolution"):
                place = CallPlace(shard, index, invocation_id, statement.subject_sha256)
                return AdminStatement(place, ran if isinstance(ran, bool) else None, note, key_id)
    raise DecodeError(f"not a statement of a call's {entry.kind}", code="entry.malformed")


def check_signed_by(
    use: Use, entry: Entry, trust: TrustDocument, at: int, *, signatures: bool
) -> tuple[PublicKey, Statement]:
    """Return the key for ``use`` that has signed an entry's statement, and the statement.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    key_id, statement, envelope = _read_envelope(entry)
    key = trust.key(use, key_id, at=at)
    if signatures:
        envelope.verify(key)
    return key, statement


def check_opening(predicate: Mapping[str, JSON], origin: str, shard: int) -> None:
    """Check that the predicate of an opening entry names this shard of this log."""
    number = predicate.get("shard")
    if predicate.get("origin") != origin or not is_integer(number) or number != shard:
        raise _mismatch("the opening entry belongs to another shard or log")


def read_heads(predicate: Mapping[str, JSON]) -> list[Checkpoint]:
    """Return the checkpoints of other shards in the predicate of an opening entry, unverified.

    Raises ``DecodeError``.
    """
    notes = predicate.get("heads")
    if not isinstance(notes, list):
        raise DecodeError("an opening entry without heads", code="entry.malformed")
    return [checkpoint.parse(str(note).encode()).checkpoint for note in notes]


def check_attachments(attachments: Sequence[Attachment], commitments: Commitments) -> None:
    """Check the attachments of an entry against the entry's commitments."""
    for role, stated, salt, data in attachments:
        if commitments.get(role) != stated:
            verb = "are" if role == "arguments" else "is"
            raise _mismatch(f"the {role} kept beside the entry {verb} not what it commits to")
        # a salt of another length would move the boundary between salt and data
        if len(salt) != SALT_SIZE or commitment(salt, data) != stated:
            verb = "were" if role == "arguments" else "was"
            raise _mismatch(f"the {role} kept beside the entry {verb} changed")


def check_checkpoint(
    note: bytes, trust: TrustDocument, origin: str
) -> tuple[Checkpoint, TrustedKey]:
    """Return a checkpoint of ``origin`` and the log key of ``trust`` that has signed the note.

    The caller checks whether the key was valid at that time. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    log_keys = list(trust.keys_for("log"))
    point, key = checkpoint.verify_any(note, (trusted.key for trusted in log_keys), origin=origin)
    return point, next(trusted for trusted in log_keys if trusted.key == key)


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="statement.mismatch")
