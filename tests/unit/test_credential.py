"""The credential of an agent instance: what it must say, by whom, and when it counts."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import AgentguardError, ConfigError, VerificationError
from agentguard.errors import DecodeError
from agentguard.identity import credential
from agentguard.identity.credential import AGENT_CLAIM, MAX_LIFETIME, TYPE, AgentProfile
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_decode, b64url_encode, dumps, loads_object

NOW = 1_800_000_000
DOMAIN = "acme.example"
PROFILE = AgentProfile("code-reviewer", "code-agent", "user:carol", "1.0")


@pytest.fixture
def trust(signer):
    return TrustDocument(DOMAIN, f"{DOMAIN}/log/1", (TrustedKey("issuer", signer.public_key, 0),))


@pytest.fixture
def instance(stranger):
    return stranger.public_key


@pytest.fixture
def issued(signer, instance):
    return credential.issue(signer, DOMAIN, PROFILE, instance, now=NOW, jti="credential-1")


def test_what_was_issued_verifies_to_the_same_value(issued, trust, instance):
    verified = credential.verify(issued.token, trust, at=NOW)
    assert verified == issued
    assert verified.uri == f"spiffe://{DOMAIN}/agent/code-reviewer/{instance.thumbprint}"
    assert verified.profile == PROFILE
    assert verified.expires_at == NOW + MAX_LIFETIME


def test_it_is_a_wimse_token(issued, signer, instance):
    parsed = jws.parse(issued.token)
    assert parsed.header == {"typ": "wit+jwt", "alg": "EdDSA", "kid": signer.key_id}
    claims = parsed.claims()
    assert claims["iss"] == f"spiffe://{DOMAIN}"
    assert claims["sub"] == issued.uri
    assert claims["cnf"] == {"jwk": {**instance.jwk(), "alg": "EdDSA"}}


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (NOW, None),
        (NOW + MAX_LIFETIME - 1, None),
        (NOW - 1, "credential.not_yet_valid"),
        (NOW + MAX_LIFETIME, "credential.expired"),
        (2**40, "credential.expired"),
    ],
)
def test_it_counts_for_its_time(issued, trust, at, code):
    if code is None:
        credential.verify(issued.token, trust, at=at)
        return
    with pytest.raises(VerificationError) as caught:
        credential.verify(issued.token, trust, at=at)
    assert caught.value.code == code


def test_it_lives_an_hour_at_most(signer, trust, issued):
    claims: dict[str, Any] = claims_of(issued)
    assert credential.verify(signed(claims, signer), trust, at=NOW).expires_at == NOW + 3600
    claims["exp"] += 1
    with pytest.raises(VerificationError) as caught:
        credential.verify(signed(claims, signer), trust, at=NOW)
    assert caught.value.code == "credential.lifetime"


def claims_of(issued):
    return jws.parse(issued.token).claims()


def signed(claims, signer, **header):
    return jws.sign(claims, signer, typ=TYPE, header={"kid": signer.key_id, **header})


MALFORMED = {
    "no sub": lambda claims: claims.pop("sub"),
    "no jti": lambda claims: claims.pop("jti"),
    "no exp": lambda claims: claims.pop("exp"),
    "no iat": lambda claims: claims.pop("iat"),
    "iat is true": lambda claims: claims.update(iat=True),
    "iat is text": lambda claims: claims.update(iat=str(NOW)),
    "iat is a fraction": lambda claims: claims.update(iat=NOW + 0.5),
    "exp is text": lambda claims: claims.update(exp="never"),
    "exp is true": lambda claims: claims.update(exp=True),
    "exp is a fraction": lambda claims: claims.update(exp=NOW + 0.5),
    "one claim more": lambda claims: claims.update(admin=True),
    "no key": lambda claims: claims.update(cnf={}),
    "another confirmation": lambda claims: claims.update(cnf={"jkt": "x"}),
    "two confirmations": lambda claims: claims["cnf"].update(jkt="x"),
    "a key for no algorithm": lambda claims: claims["cnf"]["jwk"].pop("alg"),
    "a key for another algorithm": lambda claims: claims["cnf"]["jwk"].update(alg="ES256"),
    "a key for the algorithm null": lambda claims: claims["cnf"]["jwk"].update(alg=None),
    "a private key": lambda claims: claims["cnf"]["jwk"].update(d="x"),
    "a key that is none": lambda claims: claims["cnf"]["jwk"].update(x="AAAA"),
    "another curve": lambda claims: claims["cnf"]["jwk"].update(crv="P-256"),
    "no name": lambda claims: claims[AGENT_CLAIM].pop("name"),
    "a name that is none": lambda claims: claims[AGENT_CLAIM].update(name="../root"),
    "owner is a number": lambda claims: claims[AGENT_CLAIM].update(owner=5),
    "agent is text": lambda claims: claims.update({AGENT_CLAIM: "root"}),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_token_that_says_less_more_or_else_is_refused(issued, signer, trust, change):
    claims = claims_of(issued)
    credential.verify(signed(claims, signer), trust, at=NOW)  # the twin
    change(claims)
    with pytest.raises(AgentguardError):
        credential.verify(signed(claims, signer), trust, at=NOW)


def test_either_name_of_the_algorithm_is_the_keys(issued, signer, trust, instance):
    for name in ("EdDSA", "Ed25519"):
        claims: dict[str, Any] = claims_of(issued)
        claims["cnf"]["jwk"]["alg"] = name
        assert credential.verify(signed(claims, signer), trust, at=NOW).key == instance


def test_true_is_no_time_where_one_is_a_time(signer, instance):
    """Python's True is an int, and equals 1."""
    trust = TrustDocument(DOMAIN, "x", (TrustedKey("issuer", signer.public_key, 0),))
    issued = credential.issue(signer, DOMAIN, PROFILE, instance, now=1, jti="credential-1")
    claims = claims_of(issued) | {"iat": 1, "exp": 1}
    for at in (0, 1):
        with pytest.raises(VerificationError):  # the twin: read, and found not to be in force
            credential.verify(signed(claims, signer), trust, at=at)
        for claim in ("iat", "exp"):
            with pytest.raises(DecodeError) as caught:
                credential.verify(signed(claims | {claim: True}, signer), trust, at=at)
            assert caught.value.code == "credential.malformed"


