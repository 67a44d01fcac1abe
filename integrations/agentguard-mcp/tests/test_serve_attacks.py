"""Attacks on a gateway over HTTP: each is stopped, beside its allowed twin."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import sys
import time
import weakref
from base64 import b64encode
from contextlib import suppress

import httpx
import pytest
import uvicorn
from gateway_scene import code_of, command, settings, shown, until
from http_scene import HELLO, STANDARD, TYPES, Caller, call_of, messages, served, single
from stream_scene import broken, fetched

from agentguard import ConfigError
from agentguard.adapters import listen_unix
from agentguard_mcp.gateway.http.asgi import MAX_BODY
from agentguard_mcp.gateway.http.streams import Streams

ROUTED = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "x-mcp-header": "Text"},
        "deep": {
            "type": "object",
            "properties": {"number": {"type": "integer", "x-mcp-header": "Number"}},
        },
    },
}


async def test_a_page_of_another_origin_and_another_host_get_nothing(recorded):
    async with served(recorded, origins=("https://app.example",)) as gateway:
        client = await gateway.caller().begin()
        port = gateway.place.url.rpartition(":")[2].partition("/")[0]
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": f"http://evil.example:{port}"},
            {"host": f"evil.example:{port}"},
            {"host": "127.0.0.1"},
            {"host": f"127.0.0.1:{port}.evil.example"},
        ):
            refused = await client.post(call_of("echo"), **headers)
            assert refused.status_code == 403, headers
        for headers in (
            {"origin": "https://app.example"},
            {"origin": f"http://localhost:{port}", "host": f"localhost:{port}"},
        ):
            assert (await client.post(call_of("echo"), **headers)).status_code == 200, headers
    assert recorded.outcomes() == ["ok", "ok"]


async def test_bodies_of_an_attacker_are_refused_and_nothing_fails_inside(recorded):
    whole, headers = single("tools/call", {"name": "echo", "arguments": {"text": "a"}})
    deep = b"[" * 100_000 + b"]" * 100_000
    hostile: list[object] = [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"null",
        b"7",
        b"{}",
        b"[]",
        b"NaN",
        deep,
        [whole, whole],
        {**whole, "jsonrpc": "1.0"},
        {**whole, "id": None},
        {**whole, "id": True},
        {**whole, "id": {"a": 1}},
        {**whole, "id": "x" * 300},
        {**whole, "method": 7},
        {**whole, "params": []},
        {**whole, "params": None},
        {**whole, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "params": []},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1}, "params": 7},
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"a\\ud800"}',
        b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}',
        {**whole, "params": {**whole["params"], "_meta": 7}},
        {
            **whole,
            "params": {**whole["params"], "_meta": {**whole["params"]["_meta"], "a": "\x00"}},
        },
    ]
    async with served(recorded) as gateway:
        client = gateway.caller()
        for body in hostile[:-1]:
            for given in ({}, headers):
                refused = await client.post(body, **given)
                assert 400 <= refused.status_code < 500, (body, refused.text)
        assert (await client.post(hostile[-1], **headers)).status_code == 200
        assert (await client.post(whole, **headers)).status_code == 200


async def test_a_body_without_an_end_is_not_read_to_the_end(recorded):
    async def parts():
        for _ in range(3 * MAX_BODY // (1 << 20)):
            yield b" " * (1 << 20)

    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        too_long = call_of("echo", "x" * MAX_BODY)
        try:
            assert (await client.post(too_long)).status_code == 413
            given = {**TYPES, **client.headers}
            answer = await client.http.post(client.url, content=parts(), headers=given)
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the connection is closed before the body is sent
        assert shown(await client.call("echo", "x" * 100_000))["text"] == "x" * 100_000


async def test_a_request_in_another_form_is_refused(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        for headers, status in (
            ({"content-type": "text/plain"}, 415),
            ({"content-type": "application/x-www-form-urlencoded"}, 415),
            ({"content-encoding": "gzip"}, 415),
            ({"accept": "application/json"}, 406),
            ({"accept": "text/html"}, 406),
            ({"mcp-protocol-version": "1999-01-01"}, 400),
            ({"mcp-session-id": "x"}, 404),
            ({"mcp-session-id": ""}, 404),
            ({"x-pad": "x" * 40_000}, 431),
        ):
            refused = await client.post(call_of("echo"), **headers)
            assert refused.status_code == status, headers
        assert (await client.post(call_of("echo"))).status_code == 200


async def test_other_methods_and_paths_are_not_served(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        put = await client.http.put(client.url, headers=client.headers)
        assert (put.status_code, put.headers["allow"]) == (405, "GET, POST, DELETE")
        for path in ("/", "/mcp/", "/mcp/../mcp/x", "/.well-known/oauth-protected-resource"):
            url = client.url.removesuffix("/mcp") + path
            assert (await client.http.post(url, json={}, headers=TYPES)).status_code == 404


@pytest.mark.parametrize("method", ["initialize", "logging/setLevel", "ping"])
async def test_nobody_changes_the_server_of_all_callers_by_an_old_request(recorded, method):
    async with served(recorded) as gateway:
        client = gateway.caller()
        refused = await client.single(method, HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, -32601)
        found = await client.single("server/discover")
        assert found.json()["result"]["method"] == "server/discover"


async def test_a_session_is_initialised_once_and_needs_its_name(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        hello = {"jsonrpc": "2.0", "id": 3, "method": "initialize", "params": HELLO}
        assert (await client.post(hello)).status_code == 400
        assert (await gateway.caller().post(call_of("echo"))).status_code == 400
        assert shown(await client.call("echo", "a"))["text"] == "a"


async def test_headers_that_say_something_else_than_the_body_are_refused(recorded):
    async with served(recorded) as gateway:
        client = gateway.caller()
        for headers in (
            {"mcp-method": "tools/list"},
            {"mcp-method": ""},
            {"mcp-name": "fail"},
            {"mcp-name": ""},
            {"mcp-name": "=?base64?!!?="},
            {"mcp-protocol-version": ""},
            {"mcp-protocol-version": "2025-11-25"},
        ):
            refused = await client.call_single("echo", headers=headers)
            assert refused.status_code == 400, headers
            assert refused.json()["error"]["code"] == -32020, headers
        message, own = single("tools/call", {"name": "echo", "arguments": {}})
        twice = [*own.items(), ("mcp-name", "fail"), *TYPES.items()]
        answer = await client.http.post(client.url, json=message, headers=httpx.Headers(twice))
        assert answer.status_code == 400
        odd = {**own, **TYPES, "mcp_name": "fail"}
        answer = await client.http.post(client.url, json=message, headers=odd)
        assert answer.status_code == 400
        encoded = f"=?base64?{b64encode(b'echo').decode()}?="
        allowed = await client.call_single("echo", headers={"mcp-name": encoded})
        assert allowed.status_code == 200
        meta = {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}
        other = await client.call_single(
            "echo", meta=meta, headers={"mcp-protocol-version": "2099-01-01"}
        )
        assert (other.status_code, other.json()["error"]["code"]) == (400, -32022)
        assert other.json()["error"]["data"]["supported"] == ["2026-07-28"]
    assert recorded.outcomes() == ["ok"]


async def test_a_header_that_contradicts_an_argument_is_a_denial(recorded):
    async with served(recorded, settings(options={"schema": ROUTED})) as gateway:
        client = gateway.caller()
        params = {"name": "echo", "arguments": {"text": "ä", "deep": {"number": 7}}}
        good = {
            "mcp-param-text": f"=?base64?{b64encode('ä'.encode()).decode()}?=",
            "mcp-param-number": "7.0",
        }
        for headers in (
            {**good, "mcp-param-text": "b"},
            {**good, "mcp-param-number": "8"},
            {**good, "mcp-param-number": ""},
            {"mcp-param-number": "7"},
        ):
            refused = await client.single("tools/call", params, headers=headers)
            assert refused.status_code == 400, headers
            assert refused.json()["error"]["code"] == -32020, headers
        allowed = await client.single("tools/call", params, headers=good)
        assert shown(allowed.json()["result"])["text"] == "ä"
        bare = {"name": "echo", "arguments": {}}
        assert (await client.single("tools/call", bare, headers=good)).status_code == 400
        assert (await client.single("tools/call", bare)).status_code == 200
    assert [call.code for call in recorded.calls()].count("arguments.headers") == 5


async def test_nothing_of_the_clients_headers_reaches_the_server(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller(authorization="Bearer thief", cookie="a=b").begin()
        text = json.dumps(shown(await client.call("echo", "a")))
        assert "thief" not in text
        assert "a=b" not in text


async def test_members_of_agentguards_own_pass_in_neither_direction(recorded):
    async with served(recorded) as gateway:
        client = gateway.caller()
        meta = {"dev.agentguard/token": "t", "dev.agentguard/code": "x"}
        received = shown((await client.call_single("echo", meta=meta)).json()["result"])
        assert not [key for key in received["params"]["_meta"] if key.startswith("dev.agent")]


async def test_a_slow_request_is_closed_and_others_are_served(recorded, monkeypatch):
    monkeypatch.setattr("agentguard.service.uvicorn_server.LONGEST", 0.2)
    async with served(recorded) as gateway:
        host, port = gateway.place.url.removeprefix("http://").partition("/")[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /mcp HTTP/1.1\r\nHost: ")
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        client = await gateway.caller().begin()
        assert code_of(await client.call("nothing")) == "tool.unknown"


async def test_an_address_in_use_is_named(recorded):
    async with served(recorded) as gateway:
        port = int(gateway.place.url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ConfigError, match="--listen names another") as refused:
            async with served(recorded, port=port):
                raise AssertionError
    assert refused.value.code == "server.address"


async def test_a_unix_socket_is_for_its_own_user_alone(recorded, tmp_path, monkeypatch):
    path = tmp_path / "gateway.sock"
    async with served(recorded, socket=path) as gateway:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as http:
            client = await Caller(http, gateway.place.url).begin()
            assert shown(await client.call("echo", "a"))["text"] == "a"
            page = await client.post(call_of("echo"), origin="https://evil.example")
            assert page.status_code == 403
        with pytest.raises(ConfigError, match="another server listens"):
            async with served(recorded, socket=path):
                raise AssertionError
        monkeypatch.setattr("agentguard_mcp.gateway.http.server.peer_of", lambda _connected: 4242)
        other = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=other) as http:
            with pytest.raises(httpx.TransportError):
                await Caller(http, gateway.place.url).begin()
    assert not path.exists()
    path.write_text("a file of the user")
    with pytest.raises(ConfigError, match="no socket"):
        async with served(recorded, socket=path):
            raise AssertionError
    assert path.read_text() == "a file of the user"


async def test_a_gateway_that_ends_leaves_the_socket_of_the_next_gateway(
    recorded, tmp_path, monkeypatch
):
    path, next_ones, shutdown = tmp_path / "gateway.sock", [], uvicorn.Server.shutdown

    async def shut_down(server, sockets=None):
        await shutdown(server, sockets)
        next_ones.append(listen_unix(path, mode=0o600))

    monkeypatch.setattr(uvicorn.Server, "shutdown", shut_down)
    async with served(recorded, socket=path):
        assert path.is_socket()
    (listening,) = next_ones
    with listening, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))


def raw(place, *headers, body=""):
    """Return the bytes of a request, and of what comes behind its headers."""
    host = f"Host: 127.0.0.1:{place.port}"
    lines = ["POST /mcp HTTP/1.1", host, *(f"{name}: {text}" for name, text in TYPES.items())]
    return "\r\n".join([*lines, *headers, "", body]).encode()


async def test_a_request_whose_body_has_two_lengths_is_refused_and_the_connection_closed(recorded):
    async with served(recorded) as gateway:
        body = json.dumps(single("ping")[0])
        chunked = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
        once, twice = "Transfer-Encoding: chunked", f"Content-Length: {len(chunked)}"
        for headers, status, closes in (((once,), b"404", False), ((once, twice), b"400", True)):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.place.port)
            own = [f"{name}: {text}" for name, text in single("ping")[1].items()]
            writer.write(raw(gateway.place, *own, *headers, body=chunked))
            async with asyncio.timeout(20):
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] == status
            assert (b"connection: close" in head.lower()) is closes
            writer.close()


async def test_a_connection_is_not_closed_between_two_requests_for_its_age(recorded, monkeypatch):
    monkeypatch.setattr("agentguard.service.uvicorn_server.LONGEST", 0.8)
    async with served(recorded) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.place.port)
        writer.write(raw(gateway.place, "Content-Length: 2", body="{}"))
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"400"
            monkeypatch.setattr("agentguard.service.uvicorn_server.LONGEST", 60.0)
            writer.write(raw(gateway.place, "Content-Length: 2", body="{}"))
            await reader.readuntil(b"HTTP/1.1 400")
            await asyncio.sleep(1.0)
            writer.write(raw(gateway.place, "Content-Length: 2", body="{}"))
            assert await reader.readuntil(b"HTTP/1.1 400")
        writer.close()


async def test_a_session_counts_until_its_server_has_ended(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.process.GRACE", 0.5)
    ran, hello = tmp_path / "ran", {"jsonrpc": "2.0", "id": 0, "method": "initialize"}
    given = settings(options={"ran": str(ran)})
    async with served(recorded, given, sessions=1) as gateway:
        first = await gateway.caller().begin()
        deaf = asyncio.create_task(first.post(call_of("deaf")))
        await until(lambda: ran.exists() and "deaf" in ran.read_text())
        assert (await first.http.delete(first.url, headers=first.headers)).status_code == 204
        for _ in range(3):
            refused = await gateway.caller().post({**hello, "params": HELLO})
            assert refused.status_code == 503
        await asyncio.gather(deaf, return_exceptions=True)
        async with asyncio.timeout(20):
            again = {**hello, "params": HELLO}
            while (await gateway.caller().post(again)).status_code == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # nobody tells when


async def test_a_browser_lets_pages_of_listed_origins_read_answers_and_no_others(recorded):
    asked = {"access-control-request-method": "POST"}
    names = "authorization, content-type, mcp-session-id, mcp-param-text"
    async with served(recorded, origins=("https://app.example",)) as gateway:
        client = await gateway.caller().begin()
        for origin, method, headers, status in (
            ("https://app.example", "POST", names, 204),
            ("https://app.example", "PUT", names, 403),
            ("https://app.example", "POST", "x-other", 403),
            ("https://app.example", "POST", "*", 403),
            ("https://evil.example", "POST", names, 403),
        ):
            question = {
                **asked,
                "origin": origin,
                "access-control-request-method": method,
                "access-control-request-headers": headers,
            }
            answer = await client.http.options(client.url, headers=question)
            assert answer.status_code == status, question
            allowed = answer.headers.get("access-control-allow-origin")
            assert allowed == (origin if "app" in origin else None)
            assert "access-control-allow-credentials" not in answer.headers
        read = await client.post(call_of("echo", "a"), origin="https://app.example")
        assert read.headers["access-control-allow-origin"] == "https://app.example"
        assert "Mcp-Session-Id" in read.headers["access-control-expose-headers"]
        plain = await client.post(call_of("echo", "a"))
        assert "access-control-allow-origin" not in plain.headers
        assert (await client.http.options(client.url)).status_code == 405


async def test_connections_without_a_request_take_no_file_of_the_guard(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.server.CONNECTIONS", 3)
    monkeypatch.setattr("agentguard.service.uvicorn_server.SPARE", 2)
    async with served(recorded) as gateway:
        port = gateway.place.port
        open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            open_ones[4][1].write(raw(gateway.place, "Content-Length: 2", body="{}"))
            assert await open_ones[4][0].readuntil(b"HTTP/1.1 503")
        for _reader, writer in open_ones:
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()
        async with asyncio.timeout(20):
            while (await gateway.caller().post(b"{}")).status_code != 400:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # nobody tells when
        client = await gateway.caller().begin()
        assert shown(await client.call("echo", "a"))["text"] == "a"


async def test_no_header_of_a_message_in_a_session_contradicts_its_body(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        for headers in ({"mcp-method": "tools/list"}, {"mcp-name": "fail"}, {"mcp-name": ""}):
            refused = await client.post(call_of("echo"), **headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32020), headers
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}}
        assert (await client.post(notice, **{"mcp-method": "ping"})).status_code == 400
        answer = {"jsonrpc": "2.0", "id": 1, "result": {}}
        assert (await client.post(answer, **{"mcp-method": "ping"})).status_code == 400
        agreeing = {"mcp-method": "tools/call", "mcp-name": "echo"}
        allowed = await client.post(call_of("echo", "a"), **agreeing)
        assert shown(messages(allowed)[-1]["result"])["text"] == "a"
    assert recorded.outcomes() == ["ok"]


async def test_no_caller_changes_the_tools_of_another_caller(recorded):
    async with served(recorded, settings(recheck=60.0)) as gateway:
        able = {f"{STANDARD}clientCapabilities": {"elicitation": {}}}
        client, other = gateway.caller(), gateway.caller()

        async def has_quiz():
            answer = await client.call_single("quiz", meta=able)
            return answer.json()["result"]["isError"] is False

        assert (await other.call_single("echo")).json()["result"]["isError"] is False
        assert await has_quiz()  # the list of a client without dialogs has no such tool
        german = {f"{STANDARD}clientCapabilities": {"elicitation": {}, "language": "Deutsch"}}
        assert (await other.single("tools/list", meta=german)).is_success
        assert await has_quiz()  # and this list has another description
        assert code_of((await other.call_single("quiz")).json()["result"]) == "tool.unknown"


async def test_requests_under_way_take_little_memory(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.sessions.MAX_HELD", 40_000)
    async with served(recorded) as gateway:
        client, other, large = gateway.caller(), await gateway.caller().begin(), "a" * 6_000
        waiting = asyncio.create_task(client.call_single("hang", large))
        await until(lambda: len(recorded.calls()) == 1)
        assert (await client.call_single("echo", large)).status_code == 503
        assert (await client.call_single("echo", "a")).status_code == 200
        last = await broken(other, call_of("hang", large))  # the client is away, the call goes on
        assert (await other.post(call_of("echo", large, identifier="d"))).status_code == 503
        assert shown(await other.call("echo", "b"))["text"] == "b"
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
        assert (await other.post({**notice, "params": {"requestId": "c"}})).status_code == 202
        assert (await fetched(other, last))[0] == 410
        assert shown(await other.call("echo", large))["text"] == large
        waiting.cancel()
        await until(lambda: recorded.outcomes().count("unknown") == 2)
        assert (await client.call_single("echo", large)).status_code == 200


async def test_no_caller_has_the_tools_described_in_another_way_to_all_callers(recorded):
    async with served(recorded) as gateway:  # where nothing is pinned, the first description counts
        client, other = gateway.caller(), await gateway.caller().begin()
        german = {"language": "Deutsch"}
        listed = await other.ask("tools/list", {"_meta": german})
        single_list = (await client.single("tools/list", meta=german)).json()
        for answer in (listed, single_list):
            echo = answer["result"]["tools"][0]
            assert (echo["name"], echo["description"]) == ("echo", "Says what it is told.")
        assert (await client.call_single("echo")).json()["result"]["isError"] is False
        assert shown(await other.call("echo", "a"))["text"] == "a"


FLOOD = """
import os
for line in open(0, "rb", buffering=0):
    os.write(1, b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25"}}\\n')
    while True:
        os.write(1, %r * 1_000)
"""
"""A server that answers one request, and then writes lines for ever."""


@pytest.mark.parametrize("line", ["\n", '{"jsonrpc":"2.0","method":"notifications/message"}\n'])
async def test_a_server_that_writes_for_ever_takes_no_turn_of_another_session(
    recorded, tmp_path, monkeypatch, line
):
    monkeypatch.setattr("agentguard_mcp.gateway.upstream.process.GRACE", 0.1)
    first = tmp_path / "first"
    choice = f'[ -e {first} ] && exec "$@"; touch {first}; exec {sys.executable} -I -S -c "$0"'
    chosen = ("/bin/sh", "-c", choice, FLOOD % line.encode(), *command())
    async with served(recorded, settings(command=chosen)) as gateway:
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        assert (await gateway.caller().post(hello)).status_code == 200
        client, begun = await gateway.caller().begin(), time.monotonic()
        for number in range(10):
            assert shown(await client.call("echo", str(number)))["text"] == str(number)
        assert time.monotonic() - begun < 4  # without turns, 13 to 30 seconds


class Content(list):
    """A list that a test can ask for after nobody needs it."""


async def test_an_answer_that_nobody_reads_is_in_memory_as_its_bytes_alone():
    """Many short lists take twenty times as much memory as their bytes."""
    streams, content = Streams(is_shared=True), Content([[], []])
    _sent, reader = streams.register({"id": 7, "method": "tools/call"})
    streams.send({"id": "http-1", "result": {"content": content}})
    kept = weakref.ref(content)
    del content
    assert kept() is None
    event = reader.take()
    assert json.loads(event.line)["result"] == {"content": [[], []]}
    assert (event.answer["id"], "result" in event.answer) == (7, True)
