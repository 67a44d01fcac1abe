"""What calls cost in another checkout and in this one, alternately, in one run.

    uv run python benchmarks/between.py BASE [ARM...] [--repetitions N] [--calls N]

``BASE`` is the folder of the other checkout, as ``git worktree add`` makes one. A process for each
checkout makes the calls, with the same interpreter and packages, and tells their CPU time (of all
its threads) and their wall time; the ratio is the median of the ratios of the repetitions. Durable
arms lie in a temporary folder, which ``TMPDIR`` places. Only what both checkouts have is used.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guarded_call import POLICY
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agentguard import ApprovalPending, Guard
from agentguard.domain import config, domain
from agentguard.signing.keys import Ed25519Signer

ASKING = POLICY.replace('input.action == "trigger_ci"', 'input.action == "ask_first"') + (
    '\napproval := {"reason": "a person decides"} if input.action == "trigger_ci"\n'
)
AGENT = {"code-reviewer": {"type": "code-agent", "authority": "own", "max_scope": ["pr:write"]}}
DELEGATED = {"code-reviewer": {**AGENT["code-reviewer"], "authority": "delegated"}}
MOST = 1_000_000


class Place:
    """A trust domain in memory or on disk, and a call to make in it; ``stack`` closes its guard."""

    def __init__(
        self, stack: ExitStack, folder: Path | None, policy: str, agents: dict[str, Any]
    ) -> None:
        self.bob = Ed25519Signer.from_seed(os.urandom(32))
        bob = {"principal": "user:bob", "keys": [self.bob.public_key.openssh()]}
        with tempfile.TemporaryDirectory() as name:
            where = folder or Path(name)
            (where / "authz.rego").write_text(policy)
            (where / "authz.rego").chmod(0o600)
            if folder is None:
                tables = {"agents": agents, "approvers": {"bob": bob}}
                self.guard = Guard.ephemeral(where / "authz.rego", config=tables)
            else:
                self.guard = _durable(folder, {"agents": agents, "approvers": {"bob": bob}})
        stack.enter_context(self.guard)

        @self.guard.tool(
            resource="repo:{repo}",
            requires=["pr:write"],
            attributes={"branch": "branch"},
            facts=lambda _arguments: {"repo": {"visibility": "internal"}},
            gives=["repo"],
        )
        def trigger_ci(repo: str, branch: str) -> str:
            return f"{repo} {branch}"

        self.tool, self.agent = trigger_ci, self.guard.new_agent("code-reviewer")

    def call(self) -> None:
        """Make the call."""
        self.agent.call(self.tool, repo="payments-api", branch="agent/fix-null-check")

    def approved_call(self) -> None:
        """Ask, have the request approved, and make the call."""
        try:
            self.call()
        except ApprovalPending as pending:
            self.guard.approvals.approve(pending.request, self.bob)
        self.call()


def _durable(folder: Path, tables: dict[str, Any]) -> Guard:
    path = folder / config.FILE
    lines = ['trust_domain = "bench.example"', 'anchor = "anchor"', '[policy]\npath = "authz.rego"']
    for kind, named in tables.items():
        for name, values in named.items():
            lines.append(f"[{kind}.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    passphrase = os.urandom(16).hex().encode()
    domain.found(config.load(path), passphrase, now=datetime.now(UTC))
    return Guard.open(path, passphrase=passphrase)


def plain(stack: ExitStack, folder: Path | None) -> Callable[[], None]:
    """A call that the policy allows."""
    return Place(stack, folder, POLICY, AGENT).call


def counted(stack: ExitStack, folder: Path | None) -> Callable[[], None]:
    """A call under ``max_calls``."""
    place = Place(stack, folder, POLICY, DELEGATED)
    lent = place.guard.delegate("user:alice", scope=["pr:write"], task_id="t", max_calls=MOST)

    def call() -> None:
        with lent:
            place.call()

    return call


def approved(stack: ExitStack, folder: Path | None) -> Callable[[], None]:
    """A call that a person approves: the request, the answer, and the call."""
    return Place(stack, folder, ASKING, AGENT).approved_call


Make = Callable[[ExitStack, Path | None], Callable[[], None]]
ARMS: dict[str, tuple[Make, bool]] = {
    "plain-memory": (plain, False),
    "plain-disk": (plain, True),
    "counted-memory": (counted, False),
    "counted-disk": (counted, True),
    "approved-memory": (approved, False),
    "approved-disk": (approved, True),
}


def work() -> None:
    """Make the calls that standard input names, and tell their microseconds."""
    calls: dict[str, Callable[[], None]] = {}
    with tempfile.TemporaryDirectory(prefix="agentguard-bench-") as name, ExitStack() as stack:
        for line in sys.stdin:
            arm, count = line.split()
            if arm not in calls:
                make, is_durable = ARMS[arm]
                folder = Path(name) / arm
                folder.mkdir()
                calls[arm] = make(stack, folder if is_durable else None)
            call = calls[arm]
            gc.collect()
            gc.disable()
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(int(count)):
                call()
            took = time.process_time() - cpu, time.perf_counter() - wall
            gc.enable()
            print(*(seconds / int(count) * 1e6 for seconds in took), flush=True)


class Checkout:
    """A process that makes the calls with one checkout's code."""

    def __init__(self, root: Path) -> None:
        sources = [root / "src", *sorted(root.glob("integrations/*/src"))]
        self.process = subprocess.Popen(  # noqa: S603  this file
            [sys.executable, "-P", __file__, "--work"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, [*sources, Path(__file__).parent])),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def microseconds(self, arm: str, count: int) -> tuple[float, float]:
        """Return the CPU time and the wall time of one call."""
        assert self.process.stdin is not None  # noqa: S101  both are pipes
        assert self.process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):
            print(arm, count, file=self.process.stdin, flush=True)
        try:
            cpu, wall = map(float, self.process.stdout.readline().split())
        except ValueError:
            sys.exit(f"{arm} has failed: see above")
        return cpu, wall


def main() -> None:
    """Compare the arms, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    if unknown := set(options.arms) - set(ARMS):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}")
    sides = [Checkout(options.base.resolve()), Checkout(Path(__file__).resolve().parents[1])]
    table = Table("arm", "clock", "base us", "here us", "ratio", "from", "to")
    for arm in options.arms or ARMS:
        for side in sides:
            side.microseconds(arm, options.calls)  # warm up
        pairs = [
            [side.microseconds(arm, options.calls) for side in sides]
            for _ in track(range(options.repetitions), arm, transient=True)
        ]
        for at, clock in enumerate(("CPU", "wall")):
            base, here = ([pair[side][at] for pair in pairs] for side in (0, 1))
            ratios = sorted(new / old for old, new in zip(base, here, strict=True))
            middle = statistics.median(ratios)
            figures = (statistics.median(base), statistics.median(here))
            table.add_row(
                arm,
                clock,
                *(f"{figure:,.0f}" for figure in figures),
                *(f"{ratio:.2f}" for ratio in (middle, ratios[0], ratios[-1])),
            )
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
