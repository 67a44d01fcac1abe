"""``Streams``: puts what a relay sends to its client on the streams of HTTP responses.

A response goes on the stream of its request. So does progress, and what belongs to a subscription.
Another request or notice of the server names no request: in a session, such a message goes on the
stream of the newest request whose client reads, or on the stream that a GET has opened, or waits
for one of them. A client whose connection has broken may read on (``replay.py``). Revision
2026-07-28 has neither sessions nor streams that are resumed: clients of one caller share a relay,
so that ``Streams`` gives each request an id and a progress token of its own. This module does no
I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agentguard_mcp.gateway.answers import outline
from agentguard_mcp.gateway.http.replay import ReplayStore
from agentguard_mcp.gateway.http.stream import MAX_UNREAD, Item, Reader, Stream
from agentguard_mcp.gateway.messages import (
    Message,
    RequestId,
    is_request,
    is_response,
    meta_of,
    write,
)
from agentguard_mcp.params import STANDARD

MAX_BACKLOG: Final = 100
"""The most messages that wait for a client to open a stream; the oldest is dropped first."""

_SUBSCRIPTION: Final = f"{STANDARD}subscriptionId"
_PROGRESS: Final = "notifications/progress"
_LOG: Final = "notifications/message"
_NOT_RESUMED: Final = frozenset({"initialize", "subscriptions/listen"})
"""Before the first there is no session, and the second belongs to revision 2026-07-28."""

_GREETING_SINCE: Final = "2025-11-25"
"""The revision whose clients take an event without a message; older ones fail at it."""


@dataclass(slots=True)
class _Waiting:
    """A request of the client: the stream of its response, and what the client calls it."""

    stream: Stream
    request: Message
    token: Any = None
    takes_logs: bool = False


class Streams:
    """The client's end of a relay (``Client``), whose messages go to HTTP responses.

    ``is_shared`` is for a relay that several clients share, each request by itself (2026-07-28).
    With ``is_for_one``, these are clients of one caller, who may read what the server logs: a log
    message does not say for which request it is.
    ``refuse`` is told of a request of the server that no client gets, ``answered`` of the id of
    each request that has its answer, and ``kept_more`` that more may be kept for clients than
    before. ``held_size`` is the number of bytes of the requests that wait, or whose connection has
    not taken the answer.
    """

    def __init__(self, *, is_shared: bool, is_for_one: bool = True) -> None:
        self.refuse: Callable[[Message], None] = lambda _request: None
        self.answered: Callable[[RequestId], None] = lambda _identifier: None
        self.kept_more: Callable[[], None] = lambda: None
        self.is_shared = is_shared
        self._is_for_one = is_for_one
        self._waiting: dict[RequestId, _Waiting] = {}
        self._backlog: deque[Item] = deque(maxlen=MAX_BACKLOG)
        self._standing: Stream | None = None
        self._kept = ReplayStore()
        self.held_size = 0
        self._has_greeting = False
        self._last = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its response, or a client listens."""
        return bool(self._waiting) or self._standing is not None

    @property
    def pending(self) -> int:
        """How many requests wait for their responses, also those that no client waits for."""
        return len(self._waiting)

    @property
    def kept_size(self) -> int:
        """The bytes that are kept for clients that are away or may come again."""
        return self._kept.size

    # --- from the client --------------------------------------------------------------------------

    def register(self, request: Message, size: int = 0) -> tuple[Message, Reader] | None:
        """Return a request as the relay gets it, and the reader of its response.

        ``size`` is the length of the request in bytes. Return None for an id that is in use.
        """
        identifier, token = request["id"], meta_of(request).get("progressToken")
        is_resumable = not self.is_shared and request["method"] not in _NOT_RESUMED
        stream = Stream(is_resumable=is_resumable, has_greeting=self._has_greeting)
        if self.is_shared:
            self._last += 1
            identifier = f"http-{self._last}"
            sent = {**request, "id": identifier}
            if token is not None:
                sent = _with_token(sent, identifier)
        elif identifier in self._waiting:
            return None
        else:
            sent = request
        takes_logs = f"{STANDARD}logLevel" in meta_of(request)
        self._waiting[identifier] = _Waiting(stream, request, token, takes_logs)
        stream.held = size
        self.held_size += size
        return sent, stream.read()

    def listen(self) -> Reader | None:
        """Return what reads messages of no request, None where a client reads them already."""
        if self._standing is not None:
            return None
        stream = Stream(is_resumable=True, has_greeting=self._has_greeting)
        stream.begin()
        self._stand(stream)
        return stream.read()

    def resume(self, event: str) -> Reader:
        """Return what reads a stream behind an event; raises ``GoneError``.

        A connection that still reads the stream reads no more.
        """
        stream, number = self._kept.find(event)
        if stream.is_standing and self._standing not in (None, stream):
            stream.end()  # the client has another one by now
        elif stream.is_standing:
            self._stand(stream)
        return stream.read(number)

    def _stand(self, stream: Stream) -> None:
        stream.is_standing = True
        self._standing = stream
        while self._backlog:
            stream.put(self._backlog.popleft())

    def keep(self, stream: Stream) -> None:
        """Keep a stream whose client gets ids of events, and may come again with one of them."""
        if stream.is_resumable:
            self._kept.add(stream)

    def release(self, reader: Reader, *, is_gone: bool) -> RequestId | None:
        """Note that a connection has ended; ``is_gone`` says that the client has closed it.

        Return the id of a request that waits and that nobody can ask for any more, None for others.
        """
        stream = reader.stream
        if stream.reader is not reader:
            return None
        stream.reader = None
        if stream is self._standing:
            self._standing = None
        if not stream.is_resumable:
            stream.end()
            waiting = self._forget(stream)
            self._free(stream)
            return waiting
        self._free(stream)
        if reader.has_read_all and not is_gone:
            self._kept.deliver(stream, _now())
        if not self._kept.has(stream):
            stream.lose()
        self.trim()
        self.kept_more()
        return None

    def trim(self, most: int | None = None) -> None:
        """Drop what is kept for too long, or beyond the bounds; ``most`` is a bound in bytes."""
        for stream in self._kept.trim(_now(), most):
            stream.lose()

    def _forget(self, stream: Stream) -> RequestId | None:
        for identifier, waiting in self._waiting.items():
            if waiting.stream is stream:
                del self._waiting[identifier]
                return identifier
        return None

    def _free(self, stream: Stream) -> None:
        """Count a request no more that has its answer, once its connection has ended, too."""
        if not stream.is_read and all(one.stream is not stream for one in self._waiting.values()):
            self.held_size -= stream.held
            stream.held = 0

    def cancel(self, identifier: object) -> None:
        """End the stream of a request that the client has cancelled: no response will come."""
        waiting = self._waiting.pop(identifier, None) if isinstance(identifier, str | int) else None
        if waiting is not None:
            waiting.stream.end()
            self._kept.drop(waiting.stream)
            self._free(waiting.stream)

    # --- from the relay ---------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Put a message on the stream where it belongs; raises ``EncodeError``."""
        if is_response(message):
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None:
                self._note_revision(waiting.request, message)
                self.answered(message["id"])
                message = self._restored(message, waiting)
                self._put(waiting.stream, Item(write(message), outline(message)))
                waiting.stream.end()
                self._free(waiting.stream)
            return
        waiting = self._owner(message)
        if waiting is not None:
            self._put(waiting.stream, Item(write(self._restored(message, waiting))))
        elif not self.is_shared:
            self._put_elsewhere(Item(write(message)))
        elif is_request(message):
            self.refuse(message)

    def sent(self, identifier: RequestId) -> None:
        """Let the stream of a request begin: the request has gone to the server."""
        waiting = self._waiting.get(identifier)
        if waiting is not None:
            waiting.stream.begin()

    def poll(self, identifier: RequestId) -> None:
        """Let the connection of a request end, and its client come again for the answer.

        The connection of a client that does not know how to come again goes on.
        """
        waiting = self._waiting.get(identifier)
        if waiting is not None and waiting.stream.has_greeting:
            waiting.stream.finish_reader()

    def close(self) -> None:
        """End all streams."""
        for waiting in self._waiting.values():
            waiting.stream.end()
        self._waiting.clear()
        if self._standing is not None:
            self._standing.end()

    def _note_revision(self, request: Message, response: Message) -> None:
        if request["method"] == "initialize":
            revision = response.get("result", {}).get("protocolVersion")
            self._has_greeting = isinstance(revision, str) and revision >= _GREETING_SINCE

    def _put(self, stream: Stream, item: Item) -> None:
        stream.put(item)
        if not stream.is_read:
            self.trim()
            self.kept_more()

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
        return self._newest(is_read=True)

    def _newest(self, *, is_read: bool) -> _Waiting | None:
        """Return the newest request whose stream goes on, and that a client reads or does not."""
        open_ones = (one for one in self._waiting.values() if not one.stream.is_ended)
        found = [one for one in open_ones if one.stream.is_read is is_read]
        return found[-1] if found else None

    def _of_token(self, token: object) -> _Waiting | None:
        if not isinstance(token, str | int):
            return None
        if self.is_shared:
            return self._waiting.get(token)
        found = (one for one in self._waiting.values() if one.token == token)
        return next(found, None)

    def _put_elsewhere(self, item: Item) -> None:
        """Put a message on the stream of a GET, or where a client can come again for it."""
        absent = self._newest(is_read=False)
        if self._standing is not None:
            self._standing.put(item)
        elif absent is not None:
            self._put(absent.stream, item)
        else:
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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _with_token(request: Message, token: str) -> Message:
    params = request["params"]
    return {**request, "params": {**params, "_meta": {**params["_meta"], "progressToken": token}}}
