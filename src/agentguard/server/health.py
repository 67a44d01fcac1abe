"""``[server] health``: a small HTTP listener on loopback, for probes and for metrics.

``/livez`` answers 200 while the process does. ``/healthz`` answers 200 while the server takes calls
that can run, and 503 while the server drains or the log can't be written. ``/metrics`` has the
figures of the server as text for Prometheus. Every process of the machine may ask, so there are
counts and reason codes, and no names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from typing import Any, Final

from agentguard.errors import ServerError

Status = Callable[[], Mapping[str, Any]]
"""Returns what ``Sessions.status`` returns."""

_SECONDS: Final = 5.0
"""Seconds from the start of a connection to the end of its request, and of its answer."""

_AT_ONCE: Final = 16
"""The most requests at a time; more connections are closed at once."""

_METRICS: Final = (
    ("clients", "gauge", "Client processes that are connected or may come back."),
    ("connections", "gauge", "Connections of clients."),
    ("calls", "gauge", "Calls under way."),
    ("requests", "counter", "Requests of clients since the start."),
    ("denials", "counter", "Calls that were denied since the start."),
    ("in_doubt", "counter", "Calls that clients have left in doubt since the start."),
    (
        "in_doubt_before",
        "gauge",
        "Calls in doubt from before the start; 1000 stands for so many or more.",
    ),
    ("uptime", "gauge", "Seconds since the start."),
    ("draining", "gauge", "1 while the server takes no new calls, because it is about to end."),
    ("log_failed", "gauge", "1 while the log can't be written, and each call is denied."),
)
_NAMES: Final = {
    "requests": "requests_total",
    "denials": "denials_total",
    "in_doubt": "in_doubt_total",
    "in_doubt_before": "in_doubt_before_start",
    "uptime": "uptime_seconds",
}


class HealthListener:
    """Listens at ``address`` (a loopback address and a port; 0 for any port) until ``close``.

    Raises ``ServerError`` (``server.address``) where the address can't be had.
    """

    def __init__(self, address: tuple[str, int], status: Status) -> None:
        try:
            self._server = _Server(address, status)
        except OSError as error:
            host, port = address
            message = f"[server] health: the server can't listen at {host} port {port}: {error}"
            raise ServerError(message, code="server.address") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="agentguard-health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer no request any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], status: Status) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.status = status
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, unless too many requests come at once."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started, so none gives the place back
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request, in its thread; one that takes too long loses its connection.

        A time limit of the socket would begin anew with each byte that comes.
        """
        limit = threading.Timer(_SECONDS, _cut, (request,))
        limit.daemon = True
        try:
            limit.start()
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone."""


def _cut(request: socket) -> None:
    """End a connection: a read or a write that waits in another thread ends."""
    with suppress(OSError):  # it has ended already
        request.shutdown(SHUT_RDWR)


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer ``/livez``, ``/healthz`` and ``/metrics``."""
        if self.path == "/livez":
            self._send(200, "ok\n")
        elif self.path == "/healthz":
            obstacle = _obstacle(self.server.status())
            self._send(503 if obstacle else 200, f"{obstacle or 'ok'}\n")
        elif self.path == "/metrics":
            text = metrics(self.server.status())
            self._send(200, text, "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._send(404, "not found\n")

    def _send(self, code: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Name no version of Python."""
        return "agentguard"

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""


def _obstacle(status: Mapping[str, Any]) -> str | None:
    """Return why no new call can run, None where calls can."""
    if status["draining"]:
        return "draining"
    failure = status["log_failure"]
    return failure and f"the log can't be written [{failure['code']}]"


def metrics(status: Mapping[str, Any]) -> str:
    """Return the figures as text for Prometheus, without those that are not known yet."""
    figures = {**status, "log_failed": status["log_failure"] is not None}
    lines: list[str] = []
    for key, kind, meaning in _METRICS:
        if figures[key] is None:  # not counted yet
            continue
        name = f"agentguard_server_{_NAMES.get(key, key)}"
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", f"{name} {figures[key]:d}"]
    name = "agentguard_server_info"
    lines += [f"# HELP {name} The version of the server.", f"# TYPE {name} gauge"]
    lines.append(f'{name}{{version="{status["version"]}"}} 1')
    return "\n".join(lines) + "\n"
