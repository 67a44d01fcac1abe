"""Tokens of a real Keycloak, changed and signed again with a key that Keycloak itself publishes.

The realm signs with a key of the test. So each change is what Keycloak could have signed, and the
refusal is for the change alone. Tokens of a provider without a server are in
``tests/attacks/test_issuer_tokens.py``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from keycloak import AUDIENCE, Forge, Realm
from token_issuer import b64, private_key
from token_service import Key, claims

from agentguard import AgentguardError, Decision, Guard
from agentguard.proof import ProofStore, Receiver, dpop
from agentguard.proof.dpop import token_hash
from agentguard.proof.target import Target

pytestmark = pytest.mark.slow("starts a real Keycloak, and logs in there")


@pytest.fixture(scope="module")
def forge(keycloak):
    return Forge(keycloak.realm())


@pytest.fixture(scope="module")
def neighbour(keycloak):
    """Another realm of the same server."""
    return Forge(keycloak.realm())


@contextmanager
def guarding(realm: Realm, **users: Any):
    issuer = {
        "issuer": realm.issuer,
        "jwks_url": realm.jwks_url,
        "audience": [AUDIENCE],
        "algorithms": ["RS256"],
        "users": {"claim": "preferred_username", **users},
    }
    config: dict[str, Any] = {"agents": {"clerk": {}}, "issuers": {"acme": issuer}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        yield guard


@pytest.fixture(scope="module")
def guard(forge):
    with guarding(forge.realm) as guard:
        yield guard


def lender_of(guard: Guard, token: str) -> str:
    return guard.delegate(subject_token=token, scope=["read"]).principal


def code_of(guard: Guard, token: str) -> str:
    with pytest.raises(AgentguardError) as caught:
        guard.delegate(subject_token=token, scope=["read"])
    assert token not in str(caught.value)
    return caught.value.code


def test_the_token_counts_as_it_is_and_signed_again(guard, forge):
    assert lender_of(guard, forge.tokens["access_token"]) == "user:alice"
    assert lender_of(guard, forge.token()) == "user:alice"
    assert lender_of(guard, forge.token(extra="x")) == "user:alice"


@pytest.mark.parametrize(
    ("changes", "code", "twin"),
    [
        ({"iss": None}, "jwt.issuer", {}),
        ({"aud": "account"}, "jwt.audience", {"aud": AUDIENCE}),
        ({"aud": ["account"]}, "jwt.audience", {"aud": ["account", AUDIENCE]}),
        ({"aud": []}, "jwt.audience", {"aud": [AUDIENCE]}),
        ({"aud": None}, "jwt.audience", {}),
        ({"aud": [AUDIENCE, 5]}, "jwt.malformed", {"aud": [AUDIENCE, "5"]}),
        ({"exp": -100}, "jwt.expired", {"exp": -10}),
        ({"exp": None}, "jwt.lifetime", {}),
        ({"exp": "soon"}, "jwt.malformed", {}),
        ({"nbf": 100}, "jwt.not_yet_valid", {"nbf": 10}),
        ({"iat": 100}, "jwt.not_yet_valid", {"iat": 10}),
        ({"typ": "ID"}, "jwt.type", {"typ": "Bearer"}),
        ({"typ": "Refresh"}, "jwt.type", {}),
        ({"typ": None, "scope": None}, "jwt.type", {"typ": None}),
        ({"cnf": {"jkt": "x"}}, "jwt.bound", {}),
        ({"preferred_username": "service-account-chat"}, "jwt.subject", {}),
        ({"preferred_username": None}, "jwt.subject", {}),
        ({"sub": None}, "jwt.subject", {"sub": "another"}),
    ],
    ids=str,
)
def test_a_changed_claim_is_refused(guard, forge, changes, code, twin):
    """Where a time is a number, it is in seconds from now."""
    assert code_of(guard, forge.token(**dated(changes))) == code
    assert lender_of(guard, forge.token(**dated(twin))) == "user:alice"


def dated(changes: dict[str, Any]) -> dict[str, Any]:
    now, times = int(time.time()), ("exp", "nbf", "iat")
    return {
        name: now + value if name in times and isinstance(value, int) else value
        for name, value in changes.items()
    }


def test_another_spelling_of_the_issuer_is_refused(guard, forge):
    issuer = forge.realm.issuer
    for other in (
        f"{issuer}/",
        issuer.upper(),
        issuer.replace("http:", "https:"),
        f"{issuer}?x",
        f" {issuer}",
        issuer.rpartition("/")[0],
    ):
        assert code_of(guard, forge.token(iss=other)) == "jwt.issuer"
    assert lender_of(guard, forge.token(iss=issuer)) == "user:alice"


def test_a_claim_that_is_there_twice_is_refused(guard, forge):
    header, claims = json.dumps(forge.header), json.dumps(forge.claims)
    for name, value in (("sub", "root"), ("aud", AUDIENCE), ("exp", forge.claims["exp"])):
        for first in (True, False):
            again = f"{json.dumps(name)}: {json.dumps(value)}"
            twice = f"{{{again}, {claims[1:]}" if first else f"{claims[:-1]}, {again}}}"
            assert code_of(guard, forge.signed(header.encode(), twice.encode())) == (
                "json.duplicate_key"
            )
    assert lender_of(guard, forge.signed(header.encode(), claims.encode())) == "user:alice"


def test_another_algorithm_than_the_configured_one_is_refused(guard, forge):
    head, payload, signature = forge.token().split(".")
    public = forge.key.public_key()
    for alg in ("none", "None", "HS256", "PS256", "RS512"):
        other = b64(json.dumps({**forge.header, "alg": alg}).encode())
        for end in ("", signature):
            assert code_of(guard, f"{other}.{payload}.{end}") == "jwt.algorithm"
        body = f"{other}.{payload}"
        for encoding in (Encoding.PEM, Encoding.DER):
            secret = public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
            digest = hmac.new(secret, body.encode(), hashlib.sha256).digest()
            assert code_of(guard, f"{body}.{b64(digest)}") == "jwt.algorithm"
    assert lender_of(guard, f"{head}.{payload}.{signature}") == "user:alice"


def test_an_unknown_key_or_one_for_encryption_is_refused(guard, forge):
    published = httpx.get(forge.realm.jwks_url).json()["keys"]
    kids = {key["use"]: key["kid"] for key in published}
    assert kids.pop("sig") == forge.header["kid"]
    for kid in ("unknown", kids["enc"]):
        assert code_of(guard, forge.token({"kid": kid})) == "jwt.key"
    assert lender_of(guard, forge.token()) == "user:alice"


def test_an_id_token_is_no_access_token_and_the_other_way_round(guard, forge):
    access, identity = forge.tokens["access_token"], forge.tokens["id_token"]
    assert code_of(guard, identity) == "jwt.audience"
    with guarding(forge.realm, audience=[AUDIENCE, "chat"]) as both:  # of one audience
        assert code_of(both, identity) == "jwt.type"
        assert lender_of(both, access) == "user:alice"
    with guarding(forge.realm, audience=[AUDIENCE, "chat"], token="ID") as other:
        assert code_of(other, access) == "jwt.type"
        assert lender_of(other, identity) == "user:alice"


def test_a_rotated_key_counts_and_a_withdrawn_one_does_not(neighbour, monkeypatch):
    monkeypatch.setattr("agentguard.issuers.keys.COOL_DOWN", 0.0)
    realm, before = neighbour.realm, neighbour.tokens["access_token"]
    with guarding(realm) as guard:
        assert lender_of(guard, before) == "user:alice"
        newer = realm.publish(private_key("RS256", f"{realm.name} newer"), 300)
        after = realm.log_in()["access_token"]
        assert after.split(".")[0] != before.split(".")[0]
        assert lender_of(guard, after) == "user:alice"
        assert lender_of(guard, before) == "user:alice"  # both keys are published
        realm.withdraw(newer)
    with guarding(realm) as guard:
        assert code_of(guard, after) == "jwt.key"
        assert lender_of(guard, before) == "user:alice"


def test_a_token_of_another_tenant_is_refused_whatever_it_says(guard, forge, neighbour):
    """Another realm of the same server, whose administrator would like to be alice here."""
    issuer = forge.realm.issuer
    assert code_of(guard, neighbour.tokens["access_token"]) == "jwt.issuer"
    assert code_of(guard, neighbour.token(iss=issuer)) == "jwt.key"
    posing = neighbour.token({"kid": forge.header["kid"]}, iss=issuer)
    assert code_of(guard, posing) == "jwt.signature"
    assert code_of(guard, forge.token(iss=neighbour.realm.issuer)) == "jwt.issuer"
    with guarding(neighbour.realm) as theirs:  # the twin
        assert lender_of(theirs, neighbour.tokens["access_token"]) == "user:alice"
        assert code_of(theirs, forge.tokens["access_token"]) == "jwt.issuer"


def test_a_proof_is_of_the_key_to_which_keycloak_has_bound_the_token(guard, forge):
    """Keycloak and agentguard take the same proofs, and refuse the same ones."""
    key, other, realm = Key(), Key(), forge.realm
    body = realm.log_in(dpop=key.proof(realm.token_url))
    token = body["access_token"]
    assert body["token_type"] == "DPoP"
    bound_to = claims(token)["cnf"]["jkt"]
    assert code_of(guard, token) == "jwt.bound"  # its bearer alone must not use it

    proof = key.proof(realm.userinfo_url, token, htm="GET")
    target = Target.parse(realm.userinfo_url)
    given: dict[str, Any] = {"access_token": token, "at": int(time.time())}
    assert dpop.verify(proof, "GET", target, **given).thumbprint == bound_to
    assert userinfo(realm, token, proof).json()["preferred_username"] == "alice"

    assert userinfo(realm, token, proof).status_code == 401  # used before
    stranger = other.proof(realm.userinfo_url, token, htm="GET")
    assert dpop.verify(stranger, "GET", target, **given).thumbprint != bound_to
    assert userinfo(realm, token, stranger).status_code == 401
    for changes in ({"htm": "POST"}, {"htu": realm.token_url}, {"ath": token_hash("x")}):
        wrong = key.proof(realm.userinfo_url, token, **{"htm": "GET", **changes})
        assert userinfo(realm, token, wrong).status_code == 401
        with pytest.raises(AgentguardError):
            dpop.verify(wrong, "GET", target, **given)


def test_a_token_of_keycloak_says_nothing_to_a_receiver(guard, forge, tmp_path):
    """The token names no chain. So a receiver wants a token of the agents' domain."""
    key, url = Key(), "https://payments.example"
    token = forge.realm.log_in(dpop=key.proof(forge.realm.token_url))["access_token"]
    store = ProofStore(tmp_path / "proofs.sqlite")
    receiver = Receiver(url, guard.trust, store, accepts_plain_dpop=True)
    proof = key.proof(f"{url}/pay", token, htm="GET")
    headers = [("Authorization", f"DPoP {token}"), ("DPoP", proof)]
    with pytest.raises(AgentguardError) as caught:
        receiver.verify("GET", "/pay", "", headers, b"")
    assert caught.value.code == "proof.issuer"


def test_keycloak_takes_the_proofs_that_agentguard_signs(forge):
    signer, realm = Key().signer, forge.realm
    given: dict[str, Any] = {"at": int(time.time())}
    sent = dpop.sign(signer, "POST", realm.token_url, access_token=None, jti="j" * 22, **given)
    token = realm.log_in(dpop=sent)["access_token"]
    assert claims(token)["cnf"]["jkt"] == signer.public_key.thumbprint
    url = realm.userinfo_url
    sent = dpop.sign(signer, "GET", url, access_token=token, jti="k" * 22, **given)
    assert userinfo(realm, token, sent).is_success
    sent = dpop.sign(signer, "GET", url, access_token=f"{token}x", jti="l" * 22, **given)
    assert userinfo(realm, token, sent).status_code == 401


def userinfo(realm: Realm, token: str, proof: str) -> httpx.Response:
    """Ask Keycloak who the user is, as a program with DPoP does (RFC 9449, 7.1)."""
    headers = {"Authorization": f"DPoP {token}", "DPoP": proof}
    return httpx.get(realm.userinfo_url, headers=headers, timeout=30)
