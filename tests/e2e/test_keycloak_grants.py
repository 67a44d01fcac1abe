"""A real Keycloak takes a token of the token service as a grant (RFC 7523), and refuses other ones.

Keycloak has the keys of the token service from its ``/jwks.json``. The set-up is that of
``docs/how-to/token-service-keycloak.md``.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from keycloak import AUDIENCE, Keycloak, Realm
from token_issuer import b64
from token_service import PAYMENTS, Key, Service, claims, served

from agentguard import AgentguardError, Decision, Guard
from agentguard.signing import jws
from agentguard.signing.canonical import dumps

pytestmark = pytest.mark.slow("starts a real Keycloak")

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@pytest.fixture(scope="module")
def realm(keycloak):
    return keycloak.realm()


@pytest.fixture(scope="module")
def service(programs, realm):
    with served(programs, audience=f'{realm.issuer}", "{PAYMENTS}') as running:
        trust(realm.keycloak, realm, running)
        yield running


def trust(keycloak: Keycloak, realm: Realm, service: Service) -> None:
    """Have the realm trust the token service, and the client ``worker`` use the grant."""
    provider = {
        "alias": "agents",
        "providerId": "jwt-authorization-grant",
        "enabled": True,
        "config": {
            "issuer": service.url,
            "useJwksUrl": "true",
            "jwksUrl": f"{service.url}/jwks.json",
            "validateSignature": "true",
            "jwtAuthorizationGrantEnabled": "true",
            "jwtAuthorizationGrantAssertionSignatureAlg": "EdDSA",
        },
    }
    keycloak.ask("POST", f"/{realm.name}/identity-provider/instances", provider)
    (alice,) = keycloak.ask("GET", f"/{realm.name}/users?username=alice")
    link = {"identityProvider": "agents", "userId": "user:alice", "userName": "user:alice"}
    where = f"/{realm.name}/users/{alice['id']}/federated-identity/agents"
    keycloak.ask("POST", where, link)
    (worker,) = keycloak.ask("GET", f"/{realm.name}/clients?clientId=worker")
    worker["attributes"] |= {
        "oauth2.jwt.authorization.grant.enabled": "true",
        "oauth2.jwt.authorization.grant.idp": "agents",
    }
    keycloak.ask("PUT", f"/{realm.name}/clients/{worker['id']}", worker)


@pytest.fixture(scope="module")
def token_for(service):
    key = Key()
    credential = service.credential(key)

    def issued(audience: str, **changes: Any) -> str:
        answer = service.exchange(key, credential, audience=audience, **changes)
        return str(answer.json()["access_token"])

    return issued


def granted(realm: Realm, token: str) -> httpx.Response:
    form = {"grant_type": GRANT, "assertion": token}
    given: dict[str, Any] = {"auth": ("worker", realm.secret), "timeout": 30}
    return httpx.post(realm.token_url, data=form, **given)


def signed(key: Key, token: str, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """Return a token with other claims, signed by a key that is not the service's."""
    parsed = jws.parse(token)
    parts = [dumps({**parsed.header, **(header or {})}), dumps({**parsed.claims(), **changes})]
    body = ".".join(map(b64, parts))
    return f"{body}.{b64(key.signer.sign(body.encode()))}"


def test_a_token_of_the_service_is_a_grant_once(realm, token_for):
    token = token_for(realm.issuer)
    answer = granted(realm, token)
    assert answer.is_success, answer.text
    got = claims(answer.json()["access_token"])
    assert (got["preferred_username"], got["azp"]) == ("alice", "worker")
    assert granted(realm, token).status_code == 400  # used before
    assert granted(realm, token_for(realm.issuer)).is_success


def test_keycloak_asks_for_no_proof_and_gives_what_the_user_may(realm, token_for):
    """What the page warns of."""
    token = token_for(realm.issuer, scope="read")
    assert "cnf" in claims(token)
    got = granted(realm, token).json()
    assert got["token_type"] == "Bearer"
    assert claims(got["access_token"])["realm_access"]["roles"] == ["reader"]
    assert "read" not in got["scope"].split()


def test_an_audience_of_its_own_keeps_a_granted_token_out(realm, token_for):
    """The client's tokens have the audience ``agentguard``, as those of users have."""
    got = granted(realm, token_for(realm.issuer, scope="read")).json()["access_token"]
    for audience, code in ((AUDIENCE, None), ("support-app", "jwt.audience")):
        issuer = {
            "issuer": realm.issuer,
            "jwks_url": realm.jwks_url,
            "audience": [audience],
            "algorithms": ["RS256"],
            "users": {"claim": "preferred_username"},
        }
        config: dict[str, Any] = {"agents": {"clerk": {}}, "issuers": {"acme": issuer}}
        with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
            assert code_of(guard, got) == code


def code_of(guard: Guard, token: str) -> str | None:
    """Return the code of a refusal, None where the user lends more than the token's scope."""
    try:
        guard.delegate(subject_token=token, scope=["read", "write"])
    except AgentguardError as error:
        return error.code
    return None


def test_a_token_that_the_service_has_not_signed_for_the_realm_is_no_grant(realm, token_for):
    good, stranger = token_for(realm.issuer), Key()
    head, payload, signature = good.split(".")
    other = json.loads(dumps({**jws.parse(good).claims(), "sub": "user:bob"}))
    for wrong in (
        token_for(PAYMENTS),  # for another receiver
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f"{head}.{b64(dumps(other))}.{signature}",
        signed(stranger, good),
        signed(stranger, good, {"kid": stranger.signer.key_id}),
        signed(stranger, good, iss="https://evil.example"),
        f"{b64(dumps({'alg': 'none', 'typ': 'at+jwt'}))}.{payload}.",
    ):
        assert granted(realm, wrong).status_code in (400, 401)
    assert granted(realm, good).is_success  # the twin
