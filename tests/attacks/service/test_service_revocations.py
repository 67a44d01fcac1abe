"""Who tries to end what somebody else holds, by ``POST /revoke``, beside who gives up their own."""

from __future__ import annotations

import time
from typing import Any

import pytest
from token_service import Key, error_of

from agentguard.audit import surrenders
from agentguard.audit.entry import parse_entry
from agentguard.errors import DecodeError
from agentguard.signing.canonical import dumps


@pytest.fixture
def token(service, key, credential) -> str:
    return str(service.exchange(key, credential).json()["access_token"])


def is_active(service, token) -> bool:
    return bool(service.introspect(token)["active"])


def test_an_instance_gives_up_no_token_of_another(service, key, credential, token):
    """Also one of the same agent, which the thief may have seen."""
    thief = Key()
    stolen = service.revoke(thief, service.credential(thief), token)
    assert error_of(stolen) == (400, "unauthorized_client")
    other = service.revoke(thief, service.credential(thief, "helper", "batch-1"), token)
    assert error_of(other) == (400, "unauthorized_client")
    assert is_active(service, token)
    assert service.revoke(key, credential, token).is_success  # the twin
    assert not is_active(service, token)


def test_a_credential_without_its_key_gives_nothing_up(service, key, credential, token):
    thief = Key()
    assert error_of(service.revoke(thief, credential, token)) == (401, "invalid_client")
    without = service.http.post("/revoke", data={"token": token})
    assert error_of(without) == (401, "invalid_client")
    workload = {"Authorization": f"Bearer {service.workload()}"}
    client = service.http.post("/revoke", data={"token": token}, headers=workload)
    assert error_of(client) == (401, "invalid_client")
    assert is_active(service, token)
    assert service.revoke(key, credential, token).is_success  # the twin


def test_a_proof_of_another_request_gives_nothing_up(service, key, credential, token):
    url = f"{service.url}/revoke"
    other = str(service.exchange(key, credential).json()["access_token"])
    used = key.proof(url, "another token")
    service.revoke(key, credential, "another token", {"DPoP": used})
    wrong = (
        key.proof(url),  # without the token
        key.proof(url, other),
        key.proof(f"{service.url}/token", token),
        key.proof(url, token, htm="GET"),
        key.proof(url, token, iat=int(time.time()) - 600),
        used,
    )
    for proof in wrong:
        answer = service.revoke(key, credential, token, {"DPoP": proof})
        assert error_of(answer) == (400, "invalid_dpop_proof")
    assert is_active(service, token)
    again = key.proof(url, token)
    assert service.revoke(key, credential, token, {"DPoP": again}).is_success  # the twin
    assert error_of(service.revoke(key, credential, token, {"DPoP": again}))[0] == 400


def test_a_log_with_a_surrender_of_somebody_else_does_not_verify(service, key, credential, token):
    """Whoever has the log's key could write the entry, and lacks the holder's proof."""
    assert service.revoke(key, credential, token).is_success
    entry = [one for one in service.place.entries() if one.kind == "surrender"][-1]
    hop, proof = str(entry.members["hop"]), str(entry.members["proof"])
    at = "2026-11-29T12:00:00.000000Z"
    stranger, url = Key(), f"{service.url}/revoke"
    head, claims, signature = proof.split(".")
    forged: list[Any] = [
        stranger.proof(url, token),
        key.proof(f"{service.url}/token", token),
        key.proof(url),
        f"{head}.{claims}.{signature[:-8]}AAAAAAAA",
        f"{head}.{claims}",
        "",
    ]
    for wrong in forged:
        body = dumps({"kind": "surrender", "at": at, "hop": hop, "proof": wrong})
        with pytest.raises(DecodeError) as refused:
            surrenders.read(parse_entry(body))
        assert refused.value.code == "entry.malformed"
    good = parse_entry(surrenders.record(hop, proof, at=at).body)  # the twin
    assert surrenders.read(good).summary.principal == "user:alice"
