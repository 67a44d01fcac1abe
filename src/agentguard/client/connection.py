"""One connection to a guard server: its greeting, and the reports that the server may not have."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from agentguard.errors import DecodeError, ServerError
from agentguard.signing.canonical import is_integer
from agentguard.signing.keys import Secret
from agentguard.wire import values
from agentguard.wire.frame import PROTOCOL, Frame
from agentguard.wire.stream import EndedError, Stream

_LAST_WORD: Final = 0.5
"""Seconds that the last word of a server that has ended may take."""


class Greeting(NamedTuple):
    """What the server says to a new connection: the session, and what the guard needs to know.

    ``ends_in`` is how many seconds the connection may serve, None where it has neither a token nor
    a certificate that ends.
    """

    session: str
    client: str
    isolation: str
    policy: tuple[str, str | None]
    roster: Any
    trust: bytes
    ends_in: float | None


class Connection:
    """A connection, and the messages that the server may not have got yet.

    ``reports`` were written on this connection, and ``resent`` is one of a lost connection that is
    on its way. ``user`` is the thread that uses the connection (``threading.get_ident``), None for
    a free one.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reports: list[Frame] = []
        self.resent: Frame | None = None
        self.user: int | None = threading.get_ident()
        self._taken = 0

    def read(self) -> Frame:
        """Return the server's next answer; raises as ``Stream.read`` does.

        The last word of a server that ends is no answer (``EndedError``): it says how many of the
        reports the server has.
        """
        answer = self.stream.read()
        taken = answer.header.get("taken")
        if taken is None:
            return answer
        self._taken = taken if is_integer(taken) and taken > 0 else 0
        raise EndedError("the server has ended")

    def hear_last_word(self, error: BaseException) -> None:
        """Wait a moment for the last word of a server that has ended, if the error may say so."""
        may_have_ended = isinstance(error, OSError | ServerError)
        if may_have_ended and self.reports and not self._taken:
            with suppress(OSError, DecodeError):
                self.stream.wait_at_most(_LAST_WORD)
                self.read()

    def newest(self) -> Frame | None:
        """Return the message that was written last, of those that the server may not have."""
        if self.resent is not None:
            return self.resent
        return self.reports[-1] if self.reports else None

    def has(self, message: Frame | None) -> bool:
        """Whether a message is among those that the server may not have; None never is."""
        sent = (self.resent, *self.reports)
        return message is not None and any(one is message for one in sent)

    def confirm(self) -> None:
        """Ask the server whether it has all reports, and wait for the answer."""
        self.stream.write(Frame({"op": "flush"}))
        self.read()
        self.reports.clear()

    def take_reports(self) -> list[Frame]:
        """Return the reports as requests, which the server answers, and forget them.

        Those that a server has taken by its last word are left out.
        """
        reports, self.reports, self.resent = self.reports[self._taken :], [], None
        return [_waited_for(report) for report in reports]


def _waited_for(report: Frame) -> Frame:
    header = {name: value for name, value in report.header.items() if name != "quiet"}
    return Frame(header, report.blobs)


def greet(stream: Stream, session: str | None, token: Secret | None) -> Greeting:
    """Greet the server on a new connection, and return what the server says.

    ``session`` is that to go on with, None for a new one. ``token`` says who this client is, where
    the connection itself does not. Raises the server's ``AgentguardError``, ``DecodeError`` and
    ``OSError``.
    """
    first = stream.read().header  # from here on the server sees who sends
    if "error" in first:
        raise values.read_error(first["error"])
    hello = {"op": "hello", "protocol": PROTOCOL, "session": session}
    if token is None:
        stream.write(Frame(hello))
    else:
        _write_with(token, stream, hello)
    answer = stream.read().header
    if "error" in answer:
        raise values.read_error(answer["error"])
    return _read_greeting(answer)


def _write_with(token: Secret, stream: Stream, hello: Mapping[str, Any]) -> None:
    try:
        stream.write(Frame({**hello, "token": token.reveal().decode("ascii")}))
    except OSError as error:  # a report of the error shows the variables of each frame
        raise error.with_traceback(None) from None


def end_session(stream: Stream) -> None:
    """Tell the server that a session is over; a server that does not hear it finds out."""
    with suppress(OSError, DecodeError):
        stream.write(Frame({"op": "end"}))
        stream.read()


def close_all(streams: set[Stream]) -> None:
    """Close all streams."""
    for stream in streams:
        stream.close()


def _read_greeting(answer: Mapping[str, Any]) -> Greeting:
    """Read what the server says to a new connection; raises ``DecodeError``."""

    def read() -> Greeting:
        place, url = answer["policy"]
        return Greeting(
            values.text(answer["session"]),
            values.text(answer["client"]),
            values.text(answer["isolation"]),
            (values.text(place), values.text_or_none(url)),
            answer["roster"],
            values.text(answer["trust"]).encode(),
            None if answer.get("ends_in") is None else float(answer["ends_in"]),
        )

    return values.reads("greeting", read)
