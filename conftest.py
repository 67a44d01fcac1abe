"""What is collected: the CrewAI adapter's tests only on a Python that CrewAI itself has."""

from __future__ import annotations

import sys

CREWAI_ENDS = (3, 14)
"""The first Python that CrewAI is not for (its own requires-python)."""

collect_ignore = ["integrations/agentguard-crewai"] if sys.version_info >= CREWAI_ENDS else []


def pytest_report_header() -> str | None:
    """Say what is left out."""
    if not collect_ignore:
        return None
    return f"left out: {collect_ignore[0]}, since CrewAI is not for this Python"
