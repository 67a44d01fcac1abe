"""The access token that is minted from a chain: what it says, for how long, and to whom."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import AgentguardError, VerificationError
from agentguard.delegation import access_token
from agentguard.delegation.access_token import (
    CHAIN_CLAIM,
    ISOLATION_CLAIM,
    ISOLATIONS,
    MAX_LIFETIME,
    SAME_PROCESS,
    TYPE,
    AccessToken,
)
from agentguard.errors import DecodeError
from agentguard.signing import jws

DOMAIN = "spiffe://acme.example"


@pytest.fixture
def chain(world):
    return world.chain("a", "b", task_id="t-1")


@pytest.fixture
def minted(world, chain):
    return access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")


def accepted(world, minted, token=None, *, at=None, audience=None, trust=None) -> AccessToken:
    """Verify a token, or else the one that was minted, beside the chain of that one."""
    return access_token.verify(
        minted.token if token is None else token,
        minted.chain.dumps(),
        trust or world.trust,
        at=world.now if at is None else at,
        audience=audience,
    )


def refused(world, minted, token=None, **given) -> str:
    with pytest.raises((DecodeError, VerificationError)) as caught:
        accepted(world, minted, token, **given)
    assert isinstance(caught.value, AgentguardError)
    return caught.value.code


def claims_of(minted) -> dict[str, Any]:
    return jws.parse(minted.token).claims()


def signed(world, claims, **header):
    return jws.sign(claims, world.issuer, typ=TYPE, header={"kid": world.issuer.key_id, **header})


def test_what_was_minted_verifies_to_the_same_value(world, minted, chain):
    verified = accepted(world, minted)
    assert verified == minted
    assert verified.chain == chain
    assert (verified.issued_at, verified.expires_at) == (world.now, world.now + MAX_LIFETIME)


def test_its_claims_have_the_names_of_the_standards(world, minted, chain):
    """RFC 9068 for the token, RFC 8693 for who acts for whom, RFC 7800 for the key."""
    parsed = jws.parse(minted.token)
    assert parsed.header == {"alg": "EdDSA", "typ": "at+jwt", "kid": world.issuer.key_id}
    b = world.member("b")
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
        "act": {"sub": b.uri},
        "txn": "t-1",
        CHAIN_CLAIM: chain.sha256,
        ISOLATION_CLAIM: SAME_PROCESS,
    }


def test_it_is_small_whatever_the_depth_of_its_chain(world):
    chain = world.chain(*"abcdefghijklmno", max_depth=16)
    assert len(chain.hops) == 16
    sizes = [
        len(access_token.mint(one, world.issuer, now=world.now, jti="0" * 32).token)
        for one in (world.chain("a"), chain)
    ]
    assert sizes[0] == sizes[1] < 1_500


@pytest.mark.parametrize("isolation", sorted(ISOLATIONS))
def test_it_says_whether_the_agent_could_reach_the_keys(world, chain, isolation):
    given = {"now": world.now, "jti": "token-0001", "isolation": isolation}
    minted = access_token.mint(chain, world.issuer, **given)
    assert accepted(world, minted).isolation == isolation


def test_it_never_outlives_its_chain(world):
    chain = world.chain("a", expires_in=10)
    minted = access_token.mint(chain, world.issuer, now=world.now + 4, jti="token-0001")
    assert minted.expires_at == world.now + 10
    accepted(world, minted, at=world.now + 9)
    assert refused(world, minted, at=world.now + 10) == "token.expired"


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
        assert accepted(world, minted, at=world.now + after) == minted
    else:
        assert refused(world, minted, at=world.now + after) == code


def test_no_token_lives_longer(world, minted):
    claims = claims_of(minted)
    accepted(world, minted, signed(world, claims))
    longer = signed(world, {**claims, "exp": world.now + 301})
    assert refused(world, minted, longer) == "token.lifetime"


def test_it_does_not_end_after_its_chain(world):
    chain = world.chain("a", expires_in=10)
    minted = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
    accepted(world, minted)  # the twin
    longer = signed(world, {**claims_of(minted), "exp": world.now + 11})
    assert refused(world, minted, longer) == "token.mismatch"


def test_it_is_for_whom_it_names(world, minted):
    assert refused(world, minted, audience="spiffe://other.example") == "token.audience"
    chain = world.chain("a", audience=("https://api.example", "https://ci.example"))
    named = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
    for audience in ("https://api.example", "https://ci.example"):
        accepted(world, named, audience=audience)
    for other in (None, "https://api.example/", "https://API.example", "https", ""):
        assert refused(world, named, audience=other) == "token.audience"


def test_a_chain_that_ends_with_no_agent_is_no_agents_token(world):
    for chain in (world.begin("a"), world.begin("a", via=None)):
        minted = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
        assert refused(world, minted) == "token.mismatch"


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
    "another chain": ({CHAIN_CLAIM: "0" * 64}, "token.mismatch"),
    "a chain in capitals": ({CHAIN_CLAIM: "A" * 64}, "token.mismatch"),
    "a chain that is none": ({CHAIN_CLAIM: None}, "token.mismatch"),
    "a chain in place of its digest": ({CHAIN_CLAIM: {"hops": []}}, "token.mismatch"),
    "an isolation that nobody observed": ({ISOLATION_CLAIM: "another-planet"}, "token.malformed"),
    "an isolation that is none": ({ISOLATION_CLAIM: None}, "token.malformed"),
    "an isolation that is a list": ({ISOLATION_CLAIM: ["remote"]}, "token.malformed"),
}


@pytest.mark.parametrize(("change", "code"), OTHERWISE.values(), ids=OTHERWISE)
def test_what_its_chain_does_not_say_is_refused_though_the_issuer_signed_it(
    world, minted, change, code
):
    claims = claims_of(minted)
    accepted(world, minted, signed(world, claims))  # the twin
    assert refused(world, minted, signed(world, {**claims, **change})) == code


def test_each_claim_is_needed(world, minted):
    for claim in claims_of(minted):
        claims = claims_of(minted)
        del claims[claim]
        assert refused(world, minted, signed(world, claims)) == "token.malformed"


def test_no_other_actor_acts(world, minted):
    claims = claims_of(minted)
    a = world.member("a").uri
    for act in (
        {"sub": a},
        {**claims["act"], "act": {"sub": a}},
        {**claims["act"], "iss": DOMAIN},
        {},
        [claims["act"]],
    ):
        assert refused(world, minted, signed(world, {**claims, "act": act})) == "token.mismatch"


def test_the_chain_beside_it_is_its_own(world, minted):
    """Not one of the same agents with the same scope, and not one that ends with another agent."""
    again = world.chain("a", "b", task_id="t-1")
    others = [again, world.chain("a"), world.chain("a", "b", "c"), world.begin("a")]
    for other in others:
        with pytest.raises(VerificationError) as caught:
            access_token.verify(minted.token, other.dumps(), world.trust, at=world.now)
        assert caught.value.code == "token.mismatch"
    for data in (b"", b"{}", b"[]", minted.token.encode(), again.dumps()[:-1]):
        with pytest.raises(DecodeError):
            access_token.verify(minted.token, data, world.trust, at=world.now)
    accepted(world, minted)  # the twin


def test_it_is_signed_by_an_issuer(world, minted):
    claims = claims_of(minted)
    for signer in (world.key(), world.log_key, world.member("b").signer):
        own = jws.sign(claims, signer, typ=TYPE, header={"kid": signer.key_id})
        assert refused(world, minted, own) == "key.unknown"
        named = jws.sign(claims, signer, typ=TYPE, header={"kid": world.issuer.key_id})
        assert refused(world, minted, named) == "signature.invalid"


def test_its_header_names_the_key(world, minted):
    claims = claims_of(minted)
    unnamed = jws.sign(claims, world.issuer, typ=TYPE)
    assert refused(world, minted, unnamed) == "token.malformed"
    kids: list[Any] = [5, None, [], {"kid": "x"}]
    for kid in kids:
        assert refused(world, minted, signed(world, claims, kid=kid)) == "token.malformed"


def test_another_type_is_no_access_token(world, minted):
    for typ in ("ag-hop+jwt", "wit+jwt", "JWT", None):
        header = {"kid": world.issuer.key_id}
        token = jws.sign(claims_of(minted), world.issuer, typ=typ, header=header)
        assert refused(world, minted, token) == "jws.type"
    for typ in ("AT+JWT", "application/at+jwt"):  # RFC 7515, 4.1.9
        header = {"kid": world.issuer.key_id}
        token = jws.sign(claims_of(minted), world.issuer, typ=typ, header=header)
        accepted(world, minted, token)


def test_a_stolen_issuer_key_gains_nothing_from_an_old_date(world, minted):
    trust = world.trusting(compromised_since=world.now + 10)
    accepted(world, minted, at=world.now + 9, trust=trust)
    assert refused(world, minted, at=world.now + 10, trust=trust) == "key.compromised"
    rotated = world.trusting(not_after=world.now + 10)
    accepted(world, minted, at=world.now + 10, trust=rotated)
