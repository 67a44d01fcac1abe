"""What a delegation costs: a hop, a call under a chain of four, and how soon a revocation counts.

    uv run python benchmarks/delegation.py [--repetitions N] [--calls N] [--rounds N] [--json FILE]

Each measured arm has its floor beside it, run alternately with the garbage collector off; the
ratio is the median of the ratios of the repetitions. The floor of a hop and of a chain is their
bare Ed25519 signatures; that of a call is the one of ``guarded_call.py`` on the same bytes, and of
a call whose chain is not cached yet also the two signatures (its hop, its access token), the
verification of every hop and credential, and the entry that keeps the chain. Before each arm that
verifies, the process forgets what it kept of tokens. CPU time in memory, wall time on disk.

A revocation is timed from the end of ``revoke`` in this process to the first denied call in
another one that calls without a pause, each time of another delegation. It may be negative: it
counts a moment before the command is done. Beside it stands how many calls were begun after that
end and allowed, which must be none.

Beside all stand the load average and the time of a bare fdatasync: past 1 ms what is durable is
void.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import (
    ARGUMENTS,
    POLICY,
    TABLES,
    VOID_OVER,
    bare_database,
    fdatasync_p50,
    measure,
    rego_floor,
)
from measuring import Row, middle, no_collection, ratio, show, tracked

from agentguard import Agent, Delegation, Denied, Ed25519Signer, Guard, current_delegation
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.identities import DelegationEntry, tokens_of_chain
from agentguard.delegation import grant, verification
from agentguard.domain import administration, config, domain
from agentguard.domain.passphrase import passphrase_of
from agentguard.guard.agent import caller_of
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import jws

AGENTS = ("lead", "coder", "tester")
CONFIGURATION: Mapping[str, Any] = {
    "trust_domain": TABLES["trust_domain"],
    "agents": {name: {"type": "code-agent", "max_scope": ["pr:write"]} for name in AGENTS},
}
KEPT = (
    jws._kept_parts,  # noqa: SLF001  a process that meets a chain for the first time kept nothing
    jws._kept_verified,  # noqa: SLF001
    jws._kept_claimed,  # noqa: SLF001
    grant._kept_grant,  # noqa: SLF001
    credential._kept_claims,  # noqa: SLF001
)
PAUSE = 0.05
"""Seconds for which the other process calls before something is revoked."""


class DelegatedCall(NamedTuple):
    """The last agent of a chain, the delegation that it was given, and a call under it."""

    tester: Agent
    delegation: Delegation
    call: Callable[[], object]


def main() -> None:
    """Parse the command line, measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100, help="revocations")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = run(options.repetitions, options.calls, options.rounds)
    show(figures, "delegation")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(repetitions: int, calls: int, rounds: int) -> dict[str, Any]:
    """Measure everything and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load, probe = os.getloadavg()[0], fdatasync_p50(folder)
        rows = [*costs(folder, repetitions, calls), *revocations(folder / "revoked", rounds)]
        probes = (probe, fdatasync_p50(folder))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "load_average": [load, os.getloadavg()[0]],
        "fdatasync_p50_us": [round(probe, 1) for probe in probes],
        "durable_void": max(probes) > VOID_OVER,
        "results": [row.rounded()._asdict() for row in rows],
    }


# --- a hop, a chain, a call ----------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One thing that is measured, beside its floor, and the clock that counts for it."""

    what: str
    floor: Callable[[], object]
    measured: Callable[[], object]
    clock: Callable[[], float] = time.process_time


def costs(folder: Path, repetitions: int, calls: int) -> Iterator[Row]:
    """Measure each arm."""
    with ExitStack() as stack:
        for arm in arms(stack, folder):
            floors, measured = [], []
            measure(arm.measured, arm.clock, calls), measure(arm.floor, arm.clock, calls)  # warm up
            with no_collection():
                for _ in tracked(range(repetitions), arm.what):
                    floors.append(measure(arm.floor, arm.clock, calls))
                    measured.append(measure(arm.measured, arm.clock, calls))
            yield Row(arm.what, "µs", middle(floors), middle(measured), ratio(measured, floors))


