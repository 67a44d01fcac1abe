"""Runs the conformance suite of MCP against a server alone and guarded, and prints both results.

``scripts/mcp-conformance`` installs what this module needs. ``mcp_everything.py`` is the server.
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
from typing import Final

REVISIONS: Final = ("2025-11-25", "2026-07-28")
PORTS: Final = {"http": 39110, "guarded": 39120}
"""The port of each form of the server; the guarded server itself listens on the next one."""

START: Final = 60.0
"""Seconds that a server has to start."""

_TIME: Final = re.compile(r"-\d{4}-\d\d-\d\dT.*")

Counts = dict[str, tuple[int, int]]
"""The checks that passed and the checks that failed, for each scenario."""


def main(installed: Path, folder: str) -> int:
    """Print a table of all scenarios; return 1 where a check passes alone and fails guarded."""
    is_worse = False
    for revision in REVISIONS:
        with server(folder, "http") as port:
            alone = results(installed, port, revision)
        with server(folder, "guarded") as port:
            guarded = results(installed, port, revision)
            bare = results(installed, port + 1, revision)
        sys.stdout.write(f"\n{revision:<50}{'alone':>10}{'guarded':>10}{'no proof':>10}\n")
        for name in sorted(alone):
            row = [text(side.get(name, (0, 0))) for side in (alone, guarded, bare)]
            sys.stdout.write(f"{name:<50}{row[0]:>10}{row[1]:>10}{row[2]:>10}\n")
        row = [text(total(side)) for side in (alone, guarded, bare)]
        sys.stdout.write(f"{'all':<50}{row[0]:>10}{row[1]:>10}{row[2]:>10}\n")
        is_worse |= not alone or any(guarded.get(name) != alone[name] for name in alone)
    return int(is_worse)


@contextmanager
def server(folder: str, form: str) -> Iterator[int]:
    """Run one form of the everything-server; the value is its port."""
    port = PORTS[form]
    script = str(Path(__file__).with_name("mcp_everything.py"))
    command = [sys.executable, script, folder, form, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for([port] if form == "http" else [port, port + 1])
        yield port
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
