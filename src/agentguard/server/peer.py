"""``Peer``: who is at the other end of one connection, and how long the connection may serve."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Final

from agentguard.domain.config.clients import ClientConfig
from agentguard.server.share import Share
from agentguard.wire.stream import EndedError

LONGEST: Final = 86_400.0
"""Seconds that a connection with a token or a certificate may serve at most.

A socket of Python can't wait for many days: it takes the milliseconds as 32 bits.
"""


@dataclass(slots=True, eq=False)
class Peer:
    """The other end of a connection.

    ``accepted`` is the socket as the listener gave it. ``share`` is what the connection counts
    against. ``uid`` is the user, None for another machine. ``client`` is None until the client is
    known: for a user until the greeting, where the user is looked up, and for another machine
    without a certificate until its token is verified. ``ends_at`` is when the token or the
    certificate ends (Unix time), None without one.
    """

    accepted: socket.socket
    share: Share
    uid: int | None = None
    client: ClientConfig | None = None
    ends_at: float | None = None

    @property
    def needs_token(self) -> bool:
        """Whether only a token can say who this is."""
        return self.uid is None and self.client is None

    def limit(self, ends_at: float) -> None:
        """Let the connection serve until then (Unix time), and for ``LONGEST`` at most."""
        self.ends_at = min(ends_at, time.time() + LONGEST)

    def time_left(self) -> float | None:
        """Return how many seconds the connection may serve, None for no end.

        Raises ``EndedError`` where the token or the certificate has ended.
        """
        if self.ends_at is None:
            return None
        left = self.ends_at - time.time()
        if left <= 0:
            raise EndedError("the client's token or certificate has ended")
        return left
