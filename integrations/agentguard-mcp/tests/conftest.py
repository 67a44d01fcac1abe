"""The guard and the file that most tests of the gateway have, and what pytest leaves out.

The tests in ``sdk2`` have an environment of their own: ``test_mcp_sdk_two.py`` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentguard.testing import RecordedGuard

collect_ignore = ["sdk2"]


@pytest.fixture
def recorded() -> Iterator[RecordedGuard]:
    """Return a guard that allows each call; its log is whole at the end of the test."""
    made = RecordedGuard.make()
    yield made
    made.require_sound()
    made.guard.close()


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Return the file in which the scripted server notes what it runs."""
    return tmp_path / "ran"
