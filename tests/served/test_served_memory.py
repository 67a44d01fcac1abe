"""What clients take of the server: memory for delegations, calls and replies, and files."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard, ServerError
from agentguard.approvals.nested import NestedCalls
from agentguard.call.client import Client
from agentguard.domain.config.clients import ClientConfig
from agentguard.domain.config.server import ServerConfig
from agentguard.server import pins
from agentguard.server import session as sessions
from agentguard.server.served_call import CallRequest, ServedCall
from agentguard.server.session import Session
from agentguard.server.share import Share, Shares
from agentguard.wire.reports import Recorder

DELEGATIONS = 10


@pytest.fixture
def guard():
    with Guard.ephemeral(policy=lambda _call: Decision.allow()) as guard:
        yield guard


@pytest.fixture
def session(guard):
    unused: Any = None
    ports = guard._parts.runtime.current_ports()
    limits, share = ServerConfig(Path()), Share(1, 1)
    return Session(ClientConfig("c", 1), "separate-user", limits, unused, share, ports)


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


def test_lent_delegations_leave_room_for_calls(guard, session, monkeypatch):
    most = 64 << 10
    monkeypatch.setattr(sessions, "MOST_SPARE", most)
    for _ in range(2 * DELEGATIONS):
        lent = guard.delegate("user:alice", scope=["read"])
        named = session.lend(lent)[0]["id"]
        assert session.lent(named) is lent  # the newest is always kept
        assert 0 < session.share._bytes <= most


def test_a_delegation_takes_the_room_of_calls_where_it_is_the_only_one(guard, session, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_SPARE", 0)
    for _ in range(2):
        lent = guard.delegate("user:alice", scope=["read"])
        assert session.lent(session.lend(lent)[0]["id"]) is lent
    monkeypatch.setattr(sessions, "MOST_BYTES", 0)
    with pytest.raises(ServerError):
        session.lent(session.lend(guard.delegate("user:alice", scope=["read"]))[0]["id"])


def begun(session, reason="x"):
    """Begin a call that its steps deny; return its id and the call."""

    def steps():
        yield from ()
        raise Denied(Decision.refusal(reason, code="policy.denied"))

    request_id = os.urandom(16).hex()
    request = CallRequest("clerk", is_traced=False, folder=None, sha256="", size=100)
    recorder = Recorder((), is_traced=False)
    call = ServedCall(steps(), recorder, NestedCalls(), session.lend, request)
    assert session.add_call(request_id, call) is None
    return request_id, call


def over(session, *, reason="x"):
    """Make a call that is denied; return its id."""
    request_id, call = begun(session, reason)
    assert call.start().header["step"] == "denied"
    session.settle(request_id, call)
    return request_id


def test_kept_replies_leave_room_for_calls(session, monkeypatch):
    most = 64 << 10
    monkeypatch.setattr(sessions, "MOST_SPARE", most)
    newest = [over(session) for _ in range(100)][-1]
    assert session.call(newest).reply.header["step"] == "denied"
    assert 0 < session.share._bytes <= most
    session.abandon()
    assert session.share._bytes == 0


def test_a_kept_reply_takes_what_its_header_takes(session):
    over(session)
    short = session.share._bytes
    over(session, reason="x" * 100_000)
    assert session.share._bytes > 2 * short + 100_000


def test_the_facts_of_a_call_are_counted_and_given_back(session):
    request_id, call = begun(session)
    without = session.share._bytes
    session.hold_facts(call, 1000)
    assert session.share._bytes > without + 1000
    session.settle(request_id, call)  # the call is over: its reply alone is kept
    assert 0 < session.share._bytes < without


def test_the_files_of_the_server_are_divided_anew_where_there_are_more_clients(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1256, 1256))
    shares = Shares(8, 1)
    early = shares.of("client web")
    assert early.most_connections == 500
    for _ in range(400):
        early.open()
    shares.divide(9)
    assert (early.most_connections, shares.of("client batch").most_connections) == (100, 100)
    with pytest.raises(ServerError):
        early.open()
    shares.divide(1)  # the twin
    early.open()


def test_pins_past_those_in_memory_are_read_again(guard, monkeypatch):
    monkeypatch.setattr(pins, "_MOST", 3)
    kept = pins.ToolPins(guard._parts.runs)
    for at in range(10):
        assert kept.refusal("clerk", f"t{at}", b"first") is None
        assert len(kept._known) <= 3
    for at in range(10):
        assert kept.refusal("clerk", f"t{at}", b"first") is None
        changed = kept.refusal("clerk", f"t{at}", b"other")
        assert changed is not None
        assert changed.code == "tool.changed"
