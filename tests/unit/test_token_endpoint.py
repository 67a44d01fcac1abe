"""Tokens of this process: the client credentials grant at a real HTTP server, and a file."""

from __future__ import annotations

import os
import threading
import time

import pytest
from token_issuer import HttpIssuer, TokenIssuer

from agentguard.client.tokens import TokenFile
from agentguard.domain.config import rights
from agentguard.errors import ServerError
from agentguard.issuers.client_credentials import TokenEndpoint
from agentguard.issuers.credentials import ClientCredentials


@pytest.fixture
def provider():
    served = HttpIssuer(TokenIssuer())
    yield served
    served.close()


@pytest.fixture
def secret(tmp_path, provider):
    path = tmp_path / "secret"
    path.write_text(f"{provider.clients['billing']}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def endpoint(provider, secret):
    def endpoint(path="/token", client="billing", clock=lambda: 0.0):
        credentials = ClientCredentials(f"{provider.url}{path}", client, secret)
        return TokenEndpoint(credentials, rights.read_private, clock)

    return endpoint


def code_of(work):
    with pytest.raises(ServerError) as caught:
        work()
    return caught.value.code, str(caught.value)


def test_a_token_is_got_and_kept_until_shortly_before_its_end(endpoint, provider):
    now = [0.0]
    made = endpoint(clock=lambda: now[0])
    first = made.token()
    assert len(first.reveal().split(b".")) == 3
    now[0] = 539.0
    assert made.token() is first
    assert provider.requests == ["/token"]
    now[0] = 540.0
    assert made.token() is not first
    assert provider.requests == ["/token"] * 2


def test_a_token_that_counts_for_less_than_a_minute_is_kept_for_half_its_time(endpoint, provider):
    provider.seconds, now = 10.0, [0.0]
    made = endpoint(clock=lambda: now[0])
    first = made.token()
    now[0] = 4.9
    assert made.token() is first
    now[0] = 5.0
    assert made.token() is not first


def test_while_the_endpoint_is_down_the_last_token_counts_until_its_end(endpoint, provider):
    now = [0.0]
    made = endpoint(clock=lambda: now[0])
    first = made.token()
    provider.answers["/token"] = (503, {}, b"{}")
    now[0] = 599.0
    assert made.token() is first
    now[0] = 600.0
    assert code_of(made.token)[0] == "server.token"
    del provider.answers["/token"]
    assert made.token() is not first


def test_a_forked_process_waits_for_no_lock_of_its_parent(endpoint):
    """A thread of the parent was asking for a token when another one forked."""
    made = endpoint()
    held, release = threading.Event(), threading.Event()

    def holds():
        with made._lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=holds)
    thread.start()
    held.wait(30)
    made._process = 0  # as in a child
    assert made.token().reveal()
    release.set()
    thread.join()


def test_a_signal_handler_may_ask_within_a_question(endpoint):
    made = endpoint()
    with made._lock:  # as where the signal interrupts this thread
        assert made.token().reveal()


def test_a_token_that_was_refused_is_forgotten(endpoint, provider):
    made = endpoint()
    first = made.token()
    assert not made.forget()  # at its first use: the next one would be refused, too
    second = made.token()
    assert second is not first
    assert made.token() is second
    assert made.forget()
    assert made.token() is not second


def test_a_wrong_secret_gets_no_token(endpoint, secret, provider):
    secret.write_text("wrong")
    code, message = code_of(endpoint().token)
    assert code == "server.token"
    assert "status 401" in message
    assert "wrong" not in message


@pytest.mark.parametrize("mode", [0o604, 0o606, None])
def test_a_secret_that_others_can_read_is_not_used(endpoint, secret, provider, mode):
    if mode is not None:
        secret.chmod(mode)
    else:
        secret.unlink()
    code, message = code_of(endpoint().token)
    assert (code, provider.requests) == ("server.token", [])
    assert "client_secret_file" in message
    assert provider.clients["billing"] not in message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[]"),
        (200, b'{"access_token": "t", "access_token": "u", "token_type": "Bearer"}'),
        (200, b'{"access_token": "t"}'),
        (200, b'{"access_token": "t", "token_type": "DPoP"}'),
        (200, b'{"access_token": "", "token_type": "Bearer"}'),
        (200, b'{"access_token": 7, "token_type": "Bearer"}'),
        (201, b'{"access_token": "t", "token_type": "Bearer"}'),
        (302, b""),
    ],
)
def test_another_answer_is_no_token(endpoint, provider, status, body):
    provider.answers["/odd"] = (status, {"Location": "/token"}, body)
    code, message = code_of(endpoint("/odd").token)
    assert code == "server.token"
    assert "the token endpoint of [server.oauth]" in message
    assert provider.requests == ["/odd"]


@pytest.mark.parametrize("expires", [b"", b', "expires_in": 0', b', "expires_in": "600"'])
def test_a_token_without_an_end_is_not_kept(endpoint, provider, expires):
    body = b'{"access_token": "t", "token_type": "bearer"' + expires + b"}"
    provider.answers["/token"] = (200, {}, body)
    made = endpoint()
    assert made.token().reveal() == b"t"
    assert made.token().reveal() == b"t"
    assert len(provider.requests) == 2


def test_a_token_file_is_read_each_time(tmp_path):
    path = tmp_path / "token"
    source = TokenFile(path)
    assert code_of(source.token)[0] == "server.token"
    path.write_text("a.b.c\n")
    assert source.token().reveal() == b"a.b.c"
    path.write_text("d.e.f")
    assert source.token().reveal() == b"d.e.f"
    assert not source.forget()


def test_nobody_waits_for_a_pipe_in_the_place_of_a_token(tmp_path):
    os.mkfifo(tmp_path / "token")
    assert code_of(TokenFile(tmp_path / "token").token)[0] == "server.token"


def test_a_file_that_is_empty_for_a_moment_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("")
    monkeypatch.setattr(time, "sleep", lambda _seconds: path.write_text("a.b.c"))
    assert TokenFile(path).token().reveal() == b"a.b.c"


@pytest.mark.parametrize("data", [b"", b"\n", "é".encode(), b"a" * 20_000])
def test_a_file_without_a_token_is_an_error(tmp_path, data):
    path = tmp_path / "token"
    path.write_bytes(data)
    code, message = code_of(TokenFile(path).token)
    assert code == "server.token"
    assert "token_file" in message
