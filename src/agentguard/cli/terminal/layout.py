"""Rows: how text is cut at the width of a terminal, so that none of it begins where ours begins.

A row that is cut within a word ends with a backslash. What is said in the rows stands in
``screen.py``, how a text is shown in ``visible.py``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final, overload

from rich.text import Text

from agentguard import visible

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 160
"""Cells of a row of a sheet where there is no terminal."""

BAR: Final = "  | "
"""Before each row that goes on below another one."""

_NARROWEST: Final = 24
"""Terminal cells beside a head; where there are fewer, the text stands below its head."""

_USUAL: Final = 80
"""Cells of a terminal that does not say how wide it is."""

_STREAMS: Final = (0, 2)
"""What is a terminal where only the output goes elsewhere, as into ``less``."""


def console(stream: IO[str]) -> Console:
    """Return what prints on a stream: no markup is read in a text, and nothing is highlighted."""
    from rich.console import Console  # noqa: PLC0415  it is slow, and help and JSON need none

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def flow(stream: IO[str], text: Text) -> None:
    """Print a line; where it is wider than the terminal, what goes on stands behind a bar."""
    rows(stream, Text(""), text, BAR, by_itself=True)


def rows(stream: IO[str], head: Text, body: Text, under: str, *, by_itself: bool = False) -> None:
    """Print text in rows: the first after ``head``, the others after ``under``.

    What stands ``by_itself`` is cut only where there is a terminal, or ``COLUMNS``.
    """
    printer, room = console(stream), width(stream, None if by_itself else PIPE_WIDTH)
    body = _encodable(body, stream)
    if body.no_wrap or room is None:
        printer.print(Text("").join((head, body)), soft_wrap=True)
        return
    if head and room - max(head.cell_len, len(under)) < min(_NARROWEST, room - len(BAR)):
        name = Text(head.plain.rstrip(" |"), style=head.style)
        if name:
            rows(stream, Text(""), name, BAR)
        head, under = Text(BAR), BAR
    ends = visible.breaks(body.plain, room - len(under), room - head.cell_len)
    pieces = body.divide(ends[:-1])
    for number, piece in enumerate(pieces):
        goes_on = number < len(pieces) - 1 and not piece.plain.endswith(" ")
        piece.rstrip()
        begun = head if number == 0 else Text(under)
        row = Text("").join((begun, piece, Text("\\" if goes_on else "")))
        printer.print(row, soft_wrap=True)


def _encodable(text: Text, stream: IO[str]) -> Text:
    """Write out what the stream can't take, where it is not in UTF-8."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    plain = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    return text if plain == text.plain else Text(plain, style=text.style, no_wrap=text.no_wrap)


@overload
def width(stream: IO[str], otherwise: int) -> int: ...
@overload
def width(stream: IO[str], otherwise: int | None) -> int | None: ...
def width(stream: IO[str], otherwise: int | None) -> int | None:
    """Return the cells of a row: the terminal's, also where it sees the stream through a pipe.

    ``COLUMNS`` can make rows narrower than the terminal. Where there is neither, ``otherwise``.
    """
    named = os.environ.get("COLUMNS", "")
    wanted = int(named) if named.isdecimal() and int(named) else None
    if stream.isatty():
        there = _terminals(stream.fileno()) or _USUAL
        return min(there, wanted or there)
    return wanted or _terminals(*_STREAMS) or otherwise


def _terminals(*descriptors: int) -> int | None:
    for descriptor in descriptors:
        with suppress(OSError):
            if columns := os.get_terminal_size(descriptor).columns:
                return columns
    return None
