"""One token service in a process of its own, for the attacks that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from token_service import Key, Service, served


@pytest.fixture(scope="session")
def service(programs) -> Iterator[Service]:
    with served(programs) as running:
        yield running


@pytest.fixture(scope="session")
def key() -> Key:
    """The key of an instance of the agent clerk."""
    return Key()


@pytest.fixture(scope="session")
def credential(service, key) -> str:
    """The credential of that key."""
    return service.credential(key)
