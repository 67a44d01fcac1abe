"""The token service as its callers see it: metadata, identities, tokens and introspection."""

from __future__ import annotations

import time
from typing import Any

import httpx
import jwt
import pytest
from token_service import CHAIN, PAYMENTS, TYPES, Key, claims, error_of

from agentguard.delegation import access_token
from agentguard.domain import keystore
from agentguard.errors import VerificationError
from agentguard.service.application import ROUTES
from agentguard.service.openapi import DESCRIPTION
from agentguard.signing import canonical


def test_the_metadata_names_the_endpoints_that_there_are(service):
    answer = service.http.get("/.well-known/oauth-authorization-server")
    metadata = answer.json()
    assert metadata["issuer"] == service.url
    paths = {place.path for place in ROUTES}
    named = {value for value in metadata.values() if str(value).startswith(f"{service.url}/")}
    assert {url.removeprefix(service.url) for url in named} <= paths


def test_the_description_has_each_route_and_no_other(service):
    described = {
        (method.upper(), path)
        for path, methods in DESCRIPTION["paths"].items()
        for method in methods
    }
    assert described == {(place.method, place.path) for place in ROUTES}
    served = service.http.get("/openapi.json").json()
    assert served["servers"] == [{"url": service.url}]


def test_the_service_is_healthy(service):
    assert service.http.get("/healthz").json() == {"status": "ok"}


def test_an_instance_exchanges_a_user_s_token(service, key, credential):
    answer = service.exchange(key, credential, audience=PAYMENTS)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (body["token_type"], body["scope"]) == ("DPoP", "read")
    assert body["issued_token_type"] == f"{TYPES}access_token"
    assert 0 < body["expires_in"] <= access_token.MAX_LIFETIME
    assert len(body["access_token"]) < 1500
    said = claims(body["access_token"])
    assert (said["iss"], said["sub"], said["aud"]) == (service.url, "user:alice", [PAYMENTS])
    assert said["client_id"] == claims(credential)["sub"]
    assert said["cnf"] == {"jkt": key.signer.public_key.thumbprint}


def test_a_receiver_verifies_the_token_with_its_chain_offline(service, key, credential):
    body = service.exchange(key, credential).json()
    chain = canonical.dumps(body[CHAIN])
    trust = keystore.load_trust(service.place.folder / "state")
    given: dict[str, Any] = {"trust": trust, "at": int(time.time())}
    token = access_token.verify(body["access_token"], chain, issuer=service.url, **given)
    assert token.chain.principal == "user:alice"
    assert token.chain.root.assurance == "oidc"
    assert token.chain.members[1:] == ("spiffe://acme.example", claims(credential)["sub"])
    for other in (None, f"{service.url}/", "https://evil.example"):
        with pytest.raises(VerificationError) as caught:
            access_token.verify(body["access_token"], chain, issuer=other, **given)
        assert caught.value.code == "token.mismatch"
        assert "name the URL of the service as the issuer (--issuer)" in str(caught.value)


def test_a_script_with_nothing_of_agentguard_verifies_the_token(service, key, credential):
    token = service.exchange(key, credential, audience=PAYMENTS).json()["access_token"]
    metadata = httpx.get(f"{service.url}/.well-known/oauth-authorization-server").json()
    signing_key = jwt.PyJWKClient(metadata["jwks_uri"]).get_signing_key_from_jwt(token)
    said = jwt.decode(
        token, signing_key, algorithms=["EdDSA"], audience=PAYMENTS, issuer=metadata["issuer"]
    )
    assert said["sub"] == "user:alice"


def test_the_same_key_again_renews_the_credential(service, key, credential):
    renewed = service.register(key)
    assert renewed.status_code == 201
    assert renewed.json()["uri"] == claims(credential)["sub"]
    assert renewed.json()["credential"] != credential
    assert 0 < renewed.json()["expires_in"] <= 3600


def test_everything_that_is_issued_stands_in_the_log(service, key):
    credential = service.credential(key)
    chain = service.exchange(key, credential).json()[CHAIN]
    texts = [str(entry) for entry in service.place.entries()]
    assert any(credential in text for text in texts)
    assert any(chain["hops"][-1] in text for text in texts)
    assert service.place.verify().problems == ()


def test_introspection_says_who_acts_for_whom(service, key, credential):
    body = service.exchange(key, credential).json()
    said = service.introspect(body["access_token"])
    uri = claims(credential)["sub"]
    assert said["active"] is True
    assert said["act"] == {"sub": uri, "act": {"sub": "spiffe://acme.example"}}
    assert (said["sub"], said["scope"], said["token_type"]) == ("user:alice", "read", "DPoP")
    chain = canonical.dumps(body[CHAIN]).decode()
    assert service.introspect(body["access_token"], **{CHAIN: chain}) == said


@pytest.mark.parametrize("token", ["x", "a.b.c", "e30.e30.e30"])
def test_a_token_that_is_none_is_not_active(service, token):
    assert service.introspect(token) == {"active": False}


def test_a_tampered_token_or_chain_is_not_active(service, key, credential):
    body = service.exchange(key, credential).json()
    token, chain = body["access_token"], body[CHAIN]
    other = service.exchange(key, credential).json()
    head, payload, signature = token.split(".")
    tampered = f"{head}.{payload}.{signature[:-4]}AAAA"
    assert service.introspect(tampered) == {"active": False}
    swapped = canonical.dumps(other[CHAIN]).decode()
    assert service.introspect(token, **{CHAIN: swapped}) == {"active": False}
    assert service.introspect(token, **{CHAIN: "{}"}) == {"active": False}
    assert service.introspect(token, **{CHAIN: canonical.dumps(chain).decode()})["active"]


def test_a_scope_that_nobody_names_is_all_that_user_and_agent_share(service, key, credential):
    assert service.exchange(key, credential, scope=None).json()["scope"] == "pay read"


@pytest.mark.parametrize("scope", ["read  pay", '"read"'])
def test_a_scope_of_another_form_is_refused_by_its_form(service, key, credential, scope):
    refused = service.exchange(key, credential, scope=scope)
    assert error_of(refused) == (400, "invalid_scope")
    assert "single spaces" in refused.json()["error_description"]
    assert service.exchange(key, credential, scope="read pay").is_success


def test_an_id_token_counts_only_where_the_issuer_s_users_have_id_tokens(service, key, credential):
    refused = service.exchange(key, credential, subject_token_type=f"{TYPES}id_token")
    assert error_of(refused) == (400, "invalid_request")
    assert service.exchange(key, credential, subject_token_type=f"{TYPES}jwt").is_success


def test_two_instances_of_an_agent_are_two_identities(service, key, credential):
    other = Key()
    assert claims(service.credential(other))["sub"] != claims(credential)["sub"]
