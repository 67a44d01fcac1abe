"""The lines that a program's log has of refused calls."""

from __future__ import annotations

import re
from typing import Final

_ABOUT_DENIALS: Final = re.compile(r"denied code=|\S+ was not run: |no rule of the policy ")


def without_denials(stderr: str) -> str:
    """What a program has written, without the line of each refused call and its remedy."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not _ABOUT_DENIALS.match(line))
