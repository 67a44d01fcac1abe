"""A guard in memory that allows everything, and a tool with an effect that a test can see."""

from __future__ import annotations

import pytest
from recorded_calls import allow_all

from agentguard import (
    Guard,
)


@pytest.fixture
def guard():
    with Guard.ephemeral(allow_all) as opened:
        yield opened


@pytest.fixture
def ran():
    return []


@pytest.fixture
def note(guard, ran):
    @guard.tool
    def note(text=""):
        ran.append(text)
        return text

    return note
