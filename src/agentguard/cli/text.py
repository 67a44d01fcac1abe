"""Text for a terminal: what came from a log, a policy or a model can't steer the screen.

Here is only the escaping. Columns and colours stand in ``screen.py``, which passes every string
from outside through ``printable``.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

_UNSEEN: Final = frozenset(
    map(
        chr,
        chain(
            (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x1D159),
            range(0x180B, 0x180E),
            range(0xFE00, 0xFE10),
            range(0xE0100, 0xE01F0),
        ),
    )
)
"""What Unicode has among letters, marks and symbols, and nobody sees: fillers and selectors."""


def printable(text: str, limit: int | None = None) -> str:
    """Return ``text`` on one line, with every character escaped that does not simply print.

    Control characters (ANSI sequences begin with one), line ends, bidi marks, zero-width and
    private characters, fillers, lone surrogates and spaces other than U+0020 are written as Python
    writes them in a string (ESC as x1b after a backslash). Past ``limit`` characters the rest is
    cut, and counted.
    """
    cut = len(text) - limit if limit is not None else 0
    if cut > 0:
        return f"{printable(text[:limit])}… ({cut} more characters)"
    if text.isprintable() and (text.isascii() or _UNSEEN.isdisjoint(text)):
        return text
    return "".join(map(_seen, text))


def _seen(character: str) -> str:
    if character.isprintable() and character not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode()
