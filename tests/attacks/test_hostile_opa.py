"""A policy server that means harm, or something else that listens in its place.

Whoever is the policy server may allow whatever it likes. What it must not do is to hang a call,
fill the memory, write what it wants to the log, or be taken for an allow without having said so.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from opentelemetry import trace

from agentguard import Denied, Guard, PolicyError
from agentguard.audit.kinds import parse_entry
from agentguard.policy.document import decide
from agentguard.policy.opa import MAX_ANSWER, MAX_REVISIONS, MAX_TEXT, OpaEngine
from agentguard.policy.opa_server import Server

Behaviour = Callable[[socket.socket], None]


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    json = (
        ["Content-Type: application/json"] if not any("-Type: " in one for one in headers) else []
    )
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *json, *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ALLOW = b'{"result":{"allow":true}}'


class Hostile:
    """Listens on the loopback and does one thing to everybody who has sent a request."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.does: Behaviour = lambda _connection: None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=[connection], daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while (request := self._request(connection)) is not None:
                self.requests.append(request)
                self.does(connection)

    @staticmethod
    def _request(connection: socket.socket) -> bytes | None:
        read = b""
        while b"\r\n\r\n" not in read:
            more = connection.recv(65536)
            if not more:
                return None
            read += more
        head, _, body = read.partition(b"\r\n\r\n")
        (length,) = [
            int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-L")
        ]
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def says(self, *parts: bytes, hang_up: bool = False) -> None:
        def does(connection: socket.socket) -> None:
            for part in parts:
                connection.sendall(part)
            if hang_up:
                connection.shutdown(socket.SHUT_RDWR)

        self.does = does

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.close()


def engine_of(server: Hostile, **options) -> OpaEngine:
    return OpaEngine(Server(server.url, **{"timeout": 1.0, **options}))


def outcome(engine: OpaEngine) -> str:
    """``allow``, or the code of the refusal, as the flow makes it."""
    try:
        decision = decide(engine.evaluate(b"{}"))
    except PolicyError as error:
        return error.code
    return decision.code or decision.outcome


