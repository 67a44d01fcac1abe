"""A tool's server on the loopback (uvicorn and Starlette), and guarded tools that send requests.

The server answers each verified request with what it knows of the caller, and notes the headers of
all requests. The guard is one in memory, or a guard that a test brings.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agentguard import Decision, Guard
from agentguard.call.releases import RequestProof
from agentguard.proof import CallerMiddleware, ProofStore, Receiver
from agentguard.proof.httpx import CallerTransport
from agentguard.proof.presentation import proof_headers, prove_request

SCOPE = ["payments:write"]
TLS = ssl.create_default_context()  # made once: reading the certificates takes a while


def allow(_: Any) -> Decision:
    return Decision.allow()


class ToolServer:
    """A server under ``url`` until ``stop``; ``seen`` are the requests that came, unverified."""

    def __init__(self, application: Callable[[str], Any]) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        inner = application(self.url)

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                named = {name.decode(): value.decode() for name, value in scope["headers"]}
                self.seen.append((scope["method"], scope["path"], named))
            await inner(scope, receive, send)

        config = uvicorn.Config(noting, log_level="critical", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        run = self._server.run
        threading.Thread(target=run, args=([self._socket],), daemon=True).start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        """Let the server end, and do not wait: the server looks every tenth of a second."""
        self._server.should_exit = True


async def who(request: Request) -> Response:
    caller = request.state.caller
    return JSONResponse(
        {
            "agent": caller.agent,
            "principal": caller.principal,
            "actors": caller.actors,
            "scope": sorted(caller.scope),
            "task_id": caller.task_id,
            "isolation": caller.isolation,
            "assurance": caller.assurance,
            "invocation_sha256": caller.invocation_sha256,
            "body": (await request.body()).decode(),
            "query": request.url.query,
        }
    )


async def onward(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], status_code=307)


async def healthy(_: Request) -> Response:
    return Response("ok")


def application() -> Starlette:
    methods = ["GET", "POST", "PUT", "DELETE"]
    return Starlette(
        routes=[
            Route("/onward", onward, methods=methods),
            Route("/healthz", healthy),
            Route("/{path:path}", who, methods=methods),
        ]
    )


def receiver(url: str, guard: Guard, folder: Path, **more: Any) -> Receiver:
    return Receiver(url, guard.trust, ProofStore(folder / "proofs.sqlite"), **more)


@contextmanager
def tool_server(
    guard: Guard, folder: Path, *, max_body: int = 1 << 20, **more: Any
) -> Iterator[ToolServer]:
    """Run a server that trusts ``guard``, with its store in ``folder``."""
    server = ToolServer(
        lambda url: CallerMiddleware(
            application(),
            receiver(url, guard, folder, **more),
            max_body=max_body,
            public=["/healthz"],
        )
    )
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def plain_server() -> Iterator[ToolServer]:
    """Run another server, which verifies nothing and answers everything."""
    # As a proxy, the server gets whole URLs, which are no paths of a route.
    server = ToolServer(lambda _url: Starlette(exception_handlers={404: lambda *_: Response("ok")}))
    try:
        yield server
    finally:
        server.stop()


def guard_in_memory() -> Guard:
    agents: dict[str, Any] = {name: {"max_scope": SCOPE} for name in ("payer", "lead", "other")}
    agents["alone"] = {"authority": "own"}
    return Guard.ephemeral(allow, config={"agents": agents})


def in_call(
    guard: Guard,
    function: Callable[[], Any],
    *,
    audience: Iterable[str],
    agent: str = "payer",
    **terms: Any,
) -> Any:
    """Run ``function`` inside a guarded call for alice; return what the function returns."""
    tool = guard.tool(name="pay")(function)
    with guard.delegate("user:alice", scope=SCOPE, audience=audience, **terms):
        return guard.new_agent(agent).call(tool)


def send(url: str, *audiences: str, method: str = "POST", **more: Any) -> httpx.Response:
    """Send a request with a proof: for a guarded tool."""
    transport = CallerTransport(*audiences, transport=httpx.HTTPTransport(verify=TLS))
    with httpx.Client(transport=transport) as client:
        return client.request(method, url, **more)


def send_plainly(method: str, url: str, **more: Any) -> httpx.Response:
    """Send a request as it is."""
    with httpx.Client(verify=TLS, trust_env=False) as client:
        return client.request(method, url, **more)


def proof_of(
    guard: Guard, url: str, body: bytes = b"", method: str = "POST", **terms: Any
) -> RequestProof:
    """Return the proof of a request, made inside a guarded call."""
    base = "/".join(url.split("/", 3)[:3])
    terms = {"audience": [base], **terms}
    made: list[RequestProof] = []
    in_call(guard, lambda: made.append(prove_request(method, url, body)), **terms)
    return made[0]


def listed(proof: RequestProof, **changed: str | None) -> list[tuple[str, str]]:
    """Return the headers of a proof as a server gets them; None takes a header away."""
    made: dict[str, str | None] = {**proof_headers(proof)}
    made.update({name.replace("_", "-"): value for name, value in changed.items()})
    return [(name, value) for name, value in made.items() if value is not None]
