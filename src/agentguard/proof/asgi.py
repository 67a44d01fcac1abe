"""``CallerMiddleware``: verifies the caller of each request to an ASGI application.

The middleware is ASGI alone, and works with Starlette and FastAPI. The application finds the caller
in ``request.state.caller``. An answer to a request that is refused says little: the server's log
(logger ``agentguard``) has the reason code.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from agentguard.errors import ConfigError, ProofError
from agentguard.proof import headers
from agentguard.proof.answers import Message, ReceiptedAnswer, Send
from agentguard.proof.presentation import CHAIN_WANTED
from agentguard.proof.receiver import Receiver
from agentguard.proof.verification import RequestCaller, UnknownChainError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY: Final = 1024 * 1024
"""The longest body of a request by default, in bytes."""

MAX_HEADERS: Final = 32 * 1024
"""The most bytes of all headers of a request."""

_LOGGER: Final = logging.getLogger("agentguard")
_TITLES: Final = {
    401: "Unauthorized",
    403: "Forbidden",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_STATUSES: Final = {
    "proof.scope": 403,
    "proof.too_large": 413,
    "proof.headers": 431,
    "proof.unavailable": 503,
    "delegation.logged_out": 403,
    "proof.unrecorded": 503,
    "delegation.revoked": 403,
    "delegation.surrendered": 403,
    "domain.frozen": 403,
}
"""The status of an answer by the reason code; for others see ``_status``."""


class CallerMiddleware:
    """Lets requests through whose caller is verified, and refuses all others.

    ``app`` is the application, ``receiver`` the configuration of the server. A request has at most
    ``max_body`` bytes of body. ``public`` are paths that anybody may request, such as ``/healthz``:
    a path there counts exactly as written. WebSockets are refused. Raises ``ConfigError`` for a
    text as ``public``, and for a path there that does not begin with a slash.
    """

    def __init__(
        self,
        app: Application,
        receiver: Receiver,
        *,
        max_body: int = MAX_BODY,
        public: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._receiver = receiver
        self._max_body = max_body
        self._public = _paths(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of ASGI, or hand the request on with its caller."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] in self._public and scope.get("raw_path") == scope["path"].encode():
            await self._app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path, sha256, listed, body = await self._read(scope, receive)
            if sha256 is not None:
                await asyncio.to_thread(self._receiver.keep_chain, sha256, body)
                await _send(send, 204, b"", [])
                return
            query = scope["query_string"].decode("ascii", "replace")
            caller = await asyncio.to_thread(
                self._receiver.verify, scope["method"], path, query, listed, body
            )
        except ProofError as error:
            _LOGGER.warning("a request was refused: %s (%s)", error, error.code)
            await refuse(send, error)
            return
        except _ClientGoneError:
            return
        except Exception:
            # a store or a file of revocations of the application's own may raise anything
            _LOGGER.exception("a request was refused, because its verification failed")
            failed = ProofError("the verification failed", code="proof.unavailable")
            await refuse(send, failed)
            return
        seen = _with_caller(scope, caller, self._receiver)
        if self._receiver.signs:
            send = ReceiptedAnswer(send, partial(self._receiver.receipt, caller))
        await self._app(seen, _replay(body, receive), send)

    async def _read(
        self, scope: Scope, receive: Receive
    ) -> tuple[str, str | None, list[tuple[str, str]], bytes]:
        """Return the path, the digest of a chain that is sent, the headers and the body.

        Raises ``ProofError`` for a request that nobody has to verify; the log counts the request.
        """
        try:
            path, sha256 = _path(scope), _chain_digest(scope)
            listed = _headers(scope)
            if sha256 is None:  # before the body is read
                headers.read(listed, accepts_plain_dpop=self._receiver.accepts_plain_dpop)
            most = self._max_body if sha256 is None else headers.MAX_CHAIN
            return path, sha256, listed, await _read_body(receive, listed, most)
        except ProofError as error:
            self._receiver.refuse(None, error)
            raise


def _paths(public: Iterable[str]) -> frozenset[str]:
    """Return the paths for everybody; raises ``ConfigError``."""
    paths = frozenset(() if isinstance(public, str) else public)
    # the letters of a text would be paths, "/" among them
    if isinstance(public, str) or not all(path.startswith("/") for path in paths):
        raise ConfigError(f"public is a list of paths that begin with a slash, not {public!r}")
    return paths


class _ClientGoneError(Exception):
    """The client went before the end of the request."""


def _path(scope: Scope) -> str:
    """Return the path as the request has it, percent-encoded.

    Raises ``ProofError`` where the server hands over no such path, or where the application would
    see another one.
    """
    raw = scope.get("raw_path")
    if not isinstance(raw, bytes):
        message = "the server hands over no raw_path, to which the proof is bound"
        raise ProofError(message, code="proof.malformed")
    path, handled = raw.decode("ascii", "replace"), scope["path"]
    # some applications take the path at which they are mounted away from ``path``
    if unquote(path) not in (handled, scope.get("root_path", "") + handled):
        message = "the path was rewritten before the verification: the proof is bound to raw_path"
        raise ProofError(message, code="proof.malformed")
    return path


def _chain_digest(scope: Scope) -> str | None:
    """Return what follows ``CHAINS_PATH`` in a request that sends a chain, None for another one.

    A path at which the application is mounted, or that the server has put in front
    (``root_path``), stands before.
    """
    path = _path(scope).removeprefix(scope.get("root_path", "").rstrip("/"))
    is_chain = scope["method"] == "PUT" and path.startswith(headers.CHAINS_PATH)
    return path.removeprefix(headers.CHAINS_PATH) if is_chain else None


def _headers(scope: Scope) -> list[tuple[str, str]]:
    """Return the headers; raises ``ProofError`` (``proof.headers``) for too many bytes."""
    listed = list(scope["headers"])
    if sum(len(name) + len(value) for name, value in listed) > MAX_HEADERS:
        raise ProofError("the headers of the request are too long", code="proof.headers")
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in listed]


async def _read_body(receive: Receive, listed: list[tuple[str, str]], most: int) -> bytes:
    """Return the body; raises ``ProofError`` (``proof.too_large``) beyond ``most`` bytes."""
    announced = [value for name, value in listed if name.lower() == "content-length"]
    if any(not value.isdecimal() or len(value) > 18 or int(value) > most for value in announced):  # noqa: PLR2004
        raise _too_large()
    parts: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large()
        has_more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what hands the read body to the application, and then what the server has."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_caller(scope: Scope, caller: RequestCaller, receiver: Receiver) -> Scope:
    return {**scope, "state": {**scope.get("state", {}), "caller": caller, "receiver": receiver}}


async def refuse(send: Send, error: ProofError) -> None:
    """Send the answer to a request that is refused: problem details (RFC 9457) without reasons."""
    status = _status(error.code)
    problem = {"type": "about:blank", "title": _TITLES[status], "status": status}
    more = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    if status == 401:  # noqa: PLR2004
        reason = b"" if error.code == "proof.missing" else b'error="invalid_token", '
        more.append((b"www-authenticate", b"DPoP " + reason + b'algs="EdDSA Ed25519"'))
    if isinstance(error, UnknownChainError):
        more.append((CHAIN_WANTED.lower().encode(), error.sha256.encode()))
    await _send(send, status, json.dumps(problem).encode(), more)


def _status(code: str) -> int:
    """Return the status of an answer: 503 for a file that can't be read, 401 for all else."""
    return _STATUSES.get(code) or (503 if code.startswith("storage.") else 401)


async def _send(send: Send, status: int, body: bytes, more: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    listed = [*more] if status == 204 else [length, *more]  # noqa: PLR2004
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


def _too_large() -> ProofError:
    return ProofError("the body of the request is too long", code="proof.too_large")
