"""A redirect out of the audience gets no token and no proof; one within gets a proof of its own."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager

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
    guard_in_memory,
    in_call,
    plain_server,
    tool_server,
)

from agentguard import Ed25519Signer
from agentguard.errors import ConfigError, ProofError
from agentguard.proof.headers import NAMES
from agentguard.proof.httpx import AsyncCallerTransport, CallerTransport
from agentguard.proof.requests import CallerAdapter


@pytest.fixture
def guard():
    with guard_in_memory() as guard:
        yield guard


@pytest.fixture
def server(guard, tmp_path):
    with tool_server(guard, tmp_path) as server:
        yield server


@contextmanager
def redirecting_server(onward):
    """Run a server that sends each request on to the URL ``onward``."""

    async def redirect(_request):
        return RedirectResponse(onward, status_code=307)

    routes = [Route("/{path:path}", redirect, methods=["GET", "POST"])]
    server = ToolServer(lambda _url: Starlette(routes=routes))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def elsewhere():
    with plain_server() as server:
        yield server


def with_httpx(audience, url, **more):
    transport = CallerTransport(audience, transport=httpx.HTTPTransport(verify=TLS), **more)
    with httpx.Client(transport=transport, follow_redirects=True) as client:
        answer = client.post(url, content=b"body", headers={"X-Mine": "1"})
        assert not NAMES & {name.lower() for name in answer.request.headers}
        return answer.status_code, answer.text


def with_async_httpx(audience, url, **more):
    async def send():
        inner = httpx.AsyncHTTPTransport(verify=TLS)
        transport = AsyncCallerTransport(audience, transport=inner, **more)
        async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
            answer = await client.post(url, content=b"body", headers={"X-Mine": "1"})
            assert not NAMES & {name.lower() for name in answer.request.headers}
            return answer.status_code, answer.text

    return asyncio.run(send())


def with_requests(audience, url, **more):
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", CallerAdapter(audience, **more))
        answer = session.post(url, data=b"body", headers={"X-Mine": "1"})
        assert not NAMES & {name.lower() for name in answer.request.headers}
        return answer.status_code, answer.text


CLIENTS = pytest.mark.parametrize("post", [with_httpx, with_async_httpx, with_requests])


@CLIENTS
def test_a_redirect_elsewhere_carries_neither_token_nor_proof(guard, server, elsewhere, post):
    url = f"{server.url}/onward?to={elsewhere.url}/take"
    answered = in_call(guard, lambda: post(server.url, url), audience=[server.url])
    assert answered == (200, "ok")
    ((_method, path, headers),) = elsewhere.seen
    assert (path, headers["x-mine"]) == ("/take", "1")
    assert not NAMES & headers.keys()


@CLIENTS
def test_a_redirect_out_of_the_audience_and_back_is_not_proved(guard, server, post):
    """The other server must not choose which request to the audience is proved."""
    with redirecting_server(f"{server.url}/pay?amount=1000") as thief:
        out = f"{server.url}/onward?to={thief.url}/back"
        twice = f"{server.url}/onward?to={server.url}/onward%3Fto={server.url}/pay"

        def both():
            return [post(server.url, url)[0] for url in (out, twice, out)]

        answers = in_call(guard, both, audience=[server.url])
    assert answers == [401, 200, 401]
    proved = [path for _method, path, headers in server.seen if NAMES & headers.keys()]
    assert proved == ["/onward", "/onward", "/onward", "/pay", "/onward"]


@CLIENTS
def test_a_redirect_within_the_audience_has_a_proof_of_its_own(guard, server, post):
    url = f"{server.url}/onward?to={server.url}/pay"
    status, text = in_call(guard, lambda: post(server.url, url), audience=[server.url])
    assert status == 200
    assert '"principal":"user:alice"' in text
    first, second = (headers for _method, _path, headers in server.seen)
    assert first["dpop"] != second["dpop"]


@CLIENTS
def test_a_second_request_has_a_proof_of_its_own(guard, server, post):
    def twice():
        return [post(server.url, f"{server.url}/pay")[0] for _ in range(2)]

    assert in_call(guard, twice, audience=[server.url]) == [200, 200]


@CLIENTS
def test_a_request_to_another_server_goes_as_it_is(guard, server, elsewhere, post):
    url = f"{elsewhere.url}/take"
    assert in_call(guard, lambda: post(server.url, url), audience=[server.url])[0] == 200
    ((_method, _path, headers),) = elsewhere.seen
    assert not NAMES & headers.keys()
    assert in_call(guard, lambda: post(server.url, f"{server.url}/x"), audience=[server.url])


@CLIENTS
def test_a_request_that_the_delegation_does_not_name_is_not_sent(guard, server, post):
    with pytest.raises(ProofError) as caught:
        in_call(guard, lambda: post(server.url, server.url), audience=["https://x.example"])
    assert caught.value.code == "proof.audience"
    assert server.seen == []
    in_call(guard, lambda: post(server.url, server.url), audience=[server.url])
    assert len(server.seen) == 1


@CLIENTS
def test_a_redirect_to_a_server_that_signs_its_answers_or_out_of_it_is_not_followed(
    guard, tmp_path, elsewhere, post
):
    """Nobody signs the answer of an unproved request, and elsewhere nobody signs at all."""
    signer = Ed25519Signer.from_seed(os.urandom(32))

    def code(server, url):
        keys = {server.url: [signer.public_key.openssh()]}
        try:
            return post(server.url, url, receipt_keys=keys)[0]
        except ProofError as error:
            return error.code

    with (
        tool_server(guard, tmp_path, signer=signer) as server,
        redirecting_server(f"{server.url}/healthz") as thief,  # whose answer nobody signs
    ):
        onward = f"{server.url}/onward?to="
        urls = [
            f"{thief.url}/x",
            f"{onward}{elsewhere.url}/take",
            f"{onward}{thief.url}/back",
            f"{server.url}/healthz",
            f"{onward}{onward}{server.url}/pay",
            f"{elsewhere.url}/take",
        ]
        got = in_call(guard, lambda: [code(server, url) for url in urls], audience=[server.url])
    assert got == ["receipt.redirect"] * 3 + ["receipt.missing", 200, 200]  # the last are twins
    assert [path for _method, path, _headers in elsewhere.seen] == ["/take"]
    assert len(thief.seen) == 1
    assert [path for _method, path, _headers in server.seen].count("/healthz") == 1


@pytest.mark.parametrize("made", [CallerTransport, AsyncCallerTransport, CallerAdapter])
def test_an_audience_is_https_or_on_this_machine(made):
    for audience in ("http://payments.example", "payments", "https://a@b.example", "https://b?x=1"):
        with pytest.raises(ConfigError):
            made(audience)
    with pytest.raises(ConfigError):
        made()
    assert made("https://payments.example", "http://localhost:8000/v1")


def test_a_redirect_to_the_clear_carries_nothing(guard):
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        onward = {"Location": "http://payments.example/pay"}
        return httpx.Response(307, headers=onward) if len(sent) == 1 else httpx.Response(200)

    def pay():
        transport = CallerTransport(
            "https://payments.example", transport=httpx.MockTransport(answer)
        )
        with httpx.Client(transport=transport, follow_redirects=True) as client:
            return client.post("https://user:pass@payments.example/pay#x").status_code

    with guard.delegate("user:alice", scope=SCOPE, audience=["https://payments.example"]):
        assert guard.new_agent("payer").call(guard.tool(name="pay")(pay)) == 200
    assert "dpop" in sent[0].headers
    assert sent[0].headers["authorization"].startswith("DPoP ey")
    assert not NAMES & {name.lower() for name in sent[1].headers} - {"authorization"}
    assert not sent[1].headers.get("authorization", "").startswith("DPoP")


@CLIENTS
def test_the_fragment_of_a_url_is_neither_sent_nor_proved(guard, server, post):
    for url in (f"{server.url}/pay#x", f"{server.url}/onward?to={server.url}/pay#x"):
        assert in_call(guard, lambda: post(server.url, url), audience=[server.url])[0] == 200  # noqa: B023


def test_requests_sends_no_stream_to_an_audience(guard, server):
    def stream():
        with requests.Session() as session:
            session.mount("http://", CallerAdapter(server.url))
            return session.post(server.url, data=iter([b"x"])).status_code

    with pytest.raises(ConfigError):
        in_call(guard, stream, audience=[server.url])
    assert server.seen == []


@CLIENTS
@pytest.mark.parametrize("path", ["/x%00", f"/{'x' * 9000}", f"/{'x' * 6000}"], ids=len)
def test_a_url_that_no_proof_can_name_is_not_sent_to_an_audience(
    guard, server, elsewhere, post, path
):
    with pytest.raises(ProofError) as caught:
        in_call(guard, lambda: post(server.url, f"{server.url}{path}"), audience=[server.url])
    assert caught.value.code == "proof.malformed"
    assert server.seen == []
    url = f"{server.url}/{'x' * 2000}?{'y' * 500}"
    assert in_call(guard, lambda: post(server.url, url), audience=[server.url])[0] == 200
    odd = f"{elsewhere.url}{path}"
    assert in_call(guard, lambda: post(server.url, odd), audience=[server.url])[0] == 200
