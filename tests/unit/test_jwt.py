"""Tokens of outside issuers: what is verified, and what a token has to be.

PyJWT is the independent implementation: it signs the tokens. Forged tokens are in
``tests/attacks/test_issuer_tokens.py``.
"""

from __future__ import annotations

import json

import pytest
from token_issuer import AUDIENCE, ISSUER, NOW, SUBJECT, TokenIssuer

from agentguard.errors import AgentguardError
from agentguard.identity import jwt
from agentguard.identity.jwa import ALGORITHMS
from agentguard.identity.jwks import parse_jwks, parse_spiffe_bundle
from agentguard.identity.jwt import ABSENT
from agentguard.signing.canonical import sha256_hex

WORKLOAD = "spiffe://acme.example/ns/prod/sa/billing"


@pytest.fixture(scope="module")
def issuer() -> TokenIssuer:
    return TokenIssuer()


def verified(issuer, token, now=NOW, **rule):
    domain = rule.get("trust_domain")
    data = issuer.jwks()
    keys = parse_jwks(data) if domain is None else parse_spiffe_bundle(data, domain)
    return jwt.verify(jwt.parse(token), keys, issuer.rule(**rule), now)


def code_of(issuer, token, **options):
    with pytest.raises(AgentguardError) as caught:
        verified(issuer, token, **options)
    assert token.rpartition(".")[2] not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_a_token_of_each_algorithm_is_verified(alg):
    issuer = TokenIssuer(alg=alg)
    # PyJWT does not know the name Ed25519 (RFC 9864)
    header = json.dumps({"alg": alg, "kid": "first"}).encode()
    token = issuer.signed(header, _dumped(issuer.claims())) if alg == "Ed25519" else issuer.token()
    found = verified(issuer, token, algorithms=frozenset({alg}))
    assert (found.issuer, found.subject, found.id) == ("issuer", SUBJECT, "token-1")
    assert found.claims["iss"] == ISSUER
    others = frozenset(ALGORITHMS) - {alg}
    assert code_of(issuer, token, algorithms=others) == "jwt.algorithm"


def test_a_token_without_an_identifier_has_that_of_its_digest(issuer):
    token = issuer.token(jti=None)
    assert verified(issuer, token).id == f"sha256:{sha256_hex(token.encode())}"


def test_a_verified_token_is_not_in_its_own_description(issuer):
    found = verified(issuer, issuer.token(secret="hidden"))
    assert "hidden" not in repr(found)
    assert "hidden" not in repr(jwt.parse(issuer.token(secret="hidden")))


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({}, None),
        ({"iss": f"{ISSUER}/"}, "jwt.issuer"),
        ({"iss": ISSUER.upper()}, "jwt.issuer"),
        ({"iss": [ISSUER]}, "jwt.malformed"),
        ({"iss": None}, "jwt.issuer"),
        ({"aud": ["other", AUDIENCE]}, None),
        ({"aud": "other"}, "jwt.audience"),
        ({"aud": f"{AUDIENCE}/"}, "jwt.audience"),
        ({"aud": []}, "jwt.audience"),
        ({"aud": None}, "jwt.audience"),
        ({"aud": [AUDIENCE, 1]}, "jwt.malformed"),
        ({"aud": {AUDIENCE: 1}}, "jwt.malformed"),
        ({"exp": None}, "jwt.lifetime"),
        ({"exp": int(NOW) - 30}, "jwt.expired"),
        ({"exp": int(NOW) - 29}, None),
        ({"exp": NOW + 0.5}, None),
        ({"exp": str(int(NOW) + 9)}, "jwt.malformed"),
        ({"exp": True}, "jwt.malformed"),
        ({"exp": -1}, "jwt.malformed"),
        ({"exp": 1e300}, "jwt.malformed"),
        ({"nbf": int(NOW) + 30}, None),
        ({"nbf": int(NOW) + 31}, "jwt.not_yet_valid"),
        ({"nbf": None, "iat": None}, None),
        ({"iat": int(NOW) + 31}, "jwt.not_yet_valid"),
        ({"iat": "now"}, "jwt.malformed"),
        ({"sub": None}, "jwt.subject"),
        ({"sub": ""}, "jwt.malformed"),
        ({"sub": 7}, "jwt.malformed"),
        ({"jti": ""}, "jwt.malformed"),
        ({"cnf": {"jkt": "x"}}, "jwt.bound"),
        ({"kubernetes.io": {"namespace": "prod", "pod": {"name": "billing-1"}}}, None),
    ],
)
def test_the_claims_of_a_token(issuer, claims, code):
    token = issuer.signed(b'{"alg":"ES256","kid":"first"}', _dumped(issuer.claims(**claims)))
    if code is None:
        assert verified(issuer, token).subject == SUBJECT
    else:
        assert code_of(issuer, token) == code


