"""What the demo's tests share: processes that have imported what a run of the demo imports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from preloaded import Preloaded


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Processes that have imported the demo and the test's cheap keys."""
    processes = Preloaded("agentguard.cli", "agentguard_demo", "langchain.agents", "cheap_keys")
    yield processes
    processes.close()
