"""how-to/last-night.md as a reader follows it: each command, in order, prints what the page says.

The project is the one of ``agentguard init --langgraph``, whose agent has run once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import docs_pages
import pytest

PAGE = docs_pages.text("how-to/last-night")
STEP = re.compile(
    r"^```sh\n(?P<commands>(?:(?!```).*\n)*)```\n\nThat prints:\n\n"
    r"```text\n(?P<printed>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
LONGEST = 1200
"""The words that a person who is on call reads."""


class Reader:
    """Types what the page says, in a shell in the project's folder."""

    def __init__(self, project, folder: Path | None = None) -> None:
        self.folder = folder or project.folder
        search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environment = {**project.environment, "PATH": search, "COLUMNS": "240"}

    def types(self, text: str) -> str:
        return docs_pages.typed(text, self.folder, self.environment)


@pytest.fixture
def night(project):
    """The project ``desk`` after the night, as a reader of its owner."""
    if importlib.util.find_spec("agentguard_langchain") is None:
        pytest.skip("agentguard_langchain is not installed here")
    assert project.run("init", "--langgraph", "desk").returncode == 0
    reader = Reader(project, project.folder / "desk")
    reader.types("python agent.py")
    return reader


@pytest.mark.slow("it runs an agent, and starts a dozen processes")
def test_the_page_is_followed_from_the_freeze_to_the_thaw(night, project):
    (index,) = re.findall(
        r"^(\d+) ",
        night.types("agentguard audit list --kind call --tool refund --decision allow"),
        re.MULTILINE,
    )
    steps = [*STEP.finditer(PAGE)]
    assert len(steps) == PAGE.count("```sh\n") > 9
    for step in steps:
        reader = night
        if "evidence verify" in step["commands"]:  # the auditor, who has the two files alone
            auditor = project.folder / "auditor"
            auditor.mkdir()
            for name in ("call.json", "trust.json"):
                shutil.copy(night.folder / name, auditor)
            reader = Reader(project, auditor)
        printed = reader.types(step["commands"].replace("INDEX", index))
        assert docs_pages.agrees(step["printed"], printed), printed
        if "sha256sum" in step["commands"]:
            digests = re.findall(r"\b[0-9a-f]{64}(?=  trust|$)", printed, re.MULTILINE)
            assert digests[0] == digests[-1]


@pytest.mark.slow("it runs an agent twice")
def test_the_program_says_of_a_freeze_what_the_page_says_and_the_model_is_told_less(night):
    night.types('agentguard freeze --note "bob"')
    (line,) = re.findall(r"^refund was not run: .*$", PAGE, re.MULTILINE)
    said = night.types("python agent.py 2>&1")
    assert line in said.splitlines()
    told = [text for text in said.splitlines() if ": Denied: " in text]
    assert len(told) == 4
    assert not any("thaw" in text for text in told)


def test_the_page_is_short():
    assert len(PAGE.split()) <= LONGEST
