"""ID-JAGs that an attacker changes, takes from others, repeats, or passes off as another token.

Each is refused, beside the allowed twin.
"""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from login_provider import Provider
from logout_scene import CONFIG, PASSPHRASE, SERVICE, Scene
from token_service import CLERK, GRANT, JWT_BEARER, PAYMENTS, TYPES, Key, error_of

from agentguard.domain import config
from agentguard.guard.embedded import open_embedded
from agentguard.service.answers import RefusedError
from agentguard.service.exchange import exchange
from agentguard.service.parts import open_parts
from agentguard.service.reading import FORM, Request
from agentguard.signing.keys import Ed25519Signer

INVALID_GRANT = (400, "invalid_grant")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://other.example"},
        {"aud": "agentguard"},
        {"aud": ["SERVICE", "https://other.example"]},
        {"aud": "SERVICE/"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"sub": None},
        {"jti": None},
        {"jti": ""},
        {"jti": 5},
        {"client_id": None},
        {"client_id": 5},
        {"client_id": "spiffe://acme.example/agent/helper"},
        {"client_id": "spiffe://acme.example/agent/clerk/"},
        {"client_id": "spiffe://evil.example/agent/clerk"},
        {"client_id": "clerk"},
        {"exp": None},
        {"exp": 5},
        {"exp": 4_000_000_000},
        {"iat": None},
        {"iat": 4_000_000_000},
        {"nbf": 4_000_000_000},
        {"scope": ""},
        {"scope": "read  pay"},
        {"scope": ["read"]},
        {"scope": {}},
        {"resource": []},
        {"resource": ""},
        {"resource": [PAYMENTS, 5]},
        {"preferred_username": "bob"},
        {"preferred_username": "agent:clerk"},
        {"preferred_username": None},
        {"sub": CLERK},
        {"sub": "web-1"},
        {"cnf": {"jkt": "x"}},
        {"act": {"sub": "agent:other"}},
        {"may_act": {"sub": "agent:other"}},
        {"tenant": "other"},
        {"aud_tenant": "other"},
        {"authorization_details": []},
    ],
    ids=str,
)
def test_an_id_jag_that_does_not_count_is_refused(service, key, credential, changes):
    given = {
        name: [one.replace("SERVICE", service.url) for one in value]
        if isinstance(value, list) and name == "aud"
        else value.replace("SERVICE", service.url)
        if isinstance(value, str)
        else value
        for name, value in changes.items()
    }
    assert error_of(service.redeem(key, credential, assertion=service.id_jag(**given))) == (
        INVALID_GRANT
    )
    assert service.redeem(key, credential).is_success


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "logout+jwt", "oauth-id-jag", "dpop+jwt", ""])
def test_a_token_of_another_type_with_the_claims_of_an_id_jag_is_refused(
    service, key, credential, typ
):
    refused = service.redeem(key, credential, assertion=service.id_jag(header=typ))
    assert error_of(refused) == INVALID_GRANT
    assert service.redeem(key, credential).is_success


def test_no_other_token_is_an_assertion(service, key, credential):
    issued = service.exchange(key, credential).json()["access_token"]
    others = {
        "an access token": service.provider.token(aud=service.url),
        "an ID token": service.provider.id_token(aud=service.url),
        "a log-out token": service.provider.logout_token(aud=service.url),
        "a workload token": service.workload(),
        "a token of the service": issued,
        "a credential": credential,
        "a DPoP proof": key.proof(f"{service.url}/token"),
        "no token": "a.b.c",
    }
    answers = {
        name: error_of(service.redeem(key, credential, assertion=token))
        for name, token in others.items()
    }
    assert answers == dict.fromkeys(others, INVALID_GRANT)
    assert service.redeem(key, credential).is_success


@pytest.mark.parametrize("kind", ["access_token", "id_token", "jwt"])
@pytest.mark.parametrize("aud", ["agentguard", "SERVICE"])
def test_an_id_jag_is_no_user_s_token(service, key, credential, kind, aud):
    """Also one that has the audience and the claims of a user's token."""
    id_jag = service.id_jag(aud=aud.replace("SERVICE", service.url), typ="Bearer", azp="chat")
    given = {"subject_token": id_jag, "subject_token_type": f"{TYPES}{kind}"}
    assert error_of(service.exchange(key, credential, **given)) == (400, "invalid_request")
    twin = service.provider.token(azp="chat")
    assert service.exchange(key, credential, subject_token=twin).is_success


def test_an_id_jag_is_no_workload_token_and_no_log_out_token(service):
    id_jag = service.id_jag(aud="workloads", sub="web-1")
    assert error_of(service.register(Key(), token=id_jag)) == (401, "invalid_token")
    assert service.register(Key()).status_code == 201
    assert error_of(service.log_out(service.id_jag(aud="agentguard"))) == (400, "invalid_request")