def _dumped(claims):

    return json.dumps(claims).encode()


def test_the_leeway_is_that_of_the_configuration(issuer):
    token = issuer.token(exp=int(NOW) - 5)
    assert verified(issuer, token, leeway=6).expires_at == NOW + 1
    assert code_of(issuer, token, leeway=5) == "jwt.expired"


def test_the_subject_may_be_another_claim(issuer):
    token = issuer.token(azp="billing")
    assert verified(issuer, token, subject_claim="azp").subject == "billing"
    assert code_of(issuer, issuer.token(), subject_claim="azp") == "jwt.subject"


@pytest.mark.parametrize(
    ("typ", "code"),
    [
        ("JWT", None),
        ("jwt", None),
        ("application/JWT", None),
        ("AT+jwt", None),
        (None, None),
        ("ID", "jwt.type"),
        ("id+jwt", "jwt.type"),
        ("logout+jwt", "jwt.type"),
        ("dpop+jwt", "jwt.type"),
        ("", "jwt.type"),
        (7, "jwt.type"),
    ],
)
def test_the_type_of_a_token(issuer, typ, code):
    header = {"alg": "ES256", "kid": "first", "typ": typ}
    if typ is None:
        del header["typ"]
    token = issuer.signed(_dumped(header), _dumped(issuer.claims()))
    if code is None:
        assert verified(issuer, token).id == "token-1"
    else:
        assert code_of(issuer, token) == code
    if typ is None:
        assert code_of(issuer, token, types=frozenset({"JWT"})) == "jwt.type"
    else:
        assert code_of(issuer, token, types=frozenset({ABSENT})) == "jwt.type"


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        (WORKLOAD, None),
        ("spiffe://acme.example", "jwt.issuer"),
        ("spiffe://acme.example/", "jwt.issuer"),
        ("spiffe://acme.example/a//b", "jwt.issuer"),
        ("spiffe://acme.example/a/../b", "jwt.issuer"),
        ("spiffe://acme.example.evil/a", "jwt.issuer"),
        ("spiffe://other.example/a", "jwt.issuer"),
        ("spiffe://acme.example/a?b", "jwt.issuer"),
        ("https://acme.example/a", "jwt.issuer"),
    ],
)
def test_a_jwt_svid_names_a_workload_of_the_trust_domain(subject, code):
    spire = TokenIssuer("spire", issuer=None, use="jwt-svid", says_alg=False)
    token = spire.token(sub=subject, jti=None, nbf=None)
    options = {"trust_domain": "acme.example"}
    if code is None:
        assert verified(spire, token, **options).subject == subject
    else:
        assert code_of(spire, token, **options) == code


def test_a_key_without_an_identifier_is_found_by_its_kind():
    issuer = TokenIssuer()
    for kid in ("second", "third"):
        issuer.rotate(kid)
    for jwk in issuer.keys:
        del jwk["kid"]
    token = issuer.token({"kid": ""})
    assert verified(issuer, token).id == "token-1"
    assert code_of(issuer, issuer.token()) == "jwt.key"  # its kid is that of no key
    issuer.keys[-1:] = []
    assert code_of(issuer, token) == "jwt.signature"


def test_of_keys_without_an_identifier_eight_are_tried():
    issuer = TokenIssuer()
    for number in range(8):
        issuer.rotate(f"key {number}")
    token = issuer.token({"kid": ""})
    assert code_of(issuer, token) == "jwt.signature"
    issuer.keys.insert(0, issuer.keys.pop())
    assert verified(issuer, token).id == "token-1"
