"""One POST to an OPA server: kept-alive connections, one deadline for an exchange, bounded reads.

This module knows HTTP and TLS, and nothing of policies; ``http/exchange.py`` keeps the deadline. A
proxy that the environment names is not used, since a proxy could decide calls. Requests carry the
current trace context, and the server's decision log then names the trace.
"""

from __future__ import annotations

import os
import re
import ssl
import weakref
from typing import Final

import httpcore
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentguard.errors import ConfigError, PolicyError
from agentguard.http.exchange import Exchange, Network, exchanging, is_of_tls
from agentguard.policy.document import MAX_AT_ONCE
from agentguard.policy.opa_server import Server
from agentguard.storage import files

_IDLE: Final = 60.0
_ANSWERED: Final = 200
_MAX_TOKEN: Final = 16 * 1024
_TOKEN: Final = re.compile(rb"[!-~]+")
_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()
_TARGET: Final = b"?strict-builtin-errors=true&provenance=true"


def _close(pool: httpcore.ConnectionPool, process: int) -> None:
    if process == os.getpid():  # in a fork a lock of the pool may be held for ever
        pool.close()


class Client:
    """Posts to one path of one server; safe to use from many threads, and after a fork.

    ``limit`` bounds an answer's body, in bytes. Raises ``ConfigError`` for certificates, keys or a
    token that can't be used.
    """

    def __init__(self, server: Server, path: str, *, limit: int) -> None:
        self._server = server
        self._limit = limit
        address = server.address
        host = (address.hostname or "").encode()
        self._url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=host,
            port=address.port,
            target=(address.path.rstrip("/") + path).encode() + _TARGET,
        )
        self._headers = [
            (b"Host", address.netloc.encode()),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json"),
            # A compressed answer can become a thousand times as long as its bytes.
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"agentguard"),
        ]
        self._timeouts = {
            "connect": min(server.connect_timeout, server.timeout),
            **dict.fromkeys(("read", "write", "pool"), server.timeout),
        }
        self._tls = _tls(server) if address.scheme == "https" else None
        if server.has_token:
            try:
                self._token()
            except PolicyError as error:
                name = "token_variable" if server.token_file is None else "token_file"
                raise ConfigError(f"{name}: {error}") from error
        self._pool: tuple[int, httpcore.ConnectionPool] = self._new_pool()

    def _new_pool(self) -> tuple[int, httpcore.ConnectionPool]:
        pool = httpcore.ConnectionPool(
            ssl_context=self._tls,
            max_connections=MAX_AT_ONCE,
            keepalive_expiry=_IDLE,
            network_backend=Network(),
        )
        process = os.getpid()
        weakref.finalize(self, _close, pool, process)
        return process, pool

    def close(self) -> None:
        """Close the connections."""
        process, pool = self._pool
        _close(pool, process)

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Send ``body`` and return the answer's status and body.

        Raises ``PolicyError``: see ``OpaEngine.evaluate``.
        """
        headers = [*self._headers, (b"Content-Length", str(len(body)).encode())]
        if self._server.has_token:
            headers.append((b"Authorization", b"Bearer " + self._token()))
        context: dict[str, str] = {}
        _TRACE_CONTEXT.inject(context)
        if "traceparent" in context:
            headers.append((b"traceparent", context["traceparent"].encode()))
        with exchanging(self._server.timeout) as exchange:
            try:
                return self._send(self._own_pool(), exchange, headers, body)
            except PolicyError:
                raise
            except Exception as error:
                raise _fault(error, exchange) from error

    def _own_pool(self) -> httpcore.ConnectionPool:
        process, pool = self._pool
        if process != os.getpid():  # its connections are the parent's
            self._pool = process, pool = self._new_pool()
        return pool

    def _send(
        self,
        pool: httpcore.ConnectionPool,
        exchange: Exchange,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> tuple[int, bytes]:
        timeouts = {"timeout": self._timeouts}
        with pool.stream(
            "POST", self._url, headers=headers, content=body, extensions=timeouts
        ) as answer:
            _require_json(answer)
            read = bytearray()
            if not exchange.has_begun:
                answer.extensions["network_stream"].close()
                message = "the OPA server answered before it was asked"
                raise PolicyError(message, code="engine.malformed")
            for part in answer.iter_stream():
                read += part
                if len(read) > self._limit:
                    message = f"the OPA server's answer is longer than {self._limit} bytes"
                    raise PolicyError(message, code="engine.too_large")
            return answer.status, bytes(read)

    def _token(self) -> bytes:
        """Return the current bearer token, which may be replaced while the guard is open."""
        file, variable = self._server.token_file, self._server.token_variable
        try:
            if file is not None:
                token = files.read(file, limit=_MAX_TOKEN).strip()
            else:
                token = _from_environment(variable or "").strip()
        except OSError as error:
            message = f"the token for the OPA server can't be read ({error.strerror})"
            raise PolicyError(message, code="engine.credential") from error
        if len(token) > _MAX_TOKEN or not _TOKEN.fullmatch(token):
            where = f"the environment variable {variable}" if file is None else str(file)
            message = (
                f"{where} has no token for the OPA server: expected one line without spaces, of at "
                f"most {_MAX_TOKEN} bytes"
            )
            raise PolicyError(message, code="engine.credential")
        return token


def _from_environment(variable: str) -> bytes:
    """Return the value of a variable; raises ``PolicyError`` where the variable is unset."""
    token = os.environb.get(os.fsencode(variable))
    if token is None:
        message = (
            f"the environment variable {variable}, which token_variable in [policy] names, is "
            "unset: set it to the token for the OPA server"
        )
        raise PolicyError(message, code="engine.credential")
    return token


def _require_json(answer: httpcore.Response) -> None:
    """Refuse an answer that OPA would not send, such as a gateway's page."""
    headers = {name.lower(): value.lower() for name, value in answer.headers}
    if headers.get(b"content-encoding", b"identity") != b"identity":
        message = "the OPA server's answer is compressed, which it was not asked to be"
        raise PolicyError(message, code="engine.malformed")
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip()
    if answer.status == _ANSWERED and media_type != b"application/json":
        message = "the OPA server's answer is not of the type application/json"
        raise PolicyError(message, code="engine.malformed")


