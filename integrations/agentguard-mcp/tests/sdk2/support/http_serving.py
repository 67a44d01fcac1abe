"""Serves an ASGI application of a test over HTTP on this machine, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn


def listening() -> tuple[socket.socket, str]:
    """Return a socket on a free port, and the URL under which an MCP server answers there."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, f"http://127.0.0.1:{bound.getsockname()[1]}/mcp"


@contextlib.contextmanager
def serving(app: Any, bound: socket.socket) -> Iterator[None]:
    """Serve the application on a socket of ``listening`` while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    threading.Thread(target=server.run, args=([bound],), daemon=True).start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
