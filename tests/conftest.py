"""What every test can ask for: the public vectors, keys, a trust domain, hypothesis' rounds.

The vectors are not in this repository. AGENTGUARD_VECTORS names the folder that holds them; a
clone without it skips those tests, and CI, where CI=true, fails them. So it is with the programs of
OPA, Jaeger and OpenBao: those that ``scripts/services env`` names, or would start without making
them first.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from pkgutil import walk_packages
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import binaries
import pytest
import servers
from hypothesis import HealthCheck, settings
from keycloak import Keycloak
from oidc_server import OidcServer
from openbao import OpenBao
from ports import free_port
from preloaded import Preloaded
from trials import Trials

import agentguard
from agentguard.delegation import chain_issuance, verification
from agentguard.delegation.chain import Chain
from agentguard.delegation.chain_issuance import Terms
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile, Credential
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.policy.rego import gate as rego_gate
from agentguard.signing.keys import Ed25519Signer

for _profile, _examples in (("quick", 25), ("full", 200)):
    settings.register_profile(
        _profile,
        max_examples=_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("full" if os.environ.get("AGENTGUARD_ROUNDS") == "full" else "quick")

LATE = (
    "bcrypt",
    "cryptography.hazmat.primitives.serialization.ssh",
    "email.parser",
    "zoneinfo",
    "pydantic.fields",
    "pydantic.json_schema",
    "pydantic.type_adapter",
    "pydantic.types",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)
"""What agentguard and its commands, and what these stand on, import where they need it."""

WHERE = (
    "AGENTGUARD_VECTORS does not name a folder with the public test vectors (RFC 8037, "
    "cyberphone/json-canonicalization, transparency-dev/merkle, C2SP/wycheproof, C2SP signed-note, "
    "secure-systems-lab/dsse, ietf-wg-wimse/draft-ietf-wimse-s2s-protocol): CONTRIBUTING.md says "
    "how it is laid out"
)


@pytest.fixture(autouse=True, scope="session")
def _policies_tried_in_forks() -> Iterator[None]:
    """Have the gate of Rego policies start no interpreter for each of hundreds of policies."""
    trials = Trials()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rego_gate, "subprocess", trials)
        yield
    trials.close()


@pytest.fixture(scope="session")
def programs() -> Iterator[Preloaded]:
    """Processes that have imported agentguard, its commands, and what these import late."""
    everything = [module.name for module in walk_packages(agentguard.__path__, "agentguard.")]
    everything.remove("agentguard.cli.__main__")  # it would be found a second time by -m
    made = Preloaded("cheap_keys", *everything, *LATE)
    yield made
    made.close()


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of the public vectors."""
    folder = os.environ.get("AGENTGUARD_VECTORS")
    if folder and (Path(folder) / "README.md").is_file():
        return Path(folder)
    if os.environ.get("CI") == "true":
        pytest.fail(WHERE)
    pytest.skip(WHERE)


@pytest.fixture
def signer() -> Ed25519Signer:
    """A signer with a new key."""
    return Ed25519Signer.from_seed(os.urandom(32))


@pytest.fixture
def stranger() -> Ed25519Signer:
    """Another signer, whom nobody has reason to believe."""
    return Ed25519Signer.from_seed(os.urandom(32))


@dataclass(frozen=True)
class Member:
    """An agent instance outside any guard: its key and its credential."""

    signer: Ed25519Signer
    credential: Credential

    @property
    def uri(self) -> str:
        return self.credential.uri


