"""A durable domain that releases a secret to the tool ``deploy``."""

from __future__ import annotations

import pytest
from secret_calls import SecretScene


@pytest.fixture
def scene(place) -> SecretScene:
    scene = SecretScene(place.config.base)
    scene.put()
    return scene
