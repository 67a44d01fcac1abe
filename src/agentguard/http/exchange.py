"""One HTTP exchange under one deadline, over httpcore.

httpcore limits each single read: a server that sends a byte now and then could hold a call for any
time. The streams of this module check the deadline of the exchange before each read and write. A
proxy that the environment names is not used.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpcore

from agentguard.errors import ConfigError
from agentguard.storage import files
from agentguard.storage.owned_lock import busy

_BEGINNING: Final = b"HTTP/1."
_SLICE: Final = 16 * 1024


class Exchange:
    """One request and its answer: the deadline, and how far the answer has come."""

    __slots__ = ("deadline", "has_begun", "has_ended")

    def __init__(self, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        self.has_begun = self.has_ended = False

    def remaining(self, limit: float | None) -> float:
        """Return how many seconds the next step may take, at most ``limit``."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise httpcore.ReadTimeout("the time of the exchange is over")
        return remaining if limit is None else min(remaining, limit)

    def record(self, data: bytes) -> None:
        """Record the read ``data``, empty at the end of the stream.

        An answer begins with the first byte after the request. Earlier bytes, behind the answer to
        the request before, are no answer.
        """
        self.has_ended = self.has_ended or not data
        if data and not self.has_begun and not _BEGINNING.startswith(data[: len(_BEGINNING)]):
            raise httpcore.RemoteProtocolError("it does not begin as HTTP/1 does")
        self.has_begun = self.has_begun or bool(data)


class _Current(threading.local):
    exchange: Exchange | None = None
    """The exchange that this thread is in."""


_current: Final = _Current()


@contextmanager
def exchanging(timeout: float) -> Iterator[Exchange]:
    """Put an exchange of at most ``timeout`` seconds in force for the streams of this thread.

    Raises ``StorageError`` (``storage.busy``) where this thread is in an exchange, whose locks it
    may hold: then a signal handler or a finalizer has interrupted the exchange.
    """
    if _current.exchange is not None:
        raise busy("it asked a server")
    try:
        _current.exchange = exchange = Exchange(timeout)
        yield exchange
    finally:
        _current.exchange = None


def _remaining(limit: float | None) -> float | None:
    exchange = _current.exchange
    return exchange.remaining(limit) if exchange is not None else limit


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, _remaining(timeout))
        if _current.exchange is not None:
            _current.exchange.record(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SLICE):
            self._stream.write(buffer[start : start + _SLICE], _remaining(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _remaining(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Network(httpcore.NetworkBackend):
    """The network of this machine, whose streams keep the deadline of the exchange."""

    def __init__(self) -> None:
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect, within the time that is left."""
        stream = self._system.connect_tcp(
            host, port, _remaining(timeout), local_address, socket_options
        )
        return _Stream(stream)


def is_of_tls(error: BaseException | None) -> bool:
    """Whether an error goes back to TLS, and not to a server that hung up."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False


def context_of(ca: Path | None) -> ssl.SSLContext:
    """Return the TLS settings of a client; ``ca`` None trusts the system's certificates.

    Raises ``ConfigError`` for a file that is no certificate.
    """
    try:
        if ca is not None:
            files.require_regular(ca)  # ssl would wait for the writer of a pipe
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(f"ca: {ca} can't be used: {reason}") from error
