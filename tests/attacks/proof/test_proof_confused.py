"""Another server, or a proxy, gets no proof out of a client, and chooses no request that is proved.

A server that answers with a redirect chooses the next request of the client. That request is proved
only where the redirect stays within the audience of the first request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import requests
from starlette.applications import Starlette
from starlette.responses import RedirectResponse
from starlette.routing import Route
from tool_servers import (
    SCOPE,
    TLS,
    ToolServer,
    allow,
    guard_in_memory,
    in_call,
    plain_server,
    send,
    tool_server,
)

from agentguard import Guard
from agentguard.errors import ProofError
from agentguard.proof.headers import NAMES
from agentguard.proof.httpx import AsyncCallerTransport, CallerTransport
from agentguard.proof.presentation import prove_request
from agentguard.proof.requests import CallerAdapter

CLOSED = "http://127.0.0.1:9"


def with_httpx(url, *audiences):
    transport = CallerTransport(*audiences, transport=httpx.HTTPTransport(verify=TLS))
    with httpx.Client(transport=transport, follow_redirects=True) as client:
        return client.post(url, content=b"body").status_code


def with_async_httpx(url, *audiences):
    async def send():
        inner = httpx.AsyncHTTPTransport(verify=TLS)
        transport = AsyncCallerTransport(*audiences, transport=inner)
        async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
            return (await client.post(url, content=b"body")).status_code

    return asyncio.run(send())


def with_requests(url, *audiences):
    with requests.Session() as session:
        session.mount("http://", CallerAdapter(*audiences))
        return session.post(url, data=b"body").status_code


CLIENTS = pytest.mark.parametrize("post", [with_httpx, with_async_httpx, with_requests])


@pytest.fixture
def guard():
    with guard_in_memory() as guard:
        yield guard


@pytest.fixture
def payments(guard, tmp_path):
    with tool_server(guard, tmp_path) as server:
        yield server


@pytest.fixture
def thief(payments):
    """A server that sends each client on to the payments, with a query of the thief's choice."""

    async def onward(request):
        status = int(request.query_params["status"])
        return RedirectResponse(f"{payments.url}/pay?to=thief", status_code=status)

    routes = [Route("/{path:path}", onward, methods=["GET", "POST"])]
    server = ToolServer(lambda _url: Starlette(routes=routes))
    yield server
    server.stop()


@CLIENTS
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_tool_server_has_no_request_to_another_tool_server_proved(
    guard, payments, thief, post, status
):
    both = [thief.url, payments.url]
    url = f"{thief.url}/ask?status={status}"
    assert in_call(guard, lambda: post(url, *both), audience=both) == 401
    assert "dpop" in thief.seen[0][2]
    ((_method, path, headers),) = payments.seen
    assert (path, NAMES & headers.keys()) == ("/pay", set())
    itself = f"{payments.url}/pay?to=thief"
    assert in_call(guard, lambda: post(itself, *both), audience=both) == 200


@CLIENTS
def test_a_server_without_proofs_has_no_request_to_a_tool_server_proved(
    guard, payments, thief, post
):
    url = f"{thief.url}/ask?status=307"
    audience = [payments.url]
    assert in_call(guard, lambda: post(url, *audience), audience=audience) == 401
    assert not NAMES & payments.seen[0][2].keys()
    within = f"{payments.url}/onward?to={payments.url}/pay"
    assert in_call(guard, lambda: post(within, *audience), audience=audience) == 200


