"""A guard whose calls carry a secret."""

from __future__ import annotations

import pytest
from private_calls import Scene


@pytest.fixture
def scene(place) -> Scene:
    return Scene(place.config).redacting()
