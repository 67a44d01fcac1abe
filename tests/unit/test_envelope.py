"""DSSE envelopes and in-toto Statements: what holds, and each way in which it stops holding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_encode
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer

SUBJECT = "ab" * 32
PREDICATE: dict[str, Any] = {"tool": {"name": "open_pr"}, "count": 3, "note": "é", "none": None}


def payload() -> bytes:
    return dsse.statement("invocation", SUBJECT, "call", PREDICATE)


def test_the_encoding_that_is_signed_counts_bytes() -> None:
    assert dsse.pae("té", b"\x00\xff") == b"DSSEv1 3 t\xc3\xa9 2 \x00\xff"
    assert dsse.pae("", b"") == b"DSSEv1 0  0 "
    # Moving a byte from one field to the other changes what is signed.
    assert dsse.pae("a", b" 1 b") != dsse.pae("a 1 b", b"")


def test_a_sealed_payload_is_returned_by_verify(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    sealed = dsse.seal(payload(), signer)

    assert sealed.verify(signer.public_key) == payload()
    assert sealed.payload_type == dsse.PAYLOAD_TYPE
    with pytest.raises(VerificationError) as refused:
        sealed.verify(stranger.public_key)
    assert refused.value.code == "signature.missing"


def test_an_envelope_round_trips_through_json(signer: Ed25519Signer) -> None:
    sealed = dsse.seal(payload(), signer)
    text = canonical.dumps({"embedded": sealed.as_json()})

    parsed = Envelope.parse(canonical.loads_object(text)["embedded"])

    assert parsed == sealed
    assert parsed.verify(signer.public_key) == payload()
    assert parsed.as_json() == sealed.as_json()
    assert sealed.as_json()["payload"] == b64_encode(payload())


def test_one_good_signature_of_several_suffices_and_only_its_own_key_sees_it(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    first, second = dsse.seal(payload(), signer), dsse.seal(payload(), stranger)
    both = Envelope(first.payload_type, payload(), first.signatures + second.signatures)
    swapped = Envelope(
        first.payload_type,
        payload(),
        ((signer.key_id, second.signatures[0][1]), (stranger.key_id, first.signatures[0][1])),
    )

    for key in (signer.public_key, stranger.public_key):
        assert both.verify(key) == payload()
        with pytest.raises(VerificationError) as refused:
            swapped.verify(key)
        assert refused.value.code == "signature.invalid"


def test_an_altered_envelope_does_not_verify(signer: Ed25519Signer) -> None:
    sealed = dsse.seal(payload(), signer)
    ((key_id, signature),) = sealed.signatures
    kind = sealed.payload_type

    for altered, code in (
        (Envelope(kind, payload() + b" ", sealed.signatures), "signature.invalid"),
        (Envelope(kind, payload()[:-1], sealed.signatures), "signature.invalid"),
        (Envelope(kind, payload(), ((key_id, signature[:-1]),)), "signature.invalid"),
        (Envelope(kind, payload(), ((key_id, b""),)), "signature.invalid"),
        (Envelope(kind, payload(), ((key_id, signature[::-1]),)), "signature.invalid"),
        (Envelope(kind, payload(), (("", signature),)), "signature.missing"),
        (Envelope(kind, payload(), ((key_id + "x", signature),)), "signature.missing"),
        (Envelope(kind, payload(), ()), "signature.missing"),
        (Envelope("text/plain", payload(), sealed.signatures), "dsse.type"),
    ):
        with pytest.raises(VerificationError) as refused:
            altered.verify(signer.public_key)
        assert refused.value.code == code


def test_the_payload_type_is_signed(signer: Ed25519Signer) -> None:
    signature = signer.sign(dsse.pae("text/plain", payload()))
    sealed = Envelope("text/plain", payload(), ((signer.key_id, signature),))
    assert dsse.seal(payload(), signer).verify(signer.public_key) == payload()

    renamed = Envelope(dsse.PAYLOAD_TYPE, payload(), sealed.signatures)
    with pytest.raises(VerificationError) as refused:
        renamed.verify(signer.public_key)
    assert refused.value.code == "signature.invalid"
    with pytest.raises(VerificationError) as refused:
        sealed.verify(signer.public_key)
    assert refused.value.code == "dsse.type"


def test_bare_bytes_signed_by_the_key_are_no_envelope(signer: Ed25519Signer) -> None:
    forged = Envelope(dsse.PAYLOAD_TYPE, payload(), ((signer.key_id, signer.sign(payload())),))
    with pytest.raises(VerificationError):
        forged.verify(signer.public_key)


def test_an_unsigned_envelope_is_kept_and_never_verifies(signer: Ed25519Signer) -> None:
    kept = dsse.unsigned(payload())

    assert Envelope.parse(canonical.loads(canonical.dumps(kept.as_json()))) == kept
    with pytest.raises(VerificationError) as refused:
        kept.verify(signer.public_key)
    assert refused.value.code == "signature.missing"


def change(*path: str | int, to: Any) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        *parents, last = path
        place = value
        for step in parents:
            place = place[step]
        place[last] = to
        return value

    return apply


def drop(*path: str | int) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        *parents, last = path
        place = value
        for step in parents:
            place = place[step]
        del place[last]
        return value

    return apply


@pytest.mark.parametrize(
    ("alter", "code"),
    [
        (lambda value: [value], "dsse.malformed"),
        (lambda value: None, "dsse.malformed"),
        (lambda value: "envelope", "dsse.malformed"),
        (lambda value: {}, "dsse.malformed"),
        (drop("payload"), "dsse.malformed"),
        (drop("payloadType"), "dsse.malformed"),
        (drop("signatures"), "dsse.malformed"),
        (drop("signatures", 0, "keyid"), "dsse.malformed"),
        (drop("signatures", 0, "sig"), "dsse.malformed"),
        (change("extra", to=1), "dsse.malformed"),
        (change("signatures", 0, "extra", to=1), "dsse.malformed"),
        (change("payload", to=5), "dsse.malformed"),
        (change("payloadType", to=None), "dsse.malformed"),
        (change("signatures", to={}), "dsse.malformed"),
        (change("signatures", to="x"), "dsse.malformed"),
        (change("signatures", 0, to="x"), "dsse.malformed"),
        (change("signatures", 0, "keyid", to=None), "dsse.malformed"),
        (change("signatures", 0, "sig", to=5), "dsse.malformed"),
        (lambda v: {**v, "signatures": v["signatures"] * 2}, "dsse.malformed"),
        (change("payload", to="AB=="), "base64.malformed"),
        (change("payload", to="AA"), "base64.malformed"),
        (change("payload", to="AA==\n"), "base64.malformed"),
        (change("payload", to="-_8="), "base64.malformed"),
        (change("signatures", 0, "sig", to="AB=="), "base64.malformed"),
    ],
)
def test_an_envelope_is_parsed_strictly(
    signer: Ed25519Signer, alter: Callable[[Any], Any], code: str
) -> None:
    Envelope.parse(dsse.seal(payload(), signer).as_json())

    altered = alter(dsse.seal(payload(), signer).as_json())

    with pytest.raises(DecodeError) as refused:
        Envelope.parse(altered)
    assert refused.value.code == code


def test_a_statement_is_canonical_in_toto() -> None:
    assert json.loads(payload()) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "call", "digest": {"sha256": SUBJECT}}],
        "predicateType": "urn:agentguard:invocation:v1",
        "predicate": PREDICATE,
    }
    assert canonical.dumps(json.loads(payload())) == payload()


def test_a_statement_round_trips() -> None:
    statement = dsse.parse_statement(payload(), "invocation")

    assert statement.subject_sha256 == SUBJECT
    assert statement.predicate == PREDICATE


def test_a_statement_can_embed_what_is_already_encoded() -> None:
    embedded = {**PREDICATE, "tool": canonical.Fragment(canonical.dumps(PREDICATE["tool"]))}
    assert dsse.statement("invocation", SUBJECT, "call", embedded) == payload()


def test_a_statement_without_a_canonical_form_is_not_made() -> None:
    with pytest.raises(EncodeError):
        dsse.statement("invocation", SUBJECT, "call", {"x": 2**60})


@pytest.mark.parametrize("kind", ["approval", "invocation:v2", "", "Invocation"])
def test_a_statement_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(DecodeError) as refused:
        dsse.parse_statement(payload(), kind)
    assert refused.value.code == "statement.malformed"


@pytest.mark.parametrize(
    "alter",
    [
        drop("_type"),
        drop("subject"),
        drop("predicate"),
        drop("predicateType"),
        drop("subject", 0, "name"),
        change("_type", to="https://in-toto.io/Statement/v0.1"),
        change("predicateType", to="urn:agentguard:invocation:v2"),
        change("predicate", to=[]),
        change("subject", to=[]),
        change("subject", to={}),
        change("subject", 0, "name", to=None),
        change("subject", 0, "digest", "sha256", to="ab" * 31),
        change("subject", 0, "digest", "sha256", to="AB" * 32),
        change("subject", 0, "digest", "sha256", to="ab" * 32 + "\n"),
        change("subject", 0, "digest", "sha512", to="ab" * 64),
        change("subject", 0, "uri", to="x"),
        change("extra", to=1),
        lambda value: {**value, "subject": value["subject"] * 2},
    ],
)
def test_a_statement_of_another_form_is_refused(alter: Callable[[Any], Any]) -> None:
    dsse.parse_statement(payload(), "invocation")

    with pytest.raises(DecodeError) as refused:
        dsse.parse_statement(canonical.dumps(alter(json.loads(payload()))), "invocation")
    assert refused.value.code == "statement.malformed"


def test_another_spelling_of_a_statement_is_refused() -> None:
    value = json.loads(payload())
    for spelt in (
        json.dumps(value).encode(),
        json.dumps(value, separators=(",", ":")).encode(),
        payload() + b"\n",
        b" " + payload(),
        payload().replace("é".encode(), b"\\u00e9"),
        payload().replace(b'"count":3', b'"count":3.0'),
    ):
        assert json.loads(spelt) == value
        with pytest.raises(DecodeError) as refused:
            dsse.parse_statement(spelt, "invocation")
        assert refused.value.code == "json.not_canonical"
    with pytest.raises(DecodeError) as refused:
        dsse.parse_statement(payload().replace(b'"count":3', b'"count":3,"count":3'), "x")
    assert refused.value.code == "json.duplicate_key"
