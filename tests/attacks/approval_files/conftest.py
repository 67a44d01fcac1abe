"""A durable domain whose policy asks people."""

from __future__ import annotations

import pytest
from approval_desk import Desk


@pytest.fixture
def desk(place):
    return Desk(place)
