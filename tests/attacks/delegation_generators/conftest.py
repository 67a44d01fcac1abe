"""A guard with an agent that may act by itself, two users' delegations, and generators that act."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest
from streamed import SCOPE

from agentguard import Decision, Denied, Guard

FOR: ContextVar[Any] = ContextVar("for")


@pytest.fixture
def guard():
    def policy(document):
        lent = document.get("delegation")
        FOR.set(lent and (lent["subject"], tuple(lent["scope"])))
        return Decision.allow()

    agents = {"robot": {"authority": "own", "max_scope": SCOPE}}
    with Guard.ephemeral(policy, config={"agents": agents}) as opened:
        yield opened


@pytest.fixture
def robot(guard):
    return guard.new_agent("robot")


@pytest.fixture
def acts(guard, robot):
    """For whom the robot acts here, and with which scope."""
    whoami = guard.tool(name="whoami")(lambda: FOR.get())  # noqa: PLW0108

    def attempt():
        try:
            return robot.call(whoami)
        except Denied as denied:
            return denied.code

    return attempt


@pytest.fixture
def alice(guard):
    return guard.delegate("user:alice", scope=SCOPE).narrowed(scope=["read"])


@pytest.fixture
def bob(guard):
    return guard.delegate("user:bob", scope=SCOPE)


@pytest.fixture
def stream(acts):
    def stream():
        for _ in range(3):
            yield acts()

    return stream