def test_an_id_jag_of_another_key_or_with_other_claims_is_refused(
    service, key, credential, tmp_path
):
    forged = Provider(tmp_path, "evil").id_jag(aud=service.url, client_id=CLERK)
    assert error_of(service.redeem(key, credential, assertion=forged)) == INVALID_GRANT
    head, payload, signature = service.id_jag().split(".")
    _head, other, _signature = service.id_jag(scope="read pay admin").split(".")
    for tampered in (f"{head}.{other}.{signature}", f"{head}.{payload}.{'A' * len(signature)}"):
        assert error_of(service.redeem(key, credential, assertion=tampered)) == INVALID_GRANT
    assert service.redeem(key, credential, assertion=f"{head}.{payload}.{signature}").is_success


def test_an_id_jag_counts_once(service, key, credential):
    id_jag = service.id_jag()
    other = Key()
    assert service.redeem(key, credential, assertion=id_jag).is_success
    assert error_of(service.redeem(key, credential, assertion=id_jag)) == INVALID_GRANT
    # another instance of the agent has no use of the grant, either
    again = service.redeem(other, service.credential(other), assertion=id_jag)
    assert error_of(again) == INVALID_GRANT
    # nor does the same jti in another token
    reissued = service.id_jag(jti="same"), service.id_jag(jti="same", scope="read")
    assert service.redeem(key, credential, assertion=reissued[0]).is_success
    assert error_of(service.redeem(key, credential, assertion=reissued[1])) == INVALID_GRANT


def test_of_simultaneous_requests_with_one_id_jag_one_gets_a_token(service, key, credential):
    id_jag = service.id_jag()
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda _n: service.redeem(key, credential, assertion=id_jag), range(6))
        )
    assert sorted(answer.status_code for answer in answers) == [200, *[400] * 5]


def test_a_used_id_jag_is_on_the_disk_until_the_grant_has_ended(service, key, credential):
    ends = int(time.time()) + 300
    id_jag = service.id_jag(jti="kept", exp=ends)
    assert service.redeem(key, credential, assertion=id_jag).is_success
    with sqlite3.connect(service.place.folder / "state" / "service-store.db") as store:
        rows = store.execute("SELECT expires_at FROM proofs WHERE jti = 'kept'").fetchall()
    store.close()
    assert len(rows) == 1
    assert rows[0][0] >= ends


def test_a_refused_request_does_not_use_an_id_jag_up(service, key, credential):
    """So nobody else can use a grant up: only the client of the grant gets as far as that."""
    id_jag, other = service.id_jag(), Key()
    refused = [
        service.redeem(key, credential, assertion=id_jag, scope="admin"),
        service.redeem(other, credential, assertion=id_jag),
        service.redeem(other, service.credential(other, "helper", "batch-1"), assertion=id_jag),
    ]
    assert [error_of(answer) for answer in refused] == [
        (400, "invalid_scope"),
        (401, "invalid_client"),
        INVALID_GRANT,
    ]
    assert service.redeem(key, credential, assertion=id_jag).is_success


def test_the_proof_of_a_refused_id_jag_counts_no_second_time(service, key, credential):
    proof = {"DPoP": key.proof(f"{service.url}/token")}
    refused = service.redeem(key, credential, proof, assertion=service.id_jag(aud="x"))
    assert error_of(refused) == INVALID_GRANT
    again = service.redeem(key, credential, proof)
    assert error_of(again) == (400, "invalid_dpop_proof")
    assert service.redeem(key, credential).is_success


def test_an_id_jag_without_the_credential_and_its_key_is_of_no_use(service, key, credential):
    id_jag = service.id_jag()
    assert error_of(service.redeem(Key(), credential, assertion=id_jag)) == (401, "invalid_client")
    refused = service.redeem(key, credential, {"DPoP": ""}, assertion=id_jag)
    assert error_of(refused) == (400, "invalid_dpop_proof")
    assert service.redeem(key, credential, assertion=id_jag).is_success


@pytest.mark.parametrize(
    ("has", "asks"), [("read", "pay"), ("read", "read pay"), ("other", None), ("other", "read")]
)
def test_more_scope_than_the_id_jag_has_is_refused(service, key, credential, has, asks):
    refused = service.redeem(key, credential, assertion=service.id_jag(scope=has), scope=asks)
    assert error_of(refused) == (400, "invalid_scope")
    twin = service.redeem(key, credential, assertion=service.id_jag(scope="pay"), scope="pay")
    assert twin.is_success


def test_an_id_jag_gives_no_more_than_user_and_agent_may(service, key, credential):
    """The scope ``other`` is in the grant, and nobody here may have it."""
    refused = service.redeem(key, credential, scope="other")
    assert error_of(refused) == (400, "invalid_scope")
    assert service.redeem(key, credential, scope=None).json()["scope"] == "pay read"


