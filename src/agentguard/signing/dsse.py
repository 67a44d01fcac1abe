"""DSSE envelopes (v1) and the in-toto Statements (v1) inside them.

Agents, people and the issuer sign in this form what the log keeps. The module of each kind builds
its predicate (``call/invocation.py``, ``audit/entry.py``). An agent instance signs several of its
statements at once with a *joint signature*: one small Statement, whose subjects are the digests of
their payloads (records.md, "Joint signatures"). ``jws.py`` signs tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from agentguard.errors import DecodeError, VerificationError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64_decode, b64_encode
from agentguard.signing.keys import PublicKey, Signer

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
"""The DSSE payload type of an in-toto Statement."""

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
"""The ``_type`` of an in-toto Statement, version 1."""

_ENVELOPE: Final = frozenset({"payload", "payloadType", "signatures"})
_SIGNATURE: Final = frozenset({"keyid", "sig"})
_JOINT_ENVELOPE: Final = _ENVELOPE | {"joint"}
_JOINT: Final = _SIGNATURE | {"subjects"}

MAX_SUBJECTS: Final = 64
"""The most statements that one joint signature covers."""


class JointSignature(NamedTuple):
    """The signature of several statements: key id, 64 raw bytes, and the payloads' SHA-256 (hex).

    The signed bytes are those of ``joint_statement(subjects)``.
    """

    key_id: str
    signature: bytes
    subjects: tuple[str, ...]


class Envelope(NamedTuple):
    """A DSSE envelope; ``signatures`` are pairs of a key id (thumbprint) and 64 raw bytes.

    An envelope with a ``joint`` signature has no other.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...] = ()
    joint: JointSignature | None = None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys that the signatures name; none for an unsigned envelope."""
        if self.joint is not None:
            return (self.joint.key_id,)
        return tuple([key_id for key_id, _signature in self.signatures])

    def as_json(self) -> dict[str, JSON]:
        """Return the envelope in its JSON form (DSSE, "Envelope"), with ``joint`` if it has one."""
        members: dict[str, JSON] = {
            "payload": b64_encode(self.payload),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": k, "sig": b64_encode(s)} for k, s in self.signatures],
        }
        if self.joint is not None:
            key_id, signature, subjects = self.joint
            sig = b64_encode(signature)
            members["joint"] = {"keyid": key_id, "sig": sig, "subjects": list(subjects)}
        return members

    @classmethod
    def parse(cls, value: JSON, *, may_be_joint: bool = False) -> Envelope:
        """Decode the JSON form, with exactly its members and standard base64.

        ``may_be_joint`` says that the envelope may have a joint signature in place of others.
        Raises ``DecodeError``: ``dsse.malformed``, also for two signatures with one key id;
        ``base64.malformed``.
        """
        # `match` is slow for mappings, and a log has many envelopes
        if not isinstance(value, dict):
            raise _malformed("expected an object")
        joint: JointSignature | None = None
        if may_be_joint and value.keys() == _JOINT_ENVELOPE and value["signatures"] == []:
            joint = _parse_joint(value["joint"])
        elif value.keys() != _ENVELOPE:
            raise _malformed("expected payload, payloadType and signatures, and no more")
        payload, kind, items = value["payload"], value["payloadType"], value["signatures"]
        if not (isinstance(payload, str) and isinstance(kind, str) and isinstance(items, list)):
            raise _malformed("payload and payloadType are text, and signatures a list")
        signatures = tuple(map(_parse_signature, items))
        if len(signatures) > 1 and len(dict(signatures)) != len(signatures):
            raise _malformed("two signatures name the same key")
        return cls(kind, b64_decode(payload), signatures, joint)

    def verify(self, key: PublicKey) -> bytes:
        """Verify the envelope's signature by ``key`` and the payload's type; return the payload.

        Raises ``VerificationError``: ``dsse.type``, ``signature.missing`` if no signature of this
        payload names the key, ``signature.invalid``. DSSE, "Protocol".
        """
        signature, message = self.signed(key)
        key.verify(signature, message)
        return self.payload

    def signed(self, key: PublicKey) -> tuple[bytes, bytes]:
        """Return the signature by ``key``, not verified, and the bytes that ``key`` has signed.

        Raises ``VerificationError``: ``dsse.type``, ``signature.missing``.
        """
        if self.payload_type != PAYLOAD_TYPE:
            raise VerificationError(
                f"expected a payload of the type {PAYLOAD_TYPE}", code="dsse.type"
            )
        if self.joint is not None:
            key_id, signature, subjects = self.joint
            if key_id == key.thumbprint and canonical.sha256_hex(self.payload) in subjects:
                return signature, pae(PAYLOAD_TYPE, joint_statement(subjects))
        for key_id, signature in self.signatures:
            if key_id == key.thumbprint:
                return signature, pae(self.payload_type, self.payload)
        raise VerificationError(
            f"no signature of the envelope is by the key {key.thumbprint}",
            code="signature.missing",
        )


class Statement(NamedTuple):
    """An in-toto Statement of agentguard; ``subject_sha256`` is in hex."""

    subject_sha256: str
    predicate: Mapping[str, JSON]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding, the bytes that are signed (DSSE, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, signer: Signer) -> Envelope:
    """Return a Statement in an envelope that ``signer`` has signed."""
    signature = signer.sign(pae(PAYLOAD_TYPE, payload))
    return Envelope(PAYLOAD_TYPE, payload, ((signer.key_id, signature),))


def sign_jointly(subjects: Sequence[str], signer: Signer) -> JointSignature:
    """Return the signature by ``signer`` of the statements whose payloads have these SHA-256 (hex).

    Put it into the envelope of each of them: ``Envelope(PAYLOAD_TYPE, payload, joint=...)``. There
    are 2 to ``MAX_SUBJECTS`` subjects, none twice.
    """
    signature = signer.sign(pae(PAYLOAD_TYPE, joint_statement(subjects)))
    return JointSignature(signer.key_id, signature, tuple(subjects))


def joint_statement(subjects: Sequence[str]) -> bytes:
    """Return the canonical bytes of the Statement that stands for statements of these digests."""
    members = {
        "_type": STATEMENT_TYPE,
        "predicate": {},
        "predicateType": predicate_type("joint"),
        "subject": [{"digest": {"sha256": sha256}} for sha256 in subjects],
    }
    return canonical.dumps_record(members)


def unsigned(payload: bytes) -> Envelope:
    """Return a Statement's envelope without signatures, for a refusal whose signer failed.

    Such an envelope never verifies.
    """
    return Envelope(PAYLOAD_TYPE, payload)


def predicate_type(kind: str) -> str:
    """Return the ``predicateType`` of a kind of statement: ``urn:agentguard:<kind>:v1``."""
    return f"urn:agentguard:{kind}:v1"


def statement(
    kind: str, subject_sha256: str, subject_name: str, predicate: Mapping[str, object]
) -> bytes:
    """Return the canonical bytes of an in-toto Statement v1 with one subject.

    ``predicate`` must meet the conditions of ``canonical.dumps_record``. Raises ``EncodeError``.
    """
    return canonical.dumps_record(_members(kind, subject_sha256, subject_name, predicate))


def parse_statement(payload: bytes, kind: str) -> Statement:
    """Decode a Statement of one kind, in exactly the bytes that ``statement`` returns.

    Raises ``DecodeError``: ``json.*`` (``json.not_canonical`` for other bytes), or
    ``statement.malformed`` for another kind or form.
    """
    value: Any = canonical.loads_canonical(payload)
    try:
        predicate, subject = value["predicate"], value["subject"][0]
        sha256, name = subject["digest"]["sha256"], subject["name"]
    except (LookupError, TypeError):
        raise _other_statement(kind) from None
    if not (
        isinstance(predicate, dict) and canonical.is_sha256(sha256) and isinstance(name, str)
    ) or value != _members(kind, sha256, name, predicate):
        raise _other_statement(kind)
    return Statement(sha256, predicate)


def _members(
    kind: str, subject_sha256: str, subject_name: str, predicate: Mapping[str, object]
) -> dict[str, object]:
    return {
        "_type": STATEMENT_TYPE,
        "predicate": predicate,
        "predicateType": predicate_type(kind),
        "subject": [{"digest": {"sha256": subject_sha256}, "name": subject_name}],
    }


def _parse_signature(value: JSON) -> tuple[str, bytes]:
    if isinstance(value, dict) and value.keys() == _SIGNATURE:
        key_id, signature = value["keyid"], value["sig"]
        if isinstance(key_id, str) and isinstance(signature, str):
            return key_id, b64_decode(signature)
    raise _malformed("a signature has keyid and sig, and no more")


def _parse_joint(value: JSON) -> JointSignature:
    if isinstance(value, dict) and value.keys() == _JOINT:
        subjects = value["subjects"]
        key_id, signature = _parse_signature({"keyid": value["keyid"], "sig": value["sig"]})
        if isinstance(subjects, list) and 1 < len(subjects) <= MAX_SUBJECTS:
            digests = tuple([one for one in subjects if canonical.is_sha256(one)])
            if len(set(digests)) == len(subjects):
                return JointSignature(key_id, signature, digests)
    message = f"a joint signature has keyid, sig and 2 to {MAX_SUBJECTS} subjects, none twice"
    raise _malformed(message)


def _other_statement(kind: str) -> DecodeError:
    return DecodeError(
        f"not an in-toto Statement of the kind {predicate_type(kind)}", code="statement.malformed"
    )


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a DSSE envelope: {problem}", code="dsse.malformed")
