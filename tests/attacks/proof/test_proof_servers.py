"""A real server refuses requests that it can't verify, and tells the sender little."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import httpx
import pytest
from proof_scene import ProofScene
from starlette.applications import Starlette
from starlette.routing import Mount
from tool_servers import (
    SCOPE,
    ToolServer,
    application,
    guard_in_memory,
    in_call,
    listed,
    proof_of,
    receiver,
    send,
    send_plainly,
    tool_server,
)

from agentguard import UnguardedCallError
from agentguard.errors import ConfigError
from agentguard.proof import CallerMiddleware
from agentguard.proof.headers import CHAINS_PATH, MAX_CHAIN

LIMIT = 1000


@pytest.fixture
def guard():
    with guard_in_memory() as guard:
        yield guard


@pytest.fixture
def server(guard, tmp_path):
    with tool_server(guard, tmp_path, max_body=LIMIT) as server:
        yield server


def paid(guard, server, **more):
    return in_call(
        guard, lambda: send(f"{server.url}/pay", server.url, **more), audience=[server.url]
    )


def in_parts(size):
    yield b"x" * (size - 1)
    yield b"x"


@pytest.mark.parametrize("content", [lambda size: b"x" * size, in_parts])
def test_a_body_beyond_the_bound_is_refused(guard, server, content):
    body = content(LIMIT + 1)
    headers = {"Transfer-Encoding": "chunked"} if not isinstance(body, bytes) else {}
    answer = paid(guard, server, content=body, headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (413, "Content Too Large")
    assert paid(guard, server, content=content(LIMIT)).status_code == 200


def test_a_chunked_body_beyond_the_bound_is_refused_before_its_end(guard, server):
    proof = listed(proof_of(guard, f"{server.url}/pay"))
    head = "".join(f"{name}: {value}\r\n" for name, value in proof)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(
            f"POST /pay HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{head}\r\n".encode()
        )
        for _ in range(3):  # and never the last chunk
            connection.sendall(b"200\r\n" + b"x" * 0x200 + b"\r\n")
        connection.settimeout(30)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_headers_of_70_kilobytes_are_refused(guard, server):
    for size, statuses in ((70_000, {400, 431}), (100, {200})):
        answer = paid(guard, server, headers={"X-Long": "x" * size})
        assert answer.status_code in statuses


def test_a_header_that_is_sent_twice_is_refused(guard, server):
    url = f"{server.url}/pay"
    for name in ("Authorization", "DPoP", "Agentguard-Chain"):
        sent = listed(proof_of(guard, url))
        twice = send_plainly("POST", url, headers=[*sent, (name.lower(), "x")])
        assert twice.status_code == 401
        assert send_plainly("POST", url, headers=sent).status_code == 200


def test_a_replayed_request_is_refused(guard, server):
    sent = listed(proof_of(guard, f"{server.url}/pay"))
    answers = [
        send_plainly("POST", f"{server.url}/pay", headers=sent).status_code for _ in range(3)
    ]
    assert answers == [200, 401, 401]


def test_an_answer_says_little_and_the_log_says_why(guard, server, caplog):
    sent = listed(proof_of(guard, f"{server.url}/pay"))
    with caplog.at_level(logging.WARNING, "agentguard"):
        missing = send_plainly("POST", f"{server.url}/pay")
        altered = send_plainly("POST", f"{server.url}/pay?x=1", headers=sent)
    for answer, challenge in (
        (missing, 'DPoP algs="EdDSA Ed25519"'),
        (altered, 'DPoP error="invalid_token", algs="EdDSA Ed25519"'),
    ):
        assert answer.headers["www-authenticate"] == challenge
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json() == {"type": "about:blank", "title": "Unauthorized", "status": 401}
    assert "(proof.missing)" in caplog.text
    assert "(proof.request)" in caplog.text
    assert not any(value in caplog.text for _name, value in sent)
    assert send_plainly("POST", f"{server.url}/pay", headers=sent).status_code == 200


def test_only_a_public_path_needs_no_proof(server):
    assert send_plainly("GET", f"{server.url}/healthz").text == "ok"
    for path in ("/healthz/", "/%68ealthz", "//healthz", "/healthz/x", "/Healthz", "/"):
        assert send_plainly("GET", f"{server.url}{path}").status_code == 401


def test_public_paths_are_a_list_of_paths(guard, tmp_path):
    """The letters of a text would be paths: everybody could ask for ``/``."""
    known = receiver("https://payments.example", guard, tmp_path)
    for public in ("/healthz", ["healthz"], ["/healthz", ""]):
        with pytest.raises(ConfigError):
            CallerMiddleware(application(), known, public=public)
    CallerMiddleware(application(), known, public=("/healthz", "/"))


def test_a_request_from_outside_a_call_is_not_sent(guard, server):
    with pytest.raises(UnguardedCallError):
        send(f"{server.url}/pay", server.url)
    assert server.seen == []
    assert paid(guard, server).status_code == 200


# --- chains that are sent by themselves -----------------------------------------------------------


def deep(guard, server, function, depth=9):
    """Run ``function`` in a call whose chain has ``depth`` agents: longer than a header may be."""
    if depth == 0:
        return function()
    tool = guard.tool(name=f"hand-on-{depth}")(lambda: deep(guard, server, function, depth - 1))
    return guard.new_agent("lead").call(tool)


def test_a_long_chain_is_sent_once_and_the_request_is_made_anew(guard, server):
    def pay():
        return [send(f"{server.url}/pay", server.url, json={"n": n}).json() for n in range(2)]

    with guard.delegate("user:alice", scope=SCOPE, audience=[server.url], max_depth=12):
        first, second = deep(guard, server, pay)
    assert len(first["actors"]) == 10
    assert (first["principal"], second["body"]) == ("user:alice", '{"n":1}')
    assert [method for method, _path, _headers in server.seen] == ["POST", "PUT", "POST", "POST"]
    assert all("agentguard-chain" not in headers for _method, _path, headers in server.seen)


@pytest.mark.parametrize("path", ["/api", "/api/v2/"])
def test_an_application_below_a_path_takes_long_chains_too(guard, tmp_path, path):
    """The middleware stands in front of one of the applications of a server."""

    def mounted(url):
        audience = url + path.rstrip("/")
        below = CallerMiddleware(application(), receiver(url, guard, tmp_path, audience=audience))
        return Starlette(routes=[Mount(path, app=below)])

    server = ToolServer(mounted)
    base = server.url + path.rstrip("/")
    with guard.delegate("user:alice", scope=SCOPE, audience=[base], max_depth=12):
        answer = deep(guard, server, lambda: send(f"{base}/pay", base).json())
        beside = f"{server.url}{CHAINS_PATH}{'0' * 64}"
        assert send_plainly("PUT", beside, content=b"{}").status_code == 404
    server.stop()
    assert len(answer["actors"]) == 10
    assert [method for method, _path, _headers in server.seen] == ["POST", "PUT", "POST", "PUT"]


def test_only_a_whole_chain_of_a_trusted_domain_is_kept(guard, server):
    proof = proof_of(guard, f"{server.url}/pay")
    place = f"{server.url}{CHAINS_PATH}"
    with guard_in_memory() as stranger:
        other = proof_of(stranger, f"{server.url}/pay")
    for sha256, chain in (
        ("0" * 64, proof.chain),
        (proof.chain_sha256.upper(), proof.chain),
        (proof.chain_sha256 + "/", proof.chain),
        (proof.chain_sha256, proof.chain[:-1]),
        (proof.chain_sha256, b"{}"),
        (proof.chain_sha256, b""),
        (other.chain_sha256, other.chain),
    ):
        assert send_plainly("PUT", f"{place}{sha256}", content=chain).status_code == 401
    long = send_plainly("PUT", f"{place}{proof.chain_sha256}", content=b" " * (MAX_CHAIN + 1))
    assert long.status_code == 413
    without = [pair for pair in listed(proof) if pair[0] != "Agentguard-Chain"]
    asked = send_plainly("POST", f"{server.url}/pay", headers=without)
    assert asked.headers["agentguard-chain-wanted"] == proof.chain_sha256
    assert (
        send_plainly("PUT", f"{place}{proof.chain_sha256}", content=proof.chain).status_code == 204
    )
    assert send_plainly("POST", f"{server.url}/pay", headers=without).status_code == 200


def test_a_chain_is_sent_to_nobody_who_wants_another(guard, tmp_path):
    """A hostile server of an audience gets no chain but the request's own."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(401, headers={"Agentguard-Chain-Wanted": "0" * 64})

    from agentguard.proof.httpx import CallerTransport  # noqa: PLC0415

    def pay():
        transport = CallerTransport("https://x.example", transport=httpx.MockTransport(answer))
        with httpx.Client(transport=transport) as client:
            return client.post("https://x.example/pay").status_code

    terms: dict[str, Any] = {"audience": ["https://x.example"], "max_depth": 12}
    with guard.delegate("user:alice", scope=SCOPE, **terms):
        assert deep(guard, None, pay) == 401
    assert [request.method for request in sent] == ["POST"]


