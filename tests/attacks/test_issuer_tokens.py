"""Forged tokens of an outside issuer, each beside the token that the issuer has signed."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from jwt.algorithms import get_default_algorithms
from token_issuer import AUDIENCE, NOW, TokenIssuer, b64, public_jwk

from agentguard.errors import AgentguardError
from agentguard.identity import jwt
from agentguard.identity.jwa import ALGORITHMS
from agentguard.identity.jwks import parse_jwks

EVERY = frozenset(ALGORITHMS)


@pytest.fixture(scope="module", params=["ES256", "RS256", "EdDSA"])
def issuer(request) -> TokenIssuer:
    return TokenIssuer(alg=request.param)


@pytest.fixture(scope="module")
def mallory(issuer) -> TokenIssuer:
    """Somebody who has keys of the same kind, and says to be the issuer."""
    return TokenIssuer("mallory", alg=issuer.alg)


def verify(issuer: TokenIssuer, token: str, **rule: Any) -> jwt.VerifiedJwt:
    return jwt.verify(jwt.parse(token), parse_jwks(issuer.jwks()), issuer.rule(**rule), NOW)


def refused(issuer: TokenIssuer, token: str, **rule: Any) -> str:
    """Return the code of the refusal; the issuer's own token counts under the same rule."""
    assert verify(issuer, issuer.token(), **rule).id == "token-1"
    with pytest.raises(AgentguardError) as caught:
        verify(issuer, token, **rule)
    assert len(token) < 9 or token not in str(caught.value)
    return caught.value.code


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, ["ES256"]])
def test_a_token_without_a_signature_is_refused(issuer, alg):
    body = unsigned({"alg": alg, "kid": "first"}, issuer.claims())
    for token in (f"{body}.", f"{body}.{issuer.token().rpartition('.')[2]}"):
        assert refused(issuer, token, algorithms=EVERY) == "jwt.algorithm"
    assert refused(issuer, body) == "jwt.malformed"


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_no_shared_secret(issuer, alg):
    """The classic confusion: an HMAC whose secret is the public key, in any spelling."""
    public = issuer.key.public_key()
    formats = serialization.PublicFormat.SubjectPublicKeyInfo
    secrets = [
        public.public_bytes(encoding, formats)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    secrets += [json.dumps(issuer.keys[0]).encode(), b""]
    body = unsigned({"alg": alg, "kid": "first"}, issuer.claims())
    for secret in secrets:
        digest = hmac.new(secret, body.encode(), getattr(hashlib, f"sha{alg[2:]}")).digest()
        assert refused(issuer, f"{body}.{b64(digest)}", algorithms=EVERY) == "jwt.algorithm"


def test_an_algorithm_for_another_kind_of_key_is_refused(issuer):
    _, payload, signature = issuer.token().split(".")
    for alg in EVERY - {issuer.alg, "Ed25519"}:
        header = b64(json.dumps({"alg": alg, "kid": "first"}).encode())
        token = f"{header}.{payload}.{signature}"
        assert refused(issuer, token, algorithms=EVERY) in ("jwt.key", "jwt.signature")
        assert refused(issuer, token) == "jwt.algorithm"


def test_a_key_is_for_the_algorithm_that_the_issuer_names_alone():
    issuer = TokenIssuer(alg="RS256")
    other = TokenIssuer(alg="PS256")
    other.kid = "first"
    body = unsigned({"alg": "PS256", "kid": "first"}, issuer.claims())
    signature = get_default_algorithms()["PS256"].sign(body.encode(), issuer.key)
    token = f"{body}.{b64(signature)}"
    assert refused(issuer, token, algorithms=EVERY) == "jwt.key"
    del issuer.keys[0]["alg"]
    assert verify(issuer, token, algorithms=EVERY).id == "token-1"  # the twin


def test_a_token_of_another_issuer_is_refused(issuer, mallory):
    assert refused(issuer, mallory.token()) == "jwt.signature"
    assert refused(issuer, mallory.token({"kid": "other"})) == "jwt.key"
    assert refused(issuer, mallory.token({"kid": ""})) == "jwt.signature"


@pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_a_key_that_a_token_brings_is_not_followed(issuer, mallory, member):
    """The issuer's own token may have the member, which nobody reads."""
    values = {
        "jwk": public_jwk(issuer.alg, mallory.key, kid="first"),
        "x5c": ["MIIB"],
        "x5t": "AAAA",
    }
    header = {member: values.get(member, "https://mallory.example/keys.json")}
    assert verify(issuer, issuer.token(header)).id == "token-1"
    assert refused(issuer, mallory.token(header)) == "jwt.signature"
    assert refused(issuer, mallory.token({**header, "kid": "mine"})) == "jwt.key"


@pytest.mark.parametrize("kid", ["../../etc/passwd", "first\0", "' or '1'='1", "FIRST", "first "])
def test_the_identifier_of_a_key_is_compared_and_nothing_else(issuer, kid):
    assert refused(issuer, issuer.token({"kid": kid})) == "jwt.key"


@pytest.mark.parametrize(
    "header", [{"crit": ["exp"]}, {"b64": False}, {"zip": "DEF"}, {"enc": "x"}]
)
def test_an_extension_that_changes_what_is_signed_is_refused(issuer, header):
    members = json.dumps({"alg": issuer.alg, "kid": "first", **header}).encode()
    token = issuer.signed(members, json.dumps(issuer.claims()).encode())
    assert refused(issuer, token) == "jwt.header"


def test_a_member_that_is_there_twice_is_refused(issuer):
    """Two readers could read two values."""
    header, claims = f'{{"alg":"{issuer.alg}","kid":"first"', json.dumps(issuer.claims())[:-1]
    good = issuer.signed(f"{header}}}".encode(), f"{claims}}}".encode())
    assert verify(issuer, good).id == "token-1"
    for token in (
        issuer.signed(f'{header},"alg":"{issuer.alg}"}}'.encode(), f"{claims}}}".encode()),
        issuer.signed(f"{header}}}".encode(), f'{claims},"sub":"root"}}'.encode()),
        issuer.signed(f"{header}}}".encode(), f'{claims},"x":{{"a":1,"a":2}}}}'.encode()),
    ):
        assert refused(issuer, token) == "json.duplicate_key"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"[]", "json.not_object"),
        (b"", "json.malformed"),
        (b'{"exp":1e999}', "json.number"),
        (b'{"exp":NaN}', "json.number"),
        (b'{"exp":Infinity}', "json.number"),
        (b'{"a":"\xff"}', "json.utf8"),
        (b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", "json.depth"),
    ],
)
def test_claims_that_two_readers_could_read_differently_are_refused(issuer, payload, code):
    header = json.dumps({"alg": issuer.alg, "kid": "first"}).encode()
    assert refused(issuer, issuer.signed(header, payload)) == code


