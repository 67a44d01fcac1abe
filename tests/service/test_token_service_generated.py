"""Requests that schemathesis makes of the OpenAPI description, with and without good credentials.

No answer is a server's error, and each has a status, a content type and a body that the description
names. What a person would think of is in ``tests/attacks/service/test_service_hostile.py``.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import requests
import schemathesis
from described_calls import Caller, schemes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import FULL
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import FailureGroup
from token_service import GRANT, TYPES, claims

from agentguard.service.openapi import DESCRIPTION

SCHEMA: Any = schemathesis.openapi.from_dict(dict(DESCRIPTION))
OPERATIONS = {one.label: one for one in (found.ok() for found in SCHEMA.get_all_operations())}
CHECKS: list[Any] = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 30 if FULL else 5


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the machine
        yield session


@pytest.mark.parametrize("label", OPERATIONS)
def test_an_answer_is_no_failure_and_the_description_has_it(
    service, key, credential, session, label
):
    operation, caller = OPERATIONS[label], Caller(service, key, credential)
    good: dict[str, Any] = {
        "grant_type": GRANT,
        "subject_token": service.provider.token(),
        "subject_token_type": f"{TYPES}jwt",
        "token": caller.access_token,
        "agent": "clerk",
        "jwk": key.jwk,
        "subject": {"type": "agent", "id": claims(credential)["sub"]},
        "action": {"name": "slow"},
        "resource": {"type": "note", "id": "x"},
    }
    ways = [frozenset(), *schemes_of(operation.path, operation.method)]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(data=st.data(), schemes=st.sampled_from(ways))
    def ask(data, schemes):
        mode = data.draw(st.sampled_from(list(GenerationMode)))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if isinstance(case.body, dict):
            chosen = data.draw(st.sets(st.sampled_from(sorted(good))))
            case.body |= {name: good[name] for name in sorted(chosen) if name in case.body}
        headers = caller.headers(operation.path, schemes)
        answer = case.call(base_url=service.url, session=session, headers=headers)
        case.validate_response(answer, checks=CHECKS)

    ask()


def test_a_good_answer_is_the_one_of_the_description(service, key, credential):
    """The twins: requests that succeed. And an answer of another form is noticed."""
    registered, exchanged = service.register(key), service.exchange(key, credential)
    asked = service.http.post(
        "/introspect",
        data={"token": exchanged.json()["access_token"]},
        headers={"Authorization": f"Bearer {service.workload()}"},
    )
    token, uri = exchanged.json()["access_token"], claims(credential)["sub"]
    good = {
        "identities": registered,
        "token": exchanged,
        "introspect": asked,
        "access/v1/evaluation": service.evaluate(key, uri, token),
    }
    for name, answer in good.items():
        assert answer.is_success, answer.text
        OPERATIONS[f"POST /{name}"].Case().validate_response(answer, checks=CHECKS)
    failed, changed = {"error": "x"}, {**exchanged.json(), "expires_in": "soon"}
    for status, body in ((500, failed), (302, failed), (200, changed)):
        other = httpx.Response(status, json=body, request=exchanged.request)
        other.elapsed = exchanged.elapsed
        with pytest.raises(FailureGroup):
            OPERATIONS["POST /token"].Case().validate_response(other, checks=CHECKS)
