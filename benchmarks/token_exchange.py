"""What an exchange of a token costs the token service: CPU of the server, for each request.

    uv run python benchmarks/token_exchange.py [--repetitions N] [--requests N] [--json FILE]

A real ``agentguard serve`` issues tokens of alice, over HTTP on this machine, with the log and the
used proofs on disk. Each further row leaves one more part of the service out. So the difference of
two rows is the cost of a part. The rows are:

- the application, called in this process, without a socket and without uvicorn;
- the endpoint, a function that is called in one thread;
- the endpoint with a log and used proofs in memory: the tokens and the chain alone;
- the floor: the bare signatures of an exchange. Four are verified (the user's token, the proof, and
  each of the two hops before it leaves the service), and four are made (the two hops, the token,
  and the checkpoint of the log). The credential's signature is verified once in an hour.

All rows are measured in turn, and show medians. The processes share the machine with others, so
compare the rows with one another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from guarded_call import VOID_OVER, fdatasync_p50
from measuring import Row, command, figures, middle, no_collection, ratio, tracked

from agentguard import Ed25519Signer
from agentguard.domain import config, memory
from agentguard.domain.config.engine_loader import open_engine
from agentguard.guard.embedded import Embedded, open_embedded
from agentguard.service import messages
from agentguard.service.application import make_application
from agentguard.service.client import TokenService
from agentguard.service.exchange import exchange
from agentguard.service.identities import register
from agentguard.service.messages import ExchangedToken, Identity, Question
from agentguard.service.parts import ServiceParts, open_parts
from agentguard.service.reading import Request, read_headers

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "platform_api.py"))
VERIFIED, SIGNED = 4, 4
TICK = os.sysconf("SC_CLK_TCK")
COMMAND = (sys.executable, "-m", "agentguard.cli")
SERVER, APPLICATION, ENDPOINT, MEMORY = (
    "exchange over HTTP, CPU of the server",
    "the application, without HTTP",
    "the endpoint alone, in one thread",
    "the endpoint, log and used proofs in memory",
)


class Forgetful:
    """A store in memory that keeps nothing."""

    def use(self, jkt: str, jti: str, **_given: Any) -> None:
        """Accept every proof."""

    def close(self) -> None:
        """Close nothing."""


class Place(NamedTuple):
    """A folder with a configuration, the URL of its service, and the provider of its users."""

    folder: Path
    url: str
    provider: Any

    def tokens(self, number: int) -> list[str]:
        """Return tokens of alice, each another one."""
        said = {"sub": "4711", "preferred_username": "alice", "scope": "openid"}
        return [
            self.provider.token(aud="support-app", jti=os.urandom(8).hex(), **said)
            for _ in range(number)
        ]

    def workload(self) -> str:
        """Return the workload token of the program."""
        token: str = self.provider.token(sub="support-web", aud="agentguard")
        return token


def found(folder: Path) -> Place:
    """Found a trust domain whose server has a token service."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    url, provider = f"http://{address}", EXAMPLE["Provider"]()
    texts = {
        "agentguard.toml": EXAMPLE["SETTINGS"].replace("URL", url).replace("ADDRESS", address),
        "authz.rego": EXAMPLE["POLICY"],
        "provider.json": provider.keys(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    subprocess.run([*COMMAND, "init"], cwd=folder, check=True, capture_output=True)  # noqa: S603
    return Place(folder, url, provider)


@contextmanager
def served(place: Place) -> Iterator[int]:
    """Run the server of a place; the number of its process."""
    server = subprocess.Popen(  # noqa: S603
        [*COMMAND, "serve"], cwd=place.folder, stdout=subprocess.PIPE, text=True
    )
    try:
        if server.stdout is None or not server.stdout.readline().startswith("serving"):
            sys.exit("the server has ended")
        yield server.pid
    finally:
        server.terminate()
        server.communicate()


@contextmanager
def opened(place: Place, *, in_memory: bool) -> Iterator[ServiceParts]:
    """Open the parts of a service in this process."""
    settings = config.load(place.folder / "agentguard.toml")
    with ExitStack() as until_closed:
        if in_memory:
            domain = memory.new_domain(settings.trust_domain, now=datetime.now(UTC))
            guard = Embedded(settings, open_engine(settings), domain)
        else:
            guard = open_embedded(settings, None, is_server=True)
        until_closed.enter_context(closing(guard))
        parts = open_parts(settings, guard)
        until_closed.enter_context(closing(parts.store))
        yield parts._replace(store=Forgetful()) if in_memory else parts  # type: ignore[arg-type]


class Parts:
    """A token service in this process, and an identity that it has given."""

    def __init__(self, place: Place, parts: ServiceParts) -> None:
        self._place = place
        self._parts = parts
        self._application = make_application(parts)
        signer = Ed25519Signer.from_seed(os.urandom(32))
        sent = messages.registration(place.url, "support", place.workload(), signer)
        answer = register(parts, _request(sent))
        self._identity: Identity = sent.read(answer.status, answer.body)

    def endpoint(self, requests: int) -> float:
        """Return the CPU of an exchange by the endpoint, in microseconds."""
        asked = [_request(sent) for sent in self._sent(requests)]
        started = time.process_time()
        for request in asked:
            exchange(self._parts, request)
        return (time.process_time() - started) * 1e6 / requests

    def application(self, requests: int) -> float:
        """Return the CPU of an exchange by the application, in microseconds."""
        return asyncio.run(self._asked(requests))

    async def _asked(self, requests: int) -> float:
        asked = self._sent(requests)
        started = time.process_time()
        for sent in asked:
            await _call(self._application, sent)
        return (time.process_time() - started) * 1e6 / requests

    def _sent(self, requests: int) -> list[Question[ExchangedToken]]:
        """Return requests of one identity, each with a proof and a token of its own."""
        kind, scope = messages.ACCESS_TOKEN, ["tickets:read"]
        return [
            messages.exchange(self._place.url, self._identity, token, kind, scope, None)
            for token in self._place.tokens(requests)
        ]


def _request(sent: Question[Any]) -> Request:
    path = urlsplit(sent.url).path
    return Request("POST", path, read_headers(_raw(sent)), sent.body)


def _raw(sent: Question[Any]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in sent.headers.items()]


async def _call(application: Any, sent: Question[Any]) -> None:
    """Make a request of an application, as a server of ASGI does."""
    address, answered = urlsplit(sent.url), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": address.scheme,
        "path": address.path,
        "raw_path": address.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": _raw(sent),
        "server": (address.hostname, address.port),
        "client": ("127.0.0.1", 1),
    }
    await application(scope, receive, send)
    if answered[0]["status"] != 200:  # noqa: PLR2004
        sys.exit(f"the application answers {answered}")


class Client:
    """A client of a server in another process."""

    def __init__(self, place: Place, pid: int, service: TokenService) -> None:
        self._place = place
        self._status = Path(f"/proc/{pid}/stat")
        self._service = service
        self._identity = service.register("support", workload_token=place.workload())
        self.walls: list[float] = []

    def exchanges(self, requests: int) -> float:
        """Return the CPU of the server for an exchange, in microseconds; add to ``walls``."""
        tokens, started, before = self._place.tokens(requests), time.perf_counter(), self._cpu()
        for token in tokens:
            self._service.exchange(self._identity, token, scope=["tickets:read"])
        self.walls.append((time.perf_counter() - started) * 1e6 / requests)
        return (self._cpu() - before) * 1e6 / requests

    def _cpu(self) -> float:
        """Return the CPU time that the server has taken, in seconds."""
        fields = self._status.read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


def floor(requests: int) -> float:
    """Return the CPU of the bare signatures of an exchange, in microseconds."""
    signer, data = Ed25519Signer.from_seed(os.urandom(32)), os.urandom(700)
    signature = signer.sign(data)
    started = time.process_time()
    for _ in range(requests):
        for _ in range(VERIFIED):
            signer.public_key.verify(signature, data)
        for _ in range(SIGNED):
            signer.sign(data)
    return (time.process_time() - started) * 1e6 / requests


@contextmanager
def arms(folder: Path) -> Iterator[tuple[Client, dict[str, Callable[[int], float]]]]:
    """Start all that is measured; each arm returns the CPU of an exchange."""
    with ExitStack() as until_closed:
        enter = until_closed.enter_context
        here, in_memory = found(folder / "here"), found(folder / "memory")
        durable = Parts(here, enter(opened(here, in_memory=False)))
        place = found(folder / "server")
        client = Client(place, enter(served(place)), enter(TokenService(place.url)))
        yield (
            client,
            {
                SERVER: client.exchanges,
                APPLICATION: durable.application,
                ENDPOINT: durable.endpoint,
                MEMORY: Parts(in_memory, enter(opened(in_memory, in_memory=True))).endpoint,
            },
        )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = os.getloadavg()[0], fdatasync_p50(folder)
        with arms(folder) as (client, measured):
            taken: dict[str, list[float]] = {what: [] for what in measured}
            floors: list[float] = []
            for arm in measured.values():  # warm up
                arm(options.requests)
            client.walls.clear()
            with no_collection():
                for _ in tracked(range(options.repetitions), "exchanges"):
                    floors.append(floor(options.requests))
                    for what, arm in measured.items():
                        taken[what].append(arm(options.requests))
        after = os.getloadavg()[0], fdatasync_p50(folder)
    return figures(
        "agentguard", before, after, table(floors, taken, client.walls), void_over=VOID_OVER
    )


def table(
    floors: Sequence[float], taken: dict[str, list[float]], walls: Sequence[float]
) -> list[Row]:
    """Return the rows; the note is what an arm costs more than the next one."""
    less = [*list(taken.values())[1:], floors]
    rows = []
    for (what, times), below in zip(taken.items(), less, strict=True):
        more = middle([one - base for one, base in zip(times, below, strict=True)])
        note = f"{more:,.0f} µs more than the next row"
        rows.append(Row(what, "µs", middle(floors), middle(times), ratio(times, floors), note))
    rows.append(Row("the bare signatures", "µs", None, middle(floors), None))
    rows.append(Row("exchange over HTTP, wall, one client", "µs", None, middle(walls), None))
    return rows


if __name__ == "__main__":
    command(__doc__, "exchange of a token", run, repetitions=10, requests=200)
