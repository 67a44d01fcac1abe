"""DPoP proofs of other people's clients (RFC 9449), as PyJWT makes them."""

from __future__ import annotations

import json
import os
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agentguard.errors import AgentguardError
from agentguard.proof import dpop
from agentguard.proof.dpop import token_hash
from agentguard.proof.target import Target
from agentguard.signing.keys import PublicKey

NOW = 1_800_000_000
TARGET = Target.parse("https://payments.example/pay")
TOKEN = "a.b.c"
P256, ED25519 = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()


def jwk_of(key: Any) -> dict[str, Any]:
    """Return the key as a JWK. No access token is bound to a key on P-256."""
    algorithm = jwt.algorithms.ECAlgorithm if key is P256 else jwt.algorithms.OKPAlgorithm
    jwk: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return jwk


def proof(key: Any = ED25519, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a proof with these members of the header and claims; None takes one away."""
    made = {
        "jti": os.urandom(16).hex(),
        "htm": "POST",
        "htu": TARGET.uri,
        "iat": NOW,
        "ath": token_hash(TOKEN),
        **claims,
    }
    named = {"typ": "dpop+jwt", "jwk": jwk_of(key), **(header or {})}
    algorithm = "ES256" if key is P256 else "EdDSA"
    return jwt.encode({k: v for k, v in made.items() if v is not None}, key, algorithm, named)


def verified(token: str, **more: Any) -> dpop.DpopProof:
    return dpop.verify(token, "POST", TARGET, access_token=TOKEN, at=NOW, **more)


def refused(token: str) -> str:
    with pytest.raises(AgentguardError) as caught:
        verified(token)
    return caught.value.code


def test_a_proof_is_verified_under_its_own_key():
    found = verified(proof(extra="ignored"))
    assert found.expires_at == NOW + dpop.WINDOW
    assert found.thumbprint == PublicKey(ED25519.public_key().public_bytes_raw()).thumbprint


def test_a_tampered_proof_is_refused():
    head, body, signature = proof().split(".")
    _head, other, _signature = proof().split(".")
    assert refused(f"{head}.{other}.{signature}") == "signature.invalid"
    assert refused(f"{head}.{body}.{'A' * len(signature)}") == "signature.invalid"
    assert refused(f"{head}.{body}.AAAA") in ("proof.malformed", "signature.invalid")
    assert refused(f"{head}.{body}.") in ("proof.malformed", "signature.invalid")
    assert refused(f"{head}.{body}") == "proof.malformed"
    assert refused("A" * 5000) == "proof.malformed"


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "jwt"},
        {"typ": "at+jwt"},
        {"jwk": None},
        {"jwk": {}},
        {"jwk": jwk_of(P256)},
        {"jwk": {**jwk_of(ED25519), "d": "AAAA"}},
        {"jwk": {**jwk_of(ED25519), "crv": "Ed448"}},
        {"jwk": {**jwk_of(ED25519), "x": "AAAA"}},
        {"jwk": {**jwk_of(ED25519), "x": 5}},
        {"jwk": {**jwk_of(ED25519), "alg": "ES256"}},
        {"crit": ["exp"]},
        {"jku": "https://evil.example"},
        {"kid": "x"},
    ],
)
def test_a_proof_with_another_header_is_refused(header):
    refused(proof(header=header))
    verified(proof())


def test_another_algorithm_is_refused():
    claims = {"jti": "j" * 22, "htm": "POST", "htu": TARGET.uri, "iat": NOW, "ath": "x"}
    assert refused(proof(P256)) == "proof.malformed"
    headers = {"typ": "dpop+jwt", "jwk": jwk_of(ED25519)}
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert refused(jwt.encode(claims, key, "RS256", headers)) == "proof.malformed"
    assert refused(jwt.encode(claims, "s" * 32, "HS256", headers)) == "proof.malformed"
    nothing: Any = None
    assert refused(jwt.encode(claims, nothing, "none", headers)) == "proof.malformed"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"htm": "GET"}, "proof.request"),
        ({"htm": "post"}, "proof.request"),
        ({"htu": "https://payments.example/other"}, "proof.audience"),
        ({"htu": "https://payments.example/pay?x=1"}, "proof.audience"),
        ({"htu": "https://payments.example/pay#x"}, "proof.malformed"),
        ({"ath": token_hash("other")}, "proof.token"),
        ({"ath": None}, "proof.malformed"),
        ({"iat": NOW - dpop.WINDOW}, "proof.expired"),
        ({"iat": NOW + dpop.WINDOW}, "proof.expired"),
        ({"iat": str(NOW)}, "proof.malformed"),
        ({"iat": None}, "proof.malformed"),
        ({"jti": None}, "proof.malformed"),
        ({"jti": "a b"}, "proof.malformed"),
    ],
)
def test_a_proof_of_another_request_is_refused(claims, code):
    assert refused(proof(**claims)) == code
    verified(proof(iat=NOW - dpop.WINDOW + 1))
    verified(proof(htu="https://payments.example:443/pay"))


def test_a_proof_for_a_request_without_a_token_names_none():
    without: dict[str, Any] = {"access_token": None, "at": NOW}
    assert dpop.verify(proof(ath=None), "POST", TARGET, **without).expires_at == NOW + dpop.WINDOW
    for ath in (token_hash(TOKEN), "", False):
        with pytest.raises(AgentguardError) as caught:
            dpop.verify(proof(ath=ath), "POST", TARGET, **without)
        assert caught.value.code == "proof.token"
