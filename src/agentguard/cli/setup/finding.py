"""The result of one check of ``agentguard doctor``; the modules ``doctor*.py`` have the checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: ``what`` says what was found, and what to do about it."""

    status: Literal["ok", "warn", "fail"]
    check: str
    what: str
