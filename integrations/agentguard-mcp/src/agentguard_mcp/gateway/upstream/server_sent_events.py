"""Reads a stream of server-sent events, as MCP's streamable HTTP uses it: messages, one an event.

The fields ``data``, ``id`` and ``retry`` count (WHATWG HTML, "Server-sent events"). This module
does no I/O.
"""

from __future__ import annotations

import re
from typing import Final

from agentguard.adapters import DecodeError

MAX_ID: Final = 1_024
"""The longest id of an event, in bytes, with which the gateway asks for the rest of a stream."""

_END: Final = re.compile(rb"\r\n|\n|\r")
_PLAIN: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_ID)
_RETRY: Final = re.compile(rb"[0-9]{1,9}")


class EventReader:
    """Cuts bytes into the data of events; ``limit`` is the most bytes of one event.

    ``last_id`` is the id of the last event that is complete, which may have come over a connection
    before; None for none, and for one that no header can hold. ``retry`` is the time that the
    server has named last, in milliseconds, None for none. The reader looks at each byte once,
    however a server cuts its bytes.
    """

    def __init__(self, limit: int, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry: int | None = None
        self._id = last_id
        self._limit = limit
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._has_return = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes, and return the data of each event that is complete.

        Raises ``DecodeError`` (``json.size``) for an event that is longer than the limit.
        """
        if not chunk:
            return []
        if self._has_return:  # a line feed after it belongs to the end of the same line
            chunk = chunk.removeprefix(b"\n")
        self._has_return = chunk.endswith(b"\r")
        events: list[bytes] = []
        first, *others = _END.split(chunk)
        self._rest += first
        if others:
            for line in (bytes(self._rest), *others[:-1]):
                self._take(line, events)
            self._rest = bytearray(others[-1])
        self._require_size(len(self._rest))
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        """Take a whole line without its end."""
        if line == b"":
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._size = [], 0
            self.last_id = self._id
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(line)
            self._require_size(0)
        elif field == b"id":
            self._id = value.decode() if _PLAIN.fullmatch(value) else None
        elif field == b"retry" and _RETRY.fullmatch(value):
            self.retry = int(value)

    def _require_size(self, more: int) -> None:
        if self._size + more > self._limit:
            raise DecodeError("an event of the server is too long", code="json.size")
