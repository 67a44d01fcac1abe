"""The endings of an attempt are the rows of the table in docs/explanation/architecture.md."""

from __future__ import annotations

from pathlib import Path

from agentguard.flow import endings
from agentguard.flow.endings import Ending

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "architecture.md"


def documented() -> dict[str, tuple[str, ...]]:
    """The table's rows: outcome, page and call around, by the ending's name."""
    text = PAGE.read_text(encoding="utf-8").partition("### How an attempt ends")[2]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0].strip("`"): tuple(row[3:]) for row in rows if row[0].strip("`").isupper()}


def as_documented(name: str, ending: Ending) -> tuple[str, str, str]:
    outcome = f"`{ending.status}`" if ending.status is not None else "none"
    outcome += ", suspended" if ending.is_suspended else ""
    outcome += ", with `replay_of`" if name == "REPLAYED" else ""
    return (
        outcome,
        "result" if ending.has_page else "none",
        "goes on" if ending.is_complete else "waits",
    )


def test_the_page_has_each_ending_as_the_code_has_it():
    constants = {name: value for name, value in vars(endings).items() if isinstance(value, Ending)}
    assert documented() == {name: as_documented(name, value) for name, value in constants.items()}
    assert len(constants) == 13
