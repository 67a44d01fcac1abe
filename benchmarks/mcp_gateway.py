"""What the MCP gateway adds to a call: wall time and CPU time, beside the bare server.

    uv run python benchmarks/mcp_gateway.py [--calls N] [--repetitions N]

The server is ``examples/mcp_gateway/notes.py``, which the SDK's FastMCP makes. The client speaks
JSON-RPC by hand and takes next to no time. One call follows another, each durable in the log, with
a policy in Rego and pinned tools: with a list of the tools before each call, and with a list that
counts for a minute (``recheck``). CPU time is that of the gateway's process, from /proc. The runs
alternate, and the figures are medians of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import fdatasync_p50
from rich.console import Console
from rich.table import Table

SERVER = Path(__file__).resolve().parents[1] / "examples" / "mcp_gateway" / "notes.py"
AGENTGUARD = [sys.executable, "-m", "agentguard.cli"]
POLICY = 'package agent.authz\n\ndefault allow := false\n\nallow if input.action == "read_note"\n'
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What one call cost: wall time, and CPU time of the process at the other end, in ms."""

    wall: float
    cpu: float


class Peer:
    """A server, or a gateway in front of one, and a client of it."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(home)},
        )
        self.number = 0
        self.ask("initialize", HELLO)
        self.send({"method": "notifications/initialized"})

    def send(self, message: dict[str, Any]) -> None:
        """Write a message."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return its answer."""
        assert self.process.stdout is not None  # noqa: S101
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        while True:
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
            if answer.get("id") == self.number:
                return answer

    def cost(self, calls: int) -> Cost:
        """Make calls one after another."""
        params = {"name": "read_note", "arguments": {"name": "todo.txt"}}
        before, begun = self._cpu(), time.perf_counter()
        for _call in range(calls):
            answer = self.ask("tools/call", params)
            if answer["result"]["isError"]:
                raise SystemExit(str(answer))
        wall = time.perf_counter() - begun
        return Cost(1000 * wall / calls, 1000 * (self._cpu() - before) / calls)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.close()
        self.process.wait()


def founded(home: Path) -> list[str]:
    """Make a trust domain and pins; return the command of the gateway."""
    notes = home / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("water the plants\n", encoding="utf-8")
    domain = home / "domain"
    environment = {**os.environ, "HOME": str(home)}

    def run(*words: str) -> None:
        subprocess.run(  # noqa: S603
            [*AGENTGUARD, *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )

    run("init", str(domain))
    config = str(domain / "agentguard.toml")
    (domain / "policies" / "authz.rego").write_text(POLICY, encoding="utf-8")
    with Path(config).open("a", encoding="utf-8") as file:
        for name, recheck in (("each", 0), ("minute", 60)):
            command = json.dumps([sys.executable, str(SERVER), str(notes)])
            file.write(f'[mcp.{name}]\nagent = "assistant"\nrecheck = {recheck}\n')
            file.write(f"command = {command}\n")
    for name in ("each", "minute"):
        run("mcp", "pin", "--name", name, "--config", config)
    return [*AGENTGUARD, "mcp", "run", "--config", config, "--name"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="What the MCP gateway adds to a call.")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        gateway = founded(home)
        peers = {
            "the bare server": Peer([sys.executable, str(SERVER), str(home / "notes")], home),
            "gateway, a list before each call": Peer([*gateway, "each"], home),
            "gateway, a list each minute": Peer([*gateway, "minute"], home),
        }
        costs: dict[str, list[Cost]] = {kind: [] for kind in peers}
        for peer in peers.values():
            peer.cost(20)
        for _repetition in range(given.repetitions):
            for kind, peer in peers.items():
                costs[kind].append(peer.cost(given.calls))
        for peer in peers.values():
            peer.close()
        disk = fdatasync_p50(home)
    table = Table("", "wall, ms", "added wall, ms", "CPU of that process, ms")
    bare = statistics.median(one.wall for one in costs["the bare server"])
    for kind, measured in costs.items():
        wall = statistics.median(one.wall for one in measured)
        cpu = statistics.median(one.cpu for one in measured)
        table.add_row(kind, f"{wall:.2f}", f"{wall - bare:.2f}", f"{cpu:.2f}")
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(f"a bare fdatasync: {disk:.0f} µs at the median; load average {load:.1f}")


if __name__ == "__main__":
    main()
