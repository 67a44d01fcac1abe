"""The worked examples of RFC 8037, DSSE, C2SP signed-note, and WIMSE's draft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit import checkpoint
from agentguard.errors import KeyMaterialError, VerificationError
from agentguard.signing import jws
from agentguard.signing.canonical import b64_decode, b64url_decode
from agentguard.signing.dsse import pae
from agentguard.signing.keys import Ed25519Signer, PublicKey


def read(vectors: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((vectors / name).read_text())
    return document


def test_rfc_8037_the_token_is_made_and_verified(vectors: Path) -> None:
    example = read(vectors, "rfc8037.json")
    payload = example["payload"].encode()
    signer = Ed25519Signer.from_seed(b64url_decode(example["jwk"]["d"]))

    assert jws.sign(payload, signer, typ=None) == example["jws"]
    assert jws.verify(example["jws"], signer.public_key, typ=None).payload == payload


def test_rfc_8037_the_thumbprint(vectors: Path) -> None:
    example = read(vectors, "rfc8037.json")
    public = {name: value for name, value in example["jwk"].items() if name != "d"}

    assert PublicKey.from_jwk(public).thumbprint == example["thumbprint"]
    assert PublicKey.from_jwk(public).jwk() == public


def test_rfc_8037_the_private_jwk_is_refused(vectors: Path) -> None:
    with pytest.raises(KeyMaterialError) as refused:
        PublicKey.from_jwk(read(vectors, "rfc8037.json")["jwk"])
    assert refused.value.code == "key.private"


def test_dsse_the_pre_authentication_encoding(vectors: Path) -> None:
    example = read(vectors, "dsse.json")

    encoded = pae(example["payloadType"], example["payload"].encode())

    assert encoded == example["pae"].encode()


def test_signed_note_the_key_id_and_the_signature_over_the_text(vectors: Path) -> None:
    example = read(vectors, "signed_note.json")
    name, key_id, encoded = example["vkey"].split("+", 2)
    algorithm, raw = b64_decode(encoded)[:1], b64_decode(encoded)[1:]
    signed = b64_decode(example["signature_line"].rpartition(" ")[2])
    key = PublicKey(raw)

    assert algorithm == b"\x01"
    assert checkpoint.key_id(name, key).hex() == key_id
    assert signed[:4].hex() == key_id
    key.verify(signed[4:], example["text"].encode())
    with pytest.raises(VerificationError) as refused:
        key.verify(signed[4:], b"Another message.\n")
    assert refused.value.code == "signature.invalid"


def test_wimse_the_credential_is_signed_with_es256_and_refused(
    vectors: Path, signer: Ed25519Signer
) -> None:
    wit = (vectors / "wimse" / "wit.txt").read_text().strip()

    with pytest.raises(VerificationError) as refused:
        jws.verify(wit, signer.public_key, typ="wit+jwt")
    assert refused.value.code == "jws.algorithm"
