"""Runs the conformance suite of MCP against a server, and prints the results side by side.

The server runs alone, behind ``guard_server``, and behind the gateway (``agentguard mcp serve``):
there on stdio, where the gateway starts the server, and at a URL. Each check that passes alone has
to pass there, too: checks are compared by their names. ``scripts/mcp-conformance`` installs what
this module needs.
``mcp_everything.py`` is the server.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

REVISIONS: Final = ("2025-11-25", "2026-07-28")
PORTS: Final = {"http": 21110, "guarded": 21120, "gateway": 21130}
"""The port of each form of the server; the guarded server itself listens on the next one.

Systems give connections of their own ports above these.
"""

START: Final = 60.0
"""Seconds that a server has to start."""

SCRIPT: Final = str(Path(__file__).with_name("mcp_everything.py"))
POLICY: Final = "package agent.authz\n\ndefault allow := true\n"

_TIME: Final = re.compile(r"-\d{4}-\d\d-\d\dT.*")

Checks = dict[str, list[tuple[str, str]]]
"""The name and the status of each check, for each scenario."""

NOT_ON_STDIO: Final = frozenset({("server-sse-polling", "server-sse-disconnect-resume")})
"""The check for which a server closes a stream of HTTP: a server on stdio has none to close."""


def main(installed: Path, folder: str) -> int:
    """Print a table of all scenarios; return 1 if a check passes alone and fails elsewhere."""
    is_worse = False
    for revision in REVISIONS:
        with server(folder, "http") as port:
            alone = results(installed, port, revision)
            with gateway(f'url = "http://127.0.0.1:{port}/mcp"') as behind:
                at_url = results(installed, behind, revision)
        with server(folder, "guarded") as port:
            guarded = results(installed, port, revision)
            bare = results(installed, port + 1, revision)
        command = json.dumps([sys.executable, SCRIPT, folder, "stdio"])
        with gateway(f"command = {command}") as port:
            on_stdio = results(installed, port, revision)
        sides = {
            "alone": alone,
            "guarded": guarded,
            "no proof": bare,
            "gw stdio": on_stdio,
            "gw URL": at_url,
        }
        write_table(revision, sides)
        is_worse |= not alone
        for side, other, excused in (
            ("guarded", guarded, frozenset()),
            ("gateway, server on stdio", on_stdio, NOT_ON_STDIO),
            ("gateway, server at a URL", at_url, frozenset()),
        ):
            for scenario, check in missing(alone, other, excused):
                is_worse = True
                sys.stdout.write(f"{side}: {scenario}: {check} passes alone, and not here\n")
    return int(is_worse)


def write_table(revision: str, sides: dict[str, Checks]) -> None:
    """Print how many checks of each scenario pass on each side."""
    sys.stdout.write(f"\n{revision:<50}{''.join(f'{head:>10}' for head in sides)}\n")
    for name in sorted(sides["alone"]):
        cells = (text(counts(side.get(name, []))) for side in sides.values())
        sys.stdout.write(f"{name:<50}{''.join(f'{cell:>10}' for cell in cells)}\n")
    every = (
        text(counts([check for checks in side.values() for check in checks]))
        for side in sides.values()
    )
    sys.stdout.write(f"{'all':<50}{''.join(f'{cell:>10}' for cell in every)}\n")


def missing(
    alone: Checks, other: Checks, excused: frozenset[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the scenario and the name of each check that passes alone, and not on another side.

    A check that passes several times alone has to pass as often there. ``excused`` are checks that
    need not pass.
    """
    found: list[tuple[str, str]] = []
    for scenario, checks in sorted(alone.items()):
        wanted = Counter(name for name, status in checks if status == "SUCCESS")
        wanted.subtract(name for name, status in other.get(scenario, []) if status == "SUCCESS")
        names = sorted(name for name, left in wanted.items() if left > 0)
        found += [(scenario, name) for name in names if (scenario, name) not in excused]
    return found


@contextmanager
def server(folder: str, form: str) -> Iterator[int]:
    """Run one form of the everything-server; the value is its port."""
    port = PORTS[form]
    command = [sys.executable, SCRIPT, folder, form, str(port)]
    with running(command, [port] if form == "http" else [port, port + 1]):
        yield port


@contextmanager
def gateway(behind: str) -> Iterator[int]:
    """Run a gateway with pins and a policy that allows all; the value is its port.

    ``behind`` is the line of the configuration that says where the server is.
    """
    port = PORTS["gateway"]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home}
        config = Path(home) / "domain" / "agentguard.toml"
        agentguard = [sys.executable, "-m", "agentguard.cli"]
        nothing = subprocess.DEVNULL
        quiet: dict[str, Any] = {"env": environment, "stdout": nothing, "stderr": nothing}
        subprocess.run([*agentguard, "init", str(config.parent)], check=True, **quiet)
        (config.parent / "policies" / "authz.rego").write_text(POLICY, encoding="utf-8")
        with config.open("a", encoding="utf-8") as file:
            file.write(f'[mcp.everything]\nagent = "assistant"\nrounds = ["*"]\n{behind}\n')
        words = ["--name", "everything", "--config", str(config)]
        subprocess.run([*agentguard, "mcp", "pin", *words], check=True, **quiet)
        serve = [*agentguard, "mcp", "serve", *words, "--listen", f"127.0.0.1:{port}"]
        with running(serve, [port], environment):
            yield port


@contextmanager
def running(
    command: list[str], ports: list[int], environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a program that listens on ``ports``, and end it with the block."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(ports)
        yield
    finally:
        process.terminate()
        process.wait()


def wait_for(ports: list[int]) -> None:
    """Wait until a server listens on all ports; raises ``TimeoutError``."""
    end = time.monotonic() + START
    while ports:
        try:
            socket.create_connection(("127.0.0.1", ports[0]), timeout=1).close()
            ports = ports[1:]
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError(f"no server listens on port {ports[0]}") from None
            time.sleep(0.1)


def results(installed: Path, port: int, revision: str) -> Checks:
    """Run all scenarios of a revision against a port, and return their checks."""
    binaries = installed / "node_modules" / ".bin"
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as name:
        command = [str(binaries / "conformance"), "server", "--suite", "all"]
        command += ["--url", f"http://127.0.0.1:{port}/mcp", "--spec-version", revision]
        subprocess.run(
            [*command, "--output-dir", name],
            env=environment,
            check=False,  # a check that fails is a result
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        checks: Checks = {}
        for file in Path(name).glob("server-*/checks.json"):
            scenario = _TIME.sub("", file.parent.name.removeprefix("server-"))
            found = json.loads(file.read_text(encoding="utf-8"))
            checks[scenario] = [(check["id"], check["status"]) for check in found]
    return checks


def counts(checks: list[tuple[str, str]]) -> tuple[int, int]:
    """Return how many checks passed, and how many failed."""
    statuses = Counter(status for _name, status in checks)
    return statuses["SUCCESS"], statuses["FAILURE"]


def text(pair: tuple[int, int]) -> str:
    """Return a cell of the table: the checks that passed, of how many."""
    passed, failed = pair
    return f"{passed}/{passed + failed}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
