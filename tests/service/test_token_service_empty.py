"""Empty is never all: each field of a request, and each parameter of the clients, left empty.

The fields come from the description of the service, and the parameters from the signatures, so
that a new one is asked as well. What an empty value may be is listed here, with the reason.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from described_calls import Caller, media_type_of, schemes_of
from empty_parameters import require_no_two
from token_service import GRANT, JWT_BEARER, PAYMENTS, TYPES, claims

from agentguard import AgentguardError
from agentguard.service.client import AsyncTokenService, TokenService
from agentguard.service.openapi import DESCRIPTION
from agentguard.service.reading import FORM

EMPTY: dict[str, Any] = {"string": "", "array": [], "object": {}}

OMITTED = {
    "requested_token_type": "it limits nothing, and RFC 6749, 3.2 has it omitted",
    "client_id": "the credential names the client, and RFC 6749, 3.2 has it omitted",
    "token_type_hint": "a hint, which nothing reads",
    "urn:agentguard:chain": "the service has the chain",
    "context": "a call without arguments, about which the policy decides",
    "evaluations": "one evaluation (AuthZEN, Access Evaluations API)",
    "options": "the default, all evaluations",
}
"""The fields that grant, limit and name nothing: an empty one counts as none."""

CODES = {"scope": "invalid_scope", "audience": "invalid_target", "resource": "invalid_target"}


def bodies() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the path, the name and the schema of each body that the service takes."""
    for path, methods in DESCRIPTION["paths"].items():
        if "post" not in methods:
            continue
        (content,) = methods["post"]["requestBody"]["content"].values()
        for number, schema in enumerate(content["schema"].get("oneOf", [content["schema"]])):
            yield path, str(number), schema


FIELDS = [
    (path, number, name, schema["properties"][name])
    for path, number, schema in bodies()
    for name in schema["properties"]
]
"""Each field of each body."""


@pytest.fixture
def ask(service, key, credential):
    """Send a good body to a path, in which a member may be changed."""
    caller = Caller(service, key, credential)

    def ask(path: str, number: str, **changes: Any):
        form: dict[str, Any] = {
            "/token0": {
                "grant_type": GRANT,
                "subject_token": service.provider.token(),
                "subject_token_type": f"{TYPES}access_token",
            },
            "/token1": {"grant_type": JWT_BEARER, "assertion": service.id_jag()},
            "/identities0": {"agent": "clerk", "jwk": key.jwk},
            "/backchannel-logout0": {
                "logout_token": service.provider.logout_token(sub="nobody", sid=None)
            },
        }.get(path + number, {})
        if "/access/" in path:
            form = {
                "subject": {"type": "agent", "id": claims(credential)["sub"]},
                "action": {"name": "slow"},
                "resource": {"type": "note", "id": "x"},
                "context": {"arguments": {"text": "x"}},
            }
        if path in ("/introspect", "/revoke"):
            issued = service.exchange(key, credential).json()["access_token"]
            form, caller.access_token = {"token": issued}, issued
        headers = caller.headers(path, schemes_of(path)[0])
        if path == "/revoke":
            headers["DPoP"] = key.proof(f"{service.url}/revoke", caller.access_token)
        sent = {"data" if media_type_of(path) == FORM else "json": {**form, **changes}}
        return service.http.post(path, headers=headers, **sent)

    return ask


@pytest.mark.parametrize(("path", "number", "name", "schema"), FIELDS)
def test_an_empty_field_of_a_request_asks_for_nothing(ask, path, number, name, schema):
    assert ask(path, number).is_success  # the twin
    empty = EMPTY[schema.get("type", "string")]
    if media_type_of(path) == FORM:
        empty = ""
    answer = ask(path, number, **{name: empty})
    if name in OMITTED:
        assert answer.is_success
        return
    body = answer.json()
    refused = answer.status_code in (400, 401, 403) or body.get("decision") is False
    assert refused, (answer.status_code, body)
    assert path != "/token" or body["error"] == CODES.get(name, body["error"])


PARAMETERS = [
    (kind, method, name)
    for kind in (TokenService, AsyncTokenService)
    for method in ("exchange", "redeem")
    for name, one in inspect.signature(getattr(kind, method)).parameters.items()
    if "Iterable" in str(one.annotation)
]
"""The lists that a program passes to a client."""


@pytest.mark.parametrize(("kind", "method", "name"), PARAMETERS)
def test_an_empty_list_of_a_client_asks_for_nothing(service, kind, method, name):
    asked = partial(asked_of, service, kind, method)
    assert asked() == ("read",)  # the twin
    with pytest.raises(AgentguardError, match=CODES[name]) as caught:
        asked(**{name: []})
    assert caught.value.code == "service.refused"
    assert asked(**{name: None}) == (("pay", "read") if name == "scope" else ("read",))


@pytest.mark.parametrize(("kind", "method", "name"), [one for one in PARAMETERS if "scope" in one])
def test_one_name_of_a_scope_is_no_two(service, kind, method, name):
    require_no_two(lambda said: asked_of(service, kind, method, **{name: [said]}), "read")


def asked_of(service: Any, kind: Any, method: str, **changes: Any) -> tuple[str, ...]:
    given = {"scope": ["read"], "audience": [PAYMENTS]}
    token = service.id_jag if method == "redeem" else service.provider.token
    if kind is TokenService:
        with TokenService(service.url) as client:
            identity = client.register("clerk", workload_token=service.workload())
            send = getattr(client, method)
            return tuple(send(identity, token(), **{**given, **changes}).scope)

    async def run() -> tuple[str, ...]:
        async with AsyncTokenService(service.url) as client:
            made = client.register("clerk", workload_token=service.workload())
            identity = await made
            send = getattr(client, method)
            return tuple((await send(identity, token(), **{**given, **changes})).scope)

    return asyncio.run(run())


def test_the_fields_and_the_parameters_are_these():
    assert len(FIELDS) == 33
    assert len(PARAMETERS) == 8
    assert {name for *_, name, _schema in FIELDS} > OMITTED.keys()