# --- what a server of ASGI may hand over ----------------------------------------------------------


def ask(
    scene: ProofScene, url: str, scope: dict[str, Any], *messages: dict[str, Any], **more: Any
) -> list[Any]:
    """Hand one request to the middleware; return what the middleware sends."""
    sent: list[Any] = []
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    async def send(message):
        sent.append(message)

    middleware = CallerMiddleware(application(), receiver(url, scene.guard, scene.folder, **more))
    asyncio.run(middleware(scope, receive, send))
    return sent


def scope_of(sent: list[tuple[str, str]], **changed: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/pay",
        "raw_path": b"/pay",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent],
        **changed,
    }


BODY = {"type": "http.request", "body": b"", "more_body": False}


def test_a_server_that_hands_over_no_raw_path_gets_no_request_through(scene):
    url = "https://payments.example"
    for changed in ({"raw_path": None}, {"raw_path": b"https://payments.example/pay"}):
        sent = listed(proof_of(scene.guard, f"{url}/pay"))
        start, _body = ask(scene, url, scope_of(sent, **changed), BODY)
        assert start["status"] == 401
    sent = listed(proof_of(scene.guard, f"{url}/pay"))
    start, body = ask(scene, url, scope_of(sent, state={"of": "the server"}), BODY)
    assert start["status"] == 200
    assert json.loads(body["body"])["principal"] == "user:alice"


