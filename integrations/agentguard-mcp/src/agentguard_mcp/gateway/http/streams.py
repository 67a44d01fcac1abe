"""``Streams``: puts what a relay sends to its client on the streams of HTTP responses.

A response goes on the stream of its request. So does progress, and what belongs to a subscription.
Another request or notice of the server names no request: in a session, such a message goes on the
stream of the newest request that waits, or on the stream that a GET has opened, or waits for this
stream. Revision 2026-07-28 has no session: clients of one caller share a relay, so that ``Streams``
gives each request an id and a progress token of its own. This module does no I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from agentguard_mcp.gateway.messages import (
    STANDARD,
    Message,
    RequestId,
    is_request,
    is_response,
    meta_of,
    write,
)

MAX_UNREAD: Final = 32 << 20
"""The most bytes that wait for a client that does not read, before its stream ends."""

MAX_BACKLOG: Final = 100
"""The most messages that wait for a client to open a stream; the oldest is dropped first."""

_SUBSCRIPTION: Final = f"{STANDARD}subscriptionId"
_PROGRESS: Final = "notifications/progress"
_LOG: Final = "notifications/message"


class Item(NamedTuple):
    """A message on a stream: its line, and the message itself where it answers the request."""

    line: bytes
    answer: Message | None = None


class Stream:
    """The messages of one HTTP response, in their order.

    ``answer`` is the answer to the request, None until it is there.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._size = 0
        self._is_ended = False
        self._changed = asyncio.Event()
        self.answer: Message | None = None

    @property
    def is_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._is_ended

    def put(self, item: Item) -> None:
        """Add a message, unless the stream has ended; too many unread bytes end the stream."""
        if self._is_ended:
            return
        self._size += len(item.line)
        if self._size > MAX_UNREAD:
            self._items.clear()
            self.end()
            return
        self._items.append(item)
        self.answer = item.answer
        self._changed.set()

    def end(self) -> None:
        """Let the stream end behind what waits."""
        self._is_ended = True
        self._changed.set()

    async def next(self) -> Item | None:
        """Return the next message, None at the end."""
        while not self._items:
            if self._is_ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        self._size -= len(item.line)
        return item


@dataclass(slots=True)
class _Waiting:
    """A request of the client: the stream of its response, and what the client calls it."""

    stream: Stream
    request: Message
    token: Any = None
    takes_logs: bool = field(default=False)


