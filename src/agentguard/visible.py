r"""Text from outside as it is shown: what a terminal does not show as itself is written out.

One place decides this for every screen, message and description: ``shown`` for a text,
``shown_json`` for a value. A character that is written out stands as Python writes it in a string
(U+202E as ``\u202e``); a backslash of the text itself is doubled, and ``␣`` is a space beside
another one or at an end. So no two texts are shown as the same characters. ``breaks`` says where a
shown text is cut into rows.

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
    "\u2223\u02ba\u02ee\u2032\u2033\u2035\u2036\u05f4\uff02\u2012\u2043\u205a\u2041\u2571\u27cb\u1735\U0001d23a"
    "\u0701\u0702\u0703\u0704\u1803\u1809\u16eb\u16ec\ua4fe\ua4ff\ua60e\U00010a50\U0001d16d\u060d"
    "\u05c0\u23fd\u2502\u2503\u2758\u2759\u275a\uff5c\uffe8"
    "\u2216\u2572\u27cd\u29f5\u29f9\uff3c\U0001d20f\U0001d23b"  # a backslash: it would seem ours
    "\u203c\u2047\u2048\u2049\u0e4d\u0ecd"  # two signs in one, and halves of one
)
"""What most fonts draw as they draw other characters, mostly of ASCII."""

_WHOLE: Final = frozenset("\u00b5\u2026\u2103\u2109\u2116\u0587\u0e33\u0eb3")
"""What everyday text has as one sign, though it is made of others: \u2026, \u2116, \u2103."""

_FORMS: Final = {"<isolated>", "<initial>", "<medial>", "<final>", "<small>", "<vertical>"}
"""Characters of other ones' shapes at a place in a word or a row."""

_PASSING: Final = {
    "CYRILLIC": frozenset("асеіјорѕхуһԁԛԝѵӏАВСЕНІЈКМОРЅТХУԚԜӀҮ"),
    "GREEK": frozenset("ονρικυγαΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"),
    "ARMENIAN": frozenset("օոսհցզԼՕՍ"),
    "ARABIC": frozenset("\u0627\u0647\u06be\u06c1\u06d5"),
    "HEBREW": frozenset("\u05d5\u05d8\u05df\u05e1"),
    "GEORGIAN": frozenset("\u10ff"),
    "ETHIOPIC": frozenset("\u1200\u12d0"),
    "HANGUL": frozenset("\u3147\u3163"),
    "MALAYALAM": frozenset("\u0d20"),
    "MYANMAR": frozenset("\u101d"),
    "ORIYA": frozenset("\u0b20"),
}
"""The letters of other scripts of which whole Latin words can be made."""

_APART: Final = re.compile(
    "LATIN|MICRO|CJK|HIRAGANA|KATAKANA|KATAKANA-HIRAGANA|IDEOGRAPHIC|HANGUL|BOPOMOFO|THAI|LAO|KHMER|"
    "MYANMAR|ARABIC|HEBREW|SYRIAC|DEVANAGARI|BENGALI|GURMUKHI|GUJARATI|ORIYA|TAMIL|TELUGU|KANNADA|"
    "MALAYALAM|SINHALA|TIBETAN|ETHIOPIC"
)
"""Scripts whose letters may stand within a Latin word, as in Tシャツ: few pass for any of it."""

_TODAY: Final = re.compile(
    f"{_APART.pattern}|GREEK|CYRILLIC|ARMENIAN|GEORGIAN|THAANA|HALFWIDTH|FULLWIDTH|MODIFIER|"
    "FEMININE|MASCULINE|SUPERSCRIPT"
)
"""The scripts of everyday use (Unicode's UAX #31, table 5), and signs that go with them.

Letters of others (as Cherokee, Lisu, Coptic or Deseret) are drawn like Latin ones too often.
"""

_RARE: Final = re.compile(
    "["
    "\u1d00-\u1dbf\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\U00010780-\U000107bf"
    "\U0001df00-\U0001dfff"  # Latin letters of phonetics and of the Middle Ages
    "\u2e80-\u2fdf\u31c0-\u31ef"  # parts of Chinese characters
    "\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff"  # parts of Korean syllables
    "]"
)
"""What most people do not know from the letters that it looks like."""

_WRITTEN: Final = r"\\(?:U[0-9a-f]{8}|u[0-9a-f]{4}|x[0-9a-f]{2}|.)"
_MARKS: Final = "\u0300-\u036f\u0483-\u0487\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD: Final = re.compile(rf"{_WRITTEN}|(?P<word>\w[\w{_MARKS}]*)")
_TOKEN: Final = re.compile(r"\S+")
_FULLWIDTH: Final = re.compile("(?<=[!-~])[\uff07\uff0c-\uff0f\uff1a\uff1b]+(?=[!-~])")
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
            letters = {_script(character) for character in text if character.isalpha()}
            text = _TOKEN.sub(lambda found: _digits(found[0], letters), text)
            text = _FULLWIDTH.sub(lambda found: "".join(map(_escaped, found[0])), text)
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
    # signs, numbers and rare scripts: their width changes with the terminal's version of Unicode
    unsure = character > "\uffff" or unicodedata.category(character)[0] in "SN"
    return 2 if unsure or unicodedata.east_asian_width(character) in _WIDE else 1


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
        and not _is_rare(character)
    )


def _is_variant(character: str) -> bool:
    """Whether a character is another one, or some, in another shape, as in mathematics."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind in ("<font>", "<compat>"):
        own = character in _WHOLE or "\u3131" <= character <= "\u318e"  # Korean's single letters
        return not own and any(map(str.isalnum, plain))
    if kind == "<narrow>":
        return not "\uff61" <= character <= "\uff9f"  # Katakana, and what belongs to them
    return kind in _FORMS or (kind == "<wide>" and plain.isascii() and plain.isalpha())


def _is_rare(character: str) -> bool:
    """Whether a character is one that few people can tell from what it looks like."""
    foreign = character.isalpha() and not _TODAY.fullmatch(_script(character))
    return foreign or _RARE.fullmatch(character) is not None


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
    if not character.isalpha():
        return True
    return _APART.fullmatch(_script(character)) is not None and not _passes(character)


def _digits(token: str, letters: set[str]) -> str:
    """Return what stands between two spaces with foreign digits written out that may mislead.

    They stay where a letter of their script is in the text, and no other digit or letter of ASCII
    is in the token: beside these, a zero may look like a full stop.
    """
    if token.isascii():
        return token
    plain = _PIECE.sub(lambda found: found[0] if len(found[0]) == 1 else "", token)
    zeros = {ord(one) - unicodedata.decimal(one) for one in plain if one.isdecimal()}
    mixed = len(zeros) > 1 or any(one.isascii() and one.isalnum() for one in plain)
    return "".join(
        _escaped(one) if _is_doubtful(one, letters, mixed=mixed) else one for one in token
    )


def _is_doubtful(character: str, letters: set[str], *, mixed: bool) -> bool:
    if character.isascii() or not character.isdecimal() or _script(character) == "FULLWIDTH":
        return False
    return mixed or letters.isdisjoint(re.split("[ -]", unicodedata.name(character)))


def _escaped(character: str) -> str:
    return character if character.isascii() else character.encode("unicode_escape").decode()
