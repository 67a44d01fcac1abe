r"""Shows text from outside: replaces each character that a terminal does not show as itself.

Every screen, message and description uses ``visible_text`` for a text and ``visible_json`` for a
JSON value. A replaced character is shown as Python's escape (U+202E as ``\u202e``), and a backslash
of the text is doubled. ``␣`` stands for a space beside another space or at an end. So two different
texts are never shown as the same characters. ``breaks`` cuts a shown text into rows.

The categories of characters are those of this Python's version of Unicode (``UNICODE``): a
character that a later version assigns is replaced.
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
"""The version of Unicode that decides which characters are shown as themselves."""

SPACE: Final = "\u2423"
"""Stands for a space that a reader could not see or count."""

_UNSEEN: Final = frozenset(
    map(
        chr,
        chain(
            # fillers and blank symbols; replacement characters; the sign of this module
            (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x303F, 0x3164, 0xFFA0, 0xFFFC),
            (0x16FE4, 0x1D159, 0xFFFD, ord(SPACE)),
            range(0x180B, 0x1810),
            range(0xFE00, 0xFE10),
            range(0xE0100, 0xE01F0),
            # far wider than a terminal's cells: they cover the characters beside them
            (0x2E3A, 0x2E3B, 0xFDFA, 0xFDFB, 0xFDFD, 0x12219, 0x1242B),
            # overlays, which strike letters out
            range(0x0334, 0x0339),
            range(0x20D2, 0x20F1),
        ),
    )
)
"""Letters, marks and symbols of Unicode that a reader can't see."""

_ALIKE: Final = frozenset(
    "\u0251\u0261\u0269\u01c0\u01c3\u1d04\u1d0f\u1d1c\u1d20\u1d21\u1d22\ua731\ua78c"  # Latin's own
    "\u2010\u2011\u2212\u02d7\u2024\u2025\u2044\u2215\u29f8\ua789\u2236\u02d0\u02f8\u0589\u05c3"
    "\u2223\u02ba\u02ee\u2032\u2033\u2035\u2036\u05f4\uff02\u2012\u2043\u205a\u2041\u2571\u27cb\u1735\U0001d23a"
    "\u0701\u0702\u0703\u0704\u1803\u1809\u16eb\u16ec\ua4fe\ua4ff\ua60e\U00010a50\U0001d16d\u060d"
    "\u05c0\u23fd\u2502\u2503\u2758\u2759\u275a\uff5c\uffe8"
    "\u2216\u2572\u27cd\u29f5\u29f9\uff3c\U0001d20f\U0001d23b"  # a backslash: it would seem ours
    "\u203c\u2047\u2048\u2049\u0e4d\u0ecd"  # two signs in one, and halves of one
)
"""Characters that most fonts draw like other characters, mostly of ASCII."""

_WHOLE: Final = frozenset("\u00b5\u2026\u2103\u2109\u2116\u0587\u0e33\u0eb3")
"""Compatibility characters of everyday text, which are shown: \u2026, \u2116, \u2103."""

_FORMS: Final = {"<isolated>", "<initial>", "<medial>", "<final>", "<small>", "<vertical>"}
"""Kinds of compatibility characters: the shapes of others at a place in a word or a row."""

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
"""Letters of other scripts that can form what looks like a Latin word."""

_APART: Final = re.compile(
    "LATIN|MICRO|CJK|HIRAGANA|KATAKANA|KATAKANA-HIRAGANA|IDEOGRAPHIC|HANGUL|BOPOMOFO|THAI|LAO|KHMER|"
    "MYANMAR|ARABIC|HEBREW|SYRIAC|DEVANAGARI|BENGALI|GURMUKHI|GUJARATI|ORIYA|TAMIL|TELUGU|KANNADA|"
    "MALAYALAM|SINHALA|TIBETAN|ETHIOPIC"
)
"""Scripts whose letters may stand in a Latin word, as in Tシャツ: few look like Latin letters."""