@pytest.mark.parametrize(
    ("has", "asks"),
    [
        ("https://x.example", PAYMENTS),
        ("https://x.example", None),
        (f"{PAYMENTS}/", None),
        (PAYMENTS, "spiffe://acme.example"),
        (PAYMENTS, "https://x.example"),
    ],
)
def test_another_receiver_than_the_id_jag_s_is_refused(service, key, credential, has, asks):
    id_jag = service.id_jag(resource=has)
    refused = service.redeem(key, credential, assertion=id_jag, audience=asks)
    assert error_of(refused) == (400, "invalid_target")
    twin = service.id_jag(resource=PAYMENTS)
    assert service.redeem(key, credential, assertion=twin, audience=PAYMENTS).is_success


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"assertion": None}, "invalid_request"),
        ({"subject_token": "x"}, "invalid_request"),
        ({"subject_token_type": f"{TYPES}jwt"}, "invalid_request"),
        ({"requested_token_type": f"{TYPES}access_token"}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"grant_type": GRANT}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"scope": ["read", "pay"]}, "invalid_request"),
    ],
    ids=str,
)
def test_a_request_with_an_assertion_has_one_meaning(service, key, credential, changes, error):
    assert error_of(service.redeem(key, credential, **changes)) == (400, error)
    assert service.redeem(key, credential).is_success


def test_a_token_exchange_has_no_assertion(service, key, credential):
    refused = service.exchange(key, credential, assertion=service.id_jag())
    assert error_of(refused) == (400, "invalid_request")
    assert service.exchange(key, credential).is_success


def test_a_client_id_in_the_form_has_to_be_the_client(service, key, credential):
    refused = service.redeem(key, credential, client_id="spiffe://acme.example/agent/helper")
    assert error_of(refused) == (401, "invalid_client")
    assert service.redeem(key, credential, client_id=CLERK).is_success


def test_an_id_jag_of_a_log_in_that_has_ended_is_refused(service, key, credential):
    log_in = {"sub": "gone", "sid": "ended"}
    before = service.id_jag(**log_in)
    assert service.redeem(key, credential, assertion=service.id_jag(**log_in)).is_success
    assert service.log_out(**log_in).is_success
    refused = service.redeem(key, credential, assertion=before)
    assert error_of(refused) == INVALID_GRANT
    assert "delegation.logged_out" in refused.text
    twin = service.id_jag(sub="gone", sid="another")
    assert service.redeem(key, credential, assertion=twin).is_success


def test_the_service_writes_no_id_jag_down(service, key, credential):
    id_jag = service.id_jag()
    assert service.redeem(key, credential, assertion=id_jag).is_success
    refused = service.id_jag(tenant="x")
    assert error_of(service.redeem(key, credential, assertion=refused)) == INVALID_GRANT
    everything = service.place.said().encode()
    for path in (service.place.folder / "state").rglob("*"):
        everything += path.read_bytes() if path.is_file() else b""
    for secret in (id_jag, refused):
        assert secret.rpartition(".")[2].encode() not in everything


def test_a_reload_that_takes_a_scope_from_a_role_counts_for_id_jags(tmp_path):
    """What the service knew of roles at its start must not outlive a reload."""
    scene = Scene(tmp_path)
    roles = '\nid_jag = true\nroles = "groups"\n\n[roles.reader]\nscope = [{}]\n'
    end = 'logout_audience = ["chat"]\n'
    paths = []
    for name, scope in (("wide", '"read"'), ("narrow", '"other"')):
        paths.append(tmp_path / f"{name}.toml")
        more = roles.format(scope)
        paths[-1].write_text(CONFIG.replace(end, end.rstrip() + more) + SERVICE, "utf-8")
    wide, narrow = map(config.load, paths)
    with closing(open_embedded(wide, lambda: PASSPHRASE, is_server=True)) as guard:
        parts = open_parts(wide, guard)
        holder = guard.instance(guard.agent("clerk")).holder(datetime.now(UTC))
        assert isinstance(holder.signer, Ed25519Signer)
        assert holder.credential is not None
        key, shown = Key(holder.signer), holder.credential.token

        def redeemed() -> int | str:
            claims: dict[str, Any] = {"scope": None, "groups": ["reader"], "client_id": CLERK}
            assertion = scene.provider.id_jag(aud=parts.config.issuer, **claims)
            form = {"grant_type": JWT_BEARER, "assertion": assertion, "scope": "read"}
            headers = {
                "content-type": FORM,
                "workload-identity-token": shown,
                "dpop": key.proof(parts.url("/token")),
            }
            request = Request("POST", "/token", headers, urlencode(form).encode())
            try:
                return exchange(parts, request).status
            except RefusedError as refused:
                return refused.error

        assert redeemed() == 200
        guard.reload(narrow)
        assert redeemed() == "invalid_scope"
        guard.reload(wide)
        assert redeemed() == 200  # the twin
