"""The fixtures of the demo's tests: preloaded processes, and a bob who signs in this process."""

from __future__ import annotations

from collections.abc import Iterator

import commands
import pytest
from demo_runs import at_home
from preloaded import Preloaded

from agentguard_demo import people


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Processes that have imported the demo and the test's cheap keys."""
    processes = Preloaded("agentguard.cli", "agentguard_demo", "langchain.agents", "cheap_keys")
    yield processes
    processes.close()


@pytest.fixture
def bob_signs_here(monkeypatch):
    """Run bob's command in this process, with his environment."""

    def sign(place, arguments):
        environment = at_home(
            place.directory, **{people.PASSPHRASE_VARIABLE: place.bobs_passphrase}
        )
        result = commands.run(arguments, cwd=place.directory, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    monkeypatch.setattr(people, "sign", sign)
