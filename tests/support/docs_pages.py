"""The text of pages of docs/, for tests that follow a page as a reader does."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

WARNINGS_ARE_ERRORS = (
    *("-W", "error"),
    *("-W", "ignore:Core Pydantic V1 functionality:UserWarning"),
    *("-W", "ignore:'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning"),
)
"""Options of Python, with which all warnings are errors but those of LangChain on Python 3.14."""


def text(*pages: str) -> str:
    """Return pages, by their paths below docs/ without a suffix, one after the other."""
    return "\n".join((DOCS / f"{page}.md").read_text("utf-8") for page in pages)


def printed(page: str) -> str:
    """Return all that a page says its code prints: the blocks after a line "That prints:"."""
    return "".join(
        re.findall(r"^(?:That|It) prints:\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    )


def prints(page: str) -> list[tuple[str, str]]:
    """Return each block of Python that has its output behind it, with the output."""
    lines = r"((?:(?!```).*\n)*)"
    block = rf"^```python\n{lines}```\n\n(?:That|It) prints:\n\n```text\n{lines}```$"
    found: list[tuple[str, str]] = re.findall(block, page, re.MULTILINE)
    return found


def blocks(page: str, language: str) -> list[str]:
    """Return each block of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def typed(commands: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run commands in a shell, as a reader types them, and return what they print."""
    ran = subprocess.run(
        ["/bin/sh", "-ec", commands],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def agrees(expected: str, printed: str) -> bool:
    """Whether commands have printed what a page says; ``...`` there stands for any text."""
    pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