def arms(stack: ExitStack, folder: Path) -> Iterator[Arm]:
    """Set up each arm with its floor."""
    (folder / "memory.rego").write_text(POLICY)
    in_memory = stack.enter_context(Guard.ephemeral(folder / "memory.rego", config=CONFIGURATION))
    on_disk = stack.enter_context(founded(folder / "durable"))
    commit = stack.enter_context(bare_database(folder))
    lent, durable = lend(in_memory), lend(on_disk)
    document, bodies, kept = samples(in_memory, lent)
    signatures = Signatures.of(in_memory, kept)
    yield from signatures.arms()

    def floor_of(
        commit: Callable[[list[bytes]], None], entries: list[bytes]
    ) -> Callable[[], object]:
        return rego_floor(document, entries, commit)

    in_list: list[list[bytes]] = []
    for where, guarded, commits, clock in (
        ("in memory", lent, in_list.append, time.process_time),
        ("durable", durable, commit, time.perf_counter),
    ):
        bare = floor_of(commits, bodies)
        yield Arm(f"call, 4 hops cached, {where}", bare, guarded.call, clock)
        first = with_chain(floor_of(commits, [kept, *bodies]), signatures)
        yield Arm(f"call, 4 hops uncached, {where}", first, uncached(guarded), clock)


def founded(folder: Path) -> Guard:
    """Found a trust domain in ``folder``, and open it."""
    folder.mkdir()
    (folder / "authz.rego").write_text(POLICY)
    (folder / "authz.rego").chmod(0o600)
    (folder / "passphrase").write_text(os.urandom(16).hex())
    (folder / "passphrase").chmod(0o600)
    tables = "".join(
        f'[agents.{name}]\ntype = "code-agent"\nmax_scope = ["pr:write"]\n' for name in AGENTS
    )
    path = folder / config.FILE
    path.write_text(
        f'trust_domain = "{CONFIGURATION["trust_domain"]}"\nanchor = "anchor"\n'
        '[keys]\npassphrase_file = "passphrase"\n[policy]\npath = "authz.rego"\n' + tables
    )
    path.chmod(0o600)
    settings = config.load(path)
    domain.found(settings, passphrase_of(settings), now=datetime.now(UTC))
    return Guard.open(path)


def lend(guard: Guard) -> DelegatedCall:
    """Let a chain begin: alice, through a service, to a lead and a coder, who calls a tester."""
    lead, coder, tester = map(guard.new_agent, AGENTS)
    found: list[Delegation] = []

    @guard.tool(name="trigger_ci", attributes={"branch": "branch"})
    def keep(branch: str) -> None:  # noqa: ARG001  the policy reads it
        lent = current_delegation()
        if lent is not None:
            found.append(lent)

    @guard.tool(name="trigger_ci", attributes={"branch": "branch"})
    def hand_on(branch: str) -> None:
        coder.call(keep, branch)

    @guard.tool(
        resource="repo:{repo}",
        requires=["pr:write"],
        attributes={"branch": "branch"},
        facts=lambda _arguments: {"repo": {"visibility": "internal"}},
        gives=["repo"],
    )
    def open_pr(repo: str, branch: str) -> str:
        return f"{repo} {branch}"

    lasts = timedelta(days=1)
    with guard.delegate("user:alice", scope=["pr:write"], via="service:forge", expires_in=lasts):
        lead.call(hand_on, "agent/fix")
    (lent,) = found
    agent = tester.under(lent)
    return DelegatedCall(tester, lent, lambda: agent.call(open_pr, **ARGUMENTS))


def uncached(lent: DelegatedCall) -> Callable[[], object]:
    """Return a call before which its agent forgets what it was handed."""
    runtime = caller_of(lent.tester).runtime  # there is no way to forget but to be another agent

    def call() -> object:
        instance: Any = runtime.instance()
        instance._acceptances.clear()  # noqa: SLF001
        return lent.call()

    return forgetting(call)


