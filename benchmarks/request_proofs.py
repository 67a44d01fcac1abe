"""What the proof of a request costs: the guard signs, and a tool's server verifies.

    uv run python benchmarks/request_proofs.py [--repetitions N] [--requests N] [--json FILE]

The floor of a proof is one bare Ed25519 signature. The floor of a first verification is the bare
verifications of all signatures in the request: the access token, each hop and credential of the
chain, the credential of the instance, and the proof. Floor and measured arm run alternately. A
process verifies a signature once that it sees again, so the first request of a delegation is told
from the later ones, and the process forgets what it kept of tokens before the first. In memory: CPU
time, which a busy machine disturbs less. Durable: wall time, with the agent's log or the row of the
used proof on disk, and a bare fdatasync in the floor; past 1 ms that is void. With a log: the
receiver also puts each request on record in a log of its own, and the floor has two fdatasyncs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from delegation import KEPT
from guarded_call import VOID_OVER, fdatasync_p50
from measuring import Row, command, figures, middle, no_collection, ratio, tracked

from agentguard import Decision, Ed25519Signer, Guard, ReceiverLog
from agentguard.domain import config, domain
from agentguard.domain.passphrase import passphrase_of
from agentguard.proof import ProofStore, Receiver, proof_headers, prove_request

URL = "https://payments.example"
BODY = b'{"amount":3}'
SCOPE = ["payments:write"]
CONFIG = {"agents": {name: {"max_scope": SCOPE} for name in ("lead", "payer")}}
SIGNATURES = 7
"""The token, three hops, the chain's two credentials (one is the instance's), and the proof."""

Clock = Callable[[], float]


class Forgetful:
    """A store in memory that keeps nothing: what the verification itself costs."""

    def use(self, jkt: str, jti: str, *, expires_at: int, at: int) -> None:
        """Accept every proof."""

    def chain(self, sha256: str) -> None:
        """Have no chain."""

    def keep_chain(self, sha256: str, chain: bytes, *, expires_at: int, at: int) -> None:
        """Keep nothing."""


class Arm(NamedTuple):
    """A guard that proves and a receiver that verifies, and how often the receiver's disk waits."""

    where: str
    guard: Guard
    receiver: Receiver
    syncs: int


class Times(NamedTuple):
    """Microseconds of one repetition: of each proof, and of each verification."""

    proofs: list[float]
    verifications: list[float]


def timed(function: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    """Return the microseconds that a function takes, and what the function returns."""
    started = clock()
    result = function()
    return (clock() - started) * 1e6, result


def repetition(guard: Guard, receiver: Receiver, requests: int, clock: Clock) -> Times:
    """Prove requests in a call of an agent that another agent calls, and verify them."""
    times, sent = Times([], []), []

    def prove() -> None:
        for _ in range(requests):
            taken, proof = timed(lambda: prove_request("POST", f"{URL}/pay?x=1", BODY), clock)
            times.proofs.append(taken)
            sent.append([*proof_headers(proof).items()])

    inner = guard.tool(name="pay")(prove)
    outer = guard.tool(name="lead")(lambda: guard.new_agent("payer").call(inner))
    with guard.delegate("user:alice", scope=SCOPE, audience=[URL]):
        guard.new_agent("lead").call(outer)
    for kept in KEPT:
        kept.cache_clear()
    for headers in sent:
        verify = partial(receiver.verify, "POST", "/pay", "x=1", headers, BODY)
        times.verifications.append(timed(verify, clock)[0])
    return times


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every arm and return the figures."""
    signer = Ed25519Signer.from_seed(os.urandom(32))
    signature = signer.sign(BODY)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        before = os.getloadavg()[0], fdatasync_p50(folder)
        rows: list[Row] = []
        for arm in arms(stack, folder):
            signed, verified, times = [], [], []
            clock = time.perf_counter if arm.syncs else time.thread_time
            with no_collection():
                for _ in tracked(range(options.repetitions), arm.where):
                    wait = before[1] if arm.syncs else 0
                    signed.append(timed(lambda: signer.sign(BODY), clock)[0] + wait)
                    bare = timed(lambda: signer.public_key.verify(signature, BODY), clock)[0]
                    verified.append(bare * SIGNATURES + before[1] * arm.syncs)
                    times.append(repetition(arm.guard, arm.receiver, options.requests, clock))
            rows += table(arm.where, signed, verified, times)
        after = os.getloadavg()[0], fdatasync_p50(folder)
    return figures("agentguard", before, after, rows, void_over=VOID_OVER)


def table(where: str, signed: list[float], verified: list[float], times: list[Times]) -> list[Row]:
    """Return the rows of one arm."""
    first = [one.verifications[0] for one in times]
    later = [middle(one.verifications[1:]) for one in times]
    proofs = [middle(one.proofs) for one in times]
    return [
        Row(f"prove, {where}", "µs", middle(signed), middle(proofs), ratio(proofs, signed)),
        Row(f"verify, first request, {where}", "µs", middle(verified), middle(first),
            ratio(first, verified)),
        Row(f"verify, later request, {where}", "µs", None, middle(later), None),
    ]  # fmt: skip


def arms(stack: ExitStack, folder: Path) -> Iterator[Arm]:
    """Set up the guards and receivers that are measured."""
    guard = stack.enter_context(Guard.ephemeral(allow, config=CONFIG))
    yield Arm("in memory", guard, Receiver(URL, guard.trust, Forgetful()), 0)
    guard = stack.enter_context(founded(folder / "agent"))
    store = ProofStore(folder / "proofs.sqlite")
    yield Arm("durable", guard, Receiver(URL, guard.trust, store), 1)
    log = ReceiverLog(stack.enter_context(founded(folder / "receiver")))
    yield Arm("with a log", guard, Receiver(URL, guard.trust, store, log=log), 2)


def founded(folder: Path) -> Guard:
    """Found a trust domain in ``folder`` whose policy allows every call, and open it."""
    folder.mkdir()
    files = {
        "authz.rego": "package agent.authz\n\ndefault allow := true\n",
        "passphrase": os.urandom(16).hex(),
        config.FILE: 'trust_domain = "acme.example"\nanchor = "anchor"\n[policy]\n'
        'path = "authz.rego"\n[keys]\npassphrase_file = "passphrase"\n'
        + "".join(f"[agents.{name}]\nmax_scope = {SCOPE}\n" for name in ("lead", "payer")),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    settings = config.load(folder / config.FILE)
    domain.found(settings, passphrase_of(settings), now=datetime.now(UTC))
    return Guard.open(folder / config.FILE)


def allow(_call: Any) -> Decision:
    """Allow every call."""
    return Decision.allow()


if __name__ == "__main__":
    command(__doc__, "proof of a request", run, repetitions=30, requests=10)
