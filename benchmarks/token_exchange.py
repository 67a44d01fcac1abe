"""What an exchange of a token costs the token service: CPU of the server, for each request.

    uv run python benchmarks/token_exchange.py [--repetitions N] [--requests N] [--json FILE]

A real ``agentguard serve`` issues tokens of alice, over HTTP on this machine, with the log and the
used proofs on disk. The floor is the CPU of the bare signatures of one exchange: four that are made
by others are verified (the user's token, the credential, the proof, and once more the credential in
the chain), and three are made (two hops and the token). Floor and service are measured in turn.
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from guarded_call import VOID_OVER, fdatasync_p50
from measuring import Row, command, figures, middle, no_collection, ratio, tracked

from agentguard import Ed25519Signer
from agentguard.service.client import TokenService

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "platform_api.py"))
VERIFIED, SIGNED = 4, 3
TICK = os.sysconf("SC_CLK_TCK")


class Service(NamedTuple):
    """A running server, and the provider whose tokens it takes."""

    url: str
    pid: int
    provider: Any

    def cpu(self) -> float:
        """Return the CPU time that the server has taken, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def served(folder: Path) -> Iterator[Service]:
    """Found a trust domain, and run its server with the token service."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    url, provider = f"http://{address}", EXAMPLE["Provider"]()
    settings = EXAMPLE["SETTINGS"].replace("URL", url).replace("ADDRESS", address)
    texts = {
        "agentguard.toml": settings,
        "authz.rego": EXAMPLE["POLICY"],
        "provider.json": provider.keys(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    agentguard = [sys.executable, "-m", "agentguard.cli"]
    subprocess.run([*agentguard, "init"], cwd=folder, check=True, capture_output=True)  # noqa: S603
    server = subprocess.Popen([*agentguard, "serve"], cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        if server.stdout is None or not server.stdout.readline().startswith("serving"):
            sys.exit("the server has ended")
        yield Service(url, server.pid, provider)
    finally:
        server.terminate()
        server.communicate()


def floor(signer: Ed25519Signer, requests: int) -> float:
    """Return the CPU of the bare signatures of an exchange, in microseconds."""
    data = os.urandom(700)
    signature = signer.sign(data)
    started = time.process_time()
    for _ in range(requests):
        for _ in range(VERIFIED):
            signer.public_key.verify(signature, data)
        for _ in range(SIGNED):
            signer.sign(data)
    return (time.process_time() - started) * 1e6 / requests


def exchanges(service: Service, client: TokenService, identity: Any, requests: int) -> float:
    """Return the CPU of the server for an exchange, in microseconds."""
    said = {"sub": "4711", "preferred_username": "alice", "scope": "openid"}
    tokens = [
        service.provider.token(aud="support-app", jti=str(number), **said)
        for number in range(requests)
    ]
    before = service.cpu()
    for token in tokens:
        client.tokens.exchange(identity, token, scope=["tickets:read"])
    return (service.cpu() - before) * 1e6 / requests


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures."""
    signer = Ed25519Signer.from_seed(os.urandom(32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = os.getloadavg()[0], fdatasync_p50(folder)
        with served(folder) as service, TokenService(service.url) as client:
            workload = service.provider.token(sub="support-web", aud="agentguard")
            identity = client.identities.register("support", workload_token=workload)
            exchanges(service, client, identity, options.requests)  # warm up
            floors, taken, walls = [], [], []
            with no_collection():
                for _ in tracked(range(options.repetitions), "exchanges"):
                    floors.append(floor(signer, options.requests))
                    started = time.perf_counter()
                    taken.append(exchanges(service, client, identity, options.requests))
                    walls.append((time.perf_counter() - started) * 1e6 / options.requests)
        after = os.getloadavg()[0], fdatasync_p50(folder)
    beyond = [value - base for value, base in zip(taken, floors, strict=True)]
    rows = [
        Row("exchange, CPU of the server", "µs", middle(floors), middle(taken),
            ratio(taken, floors)),
        Row("exchange, CPU beyond the signatures", "µs", None, middle(beyond), None),
        Row("exchange, wall, one client", "µs", None, middle(walls), None),
    ]  # fmt: skip
    return figures("agentguard", before, after, rows, void_over=VOID_OVER)


if __name__ == "__main__":
    command(__doc__, "exchange of a token", run, repetitions=10, requests=200)
