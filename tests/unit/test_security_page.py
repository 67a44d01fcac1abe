"""SECURITY.md: its promises and limits are numbered, and each names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^### ([PL]\d+)\. (.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
TESTS = r"`((?:tests|integrations)/[\w./-]+\.py)`"


@pytest.mark.parametrize("letter", ["P", "L"])
def test_the_numbers_are_consecutive(letter):
    numbers = [name for name, _text in SECTIONS if name.startswith(letter)]
    assert numbers == [f"{letter}{number}" for number in range(1, len(numbers) + 1)]
    assert numbers


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _text in SECTIONS])
def test_a_section_names_tests_that_are_there(name, text):
    _sentences, named, tests = text.partition("Tests: ")
    assert named, "the section says nothing of tests"
    if tests.startswith("none, since "):
        assert name.startswith("L"), "a promise without a test is none"
        return
    files = re.findall(TESTS, tests)
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_file_of_attacks_is_named():
    named = set(re.findall(TESTS, PAGE))
    files = (ROOT / "tests" / "attacks").rglob("test_*.py")
    attacks = {path.relative_to(ROOT).as_posix() for path in files}
    assert attacks - named == set()