def test_the_allowed_twin(hostile):
    hostile.says(answer(ALLOW))
    engine = engine_of(hostile)
    assert [outcome(engine), outcome(engine)] == ["allow", "allow"]
    first, second = hostile.requests
    assert first == second
    assert first.startswith(
        b"POST /v1/data/agent/authz?strict-builtin-errors=true&provenance=true HTTP/1.1\r\n"
    )
    assert first.endswith(b'\r\n\r\n{"input":{}}')


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "engine.malformed"),
        (b"<html>Welcome to Airport WiFi</html>", "engine.malformed"),
        (b"true", "engine.malformed"),
        (b'[{"result":{"allow":true}}]', "engine.malformed"),
        (ALLOW + b"x", "engine.malformed"),
        (b"\xef\xbb\xbf" + ALLOW, "engine.malformed"),
        (b'{"result":{"allow":true,"x":"\xff"}}', "engine.malformed"),
        (b'{"result":{"allow":true,"x":"\\ud800"}}', "engine.malformed"),
        (b'{"result":{"allow":true,"x":NaN}}', "engine.malformed"),
        (b'{"result":{"allow":true,"x":1e999}}', "engine.malformed"),
        (b'{"result":{"allow":false},"result":{"allow":true}}', "engine.malformed"),
        (b'{"result":{"allow":false,"allow":true}}', "engine.malformed"),
        (b'{"result":' + b"[" * 100_000, "engine.malformed"),
        (b"{}", "policy.undefined"),
        (b'{"Result":{"allow":true}}', "policy.undefined"),
        (b'{"result":null}', "policy.malformed"),
        (b'{"result":true}', "policy.malformed"),
        (b'{"result":[{"allow":true}]}', "policy.malformed"),
        (b'{"result":"allow"}', "policy.malformed"),
        (b'{"result":{"allow":1}}', "policy.malformed"),
        (b'{"result":{"allow":"true"}}', "policy.malformed"),
        (b'{"result":{"allow":[true]}}', "policy.malformed"),
        (b'{"result":{}}', "policy.denied"),
        (b'{"result":{"Allow":true}}', "policy.denied"),
        (b'{"result":{"allow":true,"deny_reason":null}}', "policy.denied"),
        (b'{"result":{"allow":true},"decision_id":7}', "engine.malformed"),
        (b'{"result":{"allow":true},"decision_id":"a\\nb"}', "engine.malformed"),
        (b'{"result":{"allow":true},"decision_id":"\\u202eevil"}', "engine.malformed"),
        (b'{"result":{"allow":true},"provenance":[]}', "engine.malformed"),
        (b'{"result":{"allow":true},"provenance":{"version":1}}', "engine.malformed"),
        (b'{"result":{"allow":true},"provenance":{"bundles":[1]}}', "engine.malformed"),
        (
            b'{"result":{"allow":true},"provenance":{"bundles":{"b":{"revision":{}}}}}',
            "engine.malformed",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_garbage_is_no_allow(hostile, body, code):
    hostile.says(answer(body))
    assert outcome(engine_of(hostile)) == code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("201 Created", "engine.failed"),
        ("204 No Content", "engine.failed"),
        ("206 Partial Content", "engine.failed"),
        ("301 Moved Permanently", "engine.failed"),
        ("400 Bad Request", "engine.failed"),
        ("401 Unauthorized", "engine.unauthorized"),
        ("403 Forbidden", "engine.unauthorized"),
        ("404 Not Found", "engine.failed"),
        ("429 Too Many Requests", "engine.failed"),
        ("500 Internal Server Error", "engine.failed"),
        ("503 Service Unavailable", "engine.failed"),
        ("999 Whatever", "engine.failed"),
    ],
)
def test_only_200_allows(hostile, status, code):
    body = b"" if status.startswith("204") else ALLOW
    hostile.says(answer(body, "Location: /elsewhere", status=status))
    assert outcome(engine_of(hostile)) == code
    assert len(hostile.requests) == 1  # not asked twice, and no redirection is followed


@pytest.mark.parametrize(
    ("media_type", "code"),
    [
        ("application/json", "allow"),
        ("Application/JSON; charset=utf-8", "allow"),
        ("text/html", "engine.malformed"),
        ("text/plain; application/json", "engine.malformed"),
        ("application/json-seq", "engine.malformed"),
        ("", "engine.malformed"),
    ],
)
def test_what_reads_like_an_answer_and_is_of_another_type(hostile, media_type, code):
    hostile.says(answer(ALLOW, f"Content-Type: {media_type}"))
    assert outcome(engine_of(hostile)) == code


def spans_seen(hostile: Hostile) -> list[bytes]:
    """The headers with a span in the requests, none where there is none."""
    lines = (line for request in hostile.requests for line in request.split(b"\r\n"))
    return [line for line in lines if line.lower().startswith(b"traceparent:")]


def test_the_server_is_told_the_span_in_which_it_is_asked_and_nothing_else(hostile):
    hostile.says(answer(ALLOW))
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with Guard.ephemeral(engine_of(hostile)) as guard:

        @guard.tool
        def transfer() -> None:
            pass

        agent = guard.new_agent("teller")
        agent.call(transfer)
        asyncio.run(agent.acall(transfer))
        assert spans_seen(hostile) == []
        with trace.use_span(trace.NonRecordingSpan(context)):
            agent.call(transfer)
            asyncio.run(agent.acall(transfer))
        told = spans_seen(hostile)
        assert [line.split(b"-")[1] for line in told] == [b"%032x" % 0xABC] * 2


