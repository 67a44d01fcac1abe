"""Evaluations over HTTP: callers who ask for others, hostile bodies, and what the log gets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from served_place import PASSPHRASE
from token_service import Key, claims, error_of, served

from agentguard.domain import administration
from agentguard.signing.canonical import b64url_encode, dumps

ONE, MANY = "/access/v1/evaluation", "/access/v1/evaluations"


@pytest.fixture(scope="module")
def uri(credential) -> str:
    return str(claims(credential)["sub"])


@pytest.fixture(scope="module")
def token(service, key, credential) -> str:
    return str(service.exchange(key, credential).json()["access_token"])


def evaluations(service) -> int:
    return [one.kind for one in service.place.entries()].count("evaluation")


# --- callers --------------------------------------------------------------------------------------


def test_a_stolen_token_is_of_no_use_without_its_key(service, key, token, uri):
    thief = Key()
    refused = service.evaluate(thief, uri, token)
    assert error_of(refused) == (401, "invalid_token")
    assert refused.headers["www-authenticate"].startswith("DPoP")
    bare = service.evaluate(None, uri, token)
    assert error_of(bare) == (400, "invalid_dpop_proof")
    bearer = service.evaluate(None, uri, None, {"Authorization": f"Bearer {token}"})
    assert error_of(bearer) == (401, "invalid_token")
    assert service.evaluate(key, uri, token).json()["decision"] is True


def test_a_stolen_credential_is_of_no_use_without_its_key(service, key, credential, uri):
    shown = {"Workload-Identity-Token": credential}
    assert error_of(service.evaluate(Key(), uri, None, shown)) == (401, "invalid_client")
    assert service.evaluate(key, uri, None, shown).json()["decision"] is True


def test_an_instance_asks_for_no_other_instance(service, key, token, uri):
    mine = Key()
    own = service.credential(mine)
    shown = {"Workload-Identity-Token": own}
    assert error_of(service.evaluate(mine, uri, None, shown)) == (403, "access_denied")
    assert error_of(service.evaluate(key, claims(own)["sub"], token)) == (403, "access_denied")
    for other in (f"{uri}x", uri.upper(), "agent:clerk", "clerk", ""):
        assert error_of(service.evaluate(key, other, token)) == (403, "access_denied")
    assert service.evaluate(mine, claims(own)["sub"], None, shown).json()["decision"] is True


def test_a_client_asks_for_no_agent_of_another_client(service, credential, token, uri):
    for subject, status in (("batch-1", 403), ("web-1", 200)):
        bearer = {"Authorization": f"Bearer {service.workload(subject)}"}
        for shown in ({"credential": credential}, {"access_token": token}):
            asked = {"type": "agent", "id": uri, "properties": shown}
            answer = service.evaluate(None, uri, None, bearer, subject=asked)
            assert answer.status_code == status
            assert status == 200 or error_of(answer) == (403, "access_denied")


def test_a_client_has_to_show_whose_evaluation_it_wants(service, credential, token, uri):
    bearer = {"Authorization": f"Bearer {service.workload()}"}
    head, payload, signature = token.split(".")
    tampered = f"{head}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    shown: list[Any] = [
        None,
        {},
        {"credential": credential, "access_token": token},
        {"credential": token},
        {"access_token": credential},
        {"access_token": tampered},
        {"access_token": 5},
        [],
    ]
    for properties in shown:
        asked = {"type": "agent", "id": uri, "properties": properties}
        answer = service.evaluate(None, uri, None, bearer, subject=asked)
        assert error_of(answer) == (400, "invalid_request")
    other = {"type": "agent", "id": f"{uri}x", "properties": {"credential": credential}}
    answer = service.evaluate(None, uri, None, bearer, subject=other)
    assert error_of(answer) == (400, "invalid_request")


def test_nobody_asks_without_a_token(service, uri):
    before = evaluations(service)
    for headers in (
        {},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer x"},
        {"Authorization": "DPoP x", "DPoP": "y"},
        {"Authorization": "DPoP"},
        {"Workload-Identity-Token": "x"},
    ):
        for path in (ONE, MANY):
            answer = service.evaluate(None, uri, None, headers, path=path)
            assert answer.status_code == 401
            assert "www-authenticate" in answer.headers
    assert evaluations(service) == before


def test_a_proof_counts_once_and_for_one_request(service, key, token, uri):
    proof = {"DPoP": key.proof(f"{service.url}{ONE}", token)}
    assert service.evaluate(None, uri, token, proof).json()["decision"] is True
    assert error_of(service.evaluate(None, uri, token, proof)) == (400, "invalid_dpop_proof")
    for path, ath, changes in (
        (MANY, token, {}),
        ("/token", token, {}),
        (ONE, None, {}),
        (ONE, f"{token}x", {}),
        (ONE, token, {"htm": "GET"}),
        (ONE, token, {"iat": 1}),
    ):
        other = {"DPoP": key.proof(f"{service.url}{path}", ath, **changes)}
        answer = service.evaluate(None, uri, token, other)
        assert error_of(answer) == (400, "invalid_dpop_proof")


def test_a_signed_decision_is_no_token_and_no_credential(service, key, credential, token, uri):
    statement = service.evaluate(key, uri, token).json()["context"]["statement"]
    text = b64url_encode(dumps(statement))
    for shown in (text, f"{text}.{text}.{text}", statement["payload"]):
        assert error_of(service.evaluate(key, uri, shown)) == (401, "invalid_token")
        assert error_of(service.exchange(key, shown)) == (401, "invalid_client")
        assert service.introspect(shown) == {"active": False}
    assert service.exchange(key, credential).is_success


# --- hostile bodies -------------------------------------------------------------------------------

CONTEXTS: dict[str, Any] = {
    "no object": [],
    "null": None,
    "arguments that are a list": {"arguments": []},
    "arguments that are null": {"arguments": None},
    "arguments that are text": {"arguments": "{}"},
}
ALLOWED_CONTEXTS: dict[str, Any] = {
    "a NUL": {"arguments": {"\0": "\0"}},
    "a number that is large": {"arguments": {"text": 2**53 - 1}},
    "a float": {"arguments": {"text": 1.5}},
    "members like tags": {"arguments": {"text": "x", "$decimal": {"$int": "x"}, "$": None}},
    "deep": {"arguments": {"text": "x", "a": json.loads("[" * 50 + "]" * 50)}},
    "many": {"arguments": {f"a{number}": number for number in range(2000)}},
    "odd text": {"arguments": {"text": "\u202e\x1b[31m\uffff'\"\\"}},
}


FORMS: list[dict[str, Any]] = [
    {"action": []},
    {"action": {"name": 5}},
    {"action": {"name": "a" * 5000}},
    {"action": {"name": "../drop"}},
    {"action": {"name": ""}},
    {"resource": {"type": "note"}},
    {"resource": {"type": "note", "id": ["x"]}},
    {"resource": {"type": "note", "id": "a" * 5000}},
    {"resource": {"type": "note", "id": "y"}},
    {"resource": {"type": "other", "id": "x"}},
    {"action": {"name": "add"}, "resource": {"type": "", "id": "x"}},
    {"action": {"name": "add"}, "resource": {"type": "note", "id": ""}},
    {"subject": "clerk"},
    {"subject": {"type": "user", "id": "URI"}},
    {"subject": {"type": "agent", "id": {"x": 1}}},
]
FORMS_OF_MANY: list[dict[str, Any]] = [
    {"evaluations": {}},
    {"evaluations": [{}] * 17},
    {"options": []},
    {"options": {"evaluations_semantic": "some"}},
    {"options": {"evaluations_semantic": []}},
]
ITEMS: list[Any] = [None, 5, "x", []]


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=list(CONTEXTS))
def test_a_context_of_another_form_is_refused(service, key, token, uri, context):
    body = {"subject": {"type": "agent", "id": uri}, "action": {"name": "add"}}
    body |= {"resource": {"type": "a", "id": "b"}, "context": context}
    headers = {"Authorization": f"DPoP {token}", "DPoP": key.proof(f"{service.url}{ONE}", token)}
    assert error_of(service.http.post(ONE, json=body, headers=headers)) == (400, "invalid_request")


@pytest.mark.parametrize("context", ALLOWED_CONTEXTS.values(), ids=list(ALLOWED_CONTEXTS))
def test_odd_arguments_are_decided(service, key, token, uri, context):
    answer = service.evaluate(key, uri, token, action={"name": "add"}, context=context)
    assert answer.json()["decision"] is True
    note = service.evaluate(key, uri, token, context=context)
    assert note.status_code in (200, 400)


def test_other_forms_of_a_request_are_refused_and_never_an_error_of_the_server(
    service, key, token, uri
):
    before = evaluations(service)
    for changes in FORMS:
        answer = service.evaluate(key, uri, token, **changes)
        assert error_of(answer) == (400, "invalid_request"), changes
        many = service.evaluate(key, uri, token, path=MANY, evaluations=[changes])
        (one,) = many.json()["evaluations"]
        assert (one["decision"], one["context"]["error"]["status"]) == (False, 400)
    for changes in FORMS_OF_MANY:
        answer = service.evaluate(key, uri, token, path=MANY, **changes)
        assert error_of(answer) == (400, "invalid_request"), changes
    for item in ITEMS:
        many = service.evaluate(key, uri, token, path=MANY, evaluations=[item])
        assert many.json()["evaluations"][0]["decision"] is False
    assert evaluations(service) == before
    assert service.evaluate(key, uri, token).json()["decision"] is True


@pytest.mark.parametrize("given", ["a\tb", "\xe4", "x" * 40_000], ids=["a tab", "latin", "long"])
def test_an_odd_request_id_does_not_come_back(service, key, token, uri, given):
    headers = [
        (b"Authorization", f"DPoP {token}".encode()),
        (b"DPoP", key.proof(f"{service.url}{ONE}", token).encode()),
        (b"X-Request-ID", given.encode("latin-1")),
    ]
    answer = service.http.post(ONE, json={}, headers=headers)
    assert 400 <= answer.status_code < 500
    assert "x-request-id" not in answer.headers


# --- what the log gets ----------------------------------------------------------------------------


def test_an_entry_is_small_and_holds_no_argument(service, key, token, uri):
    needle = "4711-the-secret-of-alice"
    arguments = {"text": needle * 4000}
    before = len(service.place.entries())
    answer = service.evaluate(
        key, uri, token, action={"name": "add"}, context={"arguments": arguments}
    )
    assert answer.json()["decision"] is True
    new = service.place.entries()[before:]
    assert [one.kind for one in new] == ["evaluation"]
    assert len(str(new)) < 6000
    files = [path for path in (service.place.folder / "state").rglob("*") if path.is_file()]
    assert files
    assert not any(needle.encode() in path.read_bytes() for path in files)


def test_a_chain_stands_in_the_log_once_however_often_its_token_asks(service, key, token, uri):
    def chains() -> int:
        return [one.kind for one in service.place.entries()].count("delegation")

    before = chains()
    for _ in range(3):
        assert service.evaluate(key, uri, token).json()["decision"] is True
    assert chains() == before


# --- revocations, the freeze, a restart -----------------------------------------------------------


@pytest.mark.slow("it starts a server twice")
def test_who_is_revoked_or_frozen_is_denied_and_a_restart_changes_nothing(programs):
    with served(programs) as service:
        keys = [Key(), Key()]
        shown = [service.credential(one) for one in keys]
        uris = [str(claims(one)["sub"]) for one in shown]
        tokens = [
            service.exchange(one, credential).json()["access_token"]
            for one, credential in zip(keys, shown, strict=True)
        ]
        proof = {"DPoP": keys[0].proof(f"{service.url}{ONE}", tokens[0])}
        assert service.evaluate(None, uris[0], tokens[0], proof).json()["decision"] is True
        service.place.stop()
        service.place.start()
        used = service.evaluate(None, uris[0], tokens[0], proof)
        assert error_of(used) == (400, "invalid_dpop_proof")
        assert service.evaluate(keys[0], uris[0], tokens[0]).json()["decision"] is True
        given: dict[str, Any] = {"note": "a test", "now": datetime.now(UTC)}
        settings = service.place.settings
        for frozen, status in ((True, 400), (False, 200)):
            administration.freeze(settings, PASSPHRASE, frozen=frozen, **given)
            assert service.evaluate(keys[0], uris[0], tokens[0]).status_code == status
        administration.revoke(settings, PASSPHRASE, uris[0], **given)
        gone = service.evaluate(keys[0], uris[0], tokens[0])
        assert error_of(gone) == (401, "invalid_client")
        bearer = {"Authorization": f"Bearer {service.workload()}"}
        asked = {"type": "agent", "id": uris[0], "properties": {"access_token": tokens[0]}}
        told = service.evaluate(None, uris[0], None, bearer, subject=asked).json()
        assert (told["decision"], told["context"]["outcome"]) == (False, "deny")
        assert told["context"]["code"].endswith(".revoked")
        assert service.evaluate(keys[1], uris[1], tokens[1]).json()["decision"] is True
        administration.revoke(settings, PASSPHRASE, "user:alice", **given)
        told = service.evaluate(keys[1], uris[1], tokens[1]).json()
        assert told["decision"] is False
        assert told["context"]["code"].endswith(".revoked")
        assert service.place.verify().problems == ()
