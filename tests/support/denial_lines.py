"""The lines that a program's log has of refused calls."""

from __future__ import annotations

import re


def without_denials(stderr: str) -> str:
    """What a program has written, without the line of each refused call and its remedy."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"denied code=|\S+ was not run: ", line))
