"""A model hides what a person is to approve, behind characters that are not what they seem."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from wcwidth import wcwidth

from agentguard.visible import UNICODE, breaks, cells, shortened_text, visible_json, visible_text

UNSEEN = [
    *"\0\a\b\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f\x7f\x80\x85\x90\x9b\x9d",  # control
    *"\u2028\u2029",  # new lines for some, nothing for others
    *"\u00ad\u061c\u200b\u200c\u200d\u200e\u202a\u202e\u2060\u2066\u2069\ufeff\ufff9\U000e0041",
    *"\u034f\u115f\u1160\u17b4\u17b5\u180b\u180e\ufe00\ufe0f\U000e0100\U000e01ef",
    *"\u00a0\u1680\u2003\u2007\u200a\u202f\u205f\u3000\u2800\u3164\uffa0\u303f\U0001d159",  # blank
    *"\ue000\U000f0000\uffff\u0378\U000e0fff\ufffc\ufffd",  # private, assigned to nothing, missing
    *"\u0301\u0489\u0336\u20d2\u20dd",  # marks after a word that has no such letter
    *"\u2423\u212a\ufdfd",
]


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda c: f"{ord(c):x}")
def test_what_nobody_sees_is_written_out(unseen):
    written = unseen.encode("unicode_escape").decode()
    assert visible_text(f"12 {unseen}") == f"12 {written}"
    assert visible_text(f"1{unseen}2") == f"1{written}2"


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Return what is shown of the planes that have letters, and of some of the others."""
    codes = [*range(0x20000), *range(0x20000, sys.maxunicode, 997)]
    text = " ".join(f"n{one}" if is_mark(one) else one for one in map(chr, codes))
    return set(visible_text(text)) - {"\u2423", " "}


def is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def test_no_character_but_the_seen_ones_is_shown(seen):
    assert {unicodedata.category(one)[0] for one in seen} == set("LMNPS")
    assert [one for one in seen if one.isspace()] == []
    assert all(one.isprintable() and unicodedata.is_normalized("NFC", one) for one in seen)


def test_no_terminal_gives_a_character_more_cells_than_are_counted(seen):
    """Also where the terminal's Unicode is newer than Python's, as of counting rods."""
    assert len(seen) > 30_000
    assert [one for one in seen if max(wcwidth(one), cell_len(one)) > cells(one)] == []
    assert [one for one in seen if wcwidth(one) < 1 and not is_mark(one)] == []


@pytest.mark.parametrize(
    ("alike", "written"),
    [
        ("p\u0430ypal", r"p\u0430ypal"),  # Cyrillic in a Latin word
        ("adm\u03bfn", r"adm\u03bfn"),  # Greek
        ("l\u0585ss", r"l\u0585ss"),  # Armenian
        ("\u13a0dmin", r"\u13a0dmin"),  # Cherokee
        ("delete_\u0430ll", r"delete_\u0430ll"),
        ("\u0441\u043e\u0441\u043e", r"\u0441\u043e\u0441\u043e"),  # a whole word of them
        ("paypal.\u0441\u043e", r"paypal.\u0441\u043e"),
        ("\uff41\uff44\uff4d", r"\uff41\uff44\uff4d"),  # fullwidth
        ("\U0001d41admin \u2160V", r"\U0001d41admin \u2160V"),  # mathematics, numerals
        ("1\uff10 \ufb01le", r"1\uff10 \ufb01le"),
        ("a\u2215b \u2010f \u2212 1\u2024com", r"a\u2215b \u2010f \u2212 1\u2024com"),
        ("a \u2502 b\u2758 5\u2032", r"a \u2502 b\u2758 5\u2032"),  # bars, and a prime
        ("\u2216u202e \u29f5n \uff3c", r"\u2216u202e \u29f5n \uff3c"),  # not our backslash
        ("\ufe68u202e", r"\ufe68u202e"),
        ("https\uff1a\uff0f\uff0fx", r"https\uff1a\uff0f\uff0fx"),  # fullwidth signs
        ("\ufe8d \ufefb", r"\ufe8d \ufefb"),  # Arabic presentation forms
        ("\u2f08 \u2e9f \u31d0", r"\u2f08 \u2e9f \u31d0"),  # Kangxi radicals, strokes
        ("\u1100", r"\u1100"),  # a part of a syllable
        ("\u0132 \u2161 \u2135 \u01c7 \u203c", r"\u0132 \u2161 \u2135 \u01c7 \u203c"),
        ("\u13aa\u13a2", r"\u13aa\u13a2"),  # AT in Cherokee, BI in Lisu, OE in Coptic
        ("\ua4d0\ua4f2 \u2c9f\u2cc5", r"\ua4d0\ua4f2 \u2c9f\u2cc5"),
        ("\U00010412", r"\U00010412"),  # X in Deseret
        ("a\ua7ae \u1d20", r"a\ua7ae \u1d20"),  # phonetics
        ("g\u101dogle \u0647", r"g\u101dogle \u0647"),  # Myanmar, Arabic: an o
        ("10\u066050", r"10\u066050"),  # digits: a full stop is seen, or an o
        ("1\u0966 user1\u0e50\u0e50 10.\u0660", r"1\u0966 user1\u0e50\u0e50 10.\u0660"),
        ("\u0660 \u06f1", r"\u0660 \u06f1"),
        ("\u062c \u0661\u06f1", "\u062c \\u0661\\u06f1"),  # of two scripts
        ("Zoe\u0308", r"Zoe\u0308"),  # looks like Zoë, and is another text
        ("a\u0304\u0304\u0304", r"a\u0304\u0304\u0304"),  # piled up
        ("n\u0336o", r"n\u0336o"),  # struck out
        ("a  b ", "a␣␣b␣"),
        (r"\u202e", r"\\u202e"),
    ],
)
def test_what_passes_for_something_else_is_written_out(alike, written):
    assert visible_text(alike) == written


