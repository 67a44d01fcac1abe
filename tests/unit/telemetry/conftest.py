"""A guard whose spans and metrics an SDK exports to memory, for the tests of telemetry."""

from __future__ import annotations

import pytest
from exported import Place


@pytest.fixture
def place():
    return Place()
