"""The fixtures of tests that ask one token service, which runs in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from preloaded import Preloaded
from token_service import Key, Service, served


@pytest.fixture(scope="session")
def service(programs: Preloaded) -> Iterator[Service]:
    """A service that the tests of a folder share, and that each test leaves as it was."""
    with served(programs) as running:
        yield running


@pytest.fixture(scope="session")
def key() -> Key:
    """The key of an instance of the agent clerk."""
    return Key()


@pytest.fixture(scope="session")
def credential(service: Service, key: Key) -> str:
    """The credential of that key."""
    return service.credential(key)
