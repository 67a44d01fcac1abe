"""The access token that is minted from a chain: what it says, for how long, and to whom."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import AgentguardError, VerificationError
from agentguard.delegation import access_token
from agentguard.delegation.access_token import CHAIN_CLAIM, MAX_LIFETIME, TYPE
from agentguard.errors import DecodeError
from agentguard.signing import jws

DOMAIN = "spiffe://acme.example"


@pytest.fixture
def chain(world):
    return world.chain("a", "b", task_id="t-1")


@pytest.fixture
def minted(world, chain):
    return access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")


def refused(world, token, *, at=None, audience=None, trust=None) -> str:
    with pytest.raises((DecodeError, VerificationError)) as caught:
        access_token.verify(
            token,
            trust or world.trust,
            at=world.now if at is None else at,
            audience=audience,
        )
    assert isinstance(caught.value, AgentguardError)
    return caught.value.code


def claims_of(minted) -> dict[str, Any]:
    return jws.parse(minted.token).claims()


def signed(world, claims, **header):
    return jws.sign(claims, world.issuer, typ=TYPE, header={"kid": world.issuer.key_id, **header})


def test_what_was_minted_verifies_to_the_same_value(world, minted, chain):
    verified = access_token.verify(minted.token, world.trust, at=world.now)
    assert verified == minted
    assert verified.chain == chain
    assert (verified.issued_at, verified.expires_at) == (world.now, world.now + MAX_LIFETIME)


def test_its_claims_have_the_names_of_the_standards(world, minted, chain):
    """RFC 9068 for the token, RFC 8693 for who acts for whom, RFC 7800 for the key."""
    parsed = jws.parse(minted.token)
    assert parsed.header == {"alg": "EdDSA", "typ": "at+jwt", "kid": world.issuer.key_id}
    a, b = world.member("a"), world.member("b")
    assert parsed.claims() == {
        "iss": DOMAIN,
        "sub": "user:alice",
        "aud": [DOMAIN],
        "client_id": b.uri,
        "iat": world.now,
        "exp": world.now + 300,
        "jti": "token-0001",
        "scope": "a b",
        "cnf": {"jkt": b.signer.key_id},
        "act": {"sub": b.uri, "act": {"sub": a.uri, "act": {"sub": "service:ci"}}},
        "txn": "t-1",
        CHAIN_CLAIM: chain.as_json(),
    }


def test_the_newest_actor_is_outermost(world):
    chain = world.chain("a")
    assert access_token.actors(chain) == {
        "sub": world.member("a").uri,
        "act": {"sub": "service:ci"},
    }
    assert access_token.actors(world.begin("a")) == {"sub": "service:ci"}


def test_it_never_outlives_its_chain(world):
    chain = world.chain("a", expires_in=10)
    minted = access_token.mint(chain, world.issuer, now=world.now + 4, jti="token-0001")
    assert minted.expires_at == world.now + 10
    access_token.verify(minted.token, world.trust, at=world.now + 9)
    assert refused(world, minted.token, at=world.now + 10) == "token.expired"


@pytest.mark.parametrize(
    ("after", "code"),
    [
        (0, None),
        (299, None),
        (300, "token.expired"),
        (-1, "token.not_yet_valid"),
        (2**40, "token.expired"),
    ],
)
def test_it_counts_for_five_minutes(world, minted, after, code):
    if code is None:
        assert access_token.verify(minted.token, world.trust, at=world.now + after) == minted
    else:
        assert refused(world, minted.token, at=world.now + after) == code


def test_no_token_lives_longer(world, minted):
    claims = claims_of(minted)
    access_token.verify(signed(world, claims), world.trust, at=world.now)
    assert refused(world, signed(world, {**claims, "exp": world.now + 301})) == "token.lifetime"


def test_it_does_not_end_after_its_chain(world):
    chain = world.chain("a", expires_in=10)
    claims = claims_of(access_token.mint(chain, world.issuer, now=world.now, jti="token-0001"))
    longer = signed(world, {**claims, "exp": world.now + 11})
    assert refused(world, longer) == "token.mismatch"


def test_it_is_for_whom_it_names(world, minted):
    assert refused(world, minted.token, audience="spiffe://other.example") == "token.audience"
    chain = world.chain("a", audience=("https://api.example", "https://ci.example"))
    named = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
    for audience in ("https://api.example", "https://ci.example"):
        access_token.verify(named.token, world.trust, at=world.now, audience=audience)
    for other in (None, "https://api.example/", "https://API.example", "https", ""):
        assert refused(world, named.token, audience=other) == "token.audience"


def test_a_chain_that_ends_with_no_agent_is_no_agents_token(world):
    for chain in (world.begin("a"), world.begin("a", via=None)):
        minted = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
        assert refused(world, minted.token) == "token.mismatch"


OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"iss": "spiffe://evil.example"}, "token.mismatch"),
    "another principal": ({"sub": "user:bob"}, "token.mismatch"),
    "a wider audience": ({"aud": [DOMAIN, "x"]}, "token.mismatch"),
    "an audience that is no list": ({"aud": DOMAIN}, "token.mismatch"),
    "another client": ({"client_id": "service:ci"}, "token.mismatch"),
    "a wider scope": ({"scope": "a b c"}, "token.mismatch"),
    "a narrower scope, which its chain does not say": ({"scope": "a"}, "token.mismatch"),
    "a scope that is a list": ({"scope": ["a", "b"]}, "token.mismatch"),
    "another key": ({"cnf": {"jkt": "x" * 43}}, "token.mismatch"),
    "a key more": ({"cnf": {"jkt": "x" * 43, "jwk": {}}}, "token.mismatch"),
    "no actors": ({"act": {}}, "token.mismatch"),
    "no actors at all": ({"act": None}, "token.mismatch"),
    "another task": ({"txn": "t-2"}, "token.mismatch"),
    "no task": ({"txn": None}, "token.mismatch"),
    "a jti that is a number": ({"jti": 5}, "token.malformed"),
    "exp is true": ({"exp": True}, "token.malformed"),
    "exp is a fraction": ({"exp": 1_800_000_000.5}, "token.malformed"),
    "exp is iat": ({"exp": 1_800_000_000}, "token.malformed"),
    "exp is before iat": ({"exp": 5}, "token.malformed"),
    "iat is text": ({"iat": "1800000000"}, "token.malformed"),
    "iat is true": ({"iat": True}, "token.malformed"),
    "iat is negative": ({"iat": -5}, "key.expired"),
    "a claim more": ({"admin": True}, "token.malformed"),
    "may_act": ({"may_act": {"sub": "x"}}, "token.malformed"),
    "a chain that is text": ({CHAIN_CLAIM: "x"}, "token.malformed"),
    "a chain that is empty": ({CHAIN_CLAIM: {}}, "chain.malformed"),
    "a chain without hops": ({CHAIN_CLAIM: {"hops": [], "credentials": []}}, "chain.malformed"),
}


@pytest.mark.parametrize(("change", "code"), OTHERWISE.values(), ids=OTHERWISE)
def test_what_its_chain_does_not_say_is_refused_though_the_issuer_signed_it(
    world, minted, change, code
):
    claims = claims_of(minted)
    access_token.verify(signed(world, claims), world.trust, at=world.now)  # the twin
    assert refused(world, signed(world, {**claims, **change})) == code


def test_each_claim_is_needed(world, minted):
    for claim in claims_of(minted):
        claims = claims_of(minted)
        del claims[claim]
        assert refused(world, signed(world, claims)) == "token.malformed"


def test_the_actors_are_compared_to_the_innermost(world, minted):
    claims = claims_of(minted)
    a = world.member("a").uri
    for act in (
        {"sub": claims["act"]["sub"]},
        {**claims["act"], "act": {"sub": a}},
        {**claims["act"], "act": {"sub": a, "act": {"sub": "service:other"}}},
        {**claims["act"], "iss": DOMAIN},
        claims["act"]["act"],
        [claims["act"]],
    ):
        assert refused(world, signed(world, {**claims, "act": act})) == "token.mismatch"


def test_it_is_signed_by_an_issuer(world, minted):
    claims = claims_of(minted)
    for signer in (world.key(), world.log_key, world.member("b").signer):
        own = jws.sign(claims, signer, typ=TYPE, header={"kid": signer.key_id})
        assert refused(world, own) == "key.unknown"
        named = jws.sign(claims, signer, typ=TYPE, header={"kid": world.issuer.key_id})
        assert refused(world, named) == "signature.invalid"


def test_its_header_names_the_key(world, minted):
    claims = claims_of(minted)
    unnamed = jws.sign(claims, world.issuer, typ=TYPE)
    assert refused(world, unnamed) == "token.malformed"
    kids: list[Any] = [5, None, [], {"kid": "x"}]
    for kid in kids:
        assert refused(world, signed(world, claims, kid=kid)) == "token.malformed"


def test_another_type_is_no_access_token(world, minted):
    for typ in ("ag-hop+jwt", "wit+jwt", "JWT", None):
        header = {"kid": world.issuer.key_id}
        token = jws.sign(claims_of(minted), world.issuer, typ=typ, header=header)
        assert refused(world, token) == "jws.type"
    for typ in ("AT+JWT", "application/at+jwt"):  # RFC 7515, 4.1.9
        header = {"kid": world.issuer.key_id}
        token = jws.sign(claims_of(minted), world.issuer, typ=typ, header=header)
        access_token.verify(token, world.trust, at=world.now)


def test_a_stolen_issuer_key_gains_nothing_from_an_old_date(world, minted):
    trust = world.trusting(compromised_since=world.now + 10)
    access_token.verify(minted.token, trust, at=world.now + 9)
    assert refused(world, minted.token, at=world.now + 10, trust=trust) == "key.compromised"
    rotated = world.trusting(not_after=world.now + 10)
    access_token.verify(minted.token, rotated, at=world.now + 10)
