"""How the OPA engine reaches a server: TLS, client certificates, tokens, and the configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opa_calls import AUTHZ, ask, code_of, engine_of

from agentguard import ConfigError, PolicyError
from agentguard.domain import config
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.policy.document import decide
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server

# --- who asks: TLS, client certificates, tokens


@pytest.fixture
def authority(tmp_path) -> Callable[[str], Authority]:
    return lambda name: Authority(tmp_path, name)


def test_tls_and_a_client_certificate(opa, authority, tmp_path):
    ours, others = authority("ours"), authority("others")
    certificate, key = ours.issue("server")
    server = opa(
        AUTHZ,
        *("--tls-cert-file", certificate, "--tls-private-key-file", key),
        *("--tls-ca-cert-file", ours.file, "--authentication", "tls"),
        scheme="https",
    )
    mine, mine_key = ours.issue("guard")
    theirs, theirs_key = others.issue("stranger")

    good = engine_of(server, ca=ours.file, certificate=mine, key=mine_key)
    assert decide(ask(good)).allowed
    assert decide(ask(good)).allowed
    for options in (
        {"certificate": mine, "key": mine_key},  # the system's authorities know nothing of it
        {"ca": others.file, "certificate": mine, "key": mine_key},
        {"ca": ours.file},
        {"ca": ours.file, "certificate": theirs, "key": theirs_key},
    ):
        assert code_of(engine_of(server, **options)) == "engine.tls"


def test_a_server_of_another_name_or_without_tls(opa, authority):
    ours = authority("ours")
    certificate, key = ours.issue("server")
    tls = ("--tls-cert-file", certificate, "--tls-private-key-file", key)
    server = opa(AUTHZ, *tls, scheme="https")
    by_name = Server(server.url.replace("127.0.0.1", "localhost"), ca=ours.file)
    assert code_of(OpaEngine(by_name)) == "engine.tls"

    plain = opa(AUTHZ)
    assert code_of(OpaEngine(Server(plain.url.replace("http", "https")))) == "engine.tls"
    # OPA answers plain HTTP on its TLS port with 400, and hangs up, which may be seen first
    code = code_of(OpaEngine(Server(server.url.replace("https", "http"))))
    assert code in {"engine.failed", "engine.disconnected"}


@pytest.fixture
def locked(opa, tmp_path):
    (tmp_path / "system.rego").write_text(
        'package system.authz\ndefault allow := false\nallow if input.identity == "t0ken"\n'
    )
    guarded = ("--authentication", "token", "--authorization", "basic")
    return opa(AUTHZ, tmp_path / "system.rego", *guarded)


def test_a_token_from_a_file_that_is_exchanged_meanwhile(locked, tmp_path):
    file = tmp_path / "token"
    file.write_text("t0ken\n")
    engine = engine_of(locked, token_file=file)
    assert decide(ask(engine)).allowed
    file.write_text("old\n")
    assert code_of(engine) == "engine.unauthorized"
    for unusable in ("", "two words", "a\r\nX-Other: b", "\u00e4"):
        file.write_text(unusable)
        assert code_of(engine) == "engine.credential"
    file.unlink()
    assert code_of(engine) == "engine.credential"
    os.mkfifo(file)  # to which nobody ever writes
    assert code_of(engine) == "engine.credential"
    file.unlink()
    file.write_text("t0ken")
    assert decide(ask(engine)).allowed


def test_a_token_from_the_environment(locked, monkeypatch):
    monkeypatch.setenv("OPA_TOKEN", "t0ken")
    engine = engine_of(locked, token_variable="OPA_TOKEN")
    assert decide(ask(engine)).allowed
    with pytest.raises(PolicyError, match="set token_file, token_variable or certificate in") as no:
        ask(engine_of(locked))
    assert no.value.code == "engine.unauthorized"
    monkeypatch.delenv("OPA_TOKEN")
    assert code_of(engine) == "engine.credential"
    unset = r"token_variable: the environment variable OPA_TOKEN, which .* is unset: set it to the"
    with pytest.raises(ConfigError, match=unset):
        engine_of(locked, token_variable="OPA_TOKEN")
    monkeypatch.setenv("OPA_TOKEN", "two words")
    with pytest.raises(ConfigError, match="OPA_TOKEN has no token for the OPA server") as refused:
        engine_of(locked, token_variable="OPA_TOKEN")
    assert "two words" not in str(refused.value)


# --- configuration


def configured(tmp_path: Path, *lines: str) -> config.Config:
    text = "\n".join(("[policy]", 'engine = "opa"', *lines))
    (tmp_path / "agentguard.toml").write_text(text + "\n")
    return config.load(tmp_path / "agentguard.toml")


def test_what_can_be_said_of_a_server(tmp_path):
    policy = configured(
        tmp_path,
        'url = "https://opa.example:8181/prefix"',
        'query = "data.acme.authz"',
        "timeout = 0.5",
        "connect_timeout = 1",
        'ca = "ca.pem"',
        'certificate = "c.pem"',
        'key = "k.pem"',
        'token_file = "/run/token"',
    ).policy
    assert policy is not None
    assert (policy.engine, policy.path, policy.query) == ("opa", "", "data.acme.authz")
    assert policy.server == Server(
        "https://opa.example:8181/prefix",
        timeout=0.5,
        connect_timeout=1.0,
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "c.pem",
        key=tmp_path / "k.pem",
        token_file=Path("/run/token"),
    )


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ((), "url"),
        (('url = "opa.example:8181"',), "url"),
        (('url = "ftp://opa.example"',), "url"),
        (('url = "http://user:s3cret@opa.example"',), "url"),
        (('url = "http://opa.example/?a=b"',), "url"),
        (('url = "http://opa.example/#a"',), "url"),
        (('url = "http://opa.example:99999"',), "url"),
        (('url = "http://opa.example/a b"',), "url"),
        (('url = "http://"',), "url"),
        (('url = "http://opa.example/v1/data/agent/authz"',), "url"),
        (('url = "http://opa.example/prefix/v1/data"',), "url"),
        (('url = "http://opa.example"', 'token_variable = "T"'), "url"),
        (('url = "http://opa.example"', 'ca = "a"'), "ca"),
        (('url = "http://opa.example"', 'certificate = "a"'), "certificate"),
        (('url = "https://opa.example"', 'key = "a"'), "key"),
        (
            ('url = "https://opa.example"', 'token_variable = "T"', 'token_file = "f"'),
            "token_variable",
        ),
        (('url = "http://127.0.0.1"', "timeout = 0"), "timeout"),
        (('url = "http://127.0.0.1"', "timeout = true"), "timeout"),
        (('url = "http://127.0.0.1"', "timeout = inf"), "timeout"),
        (('url = "http://127.0.0.1"', 'connect_timeout = "1"'), "connect_timeout"),
        (('url = "http://127.0.0.1"', 'query = "agent.authz"'), "query"),
        (('url = "http://127.0.0.1"', 'query = "data.a/../b"'), "query"),
        (('url = "http://127.0.0.1"', 'path = "policies"'), "path"),
        (('url = "http://127.0.0.1"', 'token = "s3cret"'), "token"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path, lines, key):
    with pytest.raises(ConfigError) as raised:
        configured(tmp_path, *lines)
    assert f"agentguard.toml: policy.{key}: " in str(raised.value)
    assert str(raised.value).count("policy.") == 1
    assert "s3cret" not in str(raised.value)


def test_a_local_server_may_be_asked_with_a_token_over_http():
    for host in ("127.0.0.1", "localhost", "[::1]", "127.8.8.8"):
        assert Server(f"http://{host}:8181", token_variable="T").is_local
    for host in ("10.0.0.1", "localhost.example", "opa"):
        with pytest.raises(ConfigError):
            Server(f"http://{host}:8181", token_variable="T")
    assert "http" in OpaEngine(Server("http://opa:8181")).warnings[0]
    assert OpaEngine(Server("http://127.0.0.1:8181")).warnings == ()
    assert OpaEngine(Server("https://opa:8181")).warnings == ()


def test_files_of_others(tmp_path, authority):
    ours = authority("ours")
    certificate, key = ours.issue("guard")
    token = tmp_path / "token"
    token.write_text("t0ken")
    token.chmod(0o640)
    settings = configured(
        tmp_path,
        'url = "https://127.0.0.1:1"',
        f'ca = "{ours.file.name}"',
        f'certificate = "{certificate.name}"',
        f'key = "{key.name}"',
        'token_file = "token"',
    )
    configured_engine(settings)
    for file, mode in ((token, 0o644), (key, 0o604), (ours.file, 0o666), (certificate, 0o662)):
        before = file.stat().st_mode
        file.chmod(mode)
        with pytest.raises(ConfigError) as raised:
            configured_engine(settings)
        assert raised.value.code == "config.exposed"
        file.chmod(before)
    for file, name in ((ours.file, "ca"), (certificate, "certificate"), (token, "token_file")):
        before_bytes = file.read_bytes()
        file.write_bytes(b"")
        with pytest.raises(ConfigError, match=rf"policy\.{name}: "):
            configured_engine(settings)
        file.write_bytes(before_bytes)
    key.unlink()
    with pytest.raises(ConfigError, match=r"policy\.key: .*guard\.key"):
        configured_engine(settings)


def test_a_token_file_that_is_missing_is_named_with_its_setting(tmp_path):
    settings = configured(tmp_path, 'url = "https://127.0.0.1:1"', 'token_file = "token"')
    with pytest.raises(ConfigError) as missing:
        configured_engine(settings)
    message = str(missing.value)
    assert "policy.token_file: " in message
    assert str(tmp_path / "token") in message
    assert message.endswith(", or correct token_file in [policy]")
    (tmp_path / "token").write_text("t0ken")
    (tmp_path / "token").chmod(0o600)
    configured_engine(settings)


def test_a_key_with_a_passphrase_asks_nobody(tmp_path, authority):
    certificate, file = authority("ours").issue("guard")
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    with pytest.raises(ConfigError, match=r"certificate: .*encrypted"):
        OpaEngine(Server("https://127.0.0.1:1", certificate=certificate, key=file))


def test_without_the_extra_it_says_what_to_install():
    script = (
        "import sys\nsys.modules['httpcore'] = None\n"
        "from agentguard.policy.opa import OpaEngine, Server\n"
        "OpaEngine(Server('http://127.0.0.1:8181'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install '.[opa]'" in ran.stderr
    assert "ConfigError" in ran.stderr.splitlines()[-1]


def test_the_environment_names_no_proxy(opa, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert decide(ask(engine_of(opa(AUTHZ)))).allowed
