"""ID-JAGs at the token service: a provider lets an agent act for a user, once (RFC 7523).

The attacks are in ``tests/attacks/service/test_service_assertions.py``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from authlib.integrations.httpx_client import OAuth2Client
from login_provider import ISSUER, LOGGED_IN
from logout_scene import Scene
from token_service import CHAIN, CLERK, GRANT, JWT_BEARER, PAYMENTS, claims

from agentguard import ConfigError
from agentguard.cli.audit import phrases
from agentguard.delegation import access_token
from agentguard.domain import config, keystore
from agentguard.service.answers import RefusedError
from agentguard.service.client import AsyncTokenService, TokenService
from agentguard.service.exchange import exchange
from agentguard.service.metadata import metadata
from agentguard.service.reading import FORM, Request
from agentguard.signing import canonical

PROFILES = "authorization_grant_profiles_supported"


def verified(service, body):
    trust = keystore.load_trust(service.place.folder / "state")
    given: dict[str, Any] = {"trust": trust, "at": int(time.time()), "issuer": service.url}
    chain = canonical.dumps(body[CHAIN])
    return access_token.verify(body["access_token"], chain, **given).chain


def test_an_agent_gets_a_token_for_the_user_of_an_id_jag(service, key, credential):
    id_jag = service.id_jag(jti="j-1")
    answer = service.redeem(key, credential, assertion=id_jag, audience=PAYMENTS)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["token_type"], body["scope"]) == ("DPoP", "read")
    assert "issued_token_type" not in body  # that is a member of a token exchange
    assert "resource" not in body
    assert answer.headers["cache-control"] == "no-store"
    said = claims(body["access_token"])
    assert (said["sub"], said["aud"]) == ("user:alice", [PAYMENTS])
    assert said["cnf"] == {"jkt": key.signer.public_key.thumbprint}
    assert service.introspect(body["access_token"])["active"] is True


def test_the_first_hop_says_that_the_token_was_an_id_jag(service, key, credential):
    chain = verified(service, service.redeem(key, credential).json())
    root = chain.root
    assert (root.principal, root.assurance, root.scope) == ("user:alice", "oidc", ("read",))
    assert root.subject_token is not None
    assert (root.subject_token.is_id_jag, root.subject_token.iss) == (True, ISSUER)
    assert root.subject_token.auth_time == LOGGED_IN
    assert phrases.voucher(root).startswith(f"{ISSUER} (ID-JAG ")
    exchanged = verified(service, service.exchange(key, credential).json())
    assert exchanged.root.subject_token is not None
    assert not exchanged.root.subject_token.is_id_jag
    assert "kind" not in exchanged.root.subject_token.as_json()


def test_an_id_jag_without_a_scope_limits_no_scope(service, key, credential):
    given = {"assertion": service.id_jag(scope=None), "scope": None}
    assert service.redeem(key, credential, **given).json()["scope"] == "pay read"


@pytest.mark.parametrize(
    ("has", "asks", "gets"),
    [("read", None, "read"), ("read pay x", None, "pay read"), ("read pay", "pay", "pay")],
)
def test_the_scope_of_an_id_jag_limits_what_the_user_lends(
    service, key, credential, has, asks, gets
):
    answer = service.redeem(key, credential, assertion=service.id_jag(scope=has), scope=asks)
    body = answer.json()
    assert body["scope"] == gets
    assert " ".join(verified(service, body).root.scope) == gets


@pytest.mark.parametrize("resource", [PAYMENTS, [PAYMENTS], ["https://x.example", PAYMENTS]])
def test_a_token_is_for_the_resource_of_the_id_jag(service, key, credential, resource):
    for asked in (None, PAYMENTS):
        id_jag = service.id_jag(resource=resource)
        body = service.redeem(key, credential, assertion=id_jag, resource=asked).json()
        assert body["resource"] == [PAYMENTS]
        assert claims(body["access_token"])["aud"] == [PAYMENTS]


@pytest.mark.parametrize("who", ["the agent", "the instance"])
def test_the_client_of_an_id_jag_is_the_agent_or_the_instance(service, key, credential, who):
    client = CLERK if who == "the agent" else claims(credential)["sub"]
    given = {"assertion": service.id_jag(client_id=client), "client_id": client}
    assert service.redeem(key, credential, **given).is_success


@pytest.mark.parametrize("typ", ["OAuth-ID-JAG+jwt", "application/oauth-id-jag+jwt"])
def test_the_type_of_an_id_jag_is_a_media_type(service, key, credential, typ):
    assert service.redeem(key, credential, assertion=service.id_jag(header=typ)).is_success


def test_an_audience_in_a_list_of_one_counts(service, key, credential):
    id_jag = service.id_jag(aud=[service.url])
    assert service.redeem(key, credential, assertion=id_jag).is_success


def test_a_service_without_id_jag_takes_none_and_says_so(service, key, credential, tmp_path):
    said = service.http.get("/.well-known/oauth-authorization-server").json()
    assert said["grant_types_supported"] == [GRANT, JWT_BEARER]
    assert said[PROFILES] == ["urn:ietf:params:oauth:grant-profile:id-jag"]
    assert service.redeem(key, credential).is_success
    scene = Scene(tmp_path)  # whose configuration has no id_jag
    form = f"grant_type={JWT_BEARER}&assertion=a.b.c".encode()
    request = Request("POST", "/token", {"content-type": FORM}, form)
    with scene.open() as guard:
        parts = scene.parts(guard)
        body = canonical.loads_object(metadata(parts, request).body)
        with pytest.raises(RefusedError) as caught:
            exchange(parts, request)
    assert body["grant_types_supported"] == [GRANT]
    assert PROFILES not in body
    assert caught.value.error == "unsupported_grant_type"


def test_both_clients_redeem_an_id_jag(service):
    async def wait(identity):
        async with AsyncTokenService(service.url) as tokens:
            return await tokens.redeem(identity, service.id_jag(), audience=[PAYMENTS])

    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        got = tokens.redeem(identity, service.id_jag(), scope=["read"])
    assert got.scope == ("read",)
    assert asyncio.run(wait(identity)).scope == ("pay", "read")


def test_a_client_of_authlib_redeems_an_id_jag(service, key, credential):
    endpoint = f"{service.url}/token"
    with OAuth2Client(CLERK, token_endpoint_auth_method="none") as client:
        token = client.fetch_token(
            endpoint,
            grant_type=JWT_BEARER,
            assertion=service.id_jag(),
            scope="read",
            headers={"Workload-Identity-Token": credential, "DPoP": key.proof(endpoint)},
        )
    assert (token["token_type"], token["scope"]) == ("DPoP", "read")
    assert claims(token["access_token"])["sub"] == "user:alice"


def test_the_log_of_an_id_jag_verifies(service, key, credential):
    body = service.redeem(key, credential).json()
    assert any(body[CHAIN]["hops"][-1] in str(entry) for entry in service.place.entries())
    assert service.place.verify().problems == ()


# --- the configuration ----------------------------------------------------------------------------

ISSUER_TABLE = {
    "issuer": ISSUER,
    "jwks_file": "jwks.json",
    "audience": ["agentguard"],
    "algorithms": ["RS256"],
}
SERVICE = {"server": {"url": "unix:s"}, "service": {"issuer": "https://agents.example"}}


def read(folder, issuer, **tables):
    whole = {"trust_domain": "acme.example", "issuers": {"acme": issuer}, **tables}
    return config.parse(whole, source="agentguard.toml", base=folder).issuers["acme"]


def test_id_jags_are_off_until_the_configuration_takes_them(tmp_path):
    users: dict[str, Any] = {"claim": "preferred_username"}
    for more, is_taken in (({}, False), ({"id_jag": True}, True)):
        read_users = read(tmp_path, {**ISSUER_TABLE, "users": {**users, **more}}, **SERVICE).users
        assert read_users is not None
        assert read_users.id_jag is is_taken


@pytest.mark.parametrize(
    ("issuer", "tables"),
    [
        ({}, {}),
        ({"issuer": "https://agents.example"}, SERVICE),
        ({"users": {"claim": "sub", "id_jag": "yes"}}, SERVICE),
        ({"types": ["Application/OAuth-id-jag+jwt"]}, SERVICE),
    ],
    ids=["no service", "the service itself", "no truth value", "the type as one of others"],
)
def test_a_configuration_of_id_jags_that_can_t_be_meant_is_refused(tmp_path, issuer, tables):
    good: dict[str, Any] = {**ISSUER_TABLE, "users": {"claim": "sub", "id_jag": True}}
    read(tmp_path, good, **SERVICE)  # the twin
    with pytest.raises(ConfigError):
        read(tmp_path, {**good, **issuer}, **tables)
