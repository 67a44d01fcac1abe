"""A guard with an agent that needs a delegation, an agent that needs none, and two delegations."""

from __future__ import annotations

import pytest
from delegated_agents import AGENTS, FOR_WHOM

from agentguard import Decision, Guard


@pytest.fixture
def asked():
    return []


@pytest.fixture
def guard(asked):
    def policy(document):
        asked.append(document)
        delegation = document.get("delegation")
        FOR_WHOM.set(delegation and delegation["subject"])
        return Decision.allow()

    with Guard.ephemeral(policy, config={"agents": AGENTS}) as opened:
        yield opened


@pytest.fixture
def robot(guard):
    return guard.new_agent("robot")


@pytest.fixture
def worker(guard):
    return guard.new_agent("worker")
