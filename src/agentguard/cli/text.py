"""Text for a terminal: what came from a log, a policy or a model can't steer the screen.

Here is only the escaping. Columns and colours stand in ``screen.py``, which passes every string
from outside through ``printable``.
"""

from __future__ import annotations


def printable(text: str, limit: int | None = None) -> str:
    """Return ``text`` on one line, with every character escaped that does not simply print.

    Control characters (ANSI sequences begin with one), line ends, bidi marks, zero-width and
    private characters, lone surrogates and spaces other than U+0020 are written as Python writes
    them in a string (ESC as x1b after a backslash). Past ``limit`` characters the rest is cut,
    and counted.
    """
    cut = len(text) - limit if limit is not None else 0
    if cut > 0:
        return f"{printable(text[:limit])}… ({cut} more characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
