"""The OPA engine beside a real OPA: what it answers, each way to fail, and the way back.

What a server that means harm could answer stands in attacks/test_hostile_opa.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agentguard import ConfigError, Denied, Guard, PolicyError
from agentguard.domain import config
from agentguard.domain.config.engine import configured_engine
from agentguard.policy.document import UNDEFINED, Evaluated, decide
from agentguard.policy.engine import Explains
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine

POLICIES = Path(__file__).parents[1] / "policies"
AUTHZ = POLICIES / "authz.rego"
OPEN_PR = {
    "agent": {"type": "code-agent"},
    "action": "open_pr",
    "repo": {"visibility": "internal"},
}


def engine_of(server, **options) -> OpaEngine:
    query = options.pop("query", "data.agent.authz")
    return OpaEngine(Server(server.url, **{"timeout": 5.0, **options}), query)


def ask(engine, **members) -> Evaluated:
    answer = engine.evaluate(json.dumps(members or OPEN_PR).encode())
    assert isinstance(answer, Evaluated)
    return answer


def code_of(engine) -> str:
    with pytest.raises(PolicyError) as raised:
        ask(engine)
    return raised.value.code


def connections(port: int) -> list[str]:
    """The established connections from this machine to a port of it (Linux)."""
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in table if line.split()[3] == "01"]
    return [row[1] for row in established if row[2].endswith(f":{port:04X}")]


def bundle(folder: Path, revision: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "authz.rego").write_bytes(AUTHZ.read_bytes())
    (folder / ".manifest").write_text(json.dumps({"revision": revision, "roots": ["agent"]}))
    return folder


# --- what it answers


@pytest.mark.parametrize(
    ("call", "outcome", "reasons"),
    [
        ({"action": "open_pr", "repo": {"visibility": "internal"}}, "allow", None),
        ({"action": "open_pr", "repo": {"visibility": "public"}}, "deny", None),
        ({"action": "trigger_ci", "branch": "agent/fix"}, "allow", None),
        ({"action": "trigger_ci", "branch": "main"}, "deny", None),
        (
            {"action": "merge_pr", "branch": "main"},
            "deny",
            ("direct merges to main require human approval",),
        ),
    ],
)
def test_the_same_file_decides_alike_on_a_server_and_embedded(opa, call, outcome, reasons):
    call = {"agent": {"type": "code-agent"}, **call}
    remote = ask(engine_of(opa(AUTHZ)), **call)

    assert remote.document == RegoEngine.load(AUTHZ).evaluate(json.dumps(call).encode())
    assert decide(remote).outcome == outcome
    assert reasons is None or decide(remote).reasons == reasons


def test_an_answer_says_which_decision_of_which_bundle_it_is(opa, tmp_path):
    server = opa("--bundle", bundle(tmp_path / "authz", "r1"))

    said = ask(engine_of(server)).evaluation

    assert isinstance(said["revisions"], dict)
    assert list(said["revisions"].values()) == ["r1"]
    assert said["version"]
    assert said["decision_id"] in server.log


def test_what_the_server_has_not_is_undefined(opa):
    answer = ask(engine_of(opa(AUTHZ), query="data.agent.other"))

    assert answer.document is UNDEFINED
    assert decide(answer).code == "policy.undefined"
    assert answer.evaluation["decision_id"]


def test_who_sets_it_up_is_told_more_than_goes_on_record():
    engine: Explains = OpaEngine(Server("http://127.0.0.1:1"))
    assert isinstance(engine, Explains)
    assert engine.explain(b"{}", "engine.unreachable") == (
        "start OPA at http://127.0.0.1:1, or correct [policy] url"
    )
    assert not isinstance(RegoEngine.load(AUTHZ), Explains)


def test_an_evaluation_that_fails_says_where_and_quotes_no_argument(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\nallow if to_number(input.args.token) > 1\n"
    )
    engine = engine_of(opa(tmp_path / "p.rego"))

    with pytest.raises(PolicyError, match=r"p\.rego:2:10: .*eval_builtin_error") as raised:
        ask(engine, args={"token": "s3cret"})
    assert raised.value.code == "policy.error"
    assert "s3cret" not in str(raised.value)
    assert decide(ask(engine, args={"token": "2"})).allowed


def test_what_it_is_on_record():
    engine = OpaEngine(Server("http://127.0.0.1:1"))

    assert (engine.name, engine.version, engine.policy_sha256) == ("opa", "v1", None)
    assert engine.policy_files == {}
    assert engine.waits


# --- faults: each denies with a code of its own, and passes again without a restart


def test_down_and_back_again(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    assert decide(ask(engine)).allowed

    server.stop()
    assert code_of(engine) == "engine.unreachable"
    assert code_of(engine) == "engine.unreachable"

    server.start()
    assert decide(ask(engine)).allowed


def test_restarted_between_two_calls(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    assert decide(ask(engine)).allowed

    server.stop()
    server.start()

    assert decide(ask(engine)).allowed  # its connection was closed, and it makes another


def test_it_restarts_under_load(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    codes, done, allowed, failed = set(), *(threading.Event() for _ in range(3))

    def call() -> None:
        while not done.is_set():
            try:
                assert decide(ask(engine)).allowed
                allowed.set()
            except PolicyError as error:
                codes.add(error.code)
                failed.set()

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call) for _ in range(4)]
        for _ in range(3):
            allowed.clear()
            assert allowed.wait(60)
            server.stop()
            failed.clear()
            assert failed.wait(60)
            server.start()
        done.set()
        for each in calls:
            each.result()
    assert codes <= {"engine.unreachable", "engine.disconnected"}
    assert codes
    assert decide(ask(engine)).allowed


def test_stopped_in_its_tracks_and_going_on(opa):
    server = opa(AUTHZ)
    engine = engine_of(server, timeout=1.5)
    assert decide(ask(engine)).allowed

    os.kill(server._process.pid, signal.SIGSTOP)
    os.waitpid(server._process.pid, os.WUNTRACED)  # the signal is under way until then
    assert code_of(engine) == "engine.timeout"
    os.kill(server._process.pid, signal.SIGCONT)

    assert decide(ask(OpaEngine(Server(server.url)))).allowed
    assert decide(ask(engine)).allowed


def test_a_slow_policy(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\n"
        "range := numbers.range(1, 3000)\n"
        "slow if count([1 | some i in range; some j in range; i == j]) > 0\n"
        'allow if {\n    input.action == "open_pr"\n    slow\n}\n'
    )
    engine = engine_of(opa(tmp_path / "p.rego", "--v1-compatible"), timeout=0.2)
    assert code_of(engine) == "engine.timeout"


def test_a_huge_answer(opa, tmp_path):
    (tmp_path / "p.rego").write_text(
        "package agent.authz\nallow := true\nbig := numbers.range(1, input.n)\n"
    )
    engine = engine_of(opa(tmp_path / "p.rego"))

    assert decide(ask(engine, n=10)).allowed
    with pytest.raises(PolicyError) as raised:
        ask(engine, n=200_000)
    assert raised.value.code == "engine.too_large"
    assert decide(ask(engine, n=10)).allowed


def test_an_input_that_it_does_not_take(opa):
    with pytest.raises(PolicyError, match="status 400") as raised:
        engine_of(opa(AUTHZ)).evaluate(b"{")
    assert raised.value.code == "engine.failed"


# --- who asks: TLS, client certificates, tokens


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._file = folder / f"{name}.pem"
        certificate = self._signed(self._name, self._key.public_key(), ca=True)
        self._file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def file(self) -> Path:
        return self._file

    def _signed(self, name, key, *, ca: bool = False):
        now = datetime.now(UTC)
        usage = {
            **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
            **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
            **dict.fromkeys(("key_cert_sign", "crl_sign"), ca),
        }
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = (self._folder / f"{name}.crt", self._folder / f"{name}.key")
        certificate = self._signed(named, key.public_key())
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files[1].chmod(0o600)
        return files


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
    with pytest.raises(ConfigError, match="token_variable: "):
        engine_of(locked, token_variable="OPA_TOKEN")


# --- threads, forks, signals, event loops


def test_many_threads(opa):
    engine = engine_of(opa(AUTHZ))
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: decide(ask(engine)).allowed, range(200)))
    assert answers == [True] * 200


def test_a_fork_has_connections_of_its_own(opa):
    engine = engine_of(opa(AUTHZ))
    assert decide(ask(engine)).allowed
    child = os.fork()
    if child == 0:
        allowed = [decide(ask(engine)).allowed for _ in range(20)]
        os._exit(0 if all(allowed) else 1)
    assert all(decide(ask(engine)).allowed for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0


def test_a_signal_handler_may_ask_within_a_call(opa):
    engine = engine_of(opa(AUTHZ))
    within = []

    def handler(_number, _frame) -> None:
        within.append(decide(ask(engine)).allowed)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
        for _ in range(100):
            assert decide(ask(engine)).allowed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert within
    assert all(within)


async def test_a_stopped_server_does_not_stop_the_event_loop(opa):
    server = opa(AUTHZ)
    config = {"agents": {"coder": {"type": "code-agent", "authority": "own"}}}
    async with Guard.ephemeral(engine_of(server, timeout=20.0), config=config) as guard:

        @guard.tool(facts=lambda _args: {"repo": {"visibility": "internal"}})
        async def open_pr() -> str:
            return "opened"

        coder = guard.new_agent("coder")
        assert await coder.acall(open_pr) == "opened"
        os.kill(server._process.pid, signal.SIGSTOP)
        calls = [asyncio.ensure_future(coder.acall(open_pr)) for _ in range(8)]
        # the loop itself has the server go on: were it held up, nobody would, and time be over
        while (  # noqa: ASYNC110  the kernel sets no event
            len(connections(server.port)) < len(calls) and not any(call.done() for call in calls)
        ):
            await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        os.kill(server._process.pid, signal.SIGCONT)
        assert await asyncio.gather(*calls) == ["opened"] * len(calls)


async def test_a_cancelled_call_is_on_record_and_does_not_run(opa):
    server = opa(AUTHZ)
    ran = []
    with Guard.ephemeral(engine_of(server, timeout=20.0)) as guard:

        @guard.tool
        async def open_pr() -> None:
            ran.append(1)

        call = asyncio.ensure_future(guard.new_agent("coder").acall(open_pr))
        os.kill(server._process.pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        os.kill(server._process.pid, signal.SIGCONT)
    assert not ran


def test_a_guard_that_is_closed_has_no_connections(opa):
    server = opa(AUTHZ)
    engine = engine_of(server)
    with Guard.ephemeral(engine) as guard:

        @guard.tool
        def open_pr() -> None:
            """Open."""

        with pytest.raises(Denied):
            guard.new_agent("coder").call(open_pr)
        assert connections(server.port)
    assert not connections(server.port)
    assert engine is guard._runtime._engine


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
    with pytest.raises(ConfigError, match=r"guard\.key"):
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
