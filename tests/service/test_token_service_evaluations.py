"""``POST /access/v1/evaluation`` and its kin, as gateways and instances see them (AuthZEN)."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from token_service import claims, error_of

from agentguard import AgentguardError, Evaluation, verify_evaluation
from agentguard.call.invocation import commitment
from agentguard.domain import keystore
from agentguard.service.client import AsyncTokenService, TokenService
from agentguard.signing.canonical import b64url_decode, dumps

MANY = "/access/v1/evaluations"


@pytest.fixture(scope="module")
def uri(credential) -> str:
    return str(claims(credential)["sub"])


@pytest.fixture(scope="module")
def token(service, key, credential) -> str:
    """An access token with which the instance acts for alice."""
    return str(service.exchange(key, credential).json()["access_token"])


def read_of(service, answer: httpx.Response | dict[str, Any]):
    """Verify the statement in an answer with the trust document alone; return what it says."""
    body = answer if isinstance(answer, dict) else answer.json()
    trust = keystore.load_trust(service.place.folder / "state")
    return verify_evaluation(dumps(body["context"]["statement"]), trust).evaluated


def entry_of(service, answer: httpx.Response):
    return service.place.entries()[int(answer.json()["context"]["entry"])]


def test_the_metadata_are_those_of_a_policy_decision_point(service):
    said = service.http.get("/.well-known/authzen-configuration").json()
    assert said == {
        "policy_decision_point": service.url,
        "access_evaluation_endpoint": f"{service.url}/access/v1/evaluation",
        "access_evaluations_endpoint": f"{service.url}/access/v1/evaluations",
    }


def test_an_instance_asks_for_itself_and_its_user(service, key, token, uri):
    answer = service.evaluate(key, uri, token)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    said = answer.json()
    assert said["decision"] is True
    read = read_of(service, answer)
    assert (read.agent, read.principal, read.tool.name) == (uri, "user:alice", "slow")
    assert (read.resource, read.client) == ("note:x", None)
    encoded = dumps({"text": "x"})
    salt = b64url_decode(said["context"]["salt"])
    assert read.arguments == commitment(salt, encoded)
    entry = entry_of(service, answer)
    assert entry.kind == "evaluation"
    assert entry.members["statement"] == said["context"]["statement"]


def test_an_instance_asks_for_itself_on_its_own_authority(service, key, credential, uri):
    answer = service.evaluate(key, uri, headers={"Workload-Identity-Token": credential})
    assert answer.json()["decision"] is True
    assert read_of(service, answer).principal == "agent:clerk"


@pytest.mark.parametrize(
    ("tool", "outcome", "code"),
    [
        ("pay", "approval", "approval.required"),
        ("drop", "deny", "policy.denied"),
        ("add", "allow", ""),
    ],
)
def test_a_decision_that_is_no_allow_says_why(service, key, token, uri, tool, outcome, code):
    answer = service.evaluate(key, uri, token, action={"name": tool})
    assert answer.status_code == 200
    said = answer.json()
    assert said["decision"] is (outcome == "allow")
    context = said["context"]
    assert (context["outcome"], context["code"]) == (outcome, code)
    assert [one["roles"] for one in context["requirements"]] == (
        [["manager"]] if outcome == "approval" else []
    )
    assert read_of(service, answer).decision == outcome


def test_a_tool_without_a_template_has_the_resource_of_the_request(service, key, token, uri):
    resource = {"type": "sum", "id": "a/{b}"}
    answer = service.evaluate(key, uri, token, action={"name": "add"}, resource=resource)
    assert read_of(service, answer).resource == "sum:a%2F%7Bb%7D"


def test_the_scope_of_the_configuration_counts(service, key, credential, uri):
    wide = service.exchange(key, credential, scope="read").json()["access_token"]
    narrow = service.exchange(key, credential, scope="pay").json()["access_token"]
    add = {"action": {"name": "add"}}
    assert service.evaluate(key, uri, wide, **add).json()["decision"] is True
    refused = service.evaluate(key, uri, narrow, **add).json()
    assert (refused["decision"], refused["context"]["code"]) == (False, "scope.exceeded")


@pytest.mark.parametrize("shows", ["access_token", "credential"])
def test_a_gateway_asks_for_an_agent_that_it_may_be(service, token, credential, uri, shows):
    shown = {"access_token": token, "credential": credential}[shows]
    subject = {"type": "agent", "id": uri, "properties": {shows: shown}}
    bearer = {"Authorization": f"Bearer {service.workload()}"}
    answer = service.evaluate(None, uri, None, bearer, subject=subject)
    assert answer.json()["decision"] is True
    read = read_of(service, answer)
    assert (read.agent, read.client) == (uri, "web")
    assert read.principal == ("user:alice" if shows == "access_token" else "agent:clerk")


def test_the_request_s_id_comes_back(service, key, token, uri):
    given = {"X-Request-ID": "bfe9eb29-ab87"}
    assert service.evaluate(key, uri, token, given).headers["x-request-id"] == "bfe9eb29-ab87"
    refused = service.evaluate(key, uri, token, given, action=None)
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "bfe9eb29-ab87")
    assert "x-request-id" not in service.evaluate(key, uri, token).headers


def test_members_that_nobody_knows_are_ignored(service, key, token, uri):
    answer = service.evaluate(
        key,
        uri,
        token,
        more={"x": 1},
        action={"name": "slow", "properties": {"method": "GET"}},
        context={"arguments": {"text": "x"}, "time": "1985-10-26T01:22-07:00"},
    )
    assert answer.json()["decision"] is True


@pytest.mark.parametrize("member", ["subject", "action", "resource"])
def test_a_request_without_a_required_member_is_a_bad_request(service, key, token, uri, member):
    assert error_of(service.evaluate(key, uri, token, **{member: None})) == (400, "invalid_request")


def test_several_calls_have_an_answer_each_in_their_order(service, key, token, uri):
    items = [{"action": {"name": name}} for name in ("add", "drop", "nothing", "pay")]
    items.append({"subject": {"type": "agent", "id": f"{uri}x"}})
    items.append({})
    answer = service.evaluate(key, uri, token, path=MANY, evaluations=items)
    answers = answer.json()["evaluations"]
    assert [one["decision"] for one in answers] == [True, False, False, False, False, True]
    errors = [one["context"].get("error", {}).get("status") for one in answers]
    assert errors == [None, None, 400, None, 403, None]
    assert read_of(service, answers[0]).tool.name == "add"
    assert "decision" not in answer.json()


@pytest.mark.parametrize(
    ("semantic", "decisions"),
    [
        ("execute_all", [True, False, True]),
        ("deny_on_first_deny", [True, False]),
        ("permit_on_first_permit", [True]),
    ],
)
def test_the_semantics_say_where_the_evaluations_stop(
    service, key, token, uri, semantic, decisions
):
    items = [{}, {"action": {"name": "drop"}}, {}]
    options = {"evaluations_semantic": semantic}
    answer = service.evaluate(key, uri, token, path=MANY, evaluations=items, options=options)
    assert [one["decision"] for one in answer.json()["evaluations"]] == decisions


@pytest.mark.parametrize("items", [None, []])
def test_without_evaluations_the_answer_is_that_of_one(service, key, token, uri, items):
    answer = service.evaluate(key, uri, token, path=MANY, evaluations=items)
    assert answer.json()["decision"] is True


def test_the_client_of_the_library_asks_and_so_does_its_twin(service):
    async def ask(identity, token) -> Evaluation:
        async with AsyncTokenService(service.url) as tokens:
            return await tokens.authorize(
                identity, "slow", {"text": "x"}, resource="note:x", access_token=token
            )

    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        token = tokens.exchange(identity, service.provider.token()).issued.token
        own = tokens.authorize(identity, "slow", {"text": "x"}, resource="note:x")
        denied = tokens.authorize(identity, "drop", {}, resource="note:x", access_token=token)
        asked = tokens.authorize(identity, "pay", {}, resource="note:x")
        with pytest.raises(AgentguardError) as caught:
            tokens.authorize(identity, "nothing", {}, resource="note:x")
        assert caught.value.code == "service.refused"
        with pytest.raises(AgentguardError) as caught:
            tokens.authorize(identity, "slow", {}, resource="note")
        assert caught.value.code == "config.invalid"
    twin = asyncio.run(ask(identity, token))
    assert (own.allowed, twin.allowed, denied.code) == (True, True, "policy.denied")
    assert asked.decision.requirements[0].roles == ("manager",)
    trust = keystore.load_trust(service.place.folder / "state")
    reads = [verify_evaluation(one.statement or b"", trust) for one in (own, twin, denied)]
    assert [one.evaluated.principal for one in reads] == ["agent:clerk", "user:alice", "user:alice"]
    assert token not in repr((own, twin))


def test_an_evaluation_is_no_call_and_the_log_verifies(service, key, token, uri):
    before = service.place.calls()
    assert service.evaluate(key, uri, token).json()["decision"] is True
    assert service.place.calls() == before
    assert service.place.verify().problems == ()
