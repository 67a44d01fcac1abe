"""A server on the loopback that speaks what OpenBao and Vault speak of a key-value store.

The server is a real HTTP server, with the answers of version 2 of the store. Other than a real
OpenBao (``openbao.py``), this server can misbehave.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hangs up."""


class KeyValueServer:
    """Keeps secrets by path, each a mapping; ``token`` may read them all.

    ``does`` takes the place of the server's answer, for a server that misbehaves. ``requests`` are
    the requests so far: method, path and headers.
    """

    def __init__(self, token: str, certificate: tuple[Path, Path] | None = None) -> None:
        self.token = token
        self.secrets: dict[str, Mapping[str, Any]] = {}
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self.does: Behaviour | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_arguments: object) -> None:
                return

        self._server = _Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.command, request.path, headers))
        if self.does is not None:
            self.does(request)
            return
        path = request.path.removeprefix("/v1/")
        if headers.get("x-vault-token") != self.token:
            say(request, 403, {"errors": ["permission denied"]})
        elif path not in self.secrets:
            say(request, 404, {"errors": []})
        else:
            metadata = {"version": 1, "destroyed": False, "deletion_time": ""}
            data = {"data": self.secrets[path], "metadata": metadata}
            say(request, 200, {"request_id": "1", "lease_id": "", "data": data})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def say(
    request: BaseHTTPRequestHandler,
    status: int,
    body: object,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request with JSON, or with the bytes that are given."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    given = {"Content-Type": "application/json", "Content-Length": str(len(encoded))}
    for name, value in {**given, **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(encoded)
