"""Reads a stream of server-sent events, as MCP's streamable HTTP uses it: messages, one an event.

Only the field ``data`` counts (WHATWG HTML, "Server-sent events"). This module does no I/O.
"""

from __future__ import annotations

from typing import Final

from agentguard.adapters import DecodeError

_ENDS: Final = (b"\r\n", b"\n", b"\r")


class EventReader:
    """Cuts bytes into the data of events; ``limit`` is the most bytes of one event."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes, and return the data of each event that is complete.

        Raises ``DecodeError`` (``json.size``) for an event that is longer than the limit.
        """
        self._rest += chunk
        events: list[bytes] = []
        while (line := self._line()) is not None:
            if line == b"":
                if self._data:
                    events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size += len(line)
            if self._size > self._limit:
                break
        if self._size + len(self._rest) > self._limit:
            raise DecodeError("an event of the server is too long", code="json.size")
        return events

    def _line(self) -> bytes | None:
        """Return the next line without its end, None where no whole line is there yet.

        A carriage return at the end of what is there may be half of a line's end.
        """
        places = [(place, end) for end in _ENDS if (place := self._rest.find(end)) >= 0]
        if not places:
            return None
        place, end = min(places, key=lambda found: (found[0], -len(found[1])))
        if end == b"\r" and place == len(self._rest) - 1:
            return None
        line, self._rest = self._rest[:place], self._rest[place + len(end) :]
        return line