@pytest.mark.parametrize(
    ("claim", "value", "code"),
    [
        ("iss", "spiffe://evil.example", "credential.issuer"),
        ("iss", f"spiffe://{DOMAIN}/", "credential.issuer"),
        ("sub", f"spiffe://{DOMAIN}/agent/root/x", "credential.subject"),
        ("sub", f"spiffe://{DOMAIN}/agent/code-reviewer/", "credential.subject"),
        ("sub", "", "credential.subject"),
    ],
)
def test_its_issuer_and_subject_are_compared_whole(issued, signer, trust, claim, value, code):
    claims = claims_of(issued) | {claim: value}
    with pytest.raises(VerificationError) as caught:
        credential.verify(signed(claims, signer), trust, at=NOW)
    assert caught.value.code == code


def test_its_subject_names_its_own_key_and_agent(issued, signer, trust):
    for change in ({"name": "root"}, {"name": "code-reviewer2"}):
        claims = claims_of(issued)
        claims[AGENT_CLAIM] |= change
        with pytest.raises(VerificationError) as caught:
            credential.verify(signed(claims, signer), trust, at=NOW)
        assert caught.value.code == "credential.subject"


def test_a_self_made_token_is_refused_whatever_kid_it_names(issued, stranger, signer, trust):
    claims = claims_of(issued)
    for token, code in (
        (signed(claims, stranger), "key.unknown"),
        (jws.sign(claims, stranger, typ=TYPE, header={"kid": signer.key_id}), "signature.invalid"),
    ):
        with pytest.raises(VerificationError) as caught:
            credential.verify(token, trust, at=NOW)
        assert caught.value.code == code