_TODAY: Final = re.compile(
    f"{_APART.pattern}|GREEK|CYRILLIC|ARMENIAN|GEORGIAN|THAANA|HALFWIDTH|FULLWIDTH|MODIFIER|"
    "FEMININE|MASCULINE|SUPERSCRIPT"
)
"""The scripts of everyday use (Unicode's UAX #31, table 5), and signs that belong to them.

Too many letters of the other scripts (Cherokee, Lisu, Coptic, Deseret) look like Latin letters.
"""

_RARE: Final = re.compile(
    "["
    "\u1d00-\u1dbf\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\U00010780-\U000107bf"
    "\U0001df00-\U0001dfff"  # Latin letters of phonetics and of the Middle Ages
    "\u2e80-\u2fdf\u31c0-\u31ef"  # parts of Chinese characters
    "\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff"  # parts of Korean syllables
    "]"
)
"""Characters that most people can't distinguish from the letters that they look like."""

_WRITTEN: Final = r"\\(?:U[0-9a-f]{8}|u[0-9a-f]{4}|x[0-9a-f]{2}|.)"
_MARKS: Final = "\u0300-\u036f\u0483-\u0487\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD: Final = re.compile(rf"{_WRITTEN}|(?P<word>\w[\w{_MARKS}]*)")
_TOKEN: Final = re.compile(r"\S+")
_FULLWIDTH: Final = re.compile("(?<=[!-~])[\uff07\uff0c-\uff0f\uff1a\uff1b]+(?=[!-~])")
_SPACES: Final = re.compile(r"^ +| +$| {2,}")
_PIECE: Final = re.compile(rf"{_WRITTEN}|.", re.DOTALL)
_MOST_MARKS: Final = 4
_LEAST: Final = 4
"""The fewest cells of a row, whatever the terminal's width."""

LONG: Final = 4000
"""The most characters that ``shortened_text`` leaves as they are, by default."""

_WIDE: Final = frozenset("WFA")


def visible_text(text: str) -> str:
    """Return a text for display on one line; different texts are displayed differently."""
    return _spaced(written_out(text.replace("\\", "\\\\")))


def visible_json(value: object, indent: int | None = None) -> str:
    r"""Return a JSON value for display, on one line, or with ``indent`` on several.

    Lines end with ``"\n"``. The text is JSON, apart from the replaced characters.
    """
    lines = json.dumps(value, indent=indent, ensure_ascii=False).split("\n")
    return "\n".join(map(_line, lines))


def written_out(text: str) -> str:
    """Replace the characters of a text that a terminal does not show, but no backslash or space.

    Use this for a text whose backslashes are escapes already.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_seen(text))
        if not text.isascii():
            others = _unmistakable(text)
            text = _WORD.sub(lambda match: _word(match, others), text)
            letters = {_script(character) for character in text if character.isalpha()}
            text = _TOKEN.sub(lambda match: _digits(match[0], letters), text)
            text = _FULLWIDTH.sub(lambda match: "".join(map(_escaped, match[0])), text)
    return text


def shortened_text(text: str, limit: int = LONG) -> str:
    r"""Return a shown text; of a long one, the length, the beginning and the end.

    The length and the mark of the gap stand in ``\[ ]``, which no shown text contains.
    """
    if len(text) <= limit:
        return text
    ends = [piece.end() for piece in _PIECE.finditer(text)]
    head = max((end for end in ends if end <= limit // 2), default=0)
    tail = min((end for end in ends if end >= len(text) - limit // 4), default=len(text))
    out = rf"\[{len(text):,} characters, of which {tail - head:,} are left out]"
    return rf"{out} {text[:head]} \[left out] {text[tail:]}"


def breaks(text: str, room: int, first: int | None = None) -> list[int]:
    """Return the offsets at which the rows of a shown text end, each row within ``room`` cells.

    ``first`` is the room of the first row, if it differs. A row ends after a space; where no word
    fits, one cell is left for a sign that the row continues. Cells are counted as the widest
    terminal has them. An escape is never cut.
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
    """Return the most cells of a terminal that a shown text takes."""
    return sum(map(_cells, text))