class Streams:
    """The client's end of a relay (``Peer``), whose messages go to HTTP responses.

    ``is_shared`` is for a relay that several clients share, each request by itself (2026-07-28).
    With ``is_for_one``, these are clients of one caller, who may read what the server logs: a log
    message does not say for which request it is.
    ``refuse`` is told of a request of the server that no client gets.
    """

    def __init__(self, *, is_shared: bool, is_for_one: bool = True) -> None:
        self.refuse: Callable[[Message], None] = lambda _request: None
        self.is_shared = is_shared
        self._is_for_one = is_for_one
        self._waiting: dict[RequestId, _Waiting] = {}
        self._backlog: deque[Item] = deque(maxlen=MAX_BACKLOG)
        self._standing: Stream | None = None
        self._last = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its response, or a client listens."""
        return bool(self._waiting) or self._standing is not None

    @property
    def pending(self) -> int:
        """How many requests wait for their responses."""
        return len(self._waiting)

    # --- from the client --------------------------------------------------------------------------

    def register(self, request: Message) -> tuple[Message, Stream] | None:
        """Return a request as the relay gets it, and the stream of its response.

        Returns None for an id that is in use.
        """
        stream, identifier = Stream(), request["id"]
        token = meta_of(request).get("progressToken")
        if self.is_shared:
            self._last += 1
            identifier = f"http-{self._last}"
            request_sent = _with_token(request, identifier) if token is not None else request
            sent = {**request_sent, "id": identifier}
        elif identifier in self._waiting:
            return None
        else:
            sent = request
        takes_logs = f"{STANDARD}logLevel" in meta_of(request)
        self._waiting[identifier] = _Waiting(stream, request, token, takes_logs)
        return sent, stream

    def listen(self) -> Stream | None:
        """Return the stream for what belongs to no request, None where there is one already."""
        if self._standing is not None:
            return None
        self._standing = Stream()
        while self._backlog:
            self._standing.put(self._backlog.popleft())
        return self._standing

    def forget(self, stream: Stream) -> RequestId | None:
        """Note that a client reads a stream no more; return the id of its request, if it waits."""
        stream.end()
        if stream is self._standing:
            self._standing = None
            return None
        for identifier, waiting in self._waiting.items():
            if waiting.stream is stream:
                del self._waiting[identifier]
                return identifier
        return None

    def cancel(self, identifier: object) -> None:
        """End the stream of a request that the client has cancelled: no response will come."""
        waiting = self._waiting.pop(identifier, None) if isinstance(identifier, str | int) else None
        if waiting is not None:
            waiting.stream.end()

    # --- from the relay ---------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Put a message on the stream where it belongs; raises ``EncodeError``."""
        if is_response(message):
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                message = self._restored(message, waiting)
                waiting.stream.put(Item(write(message), message))
                waiting.stream.end()
            return
        waiting = self._owner(message)
        if waiting is not None:
            waiting.stream.put(Item(write(self._restored(message, waiting))))
        elif not self.is_shared:
            self._put_elsewhere(Item(write(message)))
        elif is_request(message):
            self.refuse(message)

    def close(self) -> None:
        """End all streams."""
        for waiting in self._waiting.values():
            waiting.stream.end()
        self._waiting.clear()
        if self._standing is not None:
            self._standing.end()

    def _owner(self, message: Message) -> _Waiting | None:
        """Return the request to which a message of the server belongs, None where nobody knows."""
        params = message.get("params", {})
        subscription = meta_of(message).get(_SUBSCRIPTION)
        if isinstance(subscription, str | int):
            return self._waiting.get(subscription)
        if message["method"] == _PROGRESS:
            return self._of_token(params.get("progressToken"))
        if self.is_shared:
            takers = [one for one in self._waiting.values() if one.takes_logs]
            is_clear = message["method"] == _LOG and len(takers) == 1
            return takers[0] if is_clear and self._is_for_one else None
        newest = reversed(self._waiting.values())
        return next((one for one in newest if not one.stream.is_ended), None)

    def _of_token(self, token: object) -> _Waiting | None:
        if not isinstance(token, str | int):
            return None
        if self.is_shared:
            return self._waiting.get(token)
        found = (one for one in self._waiting.values() if one.token == token)
        return next(found, None)

    def _put_elsewhere(self, item: Item) -> None:
        if self._standing is not None:
            self._standing.put(item)
            return
        self._backlog.append(item)
        while sum(len(one.line) for one in self._backlog) > MAX_UNREAD:
            self._backlog.popleft()

    def _restored(self, message: Message, waiting: _Waiting) -> Message:
        """Return a message with the client's own id, progress token and subscription id."""
        if not self.is_shared:
            return message
        identifier = waiting.request["id"]
        if is_response(message):
            message = {**message, "id": identifier}
        if message.get("method") == _PROGRESS:
            params = {**message["params"], "progressToken": waiting.token}
            message = {**message, "params": params}
        for part in ("params", "result"):
            container = message.get(part)
            meta = container.get("_meta") if isinstance(container, dict) else None
            if isinstance(container, dict) and isinstance(meta, dict) and _SUBSCRIPTION in meta:
                restored = {**container, "_meta": {**meta, _SUBSCRIPTION: identifier}}
                message = {**message, part: restored}
        return message


def _with_token(request: Message, token: str) -> Message:
    params = request["params"]
    return {**request, "params": {**params, "_meta": {**params["_meta"], "progressToken": token}}}
