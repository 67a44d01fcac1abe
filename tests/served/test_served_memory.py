"""The memory of the server that the accepted delegations of a client's agents take."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import Decision, Guard
from agentguard.call.client import Client
from agentguard.domain.config.server import ClientConfig
from agentguard.server import session as sessions
from agentguard.server.session import Session
from agentguard.server.share import Share

DELEGATIONS = 10


@pytest.fixture
def guard():
    with Guard.ephemeral(policy=lambda _call: Decision.allow()) as guard:
        yield guard


@pytest.fixture
def session(guard):
    unused: Any = None
    ports = guard._parts.runtime.current_ports()
    return Session(ClientConfig("c", 1), "separate-user", unused, unused, Share(1, 1), ports)


def accepted(guard, session):
    """Have an agent of a session accept delegations; return its name, itself, and them."""
    made = guard._parts.instance(
        guard._parts.agent("clerk"), Client("c", "separate-user"), room=session
    )
    name = session.add_agent(made, made.ports)
    lent = [guard.delegate("user:alice", scope=["read"]) for _ in range(DELEGATIONS)]
    for delegation in lent:
        assert made.access_token(delegation)
    return name, made, lent


def kept(made, lent):
    """Return for each delegation whether the agent has kept what it accepted."""
    return [made._acceptances.get(delegation.key) is not None for delegation in lent]


def test_accepted_delegations_are_counted_and_given_back(guard, session):
    name, made, lent = accepted(guard, session)
    assert kept(made, lent) == [True] * DELEGATIONS
    assert session.share._bytes > sessions._AGENT + DELEGATIONS * (4 << 10)
    made.access_token(lent[0])
    session.release([name])
    assert session.share._bytes == 0
    assert made.access_token(lent[0])  # of a call under way
    assert session.share._bytes == 0
    _name, again, lent = accepted(guard, session)
    assert kept(again, lent) == [True] * DELEGATIONS
    session.abandon()
    assert session.share._bytes == 0


def test_the_oldest_accepted_delegations_go_where_there_is_no_room(guard, session, monkeypatch):
    most = sessions._AGENT + (64 << 10)
    monkeypatch.setattr(sessions, "MOST_SPARE", most)
    _name, made, lent = accepted(guard, session)
    assert sessions._AGENT < session.share._bytes <= most
    assert kept(made, lent) == sorted(kept(made, lent))
    assert 0 < sum(kept(made, lent)) < DELEGATIONS
    _name, other, lent = accepted(guard, session)  # the agents of a client have one share
    assert session.share._bytes <= most + sessions._AGENT
    assert sum(kept(other, lent)) == 0
    assert other.access_token(lent[0])
