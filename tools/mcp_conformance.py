"""Runs the conformance suite of MCP against a server, and prints the results side by side.

The server runs alone, behind ``guard_server`` and behind the gateway (``agentguard mcp serve``),
which starts the server on stdio. ``scripts/mcp-conformance`` installs what this module needs.
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

Counts = dict[str, tuple[int, int]]
"""The checks that passed and the checks that failed, for each scenario."""


def main(installed: Path, folder: str) -> int:
    """Print a table of all scenarios; return 1 for a check that passes alone and fails guarded."""
    is_worse = False
    for revision in REVISIONS:
        with server(folder, "http") as port:
            alone = results(installed, port, revision)
        with server(folder, "guarded") as port:
            guarded = results(installed, port, revision)
            bare = results(installed, port + 1, revision)
        with gateway(folder) as port:
            behind = results(installed, port, revision)
        sides = (alone, guarded, bare, behind)
        heads = ("alone", "guarded", "no proof", "gateway")
        sys.stdout.write(f"\n{revision:<50}{''.join(f'{head:>10}' for head in heads)}\n")
        for name in sorted(alone):
            cells = (text(side.get(name, (0, 0))) for side in sides)
            sys.stdout.write(f"{name:<50}{''.join(f'{cell:>10}' for cell in cells)}\n")
        cells = (text(total(side)) for side in sides)
        sys.stdout.write(f"{'all':<50}{''.join(f'{cell:>10}' for cell in cells)}\n")
        is_worse |= not alone or any(guarded.get(name) != alone[name] for name in alone)
        # what the gateway does not offer, such as streams that are resumed, is no failed check
        is_worse |= any(behind.get(name, (0, 1))[1] > alone[name][1] for name in alone)
    return int(is_worse)


@contextmanager
def server(folder: str, form: str) -> Iterator[int]:
    """Run one form of the everything-server; the value is its port."""
    port = PORTS[form]
    command = [sys.executable, SCRIPT, folder, form, str(port)]
    with running(command, [port] if form == "http" else [port, port + 1]):
        yield port


@contextmanager
def gateway(folder: str) -> Iterator[int]:
    """Run a gateway with pins and a policy that allows all; the value is its port."""
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
            command = json.dumps([sys.executable, SCRIPT, folder, "stdio"])
            file.write(f'[mcp.everything]\nagent = "assistant"\ncommand = {command}\n')
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


def results(installed: Path, port: int, revision: str) -> Counts:
    """Run all scenarios of a revision against a port, and count the checks."""
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
        counts: Counts = {}
        for file in Path(name).glob("server-*/checks.json"):
            scenario = _TIME.sub("", file.parent.name.removeprefix("server-"))
            checks = json.loads(file.read_text(encoding="utf-8"))
            statuses = Counter(check["status"] for check in checks)
            counts[scenario] = (statuses["SUCCESS"], statuses["FAILURE"])
    return counts


def total(counts: Counts) -> tuple[int, int]:
    """Return the checks that passed and failed in all scenarios."""
    passed, failed = (sum(pair[index] for pair in counts.values()) for index in (0, 1))
    return passed, failed


def text(pair: tuple[int, int]) -> str:
    """Return a cell of the table: the checks that passed, of how many."""
    passed, failed = pair
    return f"{passed}/{passed + failed}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