def _line(text: str) -> str:
    indentation = len(text) - len(text.lstrip(" "))
    return text[:indentation] + _spaced(written_out(text[indentation:]))


def _spaced(text: str) -> str:
    return _SPACES.sub(lambda match: SPACE * len(match[0]), text)


def _row(text: str, start: int, room: int) -> int:
    used, fitting, word = 0, start, start
    for piece in _PIECE.finditer(text, start):
        end = piece.end()
        used += cells(piece[0])
        if piece[0] == " ":  # a space at the end of a row takes no visible cell
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
    # the width of signs, numbers and rare scripts depends on the terminal's version of Unicode
    unsure = character > "\uffff" or unicodedata.category(character)[0] in "SN"
    return 2 if unsure or unicodedata.east_asian_width(character) in _WIDE else 1


def _seen(text: str) -> Iterator[str]:
    """Yield each character, or its escape."""
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
    """Whether a terminal shows a character as itself, in any place."""
    if character.isascii():
        return character.isprintable()
    return (
        character.isprintable()  # no control, format, private or unassigned character, no space
        and character not in _UNSEEN
        and character not in _ALIKE
        and unicodedata.category(character) != "Me"
        and unicodedata.is_normalized("NFC", character)
        and not _is_variant(character)
        and not _is_rare(character)
    )


def _is_variant(character: str) -> bool:
    """Whether a character is another shape of one or more characters, as in mathematics."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind in ("<font>", "<compat>"):
        own = character in _WHOLE or "\u3131" <= character <= "\u318e"  # Korean's single letters
        return not own and any(map(str.isalnum, plain))
    if kind == "<narrow>":
        return not "\uff61" <= character <= "\uff9f"  # Katakana, and signs that belong to them
    return kind in _FORMS or (kind == "<wide>" and plain.isascii() and plain.isalpha())


def _is_rare(character: str) -> bool:
    """Whether few people can distinguish a character from the one that it looks like."""
    foreign = character.isalpha() and not _TODAY.fullmatch(_script(character))
    return foreign or _RARE.fullmatch(character) is not None


def _stands(cluster: str, character: str) -> bool:
    """Whether a character stays distinguishable after the cluster before it."""
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
    """Return the script of a letter: the first word of the letter's name."""
    return unicodedata.name(character, "").partition(" ")[0]


def _unmistakable(text: str) -> frozenset[str]:
    """Return the scripts of the text's letters that do not look like Latin letters."""
    letters = {character for character in text if not character.isascii() and character.isalpha()}
    return frozenset(_script(letter) for letter in letters if not _passes(letter))


def _passes(letter: str) -> bool:
    return letter in _PASSING.get(_script(letter), ())


def _word(match: re.Match[str], others: frozenset[str]) -> str:
    """Return a word whose misleading letters are replaced by escapes."""
    word = match["word"]
    if word is None or word.isascii():
        return match[0]
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
    """Return the text between two spaces with escapes for foreign digits that may mislead.

    A foreign digit stays if the text has a letter of the digit's script, and the token has neither
    digits of another script nor ASCII letters or digits: beside those, a zero may look like a full
    stop.
    """
    if token.isascii():
        return token
    plain = _PIECE.sub(lambda match: match[0] if len(match[0]) == 1 else "", token)
    zeros = {ord(c) - unicodedata.decimal(c) for c in plain if c.isdecimal()}
    mixed = len(zeros) > 1 or any(c.isascii() and c.isalnum() for c in plain)
    return "".join(_escaped(c) if _is_doubtful(c, letters, mixed=mixed) else c for c in token)


def _is_doubtful(character: str, letters: set[str], *, mixed: bool) -> bool:
    if character.isascii() or not character.isdecimal() or _script(character) == "FULLWIDTH":
        return False
    return mixed or letters.isdisjoint(re.split("[ -]", unicodedata.name(character)))


def _escaped(character: str) -> str:
    return character if character.isascii() else character.encode("unicode_escape").decode()
