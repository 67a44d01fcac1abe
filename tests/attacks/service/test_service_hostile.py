"""Bytes that no caller sends, at every endpoint: each gets an answer, none is a server's error."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import httpx
import pytest
from described_calls import Caller, media_type_of, schemes_of
from rounds import FULL
from token_service import FORM, GRANT, TYPES, error_of

from agentguard.service.application import ROUTES

PATHS = sorted({place.path for place in ROUTES})
POSTED = [place.path for place in ROUTES if place.method == "POST"]
JSON = {"Content-Type": "application/json"}

BODIES = {
    "empty": b"",
    "NUL": b"\0",
    "NUL encoded": b"grant_type=%00",
    "not UTF-8": b"grant_type=%ff%fe",
    "half an encoding": b"grant_type=%4",
    "twice": b"token=a&token=b&grant_type=x&grant_type=y",
    "no name": b"=x&=y",
    "a line feed": b"token=a%0ab",
    "raw bytes": bytes(range(256)),
    "many parameters": b"&".join(b"p%d=1" % number for number in range(5000)),
    "long": b"token=" + b"a" * 150_000,
    "too long": b"a" * 300_000,
    "deep": b'{"agent":' + b"[" * 50_000,
    "deep and closed": b"[" * 20_000 + b"]" * 20_000,
    "twice in JSON": b'{"agent":"clerk","agent":"clerk","jwk":{}}',
    "wrong types": b'{"agent":1,"jwk":[]}',
    "NUL in JSON": b'{"agent":"\\u0000","jwk":{"kty":"OKP","crv":"Ed25519","x":"\\u0000"}}',
    "a surrogate": b'{"agent":"\\ud800","jwk":{}}',
    "NaN": b'{"agent":NaN,"jwk":{}}',
    "a large number": b'{"agent":"a","jwk":{"kty":1e999}}',
    "a weak key": json.dumps(
        {"agent": "clerk", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}}
    ).encode(),
    "null": b"null",
    "a BOM": b"\xef\xbb\xbf{}",
}


KINDS = [JSON, FORM, {}, {"Content-Type": "text/plain"}]
GIVEN = {"access_token", "credential"}


def settled(answer: httpx.Response) -> None:
    """An answer is a refusal in JSON, or gives nothing; no word is of the service's insides."""
    if answer.status_code == 200:  # as {"active":false}, of a token that is none
        assert not GIVEN & (answer.json() if answer.content else {}).keys()
    else:
        assert 400 <= answer.status_code < 500, answer.text
        error_of(answer)
    assert "Traceback" not in answer.text
    assert "authz.rego" not in answer.text


@pytest.mark.parametrize("path", POSTED)
def test_a_body_that_no_caller_sends_is_refused(service, key, credential, path):
    began = time.monotonic()
    caller = Caller(service, key, credential)
    own = {"Content-Type": media_type_of(path)}
    for body in BODIES.values():
        for schemes in schemes_of(path):
            for kind in KINDS if FULL else [own]:
                headers = {**kind, **caller.headers(path, schemes)}
                settled(service.http.post(path, content=body, headers=headers))
    assert time.monotonic() - began < 60
    assert service.http.get("/healthz").is_success


HEADERS = {
    "a long header": [("DPoP", "a" * 40_000)],
    "many headers": [(f"X-{number}", "a" * 100) for number in range(400)],
    "a header twice": [("DPoP", "a.b.c"), ("DPoP", "a.b.c")],
    "two bearers": [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
    "an underscore": [("Workload_Identity_Token", "a.b.c")],
    "other characters": [("Workload-Identity-Token", "\xe4.b.c")],
    "a gzip": [("Content-Encoding", "gzip")],
    "another charset": [("Content-Type", "application/x-www-form-urlencoded; charset=utf-7")],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=list(HEADERS))
def test_headers_that_no_caller_sends_are_refused(service, headers):
    form = f"grant_type={GRANT}&subject_token=a&subject_token_type={TYPES}jwt"
    given = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    for path in POSTED:
        answer = service.http.post(path, content=form, headers=given)
        assert 400 <= answer.status_code < 500
    for path in set(PATHS).difference(POSTED):
        assert service.http.get(path, headers=given).status_code in (200, 400, 431)
    assert service.http.get("/healthz").is_success


QUERIES = ["%00", "a=%ff", "a=b&a=c", "=", "x" * 8000, "grant_type=client_credentials", "%"]


def test_a_query_that_no_caller_sends_changes_nothing(service, key, credential):
    caller = Caller(service, key, credential)
    for query in QUERIES:
        for path in set(PATHS).difference(POSTED):
            whole = service.http.get(f"{path}?{query}")
            assert whole.json() == service.http.get(path).json()
        for path in POSTED:
            for schemes in schemes_of(path):
                given = caller.headers(path, schemes)
                settled(service.http.post(f"{path}?{query}", content=b"", headers=given))
    assert service.exchange(key, credential).is_success


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"]
)
def test_another_method_is_refused(service, method):
    served = {(place.method, place.path) for place in ROUTES}
    for path in (*PATHS, "/", "/token/", "/TOKEN", "/nothing", "//token", "/%00"):
        if (method, path) not in served:
            answer = service.http.request(method, path)
            assert answer.status_code in (404, 405)
            error_of(answer)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999999999999\r\n\r\n",
    ],
    ids=[str(number) for number in range(7)],
)
def test_bytes_that_are_no_request_end_the_connection_alone(service, sent):
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        answer = b""
        with suppress(OSError):  # the service may end the connection before all is sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                answer += part
    assert b"500" not in answer[:20]
    assert service.http.get("/healthz").is_success


@pytest.mark.slow("a body has ten seconds to come")
def test_a_body_that_does_not_come_is_given_up(service):
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert b"408" in connection.recv(65_536)


def test_random_forms_are_refused(service, key, credential):
    for seed in range(500 if FULL else 20):
        # deterministic: a walk through bytes with a stride of its own
        body = bytes((seed * 31 + place * (seed % 7 + 1)) % 256 for place in range(seed % 97))
        answer = service.http.post("/token", content=body, headers=FORM)
        settled(answer)