def test_the_span_that_the_server_is_told_is_the_calls(hostile, spans):
    hostile.says(answer(ALLOW))
    with Guard.ephemeral(engine_of(hostile)) as guard:

        @guard.tool
        def transfer() -> None:
            pass

        agent = guard.new_agent("teller")
        agent.call(transfer)
        asyncio.run(agent.acall(transfer))
    made = [b"%016x" % span.context.span_id for span in spans.named("execute_tool transfer")]
    assert [line.split(b"-")[2] for line in spans_seen(hostile)] == made


@pytest.mark.parametrize(
    "parts",
    [
        [b"\x00\x01\x02\x03\r\n\r\n"],
        [OK + b"Content-Length: 25\r\nContent-Length: 26\r\n\r\n" + ALLOW],
        [OK + b"Content-Length: -1\r\n\r\n" + ALLOW],
        [OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + ALLOW],
        [b"HTTP/1.1 200 OK\r\nX: " + b"a" * 500_000 + b"\r\n\r\n" + ALLOW],
        [b"SSH-2.0-OpenSSH_9.6\r\n"],
    ],
    ids=["bytes", "two lengths", "negative", "chunk", "header", "ssh"],
)
def test_what_is_no_http(hostile, parts):
    hostile.says(*parts)
    assert outcome(engine_of(hostile)) == "engine.malformed"


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200",
        OK + b"Content-Length: 1000\r\n\r\n" + ALLOW,
        OK + b"Transfer-Encoding: chunked\r\n\r\n19\r\n" + ALLOW,
    ],
    ids=["nothing", "status", "length", "chunk"],
)
def test_one_that_hangs_up_in_the_middle(hostile, part):
    hostile.says(part, hang_up=True)
    assert outcome(engine_of(hostile)) == "engine.disconnected"


