"""Revocations, the freeze, rotations and kills: what was issued before, and what comes after.

``AGENTGUARD_EXCHANGES`` says how many tokens clients exchange while the server is killed: 24 by
default, 384 with ``AGENTGUARD_ROUNDS=full``. From 320 on there are 32 clients, and one kill for
each 1,000 exchanges, at least one.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
from rounds import FULL
from served_place import PASSPHRASE
from token_service import CHAIN, Key, claims, error_of, served
from tool_servers import TLS

from agentguard.domain import administration, keystore, rotation
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile
from agentguard.service.parts import STORE
from agentguard.signing.keys import Secret

LOGGER = logging.getLogger(__name__)
EXCHANGES = int(os.environ.get("AGENTGUARD_EXCHANGES", "384" if FULL else "24"))


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


def test_a_stolen_key_of_the_issuer_makes_no_instance_with_an_older_date(service):
    """The thief dates the credential before the theft, since an older credential may count."""
    settings, thief = service.place.settings, Key()
    (stolen,) = keystore.load_trust(settings.state).keys_for("issuer")
    issuer = keystore.load_key(settings.state, "issuer", Secret(PASSPHRASE))
    made: dict[str, Any] = {"now": stolen.not_before, "jti": "made-by-the-thief"}
    forged = credential.issue(
        issuer, settings.trust_domain, AgentProfile("clerk"), thief.signer.public_key, **made
    )
    asks = partial(service.evaluate, thief, forged.uri)
    shown = {"Workload-Identity-Token": forged.token}
    assert service.exchange(thief, forged.token).is_success  # nobody knows of the theft
    assert asks(headers=shown).is_success

    since = datetime.fromtimestamp(stolen.not_before + 1, UTC)
    while datetime.now(UTC) <= since:
        time.sleep(0.05)
    given: dict[str, Any] = {"now": datetime.now(UTC), "compromised_since": since}
    rotation.rotate(settings, PASSPHRASE, "issuer", **given)
    assert error_of(service.exchange(thief, forged.token)) == (401, "invalid_client")
    assert error_of(asks(headers=shown)) == (401, "invalid_client")
    client = {"Authorization": f"Bearer {service.workload()}"}
    subject = {
        "type": "agent",
        "id": forged.uri,
        "properties": {"credential": forged.token},
    }
    assert error_of(service.evaluate(None, forged.uri, headers=client, subject=subject)) == (
        400,
        "invalid_request",
    )

    key = Key()  # the twin: a credential of the new key
    anew = service.credential(key)
    assert service.exchange(key, anew).is_success
    subject = {**subject, "id": claims(anew)["sub"], "properties": {"credential": anew}}
    assert service.evaluate(None, forged.uri, headers=client, subject=subject).is_success


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
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE proofs")
        connection.commit()
    refused = service.exchange(key, credential)
    assert error_of(refused) == (503, "temporarily_unavailable")
    assert "proofs" not in refused.json()["error"]


class Progress:
    """How many exchanges were answered, and how many requests found no server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.answered = self.lost = 0

    def note(self, *, answered: bool) -> None:
        with self._changed:
            self.answered += answered
            self.lost += not answered
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Wait until so many exchanges were answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.answered >= number, timeout=300)


TRIES = 200
"""How often a client tries for each token that it wants, at the most."""


def exchanges_of_one_client(service, identity, number, progress) -> list[dict[str, Any]]:
    """Exchange so many tokens; whoever finds no server tries again. Return the answers."""
    key, credential = identity
    got: list[dict[str, Any]] = []
    with httpx.Client(base_url=service.url, trust_env=False, verify=TLS) as http:
        own = replace(service, http=http)
        for _ in range(TRIES * number):
            try:
                answer = own.exchange(key, credential)
            except httpx.TransportError:
                progress.note(answered=False)
                time.sleep(0.2)
                continue
            assert answer.status_code == 200 or error_of(answer)[0] == 503
            if answer.is_success:
                got.append(answer.json())
                progress.note(answered=True)
            if len(got) == number:
                break
    return got


def test_each_answer_is_a_token_or_a_clear_error_while_the_server_is_killed(service):
    """Nobody gets a token that is not in the log, or one of which somebody else has the jti."""
    clients = 32 if EXCHANGES >= 320 else 4
    kills = max(1, EXCHANGES // 1000)
    progress, each = Progress(), EXCHANGES // clients
    keys = [Key() for _ in range(clients)]
    identities = [(key, service.credential(key)) for key in keys]
    with ThreadPoolExecutor(clients) as workers:
        running = [
            workers.submit(exchanges_of_one_client, service, identity, each, progress)
            for identity in identities
        ]
        for kill in range(1, kills + 1):
            progress.wait_for(kill * EXCHANGES // (kills + 1))
            service.place.stop(signal.SIGKILL)
            service.place.start()
        answers = [answer for one in running for answer in one.result()]
    assert len(answers) == each * clients == progress.answered
    assert len({claims(answer["access_token"])["jti"] for answer in answers}) == len(answers)
    for answer in answers[-20:]:
        assert service.introspect(answer["access_token"])["active"] is True
    service.place.stop()
    chains: list[Any] = [
        entry.members["chain"] for entry in service.place.entries() if entry.kind == "delegation"
    ]
    recorded = {hop for chain in chains for hop in chain["hops"]}
    assert {answer[CHAIN]["hops"][-1] for answer in answers} <= recorded
    assert service.place.verify().problems == ()
    LOGGER.info("%d exchanges, %d kills, %d lost", len(answers), kills, progress.lost)