def forgetting(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call before which this process forgets what it found of tokens before."""

    def once() -> object:
        for kept in KEPT:
            kept.cache_clear()
        return call()

    return once


def samples(guard: Guard, lent: DelegatedCall) -> tuple[bytes, list[bytes], bytes]:
    """Make the first call; return its policy input, its two entries, and that with its chain."""
    lent.call()
    last = {parse_entry(entry.body).kind: entry for entry in guard.reader().stored()}
    call, outcome, chained = last["call"], last["outcome"], last["delegation"]
    (document,) = (beside.data for beside in call.attachments if beside.role == "input")
    return document, [call.body, outcome.body], chained.body


@dataclass(frozen=True)
class Signatures:
    """The signatures of a chain, and what they are of."""

    trust: TrustDocument
    hops: list[str]
    credentials: list[str]
    signer: Ed25519Signer
    signed: list[tuple[bytes, bytes]]
    """What is signed in them, each with a signature of ``signer``."""

    @classmethod
    def of(cls, guard: Guard, kept: bytes) -> Signatures:
        """Take them out of the entry that keeps the chain."""
        hops, credentials = tokens_of_chain(parse_entry(kept, DelegationEntry).chain)
        signer = Ed25519Signer.from_seed(os.urandom(32))
        data = [token.rpartition(".")[0].encode() for token in (*hops, *credentials)]
        signed = [(one, signer.sign(one)) for one in data]
        return cls(guard.trust, hops, credentials, signer, signed)

    def sign(self) -> None:
        """Sign as many bytes as a hop has."""
        self.signer.sign(self.hops[-1].rpartition(".")[0].encode())

    def arms(self) -> Iterator[Arm]:
        """A hop and a chain, beside their bare signatures."""
        last = grant.read(self.hops[-1])
        signed = grant.sign(last, self.signer)
        key, at = self.signer.public_key, last.issued_at
        signature = self.signer.sign(signed.signing_input)
        yield Arm("hop, sign", self.sign, lambda: grant.sign(last, self.signer))
        yield Arm(
            "hop, verify",
            lambda: key.verify(signature, signed.signing_input),
            forgetting(lambda: grant.verify(signed.token, key)),
        )
        yield Arm(
            "chain of 4 hops, verify",
            self.verify,
            forgetting(lambda: verification.verify(self.hops, self.credentials, self.trust, at=at)),
        )

    def verify(self) -> None:
        """Verify as many signatures as the chain has hops and credentials."""
        for data, signature in self.signed:
            self.signer.public_key.verify(signature, data)


def with_chain(call: Callable[[], object], signatures: Signatures) -> Callable[[], object]:
    """Return the floor of a call, in which the hop is signed, with the rest of its chain's."""

    def once() -> None:
        signatures.sign()  # the access token
        signatures.verify()
        call()

    return once


# --- revocation ----------------------------------------------------------------------------------


def revocations(folder: Path, rounds: int) -> Iterator[Row]:
    """Revoke one delegation after another, under which another process calls without a pause."""
    founded(folder).close()
    settings = config.load(folder / config.FILE)
    passphrase = passphrase_of(settings)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=calling, args=(folder, theirs))
    other.start()
    latencies, whole, late = [], [], 0
    for remaining in tracked(range(rounds - 1, -1, -1), "revocation"):
        name = ours.recv()
        time.sleep(PAUSE)
        began = time.monotonic()
        administration.revoke(settings, passphrase, name, note="-", now=datetime.now(UTC))
        ended = time.monotonic()
        last_allowed, denied = ours.recv()
        latencies.append((denied - ended) * 1e3)
        whole.append((ended - began) * 1e3)
        late += last_allowed > ended
        ours.send(remaining)
    other.join()
    note = f"p99 {percentile(latencies, 99):.2f}, {rounds} rounds, {late} allowed after it"
    yield Row(
        "end of revoke to the first denial elsewhere", "ms", None, middle(latencies), None, note
    )
    yield Row("revoke, the whole command's work", "ms", None, middle(whole), None, "keys: bcrypt")


def calling(folder: Path, pipe: Connection) -> None:
    """In another process: call under one delegation after another, each until it is denied.

    Says before each by which id it can be revoked, and after it when the last allowed call began
    and when the first denied one was over.
    """
    with Guard.open(folder / config.FILE) as guard:
        while True:
            lent = lend(guard)
            pipe.send(lent.delegation.chain.root.jti)
            last_allowed = 0.0
            try:
                while True:
                    began = time.monotonic()
                    lent.call()
                    last_allowed = began
            except Denied:
                pipe.send((last_allowed, time.monotonic()))
            if not pipe.recv():
                return


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile; of few values the greatest."""
    if len(values) < 100:  # noqa: PLR2004
        return max(values)
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
