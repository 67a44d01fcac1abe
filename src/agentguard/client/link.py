"""``Link``: the connections of this process to a guard server.

A request takes a free or a new connection, and waits for the answer. A report (an outcome that
nobody waits for) is not answered: the next answer on the connection, or the last word of a server
that ends, says that the server has it. A connection that fails is given up. A request is then sent
once more on a new connection of the same session: a call has an id, so that the server does not
repeat it. Another request is repeated, and its second answer may differ (ADR 0034). The reports of
the lost connection go on the next one that has an answer. While the server is started anew, a
process that was connected before waits for it (``patience``). A connection with a token or a
certificate is renewed before that ends. A forked process has a session of its own: the parent's
connections are closed in the child.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from agentguard.client import outcome_log
from agentguard.client.connection import Connection, Greeting, close_all, end_session, greet
from agentguard.client.dial import Dial
from agentguard.client.renewal import Renewal
from agentguard.errors import AgentguardError, DecodeError, EncodeError, ServerError
from agentguard.signing.keys import Secret
from agentguard.storage.owned_lock import OwnedLock
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

_LOGGER = logging.getLogger("agentguard")

MOST: Final = 32
"""The most connections of a process at a time; more requests wait for a free connection."""

MOST_REPORTS: Final = 64
"""The most reports on a connection before the server is asked whether it has them."""

_TRIES: Final = 3
"""How many connections a message may break, or a withdrawal reach, before it is given up."""

_PAUSE: Final = 0.05
_AWAY: Final = frozenset({"server.draining", "server.unreachable"})

T = TypeVar("T")


class Link:
    """The connections to a server, which ``dial`` opens. The methods may be called from any thread.

    ``generation`` counts the sessions of this process. It grows where the server was started anew
    and has forgotten the session: what the earlier session named is gone then. ``timeout`` is how
    many seconds an answer may take, ``patience`` how many a server that is started anew.
    """

    def __init__(self, dial: Dial, *, timeout: float, patience: float = 0.0) -> None:
        self._dial = dial
        self._timeout = timeout
        self._patience = patience
        self.generation = 0
        self._was_connected = False
        self._is_closed = False
        self._start()

    def _start(self) -> None:
        # no call that interrupts this thread waits for it, or for the methods of a SimpleQueue
        self._lock = threading.RLock()
        self._beginning = OwnedLock("it began its session with the guard server")
        self._streams: set[Stream] = set()
        weakref.finalize(self, close_all, self._streams)  # of a guard that nobody has closed
        self._renewal = Renewal(self)
        self._free: list[Connection] = []
        self._slots: SimpleQueue[None] = SimpleQueue()  # of places for connections
        for _ in range(MOST):
            self._slots.put(None)
        self._connections: set[Connection] = set()
        self._unsent: deque[tuple[Frame, int]] = deque()  # messages, and how often each failed
        self._lost: list[AgentguardError] = []
        self._sessions: dict[int, str] = {}  # by the generation: each has one
        self._released: deque[str] = deque()

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._is_closed

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the places for connections; wait where none is free."""
        slots = self._slots
        slots.get()
        try:
            yield
        finally:
            slots.put(None)

    def connect(self) -> Greeting:
        """Open a connection, and begin or join the session; raises ``ServerError``."""
        with self._slot():
            connection, greeting = self._open()
            self._keep(connection)
        return greeting

    def request(self, header: Mapping[str, Any], *blobs: bytes) -> Frame:
        """Send a request, and return the answer.

        Raises the server's ``AgentguardError``, and ``ServerError`` (``server.unreachable``) where
        no connection can be had.
        """
        released: list[str] = []
        with suppress(IndexError):
            released.extend(iter(self._released.popleft, None))
        message = Frame({**header, "released": released} if released else header, blobs)

        def ask(connection: Connection) -> Frame:
            connection.stream.write(message)
            answer = connection.read()
            connection.reports.clear()  # the server reads one frame after another
            return answer

        until = time.monotonic() + self._patience
        while True:
            answer = self._on_connection(ask)
            error = answer.header.get("error")
            if error is None:
                return answer
            refused = values.read_error(error)
            if refused.code != "server.draining" or time.monotonic() > until:
                raise refused
            time.sleep(_PAUSE)

    def release(self, name: str) -> None:
        """Note an instance that is not used any more, for the next request; waits for nobody."""
        self._released.append(name)

    def report(self, header: Mapping[str, Any], *blobs: bytes) -> None:
        """Send a report that nobody waits for; what is lost with a connection is sent again.

        Raises ``ServerError`` where no connection can be had.
        """
        message = Frame({**header, "quiet": True}, blobs)

        def tell(connection: Connection) -> None:
            connection.stream.write(message)
            connection.reports.append(message)
            if len(connection.reports) >= MOST_REPORTS:
                connection.confirm()

        self._on_connection(tell)

    def withdraw(self, request_id: str, *, waits: bool) -> None:
        """Have the server end a call that does not run here.

        Where nobody ``waits``, the next connection that is used brings the message. Raises
        ``ServerError`` where no connection can be had: the next one brings the message then, too.
        """
        self._unsent.append((Frame({"op": "withdraw", "request_id": request_id}), 0))
        if waits:
            self._on_connection(lambda _connection: None)

    def flush(self) -> None:
        """Wait until the server has the reports so far, also those of other threads.

        Raises ``ServerError`` where the server can't be reached, and (once) for reports that were
        lost since the last ``flush``.
        """
        with self._lock:
            waiting = [(one, one.newest()) for one in tuple(self._connections)]
        while waiting or self._unsent:
            for connection, message in waiting:
                self._confirm(connection, message)
            if self._unsent:  # each time sends one at least, or counts that it failed
                self._on_connection(Connection.confirm)
            with self._lock:  # another thread may send what a lost connection has not brought
                waiting = [(one, one.resent) for one in tuple(self._connections) if one.resent]
        lost, self._lost = self._lost, []
        if lost:
            what = f"{len(lost)} outcomes did not reach the guard server: {lost[-1]}"
            raise ServerError(what, code=lost[-1].code)

    def _confirm(self, connection: Connection, message: Frame | None) -> None:
        """Wait until the server has a message, or the connection has failed.

        Another thread that uses the connection waits for an answer, or for the time-out. A signal
        handler can't wait for the thread that the signal has interrupted.
        """
        while True:
            with self._lock:  # what a connection gives up is among the unsent ones at once
                if not connection.has(message) or connection.user == threading.get_ident():
                    return
            with self._slot(), suppress(OSError, DecodeError):
                if self._take(connection):
                    self._do(connection, Connection.confirm)
                    return
            time.sleep(_PAUSE)

    def _on_connection(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` on a connection that nobody else uses, and once more on a new connection."""
        with self._slot():
            connection = self._take_free()
            if connection is not None:
                try:
                    return self._do(connection, work)
                except (OSError, DecodeError):  # the server ended it, or was started anew
                    pass
            try:
                return self._do(self._open()[0], work)
            except (OSError, DecodeError) as error:
                raise self._dial.unreachable(error) from error

    def _do(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            done = work(connection)
        except EncodeError:  # nothing was written
            self._keep(connection)
            raise
        except BaseException as error:
            connection.hear_last_word(error)
            self._give_up(connection)
            raise
        if self._unsent and not connection.reports:  # an answer has come: the connection works
            try:
                self._resend(connection)
            except BaseException as error:
                self._give_up(connection)
                if isinstance(error, OSError | DecodeError):
                    return done
                raise
        self._keep(connection)
        return done

    def _take_free(self) -> Connection | None:
        with self._lock:
            if self._is_closed:
                raise ServerError("the guard is closed: open it again", code="storage.closed")
            if self._free:
                self._free[-1].user = threading.get_ident()
            return self._free.pop() if self._free else None

    def _take(self, connection: Connection) -> bool:
        """Take this connection; return False where another thread has it, or it is closed."""
        with self._lock:
            if connection not in self._free:
                return False
            connection.user = threading.get_ident()
            self._free.remove(connection)
        return True

    def _keep(self, connection: Connection) -> None:
        connection.user = None
        with self._lock:
            if not self._is_closed:
                self._free.append(connection)
                return
        self._end(connection)

    def _give_up(self, lost: Connection) -> None:
        """Close a connection that has failed; another one brings its reports."""
        self._end(lost)
        with self._lock:
            self._unsent.extend((report, 0) for report in lost.take_reports())

    def _end(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._close(connection.stream)

    def _resend(self, connection: Connection) -> None:
        """Send what lost connections have not brought; raises where this one fails, too."""
        for _ in range(len(self._unsent)):  # what comes back meanwhile waits for another time
            with self._lock:
                if not self._unsent:  # another thread has sent it
                    return
                message, failed = self._unsent.popleft()
                connection.resent = message
            try:
                connection.stream.write(message)
                answer = connection.read().header
                refused = values.read_error(answer["error"]) if "error" in answer else None
            except BaseException as error:
                if failed + 1 < _TRIES:
                    self._unsent.appendleft((message, failed + 1))
                else:
                    self._lose(message, self._dial.unreachable(error))
                raise
            if refused is not None and message.header["op"] == "withdraw" and failed + 1 < _TRIES:
                self._unsent.append((message, failed + 1))  # the call may still be on its way
            elif refused is not None:
                self._lose(message, refused)
            connection.resent = None

    def _lose(self, message: Frame, error: AgentguardError) -> None:
        """Note that the server does not get a message; of a withdrawn call it may know nothing."""
        if message.header["op"] != "withdraw":
            self._lost.append(error)
            outcome_log.warn(message.header, error)

    def renew(self) -> None:
        """Open a connection with a new token in place of the free ones; raises ``ServerError``."""
        with self._slot():
            connection = self._open()[0]
            with self._lock:
                while self._free:
                    self._give_up(self._free.pop())
            self._keep(connection)
        while self._unsent:  # reports that the old connections may not have brought
            self._on_connection(Connection.confirm)

    def _open(self) -> tuple[Connection, Greeting]:
        until = time.monotonic() + (self._patience if self._was_connected else 0.0)
        while True:
            try:
                joined = self._join()
            except ServerError as error:
                is_away = error.code in _AWAY and time.monotonic() < until
                is_old = error.code == "server.token" and self._dial.forget_token()
                if error.code != "server.restarted" and not is_away and not is_old:
                    raise
                time.sleep(_PAUSE if is_away else 0)
            else:
                self._was_connected = True
                return joined

    def _join(self) -> tuple[Connection, Greeting]:
        """Open a connection of the session; the first one begins the session.

        Raises ``ServerError``: ``server.restarted`` where the server has forgotten the session,
        which is then forgotten here, too.
        """
        is_begun = self.generation in self._sessions
        # only one thread begins a session
        with nullcontext() if is_begun else self._beginning.held():
            generation = self.generation
            session = self._sessions.get(generation)
            token = self._dial.token()  # before the server waits for the greeting
            stream = self._connected()
            try:
                greeting = self._greet(stream, session, token)
            except (OSError, DecodeError) as error:
                self._close(stream)
                raise self._dial.unreachable(error) from error
            except BaseException:
                self._close(stream)
                raise
            self._sessions[generation] = greeting.session
        self._renewal.schedule(greeting.ends_in)
        connection = Connection(stream)
        self._connections.add(connection)
        return connection, greeting

    def _connected(self) -> Stream:
        try:
            stream = self._dial(self._timeout)
        except (OSError, DecodeError) as error:
            raise self._dial.unreachable(error) from error
        self._streams.add(stream)
        return stream

    def _close(self, stream: Stream) -> None:
        self._streams.discard(stream)
        stream.close()

    def _greet(self, stream: Stream, session: str | None, token: Secret | None) -> Greeting:
        try:
            return greet(stream, session, token)
        except ServerError as refused:
            if refused.code == "server.restarted":
                with self._lock:
                    if self._sessions.get(self.generation) == session:
                        self.generation += 1
                        self._end_connections(refused)
            raise

    def _end_connections(self, error: AgentguardError) -> None:
        """Close the connections of a session that the server has forgotten."""
        while self._free:
            self._free[-1].hear_last_word(error)
            self._give_up(self._free.pop())
        while self._unsent:
            self._lose(self._unsent.popleft()[0], error)

    def forked(self) -> None:
        """Leave the parent's connections to the parent, in a forked process."""
        for stream in self._streams:
            stream.abandon()
        self.generation += 1
        self._start()

    def close(self) -> None:
        """Wait until the server has all reports, end the session, and close the connections.

        What can't be sent is a warning.
        """
        try:
            self.flush()
        except AgentguardError as error:
            _LOGGER.warning("the guard closes, and the guard server lacks outcomes: %s", error)
        with self._lock:
            stream = self._free[-1].stream if self._free else None
        if stream is not None:
            end_session(stream)
        self._renewal.end()
        with self._lock:
            self._is_closed = True
            self._unsent.clear()
            connections, self._free = self._free, []
        for connection in connections:
            self._end(connection)
