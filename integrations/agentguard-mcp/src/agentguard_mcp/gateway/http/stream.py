"""``Stream``: the messages for one request of a client, and the ``Reader`` of one connection.

A client of a session may lose its connection, and read the rest of the stream over another one. So
each message has a number, and the id of an event (``Last-Event-ID``) has the name of the stream,
which nobody can guess, and the number. ``replay.py`` finds the stream of an id. One connection
reads a stream at a time. This module does no I/O.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from agentguard_mcp.gateway.messages import Message

MAX_UNREAD: Final = 32 << 20
"""The most bytes that wait for a client that does not read, before its stream ends."""

MAX_SENT: Final = 1 << 20
"""The bytes of one stream that are kept after a client has got them, beside the newest message."""


class Item(NamedTuple):
    """A message on a stream: its line, and the outline of one that answers the request."""

    line: bytes
    answer: Message | None = None


class Event(NamedTuple):
    """A message on its way to a client; without a line, the event with which a stream begins.

    ``identifier`` is the id by which a client says that it has got the event, empty for a stream
    that nobody can resume. ``answer`` is the outline of a message that answers the request.
    """

    identifier: str
    line: bytes
    answer: Message | None = None


class Stream:
    """The messages for one request of a client, or for the client's GET, numbered from 1 on.

    The oldest messages may be dropped. ``name`` names the stream. ``size`` is the number of bytes
    of all messages, and ``sent_size`` of those that the newest connection has taken.
    A stream that ``is_resumable`` outlives the connection that reads the stream. ``has_greeting``
    says that such a stream begins with an event without a message, for clients of revisions that
    know this event. ``answer`` is the outline of the answer, None until the answer is there, and
    ``held`` is the number of bytes that the request takes.
    ``is_ended`` says that nothing more comes, and ``is_standing`` that this is the stream of a GET,
    for messages that belong to no request. ``reader`` is the connection that reads the stream now.
    """

    def __init__(self, *, is_resumable: bool = False, has_greeting: bool = False) -> None:
        self.name = secrets.token_hex(16)
        self.size = 0
        self.sent_size = 0
        self.is_resumable = is_resumable
        self.has_greeting = is_resumable and has_greeting
        self.has_begun = False
        self.is_ended = False
        self.is_standing = False
        self.answer: Message | None = None
        self.held = 0
        self.reader: Reader | None = None
        self._items: deque[Item] = deque()
        self._first = 1
        self._sent = 0
        self._most_sent = 0

    @property
    def is_read(self) -> bool:
        """Whether a client reads the stream now."""
        return self.reader is not None

    # --- the connection ---------------------------------------------------------------------------

    def read(self, after: int = 0) -> Reader:
        """Return what a connection reads behind a message; another connection reads no more."""
        former, self.reader = self.reader, Reader(self, after)
        self.rewind(after)
        if former is not None:
            former.stop()
        return self.reader

    def begin(self) -> None:
        """Let the stream begin, before its first message: the request has gone to the server."""
        self.has_begun = True
        self._wake()

    def put(self, item: Item) -> None:
        """Add a message, unless the stream has ended; too many unread bytes end the stream."""
        if self.is_ended:
            return
        self._items.append(item)
        self.size += len(item.line)
        self.answer = item.answer
        if self.size - self.sent_size > MAX_UNREAD:
            self.lose()
        self._wake()

    def end(self) -> None:
        """Let the stream end behind what waits."""
        self.is_ended = True
        self._wake()

    def lose(self) -> None:
        """Drop all messages, and take no more."""
        self.drop_all()
        self.end()

    def finish_reader(self) -> None:
        """Let the connection that reads end behind what waits; the stream goes on."""
        if self.reader is not None:
            self.reader.finish()

    def _wake(self) -> None:
        if self.reader is not None:
            self.reader.changed.set()

    # --- the messages -----------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The number of the newest message, 0 where there was none."""
        return self._first + len(self._items) - 1

    @property
    def kept_size(self) -> int:
        """The bytes that are kept for a client that does not read, or may come again."""
        return self.sent_size if self.is_read else self.size

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


class Reader:
    """One connection that reads a stream, behind message number ``position``.

    ``changed`` is set when there may be something to take, or nothing more comes.
    """

    def __init__(self, stream: Stream, position: int) -> None:
        self.stream = stream
        self.changed = asyncio.Event()
        self._position = position
        self._greets = stream.has_greeting
        self._is_stopped = False
        self._is_done = False

    @property
    def has_read_all(self) -> bool:
        """Whether the stream has ended, and this connection has its last message."""
        return self.stream.is_ended and self._position == self.stream.newest

    def finish(self) -> None:
        """Let the connection end behind what waits, and the stream go on."""
        self._is_done = True
        self.changed.set()

    def stop(self) -> None:
        """Let the connection end at once, and the stream go on."""
        self._is_stopped = True
        self.changed.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing comes but what ``take`` returns."""
        return self._is_stopped or self._is_done or self.stream.is_ended

    def take(self) -> Event | None:
        """Return the event that is there, None for none."""
        if self._is_stopped:
            return None
        stream = self.stream
        item = stream.get(self._position + 1)
        if self._greets and (stream.has_begun or (item is not None and item.answer is None)):
            self._greets = False
            stream.has_begun = True
            return Event(stream.event(self._position), b"")
        if item is None:
            return None
        self._position += 1
        stream.note_sent(self._position)
        if stream.is_resumable:
            return Event(stream.event(self._position), *item)
        stream.drop_sent(0)
        return Event("", *item)
