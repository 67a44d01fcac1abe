"""``ReplayStore``: the messages of a session's streams for clients that come back for them.

A connection of a client may break while its stream goes on. Each message on a stream has a number,
and the client names the last one that it has got: the header ``Last-Event-ID`` of a GET (MCP
2025-11-25, "Resumability and Redelivery"). The id of an event names its stream as well, by a name
that nobody can guess, so that a client gets messages of that stream and of no other. What is kept
has bounds. This module works on values, and does no I/O; times are seconds that never go back.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar

from agentguard_mcp.gateway.messages import Message

MAX_KEPT: Final = 32 << 20
"""The most bytes of one session that are kept for clients that do not read, or may come again."""

MAX_STREAMS: Final = 200
"""The most streams of one session that are kept and that no client reads."""

MAX_SENT: Final = 1 << 20
"""The bytes of one stream that are kept after a client has got them, beside the newest message."""

GRACE: Final = 60.0
"""Seconds for which a stream is kept whose last message has been written to the client."""

_IDENTIFIER: Final = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,15})")


class GoneError(Exception):
    """Nothing is kept that follows the event which a client names."""


class Item(NamedTuple):
    """A message on a stream: its line, and the message itself where it answers the request."""

    line: bytes
    answer: Message | None = None


class History:
    """The messages of one stream, numbered from 1 on; the oldest may be dropped.

    ``name`` names the stream. ``size`` is the number of bytes of all messages, and ``sent_size`` of
    those that the newest connection has taken. ``is_read`` says that a client reads the stream now.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(16)
        self.size = 0
        self.sent_size = 0
        self.is_read = False
        self._items: deque[Item] = deque()
        self._first = 1
        self._sent = 0
        self._most_sent = 0

    @property
    def newest(self) -> int:
        """The number of the newest message, 0 where there was none."""
        return self._first + len(self._items) - 1

    @property
    def kept_size(self) -> int:
        """The bytes that are kept for a client that does not read, or may come again."""
        return self.sent_size if self.is_read else self.size

    def add(self, item: Item) -> None:
        """Add the newest message."""
        self._items.append(item)
        self.size += len(item.line)

    def get(self, number: int) -> Item | None:
        """Return a message, None for one that has not come yet or has been dropped."""
        index = number - self._first
        return self._items[index] if 0 <= index < len(self._items) else None

    def note_sent(self, number: int) -> None:
        """Note that a connection has taken the next message."""
        self._sent = number
        self._most_sent = max(self._most_sent, number)
        self.sent_size += len(self._items[number - self._first].line)
        self.drop_sent(MAX_SENT)

    def rewind(self, number: int) -> None:
        """Note that the client has messages up to ``number``, and waits for those behind."""
        self._sent = number
        taken = islice(self._items, max(0, number + 1 - self._first))
        self.sent_size = sum(len(item.line) for item in taken)

    def drop_sent(self, most: int) -> None:
        """Drop the oldest messages that were taken beyond ``most`` bytes, but not the newest."""
        while self.sent_size > most and self._first < self._sent:
            size = len(self._items.popleft().line)
            self._first += 1
            self.size -= size
            self.sent_size -= size

    def drop_all(self) -> None:
        """Drop all messages: nobody can ask for what follows an event of this stream."""
        self._first = self.newest + 1
        self._items.clear()
        self.size = self.sent_size = 0

    def event(self, number: int) -> str:
        """Return the id of an event; number 0 is the beginning of the stream."""
        return f"{self.name}-{number}"

    def is_followed(self, number: int) -> bool:
        """Return whether all messages are there that follow one that was sent."""
        return self._first - 1 <= number <= self._most_sent


Kept = TypeVar("Kept", bound=History)


class ReplayStore(Generic[Kept]):
    """The streams of one session whose messages a client may ask for; the oldest is dropped first.

    A stream that a client reads stays, whatever the bounds say. Of the others, a stream that has
    been delivered is dropped before one whose messages nobody has got.
    """

    def __init__(self) -> None:
        self._open: dict[str, Kept] = {}
        self._delivered: dict[str, tuple[Kept, float]] = {}
        self._delivered_size = 0

    def add(self, history: Kept) -> None:
        """Keep a stream: its first event goes out."""
        self._open[history.name] = history

    def deliver(self, history: Kept, at: float) -> None:
        """Note the time at which the last message of a stream was written to its client.

        Nothing happens for a stream that is not kept.
        """
        if self._open.pop(history.name, None) is not None:
            self._delivered[history.name] = history, at
            self._delivered_size += history.size

    def find(self, event: str) -> tuple[Kept, int]:
        """Return the stream of an event, and the number of the event's message.

        The stream counts as one that was not delivered. Raises ``GoneError`` for an event that was
        never sent, or that is followed by messages which are no longer kept.
        """
        found = _IDENTIFIER.fullmatch(event)
        history = self._find(found[1]) if found else None
        number = int(found[2]) if found else 0
        if history is None or not history.is_followed(number):
            raise GoneError
        if history.name in self._delivered:
            self.drop(history)
            self.add(history)
        return history, number

    def _find(self, name: str) -> Kept | None:
        delivered = self._delivered.get(name)
        return self._open.get(name) if delivered is None else delivered[0]

    def drop(self, history: History) -> None:
        """Keep a stream no more; nothing happens for one that is not kept."""
        self._open.pop(history.name, None)
        if self._delivered.pop(history.name, None) is not None:
            self._delivered_size -= history.size

    def trim(self, now: float) -> list[Kept]:
        """Drop what the bounds do not let; return the streams that are dropped by this.

        A session may have delivered many streams a moment ago: only those that go are looked at.
        """
        dropped: list[Kept] = []
        absent = sum(not one.is_read for one in self._open.values())
        size = sum(one.kept_size for one in self._open.values())

        def is_beyond() -> bool:
            too_many = absent + len(self._delivered) > MAX_STREAMS
            return too_many or size + self._delivered_size > MAX_KEPT

        while self._delivered:
            oldest, at = next(iter(self._delivered.values()))
            if now - at < GRACE and not is_beyond():
                return dropped
            self.drop(oldest)
            dropped.append(oldest)
        for one in sorted(self._open.values(), key=_worth):  # the oldest first of each kind
            if not is_beyond():
                break
            size -= one.kept_size
            if one.is_read:
                one.drop_sent(0 if size + one.kept_size > MAX_KEPT else MAX_SENT)
                size += one.kept_size
            else:
                absent -= 1
                self.drop(one)
                dropped.append(one)
        return dropped


def _worth(history: History) -> bool:
    """Return how late a stream is dropped: what nobody has got is dropped last."""
    return not history.is_read