class World:
    """A trust domain without a guard, at the time ``now``: an issuer, and agents by their names."""

    domain = "acme.example"
    now = 1_800_000_000

    def __init__(self) -> None:
        self.issuer, self.log_key, self.admin = (self.key() for _ in range(3))
        self.trust = self.trusting()
        self._members: dict[str, Member] = {}
        self._jti = itertools.count()

    @staticmethod
    def key() -> Ed25519Signer:
        return Ed25519Signer.from_seed(os.urandom(32))

    def trusting(self, **issuer: Any) -> TrustDocument:
        """The trust document, with what it says of the issuer's key."""
        keys = (
            TrustedKey("issuer", self.issuer.public_key, **{"not_before": 0, **issuer}),
            TrustedKey("log", self.log_key.public_key, 0),
            TrustedKey("admin", self.admin.public_key, 0),
        )
        return TrustDocument(self.domain, f"{self.domain}/log/1", keys)

    def jti(self) -> str:
        return f"jti-{next(self._jti):08}"

    def member(self, name: str) -> Member:
        """An agent's instance, the same whenever it is asked for."""
        if name not in self._members:
            self._members[name] = self.instance(name)
        return self._members[name]

    def instance(
        self, name: str, *, signer: Ed25519Signer | None = None, now: int | None = None
    ) -> Member:
        """An agent's instance with a key of its own; ``signer`` and ``now`` are for renewals."""
        signer = signer or self.key()
        issued = credential.issue(
            self.issuer,
            self.domain,
            AgentProfile(name),
            signer.public_key,
            now=self.now if now is None else now,
            jti=self.jti(),
        )
        return Member(signer, issued)

    def begin(self, *scope: str, now: int | None = None, **terms: Any) -> Chain:
        """The first hop: user:alice lends ``scope`` through service:ci."""
        asked = {"principal": "user:alice", "via": "service:ci", **terms}
        return chain_issuance.begin(
            self.issuer,
            self.domain,
            Terms(scope=scope, **asked),
            now=self.now if now is None else now,
            jti=self.jti(),
        )

    def extend(
        self,
        chain: Chain,
        to: Member,
        *,
        by: Member | None = None,
        scope: Iterable[str] | None = None,
        now: int | None = None,
    ) -> Chain:
        """One hop more, signed by an agent (``by``) or, in a service's place, by the issuer."""
        return chain_issuance.extend(
            chain,
            self.issuer if by is None else by.signer,
            to.credential,
            by=None if by is None else by.credential,
            scope=chain.leaf.scope if scope is None else scope,
            now=self.now if now is None else now,
            jti=self.jti(),
        )

    def chain(self, *names: str, scope: Iterable[str] = ("a", "b"), **terms: Any) -> Chain:
        """From user:alice through service:ci to the agents of these names, one after another."""
        chain, by = self.begin(*scope, **terms), None
        for name in names:
            chain, by = self.extend(chain, self.member(name), by=by), self.member(name)
        return chain

    def verify(self, chain: Chain, *, at: int | None = None, **trust: Any) -> Chain:
        """Verify a chain as a stranger does, from its tokens alone."""
        document = self.trusting(**trust) if trust else self.trust
        return verification.loads(chain.dumps(), document, at=self.now if at is None else at)


@pytest.fixture(scope="session")
def world() -> World:
    """A trust domain without a guard."""
    return World()


def _program(server: servers.Server) -> str:
    named = os.environ.get(f"AGENTGUARD_{server.name.upper()}_PROGRAM")
    if named:
        return named
    found = binaries.present(server.program)
    if found is not None:
        return found.path
    where = f"there is no {server.name} on PATH or in the cache"
    if lacks := server.program.lacks():
        where = f"{server.name} needs {lacks}, which is not on PATH"
    where += f": scripts/services up {server.name} says how to get it"
    if os.environ.get("CI") == "true":
        pytest.fail(where)
    pytest.skip(where)


DIRECTLY = build_opener(ProxyHandler({}))
PORTS_TRIED = 5


