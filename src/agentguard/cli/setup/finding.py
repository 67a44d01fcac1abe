"""What a check of ``agentguard doctor`` finds; the checks themselves stand where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    status: Literal["ok", "warn", "fail"]
    check: str
    what: str