def test_a_token_of_another_form_is_refused(issuer):
    token = issuer.token()
    header, payload, signature = token.split(".")
    document = {"payload": payload, "protected": header, "signature": signature}
    for text, code in (
        ("", "jwt.malformed"),
        (f"{token}.", "jwt.malformed"),
        (f"{token}.{signature}", "jwt.malformed"),
        (f"{token}.a.b", "jwt.malformed"),
        (f" {token}", "base64.malformed"),
        (f"{token}\n", "base64.malformed"),
        (f"{token}=", "base64.malformed"),
        (f"Bearer {token}", "base64.malformed"),
        (token.replace(".", "é.", 1), "jwt.malformed"),
        (json.dumps(document), "jwt.malformed"),
        (f"{header}.{'A' * jwt.MAX_TOKEN}.{signature}", "jwt.malformed"),
    ):
        assert refused(issuer, text) == code
    for value in (None, 7, token.encode(), [token]):
        with pytest.raises(AgentguardError) as caught:
            jwt.parse(value)
        assert caught.value.code == "jwt.malformed"


def test_claims_are_not_compared_by_what_they_look_like(issuer):
    assert refused(issuer, issuer.token(aud=AUDIENCE.upper())) == "jwt.audience"
    assert refused(issuer, issuer.token(aud=[f" {AUDIENCE}"])) == "jwt.audience"
    assert verify(issuer, issuer.token(sub="Billing")).subject == "Billing"
    assert verify(issuer, issuer.token(sub="billing\u200b")).subject == "billing\u200b"


def test_a_token_that_counts_only_with_a_key_is_no_bearer_token(issuer):
    for cnf in ({"jkt": "x"}, {"x5t#S256": "x"}, {}):
        assert refused(issuer, issuer.token(cnf=cnf)) == "jwt.bound"
