r"""Text from outside as it is shown: what a terminal does not show as itself is written out.

One place decides this for every screen, message and description: ``shown`` for a text,
``shown_json`` for a value. A character that is written out stands as Python writes it in a string
(U+202E as ``\u202e``); a backslash of the text itself is doubled, and ``␣`` is a space beside
another one or at an end. So two texts never look alike. ``breaks`` says where a shown text is cut
into rows.

The categories of the characters are those of the Unicode version that this Python has
(``UNICODE``): what is assigned later is written out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

UNICODE: Final = unicodedata.unidata_version
"""The version of Unicode by which is decided what is shown as itself."""

SPACE: Final = "\u2423"
"""Stands for a space that could not be seen or counted."""

_UNSEEN: Final = frozenset(
    map(
        chr,
        chain(
            # fillers and blank symbols; what stands for the missing; the sign of this module
            (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x303F, 0x3164, 0xFFA0, 0xFFFC),
            (0x16FE4, 0x1D159, 0xFFFD, ord(SPACE)),
            range(0x180B, 0x1810),
            range(0xFE00, 0xFE10),
            range(0xE0100, 0xE01F0),
            # far wider than a terminal's cells: they cover what stands beside them
            (0x2E3A, 0x2E3B, 0xFDFA, 0xFDFB, 0xFDFD, 0x12219, 0x1242B),
            # overlays, which strike letters out
            range(0x0334, 0x0339),
            range(0x20D2, 0x20F1),
        ),
    )
)
"""What Unicode has among letters, marks and symbols, and is not seen as itself."""

_ALIKE: Final = frozenset(
    "\u0251\u0261\u0269\u01c0\u01c3\u1d04\u1d0f\u1d1c\u1d20\u1d21\u1d22\ua731\ua78c"  # Latin's own
    "\u2010\u2011\u2212\u02d7\u2024\u2025\u2044\u2215\u29f8\ua789\u2236\u02d0\u02f8\u0589\u05c3"
    "\u2223\u02ba\u02ee\u2033\u2036\u05f4\uff02\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
)
"""What most fonts draw as they draw characters of ASCII."""

_PASSING: Final = {
    "CYRILLIC": frozenset("асеіјорѕхуһԁԛԝѵӏАВСЕНІЈКМОРЅТХУԚԜӀҮ"),
    "GREEK": frozenset("ονρικυγαΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"),
    "ARMENIAN": frozenset("օոսհցզԼՕՍ"),
}
"""The letters of other scripts of which whole Latin words can be made."""

_APART: Final = re.compile(
    "LATIN|MICRO|CJK|HIRAGANA|KATAKANA|KATAKANA-HIRAGANA|IDEOGRAPHIC|HANGUL|BOPOMOFO|THAI|LAO|KHMER|"
    "MYANMAR|ARABIC|HEBREW|SYRIAC|DEVANAGARI|BENGALI|GURMUKHI|GUJARATI|ORIYA|TAMIL|TELUGU|KANNADA|"
    "MALAYALAM|SINHALA|TIBETAN|ETHIOPIC"
)
"""Scripts whose letters may stand within a Latin word, as in Tシャツ: they pass for none of it."""

_WRITTEN: Final = r"\\(?:U[0-9a-f]{8}|u[0-9a-f]{4}|x[0-9a-f]{2}|.)"
_MARKS: Final = "\u0300-\u036f\u0483-\u0487\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD: Final = re.compile(rf"{_WRITTEN}|(?P<word>\w[\w{_MARKS}]*)")
_SPACES: Final = re.compile(r"^ +| +$| {2,}")
_PIECE: Final = re.compile(rf"{_WRITTEN}|.", re.DOTALL)
_MOST_MARKS: Final = 4
_LEAST: Final = 4
"""Cells of a row that is no narrower, whatever the terminal."""

LONG: Final = 4000
"""Characters of a shown text up to which nothing of it is left out, where it may be."""

_WIDE: Final = frozenset("WFA")


def shown(text: str) -> str:
    """Return a text as it is shown, on one line; different texts are shown differently."""
    return _spaced(written_out(text.replace("\\", "\\\\")))


def shown_json(value: object, indent: int | None = None) -> str:
    r"""Return a JSON value as it is shown, on one line, or on several that ``"\n"`` ends.

    It is JSON, but for what is written out in it.
    """
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    return "\n".join(map(_line, lines))


def written_out(text: str) -> str:
    """Return a text in which backslashes mean something already, with the rest written out.

    Spaces stay as they are.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_seen(text))
        if not text.isascii():
            others = _unmistakable(text)
            text = _WORD.sub(lambda found: _word(found, others), text)
    return text


