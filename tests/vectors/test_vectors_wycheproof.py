"""C2SP/wycheproof: Ed25519 signatures, and JOSE tokens with keys of every kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity import jwa
from agentguard.identity.jwks import KeySet, parse_jwks
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_decode, loads_object
from agentguard.signing.keys import Ed25519Signer, PublicKey


def groups(vectors: Path, name: str) -> list[dict[str, Any]]:
    document = json.loads((vectors / "wycheproof" / f"{name}.json").read_text())
    found: list[dict[str, Any]] = document["testGroups"]
    assert sum(len(group["tests"]) for group in found) == document["numberOfTests"]
    return found


def test_ed25519_151_of_151(vectors: Path) -> None:
    results: Counter[str] = Counter()
    for group in groups(vectors, "ed25519_test"):
        key = PublicKey(bytes.fromhex(group["publicKey"]["pk"]))
        assert PublicKey.from_jwk(group["publicKeyJwk"]) == key
        for case in group["tests"]:
            try:
                key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
                result = "valid"
            except VerificationError as error:
                result = {"signature.invalid": "invalid"}[error.code]
            assert result == case["result"], (case["tcId"], case["comment"])
            results[result] += 1

    assert results.total() == 151
    assert min(results["valid"], results["invalid"]) > 0


@pytest.mark.parametrize(
    ("name", "count"),
    [("wycheproof_json_web_signature_test", 401), ("wycheproof_json_web_crypto_test", 83)],
)
def test_no_jose_token_gets_as_far_as_its_signature(
    vectors: Path, signer: Ed25519Signer, name: str, count: int
) -> None:
    codes: Counter[str] = Counter()
    for group in groups(vectors, name):
        for case in group["tests"]:
            token = case["jws"] if "jws" in case else case["jwe"]
            text = token if isinstance(token, str) else json.dumps(token)
            with pytest.raises(AgentguardError) as refused:
                jws.verify(text, signer.public_key, typ=None)
            codes[refused.value.code] += 1

    assert codes.total() == count
    # For the right reason: never because this key happens not to be the token's.
    assert codes.keys() <= {
        "jws.algorithm",
        "jws.malformed",
        "jws.header",
        "base64.malformed",
        "json.malformed",
    }
    assert codes["jws.algorithm"] > 0


def test_tokens_with_outside_keys_are_verified_as_the_vectors_say(vectors: Path) -> None:
    """Those with RSA keys and curves. Four keys say another ``alg`` than their tokens have."""
    results: Counter[str] = Counter()
    for group in groups(vectors, "wycheproof_json_web_signature_test"):
        jwk = group.get("public")
        if jwk is None or jwk["kty"] not in ("RSA", "EC"):
            continue
        keys = parse_jwks(json.dumps({"keys": [jwk]}).encode())
        for case in group["tests"]:
            accepted = isinstance(case["jws"], str) and is_signed(case["jws"], keys)
            if case["result"] == "valid" and jwk.get("alg") not in (None, alg_of(case["jws"])):
                results["other alg"] += 1
                assert not accepted
                continue
            assert accepted == (case["result"] == "valid"), (case["tcId"], case["comment"])
            results[case["result"]] += 1

    assert min(results["valid"], results["invalid"]) > 20
    assert results["other alg"] == 4


def alg_of(token: str) -> object:
    return loads_object(b64url_decode(token.split(".", maxsplit=1)[0]))["alg"]


def is_signed(token: str, keys: KeySet) -> bool:
    try:
        header, payload, signature = token.split(".")
        members = loads_object(b64url_decode(header))
        name, kid = members["alg"], members.get("kid")
        assert isinstance(name, str)
        assert kid is None or isinstance(kid, str)
        (candidate,) = keys.candidates(kid, name, jwa.ALGORITHMS[name])
        data = f"{header}.{payload}".encode()
        b64url_decode(payload)
        jwa.verify(jwa.ALGORITHMS[name], candidate.key, b64url_decode(signature), data)
    except (AgentguardError, ValueError, LookupError):
        return False
    return True
