"""One HTTP request to an issuer, under one deadline, and with a bound for the answer.

A redirection is not followed, a proxy of the environment is not used, and an answer is never
unpacked (ADR 0014 says why httpcore is used). ``ask`` may carry a secret, and so raises nothing: a
traceback can show variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpcore

from agentguard.issuers.address import address_of
from agentguard.policy.exchange import Exchange, Network, context_of, exchanging, is_of_tls
from agentguard.signing import canonical
from agentguard.signing.keys import Secret

TIMEOUT: Final = 5.0
"""Seconds of a whole request, from the connection to the end of the answer."""

MAX_ANSWER: Final = canonical.MAX_BYTES
"""Bytes of the longest answer."""

_ANSWERED: Final = 200
_JSON: Final = (b"application/json", b"application/jwk-set+json")

Header = tuple[bytes, bytes]


class Endpoint:
    """A URL of an issuer. ``key`` names the URL in the configuration.

    ``ca`` is a file with the certificates that are trusted, None for the system's. Raises
    ``ConfigError`` for a URL or a ``ca`` that can't be used.
    """

    def __init__(self, url: str, key: str, ca: Path | None) -> None:
        address = address_of(url, key)
        target = f"{address.path or '/'}{'?' if address.query else ''}{address.query}"
        self._url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=(address.hostname or "").encode(),
            port=address.port,
            target=target.encode(),
        )
        self._headers: list[Header] = [
            (b"Host", address.netloc.encode()),
            (b"Accept", b"application/json, application/jwk-set+json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"agentguard"),
        ]
        self._tls = context_of(ca) if address.scheme == "https" else None

    def ask(
        self, method: str, headers: Sequence[Header] = (), body: Secret | None = None
    ) -> Secret | str:
        """Return the body of the answer, or what went wrong, as the end of a sentence."""
        with exchanging(TIMEOUT) as exchange:
            try:
                with httpcore.ConnectionPool(
                    ssl_context=self._tls, max_connections=1, network_backend=Network()
                ) as pool:
                    return self._exchange(pool, method, headers, body)
            except Exception as error:  # noqa: BLE001  the problem is raised by the caller
                return _fault(error, exchange)

    def _exchange(
        self,
        pool: httpcore.ConnectionPool,
        method: str,
        headers: Sequence[Header],
        body: Secret | None,
    ) -> Secret | str:
        content = b"" if body is None else body.reveal()
        length = [] if body is None else [(b"Content-Length", str(len(content)).encode())]
        with pool.stream(
            method,
            self._url,
            headers=[*self._headers, *headers, *length],
            content=content,
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT)},
        ) as answer:
            problem = _problem(answer)
            if problem is not None:
                return problem
            read = bytearray()
            for part in answer.iter_stream():
                read += part
                if len(read) > MAX_ANSWER:
                    return f"answers with more than {MAX_ANSWER} bytes"
            return Secret(bytes(read))


def _problem(answer: httpcore.Response) -> str | None:
    """Return what is wrong with the head of an answer; None for a good answer."""
    status = answer.status
    if 300 <= status < 400:  # noqa: PLR2004  the redirections
        return f"redirects to another place ({status}), which is not followed: correct the URL"
    if status != _ANSWERED:
        return f"answered with status {status}: read the log of that server"
    headers = {name.lower(): value.lower() for name, value in answer.headers}
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip()
    if media_type not in _JSON or headers.get(b"content-encoding", b"identity") != b"identity":
        return "answers with something else than plain JSON: correct the URL"
    return None


def _fault(error: Exception, exchange: Exchange) -> str:
    """Return the problem of a failed request."""
    if is_of_tls(error):
        return "is not trusted (TLS): let ca name the authority of its certificate"
    if isinstance(error, httpcore.TimeoutException):
        return "did not answer in time: look at its load"
    if isinstance(error, httpcore.ConnectError):
        return "can't be reached: start the server, or correct the URL"
    if exchange.has_ended or isinstance(error, httpcore.NetworkError):
        return "hung up while it was asked: read the log of that server"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "does not answer in HTTP: correct the URL"
    return f"can't be asked ({type(error).__name__})"
