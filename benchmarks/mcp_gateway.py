"""What a guard adds to a call over MCP on stdio: wall time and CPU time, beside the bare server.

    uv run python benchmarks/mcp_gateway.py [--calls N] [--repetitions N] [--modern]

All subjects serve the same tool of the same server, which the SDK 2 makes (``mcp_subjects.py``), on
stdio: the bare server, the server behind ``guard_server``, the server behind the gateway, and the
server behind the proxy of fastmcp, which passes calls on and decides nothing. The client speaks
JSON-RPC by hand, with the handshake of revision 2025-11-25, or without a handshake, as revision
2026-07-28 has it (``--modern``). One call follows another. Each guarded
call is durable in a log, with a policy in Rego. The gateway has pinned tools: with a list of the
tools before each call, and with a list that counts for a minute (``recheck``). The calls of the
guarded server carry proofs, which the client signs beforehand.

CPU time is from /proc: of the process that the client speaks to, and of that process and the server
behind together. The runs alternate, and the figures are medians of the repetitions.
``mcp_serve.py`` measures the gateway over HTTP in the same way.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import fdatasync_p50
from mcp_subjects import AUDIENCE
from rich.console import Console
from rich.table import Table

from agentguard import Decision, Guard
from agentguard.proof import prove_call

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = Path(__file__).with_name("mcp_subjects.py")
AGENTGUARD = [sys.executable, "-m", "agentguard.cli"]
POLICY = 'package agent.authz\n\ndefault allow := false\n\nallow if input.action == "read_note"\n'
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}
CALL = {"name": "read_note", "arguments": {"name": "todo.txt"}}
BARE = "bare server"
GUARDED = "guard_server"
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": HELLO["clientInfo"],
}
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What one call cost, in ms: wall time, and CPU time of one process and of all processes."""

    wall: float
    cpu: float
    all_cpu: float


class Peer:
    """A server, or a gateway in front of one, and a client of it on stdio."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(home)},
        )
        self.number = 0

    def greet(self, *, is_modern: bool) -> None:
        """Begin to speak, in revision 2026-07-28 or in revision 2025-11-25."""
        if is_modern:
            self.ask("server/discover", {"_meta": MODERN})
        else:
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

    def cost(self, calls: Sequence[dict[str, Any]]) -> Cost:
        """Make calls one after another."""
        front, behind = self._cpu()
        begun = time.perf_counter()
        for params in calls:
            answer = self.ask("tools/call", params)
            if answer.get("result", {}).get("isError", True):
                raise SystemExit(str(answer))
        wall = time.perf_counter() - begun
        front_then, behind_then = self._cpu()
        cpu, more = front_then - front, behind_then - behind
        return Cost(*(1000 * one / len(calls) for one in (wall, cpu, cpu + more)))

    def _cpu(self) -> tuple[float, float]:
        """Return the seconds of CPU of the process, and of the processes that it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [one for task in tasks for one in (task / "children").read_text().split()]
        return seconds(self.process.pid), sum(map(seconds, children))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.close()
        self.process.wait()


def seconds(pid: int | str) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    user, system = fields.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


class Client:
    """The agents' side of a guarded server: makes calls with proofs."""

    def __init__(self, guard: Guard, call: dict[str, Any]) -> None:
        self._guard = guard
        self._call = call
        self._agent = guard.new_agent("client")

    def calls(self, number: int) -> list[dict[str, Any]]:
        """Return the parameters of calls, each with a proof of its own, in one guarded call."""

        def prove() -> list[dict[str, Any]]:
            return [prove_call(AUDIENCE, "tools/call", self._call) for _ in range(number)]

        tool = self._guard.tool(name="prove")(prove)
        with self._guard.delegate("user:alice", scope=["notes:read"], audience=[AUDIENCE]):
            proved: list[dict[str, Any]] = self._agent.call(tool)
        return proved


def agents_guard() -> Guard:
    """Return the guard of the agents who prove their calls."""
    agents = {"agents": {"client": {"max_scope": ["notes:read"]}}}
    return Guard.ephemeral(lambda _call: Decision.allow(), config=agents)


