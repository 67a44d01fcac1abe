"""A tool's server knows who calls: real requests of guarded tools to a real server."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from importlib import import_module
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from tool_servers import SCOPE, TLS, guard_in_memory, in_call, receiver, send, tool_server

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.errors import ConfigError
from agentguard.proof import CallerMiddleware, RequestCaller
from agentguard.proof.fastapi import requires
from agentguard.proof.httpx import AsyncCallerTransport, CallerTransport

URL = "https://payments.example"


@pytest.fixture
def guard():
    with guard_in_memory() as guard:
        yield guard


@pytest.fixture
def server(guard, tmp_path):
    with tool_server(guard, tmp_path) as server:
        yield server


def test_the_server_knows_the_agent_the_user_and_the_authorised_call(guard, server, request):
    def pay():
        return send(f"{server.url}/pay?currency=EUR", server.url, json={"amount": 3}).json()

    caller = in_call(guard, pay, audience=[server.url], task_id="T-1")
    assert caller.pop("agent").startswith("spiffe://")
    digest = caller.pop("invocation_sha256")
    assert caller == {
        "principal": "user:alice",
        "actors": [caller["actors"][0], "agent:payer"],
        "scope": SCOPE,
        "task_id": "T-1",
        "isolation": "same-user" if "served" in request.node.name else "same-process",
        "assurance": "request",
        "body": '{"amount":3}',
        "query": "currency=EUR",
    }
    entries = [parse_entry(body) for _index, body in guard.reader().entries()]
    (call,) = [one for one in entries if isinstance(one, CallEntry)]
    assert hashlib.sha256(call.envelope.payload).hexdigest() == digest


def test_an_async_tool_proves_its_requests_too(guard, server):
    async def pay():
        inner = httpx.AsyncHTTPTransport(verify=TLS)
        transport = AsyncCallerTransport(server.url, transport=inner)
        async with httpx.AsyncClient(transport=transport) as client:
            answers = await asyncio.gather(*(client.get(f"{server.url}/{n}") for n in range(3)))
            return [answer.json()["principal"] for answer in answers]

    tool = guard.tool(name="pay")(pay)

    async def run():
        with guard.delegate("user:alice", scope=SCOPE, audience=[server.url]):
            return await guard.new_agent("payer").acall(tool)

    assert asyncio.run(run()) == ["user:alice"] * 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_client_of_httpx_proves_its_requests(guard, server, is_async):
    """Also a body that comes in parts, and without the proof for another server."""

    async def apost():
        transport = AsyncCallerTransport(server.url)
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.post(f"{server.url}/pay?currency=EUR", json={"a": 3})).json()

    def post():
        parts = (part for part in (b'{"a":', b"3}"))
        with httpx.Client(transport=CallerTransport(server.url)) as client:
            return client.post(f"{server.url}/pay?currency=EUR", content=parts).json()

    send = (lambda: asyncio.run(apost())) if is_async else post
    seen = in_call(guard, send, audience=[server.url])
    assert (seen["principal"], seen["assurance"], seen["body"]) == (
        "user:alice",
        "request",
        '{"a":3}',
    )
    with httpx.Client(trust_env=False) as stranger:
        assert stranger.post(f"{server.url}/pay").status_code == 401


def test_an_endpoint_that_needs_a_scope_refuses_a_caller_without(guard, tmp_path):
    app = FastAPI()

    @app.post("/payments")
    def pay(caller: Annotated[RequestCaller, Depends(requires("payments:write"))]) -> str:
        return caller.principal

    @app.post("/refunds")
    def refund(caller: Annotated[RequestCaller, Depends(requires("refunds:write"))]) -> str:
        return caller.principal

    alone = httpx.ASGITransport(app)
    behind = httpx.ASGITransport(CallerMiddleware(app, receiver(URL, guard, tmp_path)))

    async def ask(transport, path):
        proving = AsyncCallerTransport(URL, transport=transport)
        async with httpx.AsyncClient(transport=proving) as client:
            return await client.post(f"{URL}{path}")

    def answer(transport, path):
        return in_call(guard, lambda: asyncio.run(ask(transport, path)), audience=[URL])

    assert answer(behind, "/payments").json() == "user:alice"
    refused = answer(behind, "/refunds")
    assert refused.status_code == 403
    challenge = 'DPoP error="insufficient_scope", scope="refunds:write"'
    assert refused.headers["www-authenticate"] == challenge
    # without the middleware nobody is verified
    assert answer(alone, "/payments").status_code == 401


@pytest.mark.parametrize("name", ["httpx", "requests", "fastapi"])
def test_a_module_without_its_extra_says_what_to_install(monkeypatch, name):
    module = f"agentguard.proof.{name}"
    import_module(module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match=name) as caught:
        import_module(module)
    assert caught.value.code == "config.extra_missing"
