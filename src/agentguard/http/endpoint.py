"""One HTTP request to a URL of the configuration, under one deadline, and with a bounded answer.

A redirection is not followed, a proxy of the environment is not used, and an answer is never
unpacked (ADR 0014 says why httpcore is used). ``ask`` may carry a secret, and so raises nothing: a
traceback can show variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult

import httpcore

from agentguard.http.exchange import Exchange, Network, context_of, exchanging, is_of_tls
from agentguard.signing import canonical
from agentguard.signing.keys import Secret

MAX_ANSWER: Final = canonical.MAX_BYTES
"""Bytes of the longest answer."""

_ANSWERED: Final = 200

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answers of an endpoint have to be, and how the user is told that they are not.

    ``key`` names the URL in the configuration. ``media_types`` are the types of JSON that are
    taken. ``problems`` has the meaning of a status, as the end of a sentence; other statuses have
    a general one.
    """

    key: str
    media_types: Sequence[str] = ("application/json",)
    problems: Mapping[int, str] = field(default_factory=dict)


class Endpoint:
    """A URL that is asked with a connection of its own each time; threads may share an endpoint.

    ``address`` is the scheme and the authority of the server, and ``target`` the path with the
    query. ``ca`` is a file with the certificates that are trusted, None for the system's.
    ``timeout`` is in seconds, from the connection to the end of the answer. Raises ``ConfigError``
    for a ``ca`` that can't be used.
    """

    def __init__(
        self, address: SplitResult, target: str, wanted: Wanted, ca: Path | None, timeout: float
    ) -> None:
        self._url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=(address.hostname or "").encode(),
            port=address.port,
            target=target.encode(),
        )
        self._headers: list[Header] = [
            (b"Host", address.netloc.encode()),
            (b"Accept", ", ".join(wanted.media_types).encode()),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"agentguard"),
        ]
        self._wanted = wanted
        self._tls = context_of(ca) if address.scheme == "https" else None
        self._timeout = timeout

    def ask(
        self, method: str, headers: Sequence[Header] = (), body: Secret | None = None
    ) -> Secret | str:
        """Return the body of the answer, or what went wrong, as the end of a sentence."""
        with exchanging(self._timeout) as exchange:
            try:
                with httpcore.ConnectionPool(
                    ssl_context=self._tls, max_connections=1, network_backend=Network()
                ) as pool:
                    return self._exchange(pool, method, headers, body)
            except Exception as error:  # noqa: BLE001  the problem is raised by the caller
                return self._fault(error, exchange)

    def _exchange(
        self,
        pool: httpcore.ConnectionPool,
        method: str,
        headers: Sequence[Header],
        body: Secret | None,
    ) -> Secret | str:
        content = b"" if body is None else body.reveal()
        length = [] if body is None else [(b"Content-Length", str(len(content)).encode())]
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        with pool.stream(
            method,
            self._url,
            headers=[*self._headers, *headers, *length],
            content=content,
            extensions={"timeout": timeouts},
        ) as answer:
            problem = self._problem(answer)
            if problem is not None:
                return problem
            read = bytearray()
            for part in answer.iter_stream():
                read += part
                if len(read) > MAX_ANSWER:
                    return f"answers with more than {MAX_ANSWER} bytes"
            return Secret(bytes(read))

    def _problem(self, answer: httpcore.Response) -> str | None:
        """Return what is wrong with the head of an answer; None for a good answer."""
        status, key = answer.status, self._wanted.key
        if 300 <= status < 400:  # noqa: PLR2004  the redirections
            return f"redirects to another place ({status}), which is not followed: correct {key}"
        if status != _ANSWERED:
            general = f"answered with status {status}: read the log of that server"
            return self._wanted.problems.get(status, general)
        headers = {name.lower(): value.lower() for name, value in answer.headers}
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1")
        is_plain = headers.get(b"content-encoding", b"identity") == b"identity"
        if media_type not in self._wanted.media_types or not is_plain:
            return f"answers with something else than plain JSON: correct {key}"
        return None

    def _fault(self, error: Exception, exchange: Exchange) -> str:
        """Return the problem of a failed request."""
        if is_of_tls(error):
            return "is not trusted (TLS): let ca name the authority of its certificate"
        if isinstance(error, httpcore.TimeoutException):
            return f"did not answer within {self._timeout:g} seconds: look at its load"
        if isinstance(error, httpcore.ConnectError):
            return f"can't be reached: start the server, or correct {self._wanted.key}"
        if exchange.has_ended or isinstance(error, httpcore.NetworkError):
            return "hung up while it was asked: read the log of that server"
        if isinstance(error, httpcore.RemoteProtocolError):
            return f"does not answer in HTTP: correct {self._wanted.key}"
        return f"can't be asked ({type(error).__name__})"
