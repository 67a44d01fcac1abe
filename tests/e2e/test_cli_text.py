"""What is printed on a terminal is what it seems: no character does anything but print."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.cli.text import printable


@given(st.text(st.characters()))
def test_whatever_comes_in_only_prints(text):
    shown = printable(text)
    assert all(unicodedata.category(c)[0] != "C" for c in shown)
    assert not {"\u2028", "\u2029", "\n"} & set(shown)
    assert shown.isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_only_prints_is_left_alone(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("safe\u202e\u2066txt", r"safe\u202e\u2066txt"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("[bold]x[/bold] :warning:", "[bold]x[/bold] :warning:"),
        ("größer 日本 👍", "größer 日本 👍"),
    ],
)
def test_hostile_texts(hostile, shown):
    assert printable(hostile) == shown


def test_what_is_too_long_is_cut_and_counted():
    assert printable("abcdef", 4) == "abcd… (2 more characters)"
    assert printable("abcd", 4) == "abcd"
