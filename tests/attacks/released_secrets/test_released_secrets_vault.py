"""A vault that means harm, hangs or is another server: no secret, no hang, no value in an error.

The server is ``kv_server.py``, a real HTTP server; ``test_released_secrets_openbao.py`` has a real
OpenBao.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing

import pytest
from certificates import Authority
from kv_server import KeyValueServer, say
from secret_calls import NAME, OTHER, VALUE

from agentguard import ConfigError, Decision, Guard, SecretError, secret
from agentguard.domain import config

TOKEN = "hvs.CAESI-0815"
PATH = "secret/data/team/deploy"


@pytest.fixture
def vault() -> Iterator[KeyValueServer]:
    server = KeyValueServer(TOKEN)
    server.secrets[PATH] = {"token": VALUE, "other": OTHER, "number": 5}
    yield server
    server.close()


@pytest.fixture
def settings(vault, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_TEST_VAULT_TOKEN", TOKEN)
    return {
        "url": vault.url,
        "path": PATH,
        "field": "token",
        "token_env": "AGENTGUARD_TEST_VAULT_TOKEN",
        "timeout": 1.0,
    }


def fetched(settings):
    tables = {"secrets": {NAME: {"vault": settings, "tools": ["deploy"]}}}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        return guard.new_agent("a").call(guard.tool(name="deploy")(lambda: secret(NAME)))


def failed(settings, match):
    """The tool gets an error that names the remedy and holds neither a value nor a token."""
    with pytest.raises(SecretError, match=match) as caught:
        fetched(settings)
    assert caught.value.code == "secret.failed"
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    text = "".join(report.format())
    assert "SecretError" in text
    assert not any(form in text for form in (VALUE, json.dumps(VALUE)[1:-1], TOKEN))


def test_a_field_of_a_secret_is_read(vault, settings):
    assert fetched(settings) == VALUE
    assert fetched({**settings, "field": "other"}) == OTHER
    (method, path, headers), _second = vault.requests
    assert (method, path) == ("GET", f"/v1/{PATH}")
    assert headers["x-vault-token"] == TOKEN
    assert headers["x-vault-request"] == "true"
    assert "traceparent" not in headers


def test_the_token_is_read_anew_from_its_file(vault, settings, tmp_path):
    file = tmp_path / "vault-token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    told = {name: value for name, value in settings.items() if name != "token_env"}
    told["token_file"] = str(file)
    assert fetched(told) == VALUE
    vault.token = "hvs.new"
    failed(told, "403")
    file.write_text("hvs.new")
    assert fetched(told) == VALUE
    file.chmod(0o644)
    failed(told, "everybody can read")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"path": "secret/data/team/none"}, r"404.*check path"),
        ({"field": "none"}, "without a field none"),
        ({"field": "number"}, "field number that is no text"),
    ],
)
def test_what_the_vault_does_not_have_is_named(settings, change, match):
    failed({**settings, **change}, match)


@pytest.mark.parametrize("token", [None, "", "two words", "line\nbreak", "hvs.of-another"])
def test_a_token_that_is_none_gets_no_secret(settings, monkeypatch, vault, token):
    if token is None:
        monkeypatch.delenv("AGENTGUARD_TEST_VAULT_TOKEN")
    else:
        monkeypatch.setenv("AGENTGUARD_TEST_VAULT_TOKEN", token)
    failed(settings, "403" if token == "hvs.of-another" else "has no token")
    assert bool(vault.requests) is (token == "hvs.of-another")


STATUSES = {400: "check path", 404: "404", 429: "later", 473: "standby", 500: "500", 503: "sealed"}


@pytest.mark.parametrize("status", [*STATUSES, 204, 206, 401, 472, 502])
def test_no_status_but_200_is_an_answer(vault, settings, status):
    vault.does = lambda request: say(request, status, _answer(VALUE))
    failed(settings, STATUSES.get(status, str(status)))


def _answer(value, **more):
    return {"data": {"data": {"token": value}, "metadata": {"version": 1}}, **more}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(vault, settings, status):
    """Whoever answers in the place of the vault would get the token at the next place."""
    other = KeyValueServer(TOKEN)
    other.secrets[PATH] = {"token": OTHER}
    with closing(other):
        there = {"Location": f"{other.url}/v1/{PATH}"}
        vault.does = lambda request: say(request, status, _answer(VALUE), there)
        failed(settings, r"redirects to another place .* correct url")
        assert other.requests == []
        assert fetched({**settings, "url": other.url}) == OTHER  # the twin: asked by itself


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[1]",
        b"{}",
        b'{"data":null}',
        b'{"data":{"data":null,"metadata":{}}}',
        b'{"data":{"token":"version 1 of the store"}}',
        b'{"data":{"data":{"token":"no metadata"}}}',
        b'{"data":{"data":["token"],"metadata":{}}}',
        b'{"data":{"data":{"token":"a","token":"b"},"metadata":{}}}',
        b'{"data":{"data":{"token":"\\ud800"},"metadata":{}}}',
        b'{"data":{"data":{"token":{"a":"b"}},"metadata":{}}}',
        b'{"data":{"data":{"token":""},"metadata":{}}}',
        b'{"data":{"data":{"token":"a\\u0000b"},"metadata":{}}}',
        b'{"data":{"data":{"token":"\xff"},"metadata":{}}}',
    ],
)
def test_an_answer_of_another_form_is_no_secret(vault, settings, body):
    vault.does = lambda request: say(request, 200, body)
    failed(settings, "vault")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/html"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/jsonp"},
    ],
)
def test_an_answer_of_another_type_is_no_secret(vault, settings, headers):
    vault.does = lambda request: say(request, 200, _answer(VALUE), headers)
    failed(settings, "something else than plain JSON")
    vault.does = lambda request: say(
        request, 200, _answer(VALUE), {"Content-Type": "application/json; charset=utf-8"}
    )
    assert fetched(settings) == VALUE


def test_a_long_answer_is_cut_off(vault, settings):
    sent = list[int]()

    def endless(request):
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(1 << 40))
        request.end_headers()
        while True:
            sent.append(request.wfile.write(b" " * 65536))

    vault.does = endless
    failed(settings, "more than 262144 bytes")
    assert sum(sent) < 64 << 20


@pytest.mark.parametrize("how", ["silent", "drips", "never accepts"])
def test_a_slow_vault_holds_a_call_for_its_time_and_no_longer(vault, settings, how):
    def silent(_request):
        time.sleep(5)

    def drips(request):
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", "100000")
        request.end_headers()
        for _ in range(100):
            request.wfile.write(b" ")
            time.sleep(0.05)

    vault.does = {"silent": silent, "drips": drips}.get(how)
    told = {**settings, "timeout": 0.3}
    with socket.create_server(("127.0.0.1", 0), backlog=1) as full:
        if how == "never accepts":
            told["url"] = f"http://127.0.0.1:{full.getsockname()[1]}"
        failed(told, "did not answer within")  # a client without a deadline waits for the end


def test_a_vault_that_hangs_up_or_is_not_there_is_named(vault, settings):
    def hangs_up(request):
        request.connection.shutdown(socket.SHUT_RDWR)

    vault.does = hangs_up
    failed(settings, "hung up")
    vault.does = lambda request: request.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    failed(settings, "does not answer in HTTP|hung up")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    failed({**settings, "url": f"http://127.0.0.1:{port}"}, "can't be reached")


def test_no_proxy_of_the_environment_gets_the_token(vault, settings, monkeypatch):
    proxy = KeyValueServer(TOKEN)
    with closing(proxy):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert fetched(settings) == VALUE
        assert proxy.requests == []


def test_a_vault_over_tls_needs_a_certificate_of_the_named_authority(settings, tmp_path):
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    server = KeyValueServer(TOKEN, ours.issue("server"))
    server.secrets[PATH] = {"token": VALUE}
    with closing(server):
        told = {**settings, "url": server.url}
        assert fetched({**told, "ca": str(ours.file)}) == VALUE
        asked = len(server.requests)
        failed({**told, "ca": str(others.file)}, r"not trusted \(TLS\)")
        failed(told, r"not trusted \(TLS\)")
        assert len(server.requests) == asked


def test_a_value_of_the_vault_is_masked_and_on_record(scene, vault, settings, caplog):
    caplog.set_level(logging.DEBUG)
    scene.file.unlink()
    scene.more = {"secrets": {NAME: {"vault": settings, "tools": ["deploy"]}}}
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        assert agent.call(guard.tool(name="deploy")(lambda: secret(NAME))) == VALUE
    assert len(scene.entries()) == 1
    assert scene.holds(VALUE, TOKEN) == []
    assert VALUE not in caplog.text
    assert TOKEN not in caplog.text


MISTAKES = {
    "no address": ({"url": ""}, "vault.url: expected a string that is not empty"),
    "an address without a scheme": ({"url": "vault.example:8200"}, "vault.url: expected"),
    "a password in the address": ({"url": f"https://a:{VALUE}@vault.example"}, "vault.url"),
    "a query": ({"url": "https://vault.example/?a=b"}, "vault.url: expected"),
    "the version in the address": ({"url": "https://vault.example/v1"}, "without /v1"),
    "no encryption over a network": ({"url": "http://vault.example:8200"}, "unencrypted"),
    "a path of the command line": ({"path": "secret/deploy"}, "path of the API"),
    "a path that climbs": ({"path": "secret/data/../../sys/seal"}, "path of the API"),
    "a path with a query": ({"path": "secret/data/deploy?version=1"}, "path of the API"),
    "a path with a line break": ({"path": "secret/data/deploy\n"}, "path of the API"),
    "an empty field": ({"field": ""}, "vault.field: expected"),
    "two tokens": ({"token_file": "a"}, "one of token_file and token_env"),
    "no token": ({"token_env": ""}, "vault.token_env: expected a string that is not empty"),
    "the token itself": ({"token": TOKEN}, "vault.token: unknown key"),
    "a ca without encryption": ({"ca": "ca.pem"}, "it is for https"),
    "no time": ({"timeout": 0}, "a number of seconds above 0"),
}


@pytest.mark.parametrize(("change", "match"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_table_is_named(settings, change, match, tmp_path):
    tables = {"secrets": {NAME: {"vault": settings | change, "tools": ["deploy"]}}}
    with pytest.raises(ConfigError, match=match) as caught:
        config.parse(tables, source="agentguard.toml", base=tmp_path)
    assert VALUE not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_ca_that_can_not_be_used_opens_no_guard(settings, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("missing.pem", "ca.pem"):
        told = {**settings, "url": "https://vault.example", "ca": str(tmp_path / name)}
        with pytest.raises(ConfigError, match=r"vault\.ca: .* can't be used"):
            fetched(told)


@pytest.mark.parametrize(("package", "source"), [("httpcore", "vault"), ("keyring", "keyring")])
def test_without_the_extra_the_guard_says_what_to_install(package, source):
    where = {
        "vault": {"url": "https://v.example", "path": PATH, "field": "a", "token_env": "T"},
        "keyring": "forge.example/deploy",
    }[source]
    program = (
        f"import sys\nsys.modules[{package!r}] = None\n"
        "from agentguard import ConfigError, Decision, Guard\n"
        f"tables = {{'secrets': {{'T': {{{source!r}: {where!r}, 'tools': ['a']}}}}}}\n"
        "try:\n    Guard.ephemeral(lambda _: Decision.allow(), config=tables)\n"
        "except ConfigError as error:\n    print(error.code, error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert ran.stdout.startswith("config.extra_missing a secret in ")
    assert f"'.[{source}]'" in ran.stdout
