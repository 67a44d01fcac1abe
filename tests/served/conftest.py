"""A guard server in a process of its own (``agentguard serve``), and clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served_place import Place, founded_place


@pytest.fixture
def founded(programs) -> Iterator[Place]:
    """A trust domain whose server is not started yet."""
    with founded_place(programs) as place:
        yield place


@pytest.fixture
def place(founded) -> Place:
    """A trust domain whose server runs."""
    founded.start()
    return founded