@pytest.mark.parametrize(
    "text",
    [
        "Zoë zahlt 5 € für „Größe“ – und 10 µs … ½ fertig!",
        "支払う（５０００円）、PDFファイルを開く。Tシャツ",
        "Отмени заказ в МОСКВА и сообщи",
        "支払：５０／人、２５℃、№５、ﾃｽﾄ、第①章、PDF（5）",
        "اَدفع مئة دولار",
        "ادفع ١٥٠ دولار، من فضلك",
        "۵۰ تومان بپرداز",
        "१०:३० बजे ५०० रुपये भेजो।",
        "ㅋㅋㅋ 한국어, น้ำ ๕๐ บาท",
        "Заплати № 5, это м² и так далее; съешь ещё",
        "Πλήρωσε 50 € στον Γιάννη, και τώρα",
        "שָׁלוֹם עולם",
        "हिन्दी में नमस्ते",
        "ชำระเงินแล้ว",
        "Tiếng Việt có dấu, Türkçe ısıtma, Ελληνικά",
        "👍🏽 done ✓ 🇩🇪 → 日本",
        "[bold]x[/bold] :warning: C:/temp (50 %)",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert visible_text(text) == text
    assert json.loads(visible_json({"text": text})) == {"text": text}


def test_a_family_and_a_persian_word_can_still_be_read():
    """What joins their parts is written out: without it the same is seen on many terminals."""
    assert visible_text("👩‍👧") == r"👩\u200d👧"
    assert visible_text("می‌خواهم") == r"می\u200cخواهم"


hostile = st.text(st.one_of(st.sampled_from([*UNSEEN, *" \\|ae\u0430日👍"]), st.characters()))


@given(hostile, hostile)
def test_two_texts_never_look_alike(one, another):
    """Nor does a text look like what it is shown as, or like another form of it."""
    forms = (unicodedata.normalize(form, one) for form in ("NFC", "NFD", "NFKC"))
    for other in (another, visible_text(one), *forms):
        assert (visible_text(one) == visible_text(other)) is (one == other)
        assert (visible_json([one]) == visible_json([other])) is (one == other)


@given(hostile, st.integers(4, 60), st.integers(4, 60))
def test_rows_hold_all_of_a_text_and_fit(text, room, first):
    seen, begun = visible_text(text), 0
    for number, end in enumerate(ends := breaks(seen, room, first)):
        row = seen[begun:end]
        begun = end
        goes_on = end < len(seen) and not row.endswith(" ")
        assert cells(row.rstrip(" ")) + goes_on <= (room if number else first)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(seen)


def test_of_a_long_text_both_ends_are_shown_and_the_rest_is_counted():
    text = "begin" + "\u202e" * 5000 + "end"
    short = shortened_text(visible_text(text), 400)
    assert short.startswith(r"\[30,008 characters, of which ")
    assert r" are left out] begin\u202e" in short
    assert short.endswith(r"\u202eend")
    assert r"\[left out] \u202e" in short
    assert len(short) < 500
    assert shortened_text("x" * 400, 400) == "x" * 400


def test_the_version_of_unicode_is_this_pythons():
    assert unicodedata.unidata_version == UNICODE
