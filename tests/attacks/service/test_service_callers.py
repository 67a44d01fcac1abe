"""Callers who are not whom they say: each is refused, beside the allowed twin."""

from __future__ import annotations

import time

import pytest
from token_service import CLERK, PAYMENTS, TYPES, Key, claims, error_of


def test_a_stolen_credential_is_of_no_use_without_its_key(service, key, credential):
    assert error_of(service.exchange(Key(), credential)) == (401, "invalid_client")
    assert service.exchange(key, credential).is_success


def test_a_credential_without_a_proof_is_refused(service, key, credential):
    refused = service.exchange(key, credential, {"DPoP": ""})
    assert error_of(refused) == (400, "invalid_dpop_proof")
    assert service.exchange(key, credential).is_success


def test_a_proof_counts_once(service, key, credential):
    proof = {"DPoP": key.proof(f"{service.url}/token")}
    assert service.exchange(key, credential, proof).is_success
    assert error_of(service.exchange(key, credential, proof)) == (400, "invalid_dpop_proof")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scope": "admin"}, (400, "invalid_scope")),
        ({"subject_token": "no-token"}, (400, "invalid_request")),
        ({"client_id": "spiffe://acme.example/agent/other"}, (401, "invalid_client")),
    ],
    ids=str,
)
def test_the_proof_of_a_refused_exchange_counts_no_second_time(
    service, key, credential, changes, error
):
    proof = {"DPoP": key.proof(f"{service.url}/token")}
    assert error_of(service.exchange(key, credential, proof, **changes)) == error
    for again in (changes, {"scope": "read"}):
        answer = service.exchange(key, credential, proof, **again)
        assert error_of(answer) == (400, "invalid_dpop_proof")
    assert service.exchange(key, credential).is_success


def _chains(service):
    """Return how many chains the log has."""
    return sum(entry.kind == "delegation" for entry in service.place.entries())


def test_a_repeated_exchange_leaves_nothing_in_the_log(service, key, credential):
    """The service signs a chain before it uses the proof up: that chain leaves no trace."""
    proof = {"DPoP": key.proof(f"{service.url}/token")}
    assert service.exchange(key, credential, proof).is_success
    before = _chains(service)
    for _ in range(3):
        assert error_of(service.exchange(key, credential, proof)) == (400, "invalid_dpop_proof")
    assert _chains(service) == before
    assert service.exchange(key, credential).is_success
    assert _chains(service) == before + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"htu": "https://evil.example/token"},
        {"htu": "SERVICE/identities"},
        {"htu": "SERVICE/token?x=1"},
        {"htm": "GET"},
        {"iat": 1},
        {"iat": 4_000_000_000},
        {"ath": "x"},
        {"jti": None},
        {"htu": None},
    ],
    ids=str,
)
def test_a_proof_for_another_request_is_refused(service, key, credential, changes):
    given = {name: str(value).replace("SERVICE", service.url) for name, value in changes.items()}
    changed = {
        name: given[name] if isinstance(value, str) else value for name, value in changes.items()
    }
    refused = service.exchange(
        key, credential, {"DPoP": key.proof(f"{service.url}/token", **changed)}
    )
    assert error_of(refused) == (400, "invalid_dpop_proof")
    assert service.exchange(key, credential).is_success


def test_a_tampered_credential_is_refused(service, key, credential):
    head, payload, signature = credential.split(".")
    other = "A" if signature[0] != "A" else "B"
    refused = service.exchange(key, f"{head}.{payload}.{other}{signature[1:]}")
    assert error_of(refused) == (401, "invalid_client")
    assert service.exchange(key, credential).is_success


def test_an_access_token_is_no_credential(service, key, credential):
    token = service.exchange(key, credential).json()["access_token"]
    assert error_of(service.exchange(key, token)) == (401, "invalid_client")


def test_a_client_id_has_to_be_the_instance_or_its_agent(service, key, credential):
    for other in (f"{CLERK}/x", "spiffe://acme.example/agent/helper", "clerk"):
        refused = service.exchange(key, credential, client_id=other)
        assert error_of(refused) == (401, "invalid_client")
    for own in (claims(credential)["sub"], CLERK):  # the twins
        assert service.exchange(key, credential, client_id=own).is_success


@pytest.mark.parametrize(
    ("subject", "agent", "status"),
    [
        ("web-1", "clerk", 201),
        ("web-1", "helper", 403),
        ("batch-1", "helper", 201),
        ("batch-1", "clerk", 403),
        ("web-1", "nobody", 403),
        ("web-1", "../clerk", 403),
    ],
)
def test_a_client_registers_its_own_agents_alone(service, subject, agent, status):
    answer = service.register(Key(), agent, token=service.workload(subject))
    assert answer.status_code == status
    if status != 201:
        assert error_of(answer) == (403, "access_denied")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "agentguard"},
        {"iss": "https://evil.example"},
        {"exp": 5},
        {"sub": "web-2"},
        {"nbf": 4_000_000_000},
    ],
    ids=str,
)
def test_a_workload_token_that_does_not_count_is_refused(service, changes):
    given = {"aud": "workloads", "sub": "web-1", **changes}
    refused = service.register(Key(), token=service.provider.token(**given))
    assert error_of(refused) == (401, "invalid_token")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert service.register(Key()).status_code == 201