def test_a_path_of_an_origin_has_no_request_to_another_path_proved(guard):
    """Two programs may stand behind one origin."""
    one, other = "https://api.example/one", "https://api.example/other"
    proved: list[tuple[str, bool]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        proved.append((request.url.path, "dpop" in request.headers))
        to = request.url.params.get("to")
        return httpx.Response(307, headers={"Location": to}) if to else httpx.Response(200)

    def post(to):
        transport = CallerTransport(one, other, transport=httpx.MockTransport(answer))
        with httpx.Client(transport=transport, follow_redirects=True) as client:
            client.post(f"{one}?to={to}")

    in_call(guard, lambda: post(other), audience=[one, other])
    in_call(guard, lambda: post(f"{one}/more"), audience=[one, other])
    assert proved == [("/one", True), ("/other", False), ("/one", True), ("/one/more", True)]


def test_two_adapters_of_one_session_know_of_each_other(guard, payments, thief):
    """A session may have an adapter for each server."""
    both = [thief.url, payments.url]

    def post(url):
        with requests.Session() as session:
            for audience in both:
                session.mount(audience, CallerAdapter(audience))
            return session.post(url, data=b"body").status_code

    assert in_call(guard, lambda: post(f"{thief.url}/ask?status=307"), audience=both) == 401
    assert not NAMES & payments.seen[0][2].keys()
    assert in_call(guard, lambda: post(f"{payments.url}/pay"), audience=both) == 200


def test_a_request_to_this_machine_goes_through_no_proxy(guard, payments, monkeypatch):
    """A proxy would see the proof before the server does, and could use the proof up."""
    with plain_server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        url, audience = f"{payments.url}/pay", [payments.url]
        assert in_call(guard, lambda: with_httpx(url, *audience), audience=audience) == 200
        assert in_call(guard, lambda: with_requests(url, *audience), audience=audience) == 200
        assert proxy.seen == []
        status = in_call(guard, lambda: with_requests(url, CLOSED), audience=[CLOSED])
        assert status == 200  # of the proxy: a request without a proof goes as before
        assert [NAMES & headers.keys() for _, _, headers in proxy.seen] == [set()]


@CLIENTS
def test_an_error_of_the_network_shows_no_token(guard, post):
    """Programs report errors with their requests."""
    refused = (httpx.ConnectError, requests.ConnectionError)
    with pytest.raises(refused) as caught:
        in_call(guard, lambda: post(CLOSED, CLOSED), audience=[CLOSED])
    error: Any = caught.value
    assert error.request.method == "POST"
    assert not NAMES & {name.lower() for name in error.request.headers}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_chain_is_sent_with_the_time_limits_of_the_request(guard, is_async):
    """A server that asks for the chain can't hold the client up for ever."""
    url = "https://payments.example"
    seen: list[tuple[str, object]] = []
    wanted: list[str] = []

    def answer(request):
        seen.append((request.method, request.extensions.get("timeout")))
        return httpx.Response(401, headers={"Agentguard-Chain-Wanted": wanted[0]})

    async def post_on_a_loop():
        inner = httpx.MockTransport(answer)
        transport = AsyncCallerTransport(url, transport=inner)
        async with httpx.AsyncClient(transport=transport, timeout=7) as client:
            await client.post(url)

    def post():
        wanted.append(prove_request("POST", url, b"").chain_sha256)
        if is_async:
            asyncio.run(post_on_a_loop())
            return
        transport = CallerTransport(url, transport=httpx.MockTransport(answer))
        with httpx.Client(transport=transport, timeout=7) as client:
            client.post(url)

    def hand_on(depth):
        if depth == 0:
            return post()
        tool = guard.tool(name=f"hand-on-{depth}")(lambda: hand_on(depth - 1))
        return guard.new_agent("lead").call(tool)

    with guard.delegate("user:alice", scope=SCOPE, audience=[url], max_depth=12):
        hand_on(9)
    limits = dict.fromkeys(("connect", "read", "write", "pool"), 7)
    assert seen == [("POST", limits), ("PUT", limits), ("POST", limits)]


@pytest.mark.parametrize(("number", "is_sent"), [(40, True), (150, False)])
def test_a_token_that_every_receiver_refuses_is_not_sent(tmp_path, number, is_sent):
    """A scope may be longer than a header: the caller hears so, and not only a refusal."""
    scope = [f"payments-of-the-department-{place:03}:write" for place in range(number)]
    config = {"agents": {"payer": {"max_scope": scope}}}
    with Guard.ephemeral(allow, config=config) as guard, tool_server(guard, tmp_path) as server:
        tool = guard.tool(name="pay")(lambda: send(f"{server.url}/pay", server.url).status_code)
        with guard.delegate("user:alice", scope=scope, audience=[server.url]):
            if is_sent:
                assert guard.new_agent("payer").call(tool) == 200
                return
            with pytest.raises(ProofError) as caught:
                guard.new_agent("payer").call(tool)
        assert (caught.value.code, server.seen) == ("proof.too_large", [])
