"""Key sets of issuers: which keys count, which are skipped, and which sets are refused."""

from __future__ import annotations

import json

import pytest
from token_issuer import private_key, public_jwk

from agentguard.errors import AgentguardError
from agentguard.identity.jwks import MAX_KEYS, parse_jwks, parse_spiffe_bundle
from agentguard.signing.canonical import b64_encode

EC, RSA = (
    public_jwk("ES256", private_key("ES256", "a")),
    public_jwk("RS256", private_key("RS256", "a")),
)


def keys_of(*jwks):
    return parse_jwks(json.dumps({"keys": list(jwks)}).encode()).keys


def svid_keys_of(document):
    return parse_spiffe_bundle(json.dumps(document).encode(), "acme.example").keys


def code_of(data, parse=parse_jwks):
    with pytest.raises(AgentguardError) as caught:
        parse(data if isinstance(data, bytes) else json.dumps(data).encode())
    return caught.value.code


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512", "RS256", "EdDSA"])
def test_the_keys_of_a_set(alg):
    jwk = public_jwk(alg, private_key(alg, "a"), kid="one", use="sig", x5t="ignored")
    (key,) = keys_of(jwk)
    assert (key.kid, key.kty, key.alg) == ("one", jwk["kty"], None)


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"use": "jwt-svid"},
        {"key_ops": ["encrypt"]},
        {"crv": "secp256k1"},
        {"crv": None},
        {"kty": "new"},
    ],
)
def test_a_key_for_something_else_is_skipped(members):
    jwk = {name: value for name, value in {**EC, **members}.items() if value is not None}
    (key,) = keys_of(jwk, RSA)
    assert key.kty == "RSA"


def test_a_bundle_of_spiffe_says_what_each_key_is_for():
    svid, x509 = {**EC, "use": "jwt-svid"}, {**EC, "use": "x509-svid", "x5c": ["MII"]}
    bundle = {"keys": [svid, x509, EC], "spiffe_sequence": 1, "spiffe_refresh_hint": 300}
    assert len(svid_keys_of(bundle)) == 1
    assert len(keys_of(svid, x509, EC)) == 1  # the one without a use


def test_bundles_of_spiffe_helper_have_a_key_set_for_each_trust_domain():
    mine, other = {**EC, "kid": "mine"}, {**RSA, "kid": "other"}
    sets = {
        domain: b64_encode(json.dumps({"keys": [jwk]}).encode())
        for domain, jwk in (("acme.example", mine), ("other.example", other))
    }
    assert [key.kid for key in svid_keys_of(sets)] == ["mine"]
    x509 = b64_encode(json.dumps({"keys": [{**EC, "use": "x509-svid"}]}).encode())
    assert svid_keys_of({"acme.example": x509}) == ()


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"other.example": b64_encode(b'{"keys": []}')}, "jwks.malformed"),
        ({"acme.example": {"keys": []}}, "base64.malformed"),
        ({"acme.example": "{}"}, "base64.malformed"),
        ({"acme.example": b64_encode(b"[]")}, "json.not_object"),
        ({"acme.example": b64_encode(b"{}")}, "jwks.malformed"),
        ({"acme.example": b64_encode(b'{"keys": [{"k": "AA"}]}')}, "jwks.private"),
        ({"keys": {}, "acme.example": b64_encode(b'{"keys": []}')}, "jwks.malformed"),
    ],
)
def test_a_bundle_of_another_form_is_refused(document, code):
    assert code_of(document, lambda data: parse_spiffe_bundle(data, "acme.example")) == code


@pytest.mark.parametrize(("bits", "count"), [(1024, 0), (2048, 1)])
def test_a_short_rsa_key_is_skipped(bits, count):
    assert len(keys_of(public_jwk("RS256", private_key("RS256", "short", bits)))) == count


def test_an_rsa_key_with_a_huge_exponent_is_skipped():
    assert keys_of({**RSA, "e": "AQAB" * 4}) == ()


@pytest.mark.parametrize("alg", ["ES256", "RS256", "EdDSA"])
def test_a_set_with_a_private_key_is_refused(alg):
    jwk = public_jwk(alg, private_key(alg, "a"))
    assert code_of({"keys": [RSA, {**jwk, "d": "AA"}]}) == "jwks.private"
    assert code_of({"keys": [{**jwk, "use": "enc", "d": "AA"}]}) == "jwks.private"
    assert len(keys_of(RSA, jwk)) == 2


def test_a_set_with_a_shared_secret_is_refused():
    assert code_of({"keys": [RSA, {"kty": "oct", "k": "c2VjcmV0"}]}) == "jwks.private"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json.malformed"),
        (b"[]", "json.not_object"),
        (b'{"keys": [], "keys": []}', "json.duplicate_key"),
        ({}, "jwks.malformed"),
        ({"keys": {}}, "jwks.malformed"),
        ({"keys": [1]}, "jwks.malformed"),
        ({"keys": [{"kty": "new"}] * (MAX_KEYS + 1)}, "jwks.malformed"),
        ({"keys": [{**EC, "kid": 7}]}, "jwks.malformed"),
        ({"keys": [{**EC, "kid": ""}]}, "jwks.malformed"),
        ({"keys": [{**EC, "key_ops": "verify"}]}, "jwks.malformed"),
        ({"keys": [{**EC, "x": EC["x"][:-2]}]}, "base64.malformed"),
        ({"keys": [{**EC, "x": EC["x"][:-3]}]}, "jwks.malformed"),
        ({"keys": [{**EC, "x": "A" * 42 + "8"}]}, "jwks.malformed"),
        ({"keys": [{**EC, "x": 1}]}, "jwks.malformed"),
        ({"keys": [{**RSA, "e": "AA"}]}, "jwks.malformed"),
        ({"keys": [{**RSA, "e": "Ag"}]}, "jwks.malformed"),
        ({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}]}, "jwks.malformed"),
    ],
)
def test_a_set_of_another_form_is_refused(data, code):
    assert code_of(data) == code
