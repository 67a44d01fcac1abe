"""Cuts text into rows at the width of a terminal, and marks the rows that text from outside makes.

So no such row looks like a line of agentguard's own. A row that is cut within a word ends with a
backslash. ``screen.py`` chooses the text, and ``visible.py`` escapes its characters.
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
"""The width in cells of a sheet's rows without a terminal."""

BAR: Final = "  | "
"""The beginning of each row of a text after the first row."""

_NARROWEST: Final = 24
"""The smallest width of a text beside its head; a narrower text is printed below the head."""

_USUAL: Final = 80
"""The width of a terminal that reports none."""

_STREAMS: Final = (0, 2)
"""The file descriptors that stay terminals while the output goes to a pager such as ``less``."""


def console(stream: IO[str]) -> Console:
    """Return a console for a stream that interprets no markup and highlights nothing."""
    from rich.console import Console  # noqa: PLC0415  a slow import, which help and JSON don't need

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def flow(stream: IO[str], text: Text) -> None:
    """Print a line; on a narrower terminal, each row after the first begins with a bar."""
    rows(stream, Text(""), text, BAR, by_itself=True)


def rows(stream: IO[str], head: Text, body: Text, under: str, *, by_itself: bool = False) -> None:
    """Print text in rows: the first after ``head``, the others after ``under``.

    A text ``by_itself`` is cut only on a terminal, or if ``COLUMNS`` is set.
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
        is_word_cut = number < len(pieces) - 1 and not piece.plain.endswith(" ")
        piece.rstrip()
        row_head = head if number == 0 else Text(under)
        row = Text("").join((row_head, piece, Text("\\" if is_word_cut else "")))
        printer.print(row, soft_wrap=True)


def _encodable(text: Text, stream: IO[str]) -> Text:
    """Escape the characters that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    plain = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    return text if plain == text.plain else Text(plain, style=text.style, no_wrap=text.no_wrap)


@overload
def width(stream: IO[str], otherwise: int) -> int: ...
@overload
def width(stream: IO[str], otherwise: int | None) -> int | None: ...
def width(stream: IO[str], otherwise: int | None) -> int | None:
    """Return the width of a row in cells: that of the terminal, also behind a pager.

    ``COLUMNS`` can make rows narrower than the terminal. Without a terminal and ``COLUMNS``, return
    ``otherwise``.
    """
    columns_variable = os.environ.get("COLUMNS", "")
    requested = (
        int(columns_variable) if columns_variable.isdecimal() and int(columns_variable) else None
    )
    if stream.isatty():
        terminal_width = _terminals(stream.fileno()) or _USUAL
        return min(terminal_width, requested or terminal_width)
    return requested or _terminals(*_STREAMS) or otherwise


def _terminals(*descriptors: int) -> int | None:
    for descriptor in descriptors:
        with suppress(OSError):
            if columns := os.get_terminal_size(descriptor).columns:
                return columns
    return None
