"""A model hides what a person is to approve, behind characters that nobody sees."""

from __future__ import annotations

import unicodedata

import pytest

from agentguard.cli.text import printable


@pytest.mark.parametrize(
    "unseen",
    [
        *("\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u180b", "\u2800", "\u3164"),
        *("\ufe00", "\ufe0f", "\uffa0", "\U000e0100", "\U000e01ef"),
        *("\u200b", "\u202e", "\u2066", "\ufeff", "\x1b", "\u00ad", "\U000e0041", "\n"),
    ],
    ids=lambda c: f"{ord(c):x}",
)
def test_what_nobody_sees_is_written_out(unseen):
    shown = printable(f"main{unseen}")
    assert shown == "main" + unseen.encode("unicode_escape").decode()


def test_what_is_seen_stays_as_it_is():
    text = "Zoë pays 5 € — 支払う, платить, اَدفع"
    assert printable(text) == text
    assert printable(unicodedata.normalize("NFD", "Zoë")) == unicodedata.normalize("NFD", "Zoë")