def _tls(server: Server) -> ssl.SSLContext:
    name = "ca"
    try:
        for name in ("ca", "certificate", "key"):
            if (file := getattr(server, name)) is not None:
                files.require_regular(file)  # ssl would wait for the writer of a pipe
        name = "ca"
        context = ssl.create_default_context(cafile=server.ca)
        if server.certificate is not None:
            name = "certificate"
            context.load_cert_chain(server.certificate, server.key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        path = getattr(server, name)
        raise ConfigError(f"{name}: {path} can't be used: {reason}") from error
    return context


def _no_passphrase() -> str:
    """Raise ``ValueError``: a prompt for a passphrase would hang a server."""
    raise ValueError("the key is encrypted")


def _fault(error: Exception, exchange: Exchange) -> PolicyError:
    """Return the error, with its code, for a failed exchange."""
    if is_of_tls(error):
        code, what = "engine.tls", "no trusted connection to the OPA server can be made (TLS)"
    elif isinstance(error, httpcore.TimeoutException):
        code, what = "engine.timeout", "the OPA server did not answer in time"
    elif isinstance(error, httpcore.ConnectError):
        code, what = "engine.unreachable", "the OPA server can't be reached"
    elif exchange.has_ended or isinstance(error, httpcore.NetworkError):
        code, what = "engine.disconnected", "the OPA server hung up while it was asked"
    elif isinstance(error, httpcore.RemoteProtocolError):
        code, what = "engine.malformed", "the OPA server's answer is not HTTP"
    else:
        code, what = "engine.failed", f"the OPA server can't be asked ({type(error).__name__})"
    return PolicyError(what, code=code)
