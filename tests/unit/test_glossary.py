"""The glossary: each term has one definition, and the other pages use it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
ROW = re.compile(r"^\| \*\*(?P<term>[^*|]+)\*\* \| (?P<meaning>[^|]+) \| [^|]+ \|$", re.MULTILINE)


def terms() -> list[str]:
    return [row["term"] for row in ROW.finditer(GLOSSARY.read_text(encoding="utf-8"))]


def test_each_term_has_one_definition_of_one_or_two_sentences():
    text = GLOSSARY.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(terms()) == len(rows) == len(set(terms()))
    assert len(rows) > 40
    meanings = {row["term"]: row["meaning"] for row in ROW.finditer(text)}
    sentences = {term: len(re.findall(r"\.(?= |$)", text)) for term, text in meanings.items()}
    assert {term: count for term, count in sentences.items() if count not in (1, 2)} == {}


def test_the_pages_use_each_term():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    texts = [page.read_text(encoding="utf-8").lower() for page in pages if page != GLOSSARY]
    used = " ".join(" ".join(texts).split())
    assert [term for term in terms() if not re.search(rf"\b{term.lower()}s?\b", used)] == []