def test_a_token_of_another_type_is_refused(issued, signer, trust):
    for typ in ("JWT", "at+jwt", "dpop+jwt"):
        token = jws.sign(claims_of(issued), signer, typ=typ, header={"kid": signer.key_id})
        with pytest.raises(AgentguardError):
            credential.verify(token, trust, at=NOW)


def test_a_key_that_follows_in_the_header_is_not_followed(issued, stranger, trust):
    """A header that our own writer would not make: it is signed by hand."""
    payload = issued.token.split(".")[1]
    for further in (
        {"jwk": stranger.public_key.jwk()},
        {"jku": "https://evil.example/jwks"},
        {"x5c": ["x"]},
        {},
    ):
        header = {"alg": "EdDSA", "kid": stranger.key_id, "typ": TYPE, **further}
        head = f"{b64url_encode(dumps(header))}.{payload}"
        token = f"{head}.{b64url_encode(stranger.sign(head.encode()))}"
        with pytest.raises((DecodeError, VerificationError)):
            credential.verify(token, trust, at=NOW)


def test_any_changed_byte_is_refused(issued, trust):
    head, payload, signature = issued.token.split(".")
    claims: dict[str, Any] = loads_object(b64url_decode(payload))
    forged = b64url_encode(dumps({**claims, "exp": claims["exp"] + 1}))
    for token in (
        f"{head}.{forged}.{signature}",
        f"{head}.{payload}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f"{head}.{payload}.",
        f"{head}.{payload}",
        f"{issued.token}.",
        issued.token[1:],
    ):
        with pytest.raises((DecodeError, VerificationError)):
            credential.verify(token, trust, at=NOW)


def test_a_compromised_issuer_counts_until_then(issued, signer):
    key = TrustedKey("issuer", signer.public_key, 0, compromised_since=NOW + 1)
    before = TrustDocument(DOMAIN, "x", (key,))
    credential.verify(issued.token, before, at=NOW + 5)  # issued before it was compromised
    key = TrustedKey("issuer", signer.public_key, 0, compromised_since=NOW)
    with pytest.raises(VerificationError) as caught:
        credential.verify(issued.token, TrustDocument(DOMAIN, "x", (key,)), at=NOW + 5)
    assert caught.value.code == "key.compromised"


def test_a_key_for_another_use_is_no_issuer(issued, signer):
    for use in ("log", "admin", "approver"):
        trust = TrustDocument(DOMAIN, "x", (TrustedKey(use, signer.public_key, 0),))
        with pytest.raises(VerificationError) as caught:
            credential.verify(issued.token, trust, at=NOW)
        assert caught.value.code == "key.unknown"


@pytest.mark.parametrize("name", ["a", "a" * 64, "code-reviewer", "a.b_c-d", "0"])
def test_good_names(name):
    assert AgentProfile(name).name == name


@pytest.mark.parametrize("name", ["", "a" * 65, "A", "a b", "a/b", "-a", "a-", ".", "a\n", "é"])
def test_bad_names(name):
    with pytest.raises(ConfigError, match="no agent name"):
        AgentProfile(name)


def test_a_short_name_is_for_display(issued, instance):
    alias = f"agent:code-reviewer:{instance.thumbprint[:4]}"
    assert credential.agent_alias(issued.uri) == alias
    assert credential.agent_name(issued.uri) == "code-reviewer"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "assistant",
        "spiffe://acme.example/agent/x",
        "spiffe://acme.example/agent/x/",
        "spiffe://acme.example/agent/x/y/z",
        "https://acme.example/agent/x/y",
        " spiffe://acme.example/agent/x/y",
    ],
)
def test_what_is_no_instance_has_no_short_name(text):
    assert credential.agent_alias(text) == text
    assert credential.agent_name(text) is None
