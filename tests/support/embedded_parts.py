"""The inner parts of a guard whose steps run in the test's process."""

from __future__ import annotations

from typing import Any

from agentguard import Agent, Guard
from agentguard.guard.agent import caller_of
from agentguard.guard.embedded import Embedded
from agentguard.guard.instance import Instance


def runtime_of(guard: Guard) -> Any:
    """Return the ``Runtime`` of an embedded guard, whose inner parts a test reads and replaces."""
    parts = guard._parts
    assert isinstance(parts, Embedded)
    return parts.runtime


def instance_of(agent: Agent) -> Instance:
    """Return the instance of an embedded guard's agent, with the signer."""
    instance = caller_of(agent).runtime.instance()
    assert isinstance(instance, Instance)
    return instance
