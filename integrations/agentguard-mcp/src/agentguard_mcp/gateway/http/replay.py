"""``ReplayStore``: the streams of a session for clients that come back for their messages.

A client names the last event that it has got: the header ``Last-Event-ID`` of a GET (MCP
2025-11-25, "Resumability and Redelivery"). The store finds the stream (``stream.py``), so that the
client gets what follows on that stream and on no other. What is kept has bounds. This module works
on values, and does no I/O; times are seconds that never go back.
"""

from __future__ import annotations

import re
from typing import Final

from agentguard_mcp.gateway.http.stream import Stream

MAX_KEPT: Final = 32 << 20
"""The most bytes of one session that are kept for clients that do not read, or may come again."""

MAX_KEPT_IN_ALL: Final = 256 << 20
"""The most bytes that all sessions of a gateway keep so: many sessions must not fill the memory."""

MAX_STREAMS: Final = 200
"""The most streams of one session that are kept and that no client reads."""

GRACE: Final = 60.0
"""Seconds for which a stream is kept whose last message has been written to the client."""

_IDENTIFIER: Final = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,15})")


class GoneError(Exception):
    """Nothing is kept that follows the event which a client names."""


class ReplayStore:
    """The streams of one session whose messages a client may ask for; the oldest is dropped first.

    A stream that a client reads stays, whatever the bounds say. Of the others, a stream that has
    been delivered is dropped before one whose messages nobody has got. ``size`` is the number of
    bytes that were kept after the last ``trim``.
    """

    def __init__(self) -> None:
        self.size = 0
        self._open: dict[str, Stream] = {}
        self._delivered: dict[str, tuple[Stream, float]] = {}
        self._delivered_size = 0

    def add(self, stream: Stream) -> None:
        """Keep a stream: its first event goes out."""
        self._open[stream.name] = stream

    def deliver(self, stream: Stream, at: float) -> None:
        """Note the time at which the last message of a stream was written to its client.

        Nothing happens for a stream that is not kept.
        """
        if self._open.pop(stream.name, None) is not None:
            self._delivered[stream.name] = stream, at
            self._delivered_size += stream.size

    def has(self, stream: Stream) -> bool:
        """Return whether a stream is kept."""
        return stream.name in self._open or stream.name in self._delivered

    def find(self, event: str) -> tuple[Stream, int]:
        """Return the stream of an event, and the number of the event's message.

        The stream counts as one that was not delivered. Raises ``GoneError`` for an event that was
        never sent, or that is followed by messages which are no longer kept.
        """
        found = _IDENTIFIER.fullmatch(event)
        stream = self._find(found[1]) if found else None
        number = int(found[2]) if found else 0
        if stream is None or not stream.is_followed(number):
            raise GoneError
        if stream.name in self._delivered:
            self.drop(stream)
            self.add(stream)
        return stream, number

    def _find(self, name: str) -> Stream | None:
        delivered = self._delivered.get(name)
        return self._open.get(name) if delivered is None else delivered[0]

    def drop(self, stream: Stream) -> None:
        """Keep a stream no more; nothing happens for one that is not kept."""
        self._open.pop(stream.name, None)
        if self._delivered.pop(stream.name, None) is not None:
            self._delivered_size -= stream.size

    def trim(self, now: float, most: int | None = None) -> list[Stream]:
        """Drop what the bounds do not let; return the streams that are dropped by this.

        ``most`` is the most bytes, None for ``MAX_KEPT``.
        """
        dropped = self._trimmed(now, MAX_KEPT if most is None else most)
        self.size = sum(one.kept_size for one in self._open.values()) + self._delivered_size
        return dropped

    def _trimmed(self, now: float, most: int) -> list[Stream]:
        """Drop what the bounds do not let.

        A session may have delivered many streams a moment ago: only those that go are looked at.
        """
        dropped: list[Stream] = []
        absent = sum(not one.is_read for one in self._open.values())
        size = sum(one.kept_size for one in self._open.values())

        def is_beyond() -> bool:
            too_many = absent + len(self._delivered) > MAX_STREAMS
            return too_many or size + self._delivered_size > most

        while self._delivered:
            oldest, at = next(iter(self._delivered.values()))
            if now - at < GRACE and not is_beyond():
                return dropped
            self.drop(oldest)
            dropped.append(oldest)
        # first what clients that read have got, then the oldest stream that no client reads
        for one in sorted(self._open.values(), key=lambda one: not one.is_read):
            if not is_beyond():
                break
            size -= one.kept_size
            if one.is_read:
                if size + one.kept_size > most:
                    one.drop_sent(0)
                size += one.kept_size
            else:
                absent -= 1
                self.drop(one)
                dropped.append(one)
        return dropped
