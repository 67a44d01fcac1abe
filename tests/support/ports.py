"""Ports of the loopback for servers that a test starts."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that nobody listens on; by the next moment somebody may."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
