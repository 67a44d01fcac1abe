"""One connection to a guard server: its greeting, and the reports that the server may not have."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream


class Greeting(NamedTuple):
    """What the server says to a new connection: the session, and what the guard needs to know."""

    session: str
    client: str
    isolation: str
    policy: tuple[str, str | None]
    roster: Any
    trust: bytes


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
        self.stream.read()
        self.reports.clear()

    def take_reports(self) -> list[Frame]:
        """Return the reports as requests, which the server answers, and forget them."""
        reports, self.reports, self.resent = self.reports, [], None
        return [_waited_for(report) for report in reports]


def _waited_for(report: Frame) -> Frame:
    header = {name: value for name, value in report.header.items() if name != "quiet"}
    return Frame(header, report.blobs)


def read_greeting(answer: Mapping[str, Any]) -> Greeting:
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
        )

    return values.reads("greeting", read)