class Opa:
    """A real OPA of one test, on a port of its own; ``stop`` and ``start`` restart it there."""

    def __init__(self, folder: Path, *arguments: str | Path, scheme: str = "http") -> None:
        self._scheme = scheme
        self._label = f"t{os.urandom(8).hex()}"  # digits alone would be a number to it
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(PORTS_TRIED):
            self.port = free_port()
            self.url = f"{scheme}://127.0.0.1:{self.port}"
            self._log = folder / f"opa-{self.port}.log"
            self._command = [
                _program(servers.OPA),
                "run",
                "--server",
                "--addr",
                f"127.0.0.1:{self.port}",
                "--disable-telemetry",
                "--set",
                "decision_logs.console=true",
                "--set",
                f"labels.test={self._label}",
                *map(str, arguments),
            ]
            if self._begins():
                return
        pytest.fail(f"OPA ends at once: {self.log}")

    @property
    def log(self) -> str:
        """What it has written, its log of decisions among that."""
        return self._log.read_text()

    def start(self) -> None:
        assert self._begins(), self.log

    def _begins(self) -> bool:
        """Whether it answers, and has not ended: as where somebody has taken its port."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(600):
            if self._process.poll() is not None:
                return False
            if self._answers():
                return True
            time.sleep(0.05)
        pytest.fail(f"OPA does not answer: {self.log}")

    def _answers(self) -> bool:
        """Whether it is this one that listens, where anybody may ask it for its label."""
        try:
            if self._scheme == "https":
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            with DIRECTLY.open(f"{self.url}/v1/config", timeout=5) as answer:
                return self._label.encode() in answer.read()
        except HTTPError as refused:  # of one that wants a token
            return refused.code == HTTPStatus.UNAUTHORIZED
        except (OSError, HTTPException):
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def opa_program() -> str:
    """The program of a real OPA."""
    return _program(servers.OPA)


@pytest.fixture(scope="session")
def jaeger_program() -> str:
    """The program of a real Jaeger, which is a collector as well."""
    return _program(servers.JAEGER)


@pytest.fixture(scope="session")
def jaeger_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where a real Jaeger is asked, and where spans are sent.

    It is the one that ``scripts/services env`` names, or else one of this session's own.
    """
    names = ("AGENTGUARD_JAEGER_QUERY_URL", "AGENTGUARD_OTLP_ENDPOINT")
    if all(os.environ.get(name) for name in names):
        yield os.environ[names[0]], os.environ[names[1]]
        return
    with _started(servers.JAEGER, tmp_path_factory.mktemp("services")) as urls:
        yield urls[names[0]], urls[names[1]]


@pytest.fixture(scope="session")
def openbao_program() -> str:
    """The program of a real OpenBao."""
    return _program(servers.OPENBAO)


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A real OpenBao: the one that ``scripts/services env`` names, or one of this session's own."""
    if all(os.environ.get(name) for name in (OpenBao.URL, OpenBao.TOKEN_FILE)):
        yield OpenBao.named(os.environ)
        return
    with _started(servers.OPENBAO, tmp_path_factory.mktemp("services")) as urls:
        yield OpenBao.named(urls)


@pytest.fixture(scope="session")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    """A real Keycloak: the one of ``scripts/services env``, or one of this session's own."""
    if all(os.environ.get(name) for name in (Keycloak.URL, Keycloak.TOKEN_FILE)):
        yield Keycloak.named(os.environ)
        return
    with _started(servers.KEYCLOAK, tmp_path_factory.mktemp("services")) as urls:
        yield Keycloak.named(urls)


@pytest.fixture(scope="session")
def oidc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcServer]:
    """A small provider of OpenID Connect: that of ``scripts/services env``, or one of its own."""
    if os.environ.get(OidcServer.URL):
        yield OidcServer(os.environ[OidcServer.URL])
        return
    with _started(servers.OIDC, tmp_path_factory.mktemp("services")) as urls:
        yield OidcServer(urls[OidcServer.URL])


@contextmanager
def _started(server: servers.Server, folder: Path) -> Iterator[dict[str, str]]:
    """Have ``scripts/services`` start a server in this folder, on free ports.

    Yields what ``env`` says.
    """
    ports = {port.variable: "0" for port in server.ports}
    environment = {**os.environ, **ports, "AGENTGUARD_SERVICES": str(folder)}

    def services(command: str) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).parents[1] / "scripts" / "services"
        return subprocess.run(
            [script, command, server.name],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    _program(server)  # no test makes one, which takes Go many minutes
    up = services("up")
    assert up.returncode == 0, up.stderr
    words = [shlex.split(line)[1] for line in services("env").stdout.splitlines()]
    yield dict(word.split("=", 1) for word in words)
    assert services("down").returncode == 0


@pytest.fixture(scope="session")
def on_opa(
    opa_program: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path], str]]:
    """Put a policy, in place of the last one, on a real OPA of this session; return its URL."""
    server = Opa(tmp_path_factory.mktemp("opa"))

    def put(policy: Path) -> str:
        where, text = f"{server.url}/v1/policies/p", policy.read_bytes()
        with DIRECTLY.open(Request(where, data=text, method="PUT"), timeout=120) as answer:  # noqa: S310
            assert json.loads(answer.read()) == {}
        return server.url

    yield put
    server.stop()


@pytest.fixture
def opa(tmp_path: Path) -> Iterator[Callable[..., Opa]]:
    """Start real OPAs with these arguments; they end with the test."""
    started: list[Opa] = []

    def start(*arguments: str | Path, scheme: str = "http") -> Opa:
        server = Opa(tmp_path, *arguments, scheme=scheme)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