def test_a_path_that_was_rewritten_before_the_verification_is_refused(scene):
    """The proof is bound to the path of the request, and the application acts by its own path."""
    url = "https://payments.example"
    for path, root, raw, status in (
        ("/refund", "", "/pay", 401),
        ("/refund", "/pay", "/pay", 401),
        ("/pay", "/refund", "/pay", 200),  # a server's root_path stands in the path already, or not
        ("/pay", "/api", "/api/pay", 200),
        ("/b\u00fcro x", "", "/b%C3%BCro%20x", 200),
        ("/b\u00fcro y", "", "/b%C3%BCro%20x", 401),
    ):
        sent = listed(proof_of(scene.guard, url + raw))
        changed = {"path": path, "root_path": root, "raw_path": raw.encode()}
        assert ask(scene, url, scope_of(sent, **changed), BODY)[0]["status"] == status


def test_a_verification_that_fails_refuses_the_request(scene, caplog):
    url = "https://payments.example"
    broken = {"revocations": Broken()}
    sent = listed(proof_of(scene.guard, f"{url}/pay"))
    with caplog.at_level(logging.ERROR, "agentguard"):
        start, body = ask(scene, url, scope_of(sent), BODY, **broken)
    assert (start["status"], b"a bug" in body["body"]) == (503, False)
    assert "a bug" in caplog.text
    assert ask(scene, url, scope_of(sent), BODY)[0]["status"] == 200


class Broken:
    """Revocations of an application's own, with a mistake."""

    def refusal(self, _names):
        raise ZeroDivisionError("a bug")


def test_a_caller_in_the_state_of_the_server_does_not_count(scene):
    url = "https://payments.example"
    scope = scope_of([], state={"caller": "somebody"})
    assert ask(scene, url, scope, BODY)[0]["status"] == 401


def test_a_web_socket_is_refused_and_a_client_that_goes_gets_no_answer(scene):
    url = "https://payments.example"
    assert ask(scene, url, {"type": "websocket"}) == [{"type": "websocket.close", "code": 1008}]
    sent = listed(proof_of(scene.guard, f"{url}/pay"))
    assert ask(scene, url, scope_of(sent), {"type": "http.disconnect"}) == []
    assert ask(scene, url, scope_of(sent), BODY)[0]["status"] == 200


@pytest.mark.parametrize("length", ["-1", "+1", "1e3", "9" * 30, "1, 1", ""])
def test_a_length_that_is_none_is_refused(scene, length):
    url = "https://payments.example"
    sent = listed(proof_of(scene.guard, f"{url}/pay"))
    scope = scope_of([*sent, ("Content-Length", length)])
    assert ask(scene, url, scope, BODY)[0]["status"] == 413
    assert ask(scene, url, scope_of([*sent, ("Content-Length", "0")]), BODY)[0]["status"] == 200