def founded(home: Path, tables: Mapping[str, str]) -> Path:
    """Make a trust domain with a policy, and pins for gateways; return the configuration.

    ``tables`` has ``[mcp.NAME]`` and what belongs to the table, by the names of the gateways.
    """
    domain = home / "domain"
    config = domain / "agentguard.toml"
    environment = {**os.environ, "HOME": str(home)}

    def run(*words: str) -> None:
        subprocess.run(  # noqa: S603
            [*AGENTGUARD, *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )

    run("init", str(domain))
    (domain / "policies" / "authz.rego").write_text(POLICY, encoding="utf-8")
    with config.open("a", encoding="utf-8") as file:
        file.write("[agents.mcp-server]\n" + "".join(tables.values()))
    for name in tables:
        run("mcp", "pin", "--name", name, "--config", str(config))
    return config


def made_notes(home: Path) -> Path:
    """Make the folder of the notes that the server reads."""
    notes = home / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("water the plants\n", encoding="utf-8")
    return notes


def started(home: Path, guard: Guard, *, is_modern: bool) -> dict[str, Peer]:
    """Start all subjects."""
    notes, trust = made_notes(home), home / "trust.json"
    trust.write_bytes(guard.trust.dumps())
    python = environment_of_sdk_two()
    command = json.dumps([python, str(SUBJECTS), "bare", str(notes)])
    table = '[mcp.{}]\nagent = "assistant"\nrecheck = {}\ncommand = {}\n'
    rechecks = {"each": 0, "minute": 60}
    tables = {name: table.format(name, recheck, command) for name, recheck in rechecks.items()}
    config = founded(home, tables)
    gateway = [*AGENTGUARD, "mcp", "run", "--config", str(config), "--name"]
    guarded = [str(config), str(trust), str(home / "proofs.sqlite")]
    commands = {
        BARE: [python, str(SUBJECTS), "bare", str(notes)],
        GUARDED: [python, str(SUBJECTS), "guarded", str(notes), *guarded],
        "gateway, recheck = 0": [*gateway, "each"],
        "gateway, recheck = 60": [*gateway, "minute"],
        "fastmcp's proxy": [python, str(SUBJECTS), "proxy", str(notes)],
    }
    peers = {name: Peer(command, home) for name, command in commands.items()}
    for peer in peers.values():
        peer.greet(is_modern=is_modern)
    return peers


def environment_of_sdk_two() -> str:
    """Return the interpreter of the environment with the SDK 2; the first time makes it."""
    script = ROOT / "scripts" / "mcp-environment"
    return subprocess.run(  # noqa: S603
        [script, sys.executable], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def measured(
    peers: Mapping[str, Peer],
    client: Client,
    call: dict[str, Any],
    given: argparse.Namespace,
    *,
    proved: Collection[str],
) -> list[tuple[str, Cost]]:
    """Measure each subject by turns; return its name and its median costs.

    The calls of the ``proved`` subjects carry proofs.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in peers}
    for repetition in range(-1, given.repetitions):
        for name, peer in peers.items():
            number = given.calls if repetition >= 0 else 20
            cost = peer.cost(client.calls(number) if name in proved else [call] * number)
            if repetition >= 0:
                costs[name].append(cost)
    return [
        (name, Cost(*map(statistics.median, zip(*several, strict=True))))
        for name, several in costs.items()
    ]


def show(rows: Sequence[tuple[str, Cost]], disk: float) -> None:
    """Print a table whose first row is the bare server; ``disk`` is in microseconds."""
    bare = rows[0][1]
    table = Table("ms a call", "wall", "added", "CPU of the process", "of all", "added")
    for name, cost in rows:
        added = (cost.wall - bare.wall, cost.all_cpu - bare.all_cpu)
        cells = (cost.wall, added[0], cost.cpu, cost.all_cpu, added[1])
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    console = Console()
    console.print(table)
    load = os.getloadavg()[0]
    console.print(f"a bare fdatasync: {disk:.0f} µs at the median; load average {load:.1f}")


def parsed(what: str) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--modern", action="store_true", help="no handshake (2026-07-28)")
    return parser.parse_args()


def run(what: str, start: Callable[..., Mapping[str, Peer]], proved: Collection[str]) -> None:
    """Measure the subjects that ``start`` starts, and print a table.

    ``start`` is as ``started``. ``what`` is for the help of the command, and ``proved`` names the
    subjects whose calls carry proofs.
    """
    given = parsed(what)
    call = {**CALL, "_meta": MODERN} if given.modern else CALL
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        guard = stack.enter_context(agents_guard())
        peers = start(home, guard, is_modern=given.modern)
        rows = measured(peers, Client(guard, call), call, given, proved=proved)
        for peer in peers.values():
            peer.close()
        show(rows, fdatasync_p50(home))


if __name__ == "__main__":
    run("What a guard adds to a call over MCP on stdio.", started, {GUARDED})
