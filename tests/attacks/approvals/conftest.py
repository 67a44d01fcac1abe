"""A guard whose policy asks people."""

from __future__ import annotations

import pytest
from approved_calls import Place, asking


@pytest.fixture
def place() -> Place:
    return Place(asking())