def test_a_workload_token_without_the_key_registers_nothing(service):
    mine, stolen = Key(), service.workload()
    url = f"{service.url}/identities"
    for proof in (
        Key().proof(url, stolen),  # another key than jwk
        mine.proof(url),  # without the token
        mine.proof(url, service.workload(jti="other")),  # with another token
    ):
        refused = service.register(mine, token=stolen, DPoP=proof)
        assert refused.status_code == 400
    assert service.register(mine, token=stolen).status_code == 201


def test_a_proof_of_a_registration_counts_once(service):
    mine, token = Key(), service.workload()
    proof = mine.proof(f"{service.url}/identities", token)
    assert service.register(mine, token=token, DPoP=proof).status_code == 201
    refused = service.register(mine, token=token, DPoP=proof)
    assert error_of(refused) == (400, "invalid_dpop_proof")


def test_a_private_key_is_refused(service):
    mine, token = Key(), service.workload()
    body = {"agent": "clerk", "jwk": {**mine.jwk, "d": mine.jwk["x"]}}
    headers = {
        "Authorization": f"Bearer {token}",
        "DPoP": mine.proof(f"{service.url}/identities", token),
    }
    answer = service.http.post("/identities", json=body, headers=headers)
    assert error_of(answer) == (400, "invalid_request")
    assert "key.private" in answer.text


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": "workloads"},
        {"iss": "https://evil.example"},
        {"exp": 5},
        {"preferred_username": "bob"},
        {"preferred_username": "agent:clerk"},
        {"cnf": {"jkt": "x"}},
        {"typ": "ID"},
    ],
    ids=str,
)
def test_a_user_s_token_that_does_not_count_is_refused(service, key, credential, changes):
    refused = service.exchange(key, credential, subject_token=service.provider.token(**changes))
    assert error_of(refused) == (400, "invalid_request")
    assert service.exchange(key, credential).is_success


def test_a_user_s_token_for_another_actor_is_refused(service, key, credential):
    """RFC 8693, 4.4: ``may_act`` names the agent, an instance, or the trust domain."""
    uri = claims(credential)["sub"]
    other = claims(service.credential(Key()))["sub"]
    for name in (other, "spiffe://acme.example/agent/helper", "clerk", f"{CLERK}/", "user:alice"):
        token = service.provider.token(may_act={"sub": name})
        refused = service.exchange(key, credential, subject_token=token)
        assert error_of(refused) == (400, "invalid_request")
        assert "jwt.actor" in refused.text
    for name in (uri, CLERK, "spiffe://acme.example"):  # the twins
        token = service.provider.token(may_act={"sub": name})
        assert service.exchange(key, credential, subject_token=token).is_success
    acted = service.provider.token(act={"sub": CLERK})
    assert "jwt.actor" in service.exchange(key, credential, subject_token=acted).text


def test_a_token_of_the_service_is_no_user_s_token(service, key, credential):
    token = service.exchange(key, credential).json()["access_token"]
    refused = service.exchange(key, credential, subject_token=token)
    assert error_of(refused) == (400, "invalid_request")


@pytest.mark.parametrize("scope", ["read admin", "admin", "pay read write", "a" * 5000])
def test_a_wider_scope_is_refused(service, key, credential, scope):
    assert error_of(service.exchange(key, credential, scope=scope)) == (400, "invalid_scope")
    assert service.exchange(key, credential, scope="pay read").json()["scope"] == "pay read"


def test_an_agent_gets_no_more_than_its_own_scope(service):
    helper = Key()
    credential = service.credential(helper, "helper", "batch-1")
    assert error_of(service.exchange(helper, credential, scope="pay")) == (400, "invalid_scope")
    assert service.exchange(helper, credential, scope="read").json()["scope"] == "read"


@pytest.mark.parametrize("name", ["audience", "resource"])
def test_an_audience_that_is_not_listed_is_refused(service, key, credential, name):
    for audience in ("https://evil.example", [PAYMENTS, "https://evil.example"], f"{PAYMENTS}/"):
        refused = service.exchange(key, credential, **{name: audience})
        assert error_of(refused) == (400, "invalid_target")
    assert service.exchange(key, credential, **{name: PAYMENTS}).is_success


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": None}, "invalid_request"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"actor_token": "x", "actor_token_type": f"{TYPES}jwt"}, "invalid_request"),
        ({"requested_token_type": f"{TYPES}refresh_token"}, "invalid_request"),
        ({"scope": ["read", "read"]}, "invalid_request"),
    ],
    ids=str,
)
def test_another_exchange_than_this_one_is_refused(service, key, credential, changes, error):
    assert error_of(service.exchange(key, credential, **changes)) == (400, error)


def test_only_a_client_may_ask_what_a_token_says(service, key, credential):
    token = service.exchange(key, credential).json()["access_token"]
    for headers in ({}, {"Authorization": f"Bearer {service.provider.token()}"}):
        answer = service.http.post("/introspect", data={"token": token}, headers=headers)
        assert error_of(answer) == (401, "invalid_token")
    assert service.introspect(token)["active"] is True


def test_the_service_writes_no_user_s_token_down(service, key, credential):
    token = service.provider.token(jti=f"j{time.time_ns()}")
    workload = service.workload()
    assert service.exchange(key, credential, subject_token=token).is_success
    assert service.register(Key(), token=workload).is_success
    everything = service.place.said().encode()
    for path in (service.place.folder / "state").rglob("*"):
        everything += path.read_bytes() if path.is_file() else b""
    for secret in (token, workload):
        assert secret.rpartition(".")[2].encode() not in everything