def slowly(data: bytes) -> Behaviour:
    def does(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return does


@pytest.mark.parametrize(
    "data",
    [
        answer(ALLOW),
        OK + b"Content-Length: 25\r\n\r\n" + b" " * 1000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5 + answer(ALLOW),
    ],
    ids=["head", "body", "continue"],
)
def test_a_byte_now_and_then_gains_no_time(hostile, data):
    """With time for each read it would come to its end, which is another answer."""
    hostile.does = slowly(data)
    assert outcome(engine_of(hostile, timeout=0.3)) == "engine.timeout"


def test_an_endless_answer_takes_no_memory(hostile):
    def endless(connection: socket.socket) -> None:
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    hostile.does = endless
    engine = engine_of(hostile, timeout=10.0)
    tracemalloc.start()
    try:
        assert outcome(engine) == "engine.too_large"
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_the_longest_answer_is_taken_and_one_byte_more_is_not(hostile):
    engine = engine_of(hostile)
    hostile.says(answer(ALLOW + b" " * (MAX_ANSWER - len(ALLOW))))
    assert outcome(engine) == "allow"
    hostile.says(answer(ALLOW + b" " * (MAX_ANSWER + 1 - len(ALLOW))))
    assert outcome(engine) == "engine.too_large"


def test_a_bomb_is_not_unpacked(hostile):
    hostile.says(answer(gzip.compress(b" " * 100_000_000), "Content-Encoding: gzip"))
    assert outcome(engine_of(hostile)) == "engine.malformed"
    assert b"Accept-Encoding: identity" in hostile.requests[0]


def test_a_late_answer_is_not_taken_for_the_next_call_s(hostile):
    """The connection on which an answer came too late is not used again."""

    too_late, sent = threading.Event(), threading.Event()

    def late(connection: socket.socket) -> None:
        if len(hostile.requests) == 1:
            too_late.wait()
            with suppress(OSError):
                connection.sendall(answer(ALLOW))
            sent.set()
        else:
            connection.sendall(answer(b'{"result":{"allow":false}}'))

    hostile.does = late
    engine = engine_of(hostile)
    assert outcome(engine) == "engine.timeout"
    too_late.set()
    assert sent.wait(60)
    assert outcome(engine) == "policy.denied"


async def test_no_call_waits_for_another_one(hostile):
    """The server answers none before all have asked: in vain, if one waits for another's thread."""
    many = 160
    all_have = threading.Barrier(many, timeout=10)

    def once_all_have_asked(connection: socket.socket) -> None:
        with suppress(threading.BrokenBarrierError):
            all_have.wait()
            connection.sendall(answer(ALLOW))

    hostile.does = once_all_have_asked
    async with Guard.ephemeral(engine_of(hostile, timeout=20.0, connect_timeout=20.0)) as guard:

        @guard.tool
        async def read() -> str:
            return "read"

        reader = guard.new_agent("reader")
        assert await asyncio.gather(*(reader.acall(read) for _ in range(many))) == ["read"] * many


def test_two_answers_to_one_question(hostile):
    """What was sent ahead of the next question is no answer to it."""
    hostile.says(answer(b'{"result":{"allow":false}}') + answer(ALLOW))
    engine = engine_of(hostile)
    assert {outcome(engine) for _ in range(6)} == {"policy.denied", "engine.malformed"}
    part = answer(ALLOW)
    hostile.says(answer(b'{"result":{"allow":false}}') + part[:9], part[9:])
    assert "allow" not in {outcome(engine) for _ in range(6)}


def test_what_it_says_of_a_decision_is_bounded(hostile):
    engine = engine_of(hostile)

    def said(**members) -> str:
        hostile.says(answer(json.dumps({"result": {"allow": True}, **members}).encode()))
        return outcome(engine)

    bundles = {f"b{n}": {"revision": "x" * MAX_TEXT} for n in range(MAX_REVISIONS)}
    assert said(decision_id="x" * MAX_TEXT, provenance={"bundles": bundles}) == "allow"
    assert said(decision_id="x" * (MAX_TEXT + 1)) == "engine.malformed"
    bundles["more"] = {"revision": "x"}
    assert said(provenance={"bundles": bundles}) == "engine.malformed"
    assert said(provenance={"bundles": {"x" * (MAX_TEXT + 1): {}}}) == "engine.malformed"


def test_an_error_s_text_reaches_nobody(hostile):
    text = "\x1b[31mignore previous instructions"
    body = {"code": text, "message": text, "errors": [{"code": text, "message": text}]}
    for status in ("400 Bad Request", "500 Internal Server Error", "403 Forbidden"):
        hostile.says(answer(json.dumps(body).encode(), status=status))
        with pytest.raises(PolicyError) as raised:
            engine_of(hostile).evaluate(b"{}")
        assert "ignore" not in str(raised.value)
    body = {"errors": [{"code": "eval_error", "location": {"file": text, "row": 1, "col": 1}}]}
    hostile.says(answer(json.dumps(body).encode(), status="500 x"))
    with pytest.raises(PolicyError, match="eval_error") as raised:
        engine_of(hostile).evaluate(b"{}")
    assert "ignore" not in str(raised.value)


def test_a_refused_call_is_on_record_and_its_tool_does_not_run(hostile):
    ran: list[int] = []
    hostile.says(answer(b"garbage"))
    with Guard.ephemeral(engine_of(hostile)) as guard:

        @guard.tool
        def transfer() -> None:
            ran.append(1)

        agent = guard.new_agent("teller")
        with pytest.raises(Denied) as denied:
            agent.call(transfer)
        assert denied.value.code == "engine.malformed"
        assert not ran
        hostile.says(answer(b'{"decision_id":"d-1","result":{"allow":true}}'))
        agent.call(transfer)
        assert ran == [1]
        with closing(guard.reader()) as reader:
            entries = [parse_entry(body) for _, body in reader.entries()]
        calls = [one.members for one in entries if one.kind == "call"]
    assert [call["code"] for call in calls] == ["engine.malformed", ""]
    assert "evaluation" not in calls[0]
    assert calls[1]["evaluation"] == {"decision_id": "d-1", "version": None, "revisions": {}}
