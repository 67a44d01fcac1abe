"""No change of a token of an outside issuer is accepted, whatever byte or claim it is in."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_issuer import NOW, TokenIssuer, b64

from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt
from agentguard.identity.jwks import parse_jwks

ALGORITHMS = ["ES256", "ES512", "RS256", "PS256", "EdDSA"]


@cache
def issued(alg):
    """Return a token, the issuer's keys and the rule."""
    issuer = TokenIssuer("mutated", alg=alg)
    return issuer.token(), parse_jwks(issuer.jwks()), issuer.rule()


def require_refused(alg, token):
    _token, keys, rule = issued(alg)
    with pytest.raises((DecodeError, VerificationError)):
        jwt.verify(jwt.parse(token), keys, rule, NOW)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_the_token_itself_is_accepted(alg):
    token, keys, rule = issued(alg)
    assert jwt.verify(jwt.parse(token), keys, rule, NOW).id == "token-1"


@given(st.sampled_from(ALGORITHMS), st.data())
def test_a_token_with_another_byte_is_refused(alg, data):
    token = issued(alg)[0]
    place = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: chr(value) != token[place]))
    require_refused(alg, token[:place] + chr(byte) + token[place + 1 :])


@given(st.sampled_from(ALGORITHMS), st.data())
def test_a_token_without_some_bytes_or_with_more_is_refused(alg, data):
    token = issued(alg)[0]
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, len(token)))
    put = data.draw(st.text("AQgw._-=", max_size=4).filter(lambda text: text != token[start:end]))
    require_refused(alg, token[:start] + put + token[end:])


@given(st.sampled_from(ALGORITHMS), st.binary(max_size=140))
def test_another_signature_is_refused(alg, signature):
    body = issued(alg)[0].rpartition(".")[0]
    require_refused(alg, f"{body}.{b64(signature)}")


@given(st.binary(max_size=300))
def test_any_key_set_is_parsed_or_refused(data):
    with suppress(DecodeError):
        parse_jwks(data)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


TEXTS = st.sampled_from(["EC", "RSA", "OKP", "P-256", "Ed25519", "sig", "AQAB"])
MEMBERS = ("kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops")
CLAIMS = ("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf")


def objects(names, values):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, values))


@given(objects(MEMBERS, JSONS | TEXTS))
def test_any_key_is_parsed_or_refused(jwk):
    with suppress(DecodeError):
        parse_jwks(json.dumps({"keys": [jwk]}).encode())


@given(objects(CLAIMS, JSONS))
def test_any_claims_are_verified_or_refused(claims):
    issuer = TokenIssuer("mutated", alg="ES256")
    _token, keys, rule = issued("ES256")
    token = issuer.signed(
        b'{"alg":"ES256","kid":"first"}', json.dumps({**issuer.claims(), **claims}).encode()
    )
    try:
        verified = jwt.verify(jwt.parse(token), keys, rule, NOW)
    except (DecodeError, VerificationError):
        return
    assert verified.claims["iss"] == issuer.issuer
    assert verified.expires_at > NOW