def shortened(text: str, limit: int = LONG) -> str:
    r"""Return a shown text with its length before it and its middle left out, if it is long.

    What is said of it stands in ``\[ ]``, which no shown text has.
    """
    if len(text) <= limit:
        return text
    ends = [piece.end() for piece in _PIECE.finditer(text)]
    head = max((end for end in ends if end <= limit // 2), default=0)
    tail = min((end for end in ends if end >= len(text) - limit // 4), default=len(text))
    out = rf"\[{len(text):,} characters, of which {tail - head:,} are left out]"
    return rf"{out} {text[:head]} \[left out] {text[tail:]}"


def breaks(text: str, room: int, first: int | None = None) -> list[int]:
    """Return where the rows of a shown text end, as offsets, each within ``room`` cells.

    ``first`` is the room of the first row, where that is another one. A row ends after a space, or,
    where no word fits, with one cell left over for the sign that it goes on. Cells are counted as
    the widest terminal has them. What is written out stays whole.
    """
    ends: list[int] = []
    start = 0
    while (end := _row(text, start, max(room if ends or first is None else first, _LEAST))) < len(
        text
    ):
        ends.append(end)
        start = end
    return [*ends, len(text)]


def cells(text: str) -> int:
    """Return how many cells of a terminal a shown text takes at the most."""
    return sum(map(_cells, text))


def _line(text: str) -> str:
    indentation = len(text) - len(text.lstrip(" "))
    return text[:indentation] + _spaced(written_out(text[indentation:]))


def _spaced(text: str) -> str:
    return _SPACES.sub(lambda found: SPACE * len(found[0]), text)


def _row(text: str, start: int, room: int) -> int:
    used, fitting, word = 0, start, start
    for piece in _PIECE.finditer(text, start):
        end = piece.end()
        used += cells(piece[0])
        if piece[0] == " ":  # at the end of a row it takes no cell that is seen
            word = end
        elif used > room:
            return next(at for at in (word, fitting, start + room - 1) if at > start)
        if used < room and not _is_mark(text[end : end + 1] or " "):
            fitting = end
    return len(text)


@lru_cache(maxsize=4096)
def _cells(character: str) -> int:
    if character.isascii():
        return 1
    symbol = unicodedata.category(character)[0] == "S"  # emoji, whose width is a matter of opinion
    return 2 if symbol or unicodedata.east_asian_width(character) in _WIDE else 1


def _seen(text: str) -> Iterator[str]:
    """Yield each character, or what is written in its place."""
    cluster = ""
    for character in text:
        if not _is_seen(character) or not _stands(cluster, character):
            cluster = ""
            yield character.encode("unicode_escape").decode()  # ASCII's control characters, too
            continue
        cluster = cluster + character if _is_mark(character) else character
        yield character


@lru_cache(maxsize=4096)
def _is_seen(character: str) -> bool:
    """Whether one character shows as itself, wherever it stands."""
    if character.isascii():
        return character.isprintable()
    return (
        character.isprintable()  # no control, format, private or unassigned one, and no space
        and character not in _UNSEEN
        and character not in _ALIKE
        and unicodedata.category(character) != "Me"
        and unicodedata.is_normalized("NFC", character)
        and not _is_variant(character)
    )


def _is_variant(character: str) -> bool:
    """Whether a character is a letter or digit of ASCII in another shape, as in mathematics."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind not in ("<font>", "<wide>", "<compat>") or len(plain) > 1 or not plain.isascii():
        return False
    return plain.isalpha() or (plain.isdigit() and kind != "<wide>")


def _stands(cluster: str, character: str) -> bool:
    """Whether a character can be told from another one after what stands before it."""
    if character.isascii():
        return True
    if not unicodedata.is_normalized("NFC", cluster + character):
        return False
    if not _is_mark(character):
        return True
    own = _script(character)
    if own == "COMBINING":  # with letters of any script, one at a time
        return len(cluster) == 1 and cluster.isalpha()
    return 0 < len(cluster) <= _MOST_MARKS and own == _script(cluster[0])


@lru_cache(maxsize=4096)
def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Return the script of a letter: the first word of its name."""
    return unicodedata.name(character, "").partition(" ")[0]


def _unmistakable(text: str) -> frozenset[str]:
    """Return the scripts of which a text has letters that do not pass for Latin ones."""
    letters = {character for character in text if not character.isascii() and character.isalpha()}
    known = {_script(letter) for letter in letters if not _passes(letter)}
    return frozenset(known)


def _passes(letter: str) -> bool:
    return letter in _PASSING.get(_script(letter), ())


def _word(found: re.Match[str], others: frozenset[str]) -> str:
    """Return a word with those of its letters written out that pass for others in it."""
    word = found["word"]
    if word is None or word.isascii():
        return found[0]
    scripts = {_script(letter) for letter in word if letter.isalpha()}
    plain = any(c.isascii() and c != "_" for c in word)
    if len(scripts) == 1 and not scripts & others and all(map(_passes, filter(str.isalpha, word))):
        return "".join(map(_escaped, word))
    return "".join(
        _escaped(c)
        if ("LATIN" in scripts and not _goes_with_latin(c)) or (plain and _script(c) == "FULLWIDTH")
        else c
        for c in word
    )


def _goes_with_latin(character: str) -> bool:
    return not character.isalpha() or _APART.fullmatch(_script(character)) is not None


def _escaped(character: str) -> str:
    return character if character.isascii() else character.encode("unicode_escape").decode()
