"""Revocations, the freeze, rotations and kills: what was issued before, and what comes after."""

from __future__ import annotations

import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from rounds import FULL
from served_place import PASSPHRASE
from token_service import Key, claims, error_of, served

from agentguard.domain import administration, rotation
from agentguard.service.parts import STORE


@pytest.fixture
def service(programs):
    with served(programs) as running:
        yield running


def revoke(service, name):
    given: dict[str, Any] = {"note": "a test", "now": datetime.now(UTC)}
    administration.revoke(service.place.settings, PASSPHRASE, name, **given)


def freeze(service, *, frozen):
    given = {"frozen": frozen, "note": "a test", "now": datetime.now(UTC)}
    administration.freeze(service.place.settings, PASSPHRASE, **given)


def test_what_is_revoked_gets_no_token_and_its_tokens_end(service):
    keys = [Key() for _ in range(3)]
    credentials = [service.credential(key) for key in keys]
    tokens = [
        service.exchange(key, credential).json()["access_token"]
        for key, credential in zip(keys, credentials, strict=True)
    ]
    revoke(service, claims(credentials[0])["sub"])
    assert error_of(service.exchange(keys[0], credentials[0])) == (401, "invalid_client")
    assert error_of(service.register(keys[0])) == (401, "invalid_client")
    assert service.introspect(tokens[0]) == {"active": False}
    assert service.exchange(keys[1], credentials[1]).is_success  # the twin

    revoke(service, claims(tokens[2])["jti"])
    assert service.introspect(tokens[2]) == {"active": False}
    assert service.introspect(tokens[1])["active"] is True
    assert service.exchange(keys[2], credentials[2]).is_success

    revoke(service, "user:alice")
    assert error_of(service.exchange(keys[1], credentials[1])) == (400, "invalid_request")
    assert service.introspect(tokens[1]) == {"active": False}

    revoke(service, "agent:clerk")
    assert error_of(service.register(Key())) == (401, "invalid_client")
    helper = service.register(Key(), "helper", token=service.workload("batch-1"))
    assert helper.status_code == 201


def test_a_frozen_domain_issues_nothing_and_a_thawed_one_goes_on(service):
    key = Key()
    credential = service.credential(key)
    token = service.exchange(key, credential).json()["access_token"]
    freeze(service, frozen=True)
    assert error_of(service.exchange(key, credential)) == (400, "unauthorized_client")
    assert error_of(service.register(Key())) == (400, "unauthorized_client")
    assert service.introspect(token) == {"active": False}
    freeze(service, frozen=False)
    assert service.exchange(key, credential).is_success
    assert service.introspect(token)["active"] is True


def test_a_rotated_key_of_the_issuer_counts_until_its_last_token_has_ended(service):
    key = Key()
    credential = service.credential(key)
    token = service.exchange(key, credential).json()["access_token"]
    (before,) = service.http.get("/jwks.json").json()["keys"]
    rotation.rotate(service.place.settings, PASSPHRASE, "issuer", now=datetime.now(UTC))
    kids = [each["kid"] for each in service.http.get("/jwks.json").json()["keys"]]
    assert before["kid"] in kids
    assert len(kids) == 2
    assert service.introspect(token)["active"] is True
    assert service.exchange(key, credential).is_success


def test_a_server_that_was_killed_goes_on_and_knows_the_used_proofs(service):
    key = Key()
    credential = service.credential(key)
    proof = {"DPoP": key.proof(f"{service.url}/token")}
    token = service.exchange(key, credential, proof).json()["access_token"]
    service.place.stop(signal.SIGKILL)
    service.place.start()
    assert error_of(service.exchange(key, credential, proof)) == (400, "invalid_dpop_proof")
    assert service.introspect(token)["active"] is True  # with the chain that was kept
    assert service.exchange(key, credential).is_success
    service.place.stop()
    assert service.place.verify().problems == ()


def test_without_the_used_proofs_nothing_is_issued(service):
    key = Key()
    credential = service.credential(key)
    path = service.place.folder / "state" / STORE
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE proofs")
    refused = service.exchange(key, credential)
    assert error_of(refused) == (503, "temporarily_unavailable")
    assert "proofs" not in refused.json()["error"]


def test_each_answer_is_a_token_or_a_clear_error_while_the_server_is_killed(service):
    threads, each = (16, 40) if FULL else (4, 6)
    key = Key()
    credential = service.credential(key)
    halfway = threading.Barrier(threads + 1)

    def work(_number):
        got, lost = [], 0
        for turn in range(each):
            if turn == each // 2:
                halfway.wait()
            try:
                answer = service.exchange(key, credential)
            except httpx.TransportError:  # the server is not there
                lost += 1
                continue
            assert answer.status_code == 200 or error_of(answer)[0] == 503
            if answer.is_success:
                got.append(answer.json()["access_token"])
        return got, lost

    with ThreadPoolExecutor(threads) as workers:
        running = [workers.submit(work, number) for number in range(threads)]
        halfway.wait()
        service.place.stop(signal.SIGKILL)
        service.place.start()
        results = [one.result() for one in running]
    tokens = [token for got, _lost in results for token in got]
    assert len(tokens) + sum(lost for _got, lost in results) <= threads * each
    assert len(tokens) >= threads * (each // 2)  # all of the first half
    assert len({claims(token)["jti"] for token in tokens}) == len(tokens)
    for token in tokens[:: max(1, len(tokens) // 20)]:
        assert service.introspect(token)["active"] is True
    service.place.stop()
    assert service.place.verify().problems == ()
