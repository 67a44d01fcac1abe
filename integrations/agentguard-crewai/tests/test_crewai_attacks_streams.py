"""Attacks by streams read late, elsewhere or for another user, each with what goes through."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
from crewai_attacks import PAY, asks_for_pay, lent, paying

from agentguard import ApprovalPending, ConfigError
from agentguard_crewai import guard_crew, resumable


def read(stream: Any) -> str:
    """Read a stream to its end."""
    for _chunk in stream:
        pass
    return stream.result.raw


def test_two_streams_of_one_crew_are_each_of_their_own_run(native, recorded, signed):
    made, paid = recorded(agents=lent("worker")), []
    pay = paying(paid)
    worker = native.agent("Worker", *[PAY, "done"] * 2, tools=[pay])
    team = guard_crew(native.crew(worker, stream=True, cache=False), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        streams = []
        for order in ("order-7", "order-8"):
            with resumable(order):
                streams.append(team.kickoff())
        assert [read(one) for one in streams] == ["done", "done"]
        assert paid == ["ann", "ann"]
        assert len({call.site for call in signed(made.guard)}) == 2
        for order in ("order-7", "order-8"):
            again = native.crew(native.agent("Worker", PAY, "done", tools=[pay]))
            with resumable(order):
                assert guard_crew(again, made.guard).kickoff().raw == "done"
    assert paid == ["ann", "ann"]


def test_a_stream_that_is_never_read_leaves_nothing_behind(native, recorded):
    made, paid = recorded(agents=lent("worker")), []
    made.decide = asks_for_pay

    def team_of() -> Any:
        worker = native.agent("Worker", *[PAY, "done"] * 3, tools=[paying(paid)])
        return guard_crew(native.crew(worker, cache=False), made.guard, on_approval="pause")

    team = team_of()
    with made.guard.delegate("user:alice", scope=["pay"]):
        with resumable("order-7"), pytest.raises(ApprovalPending):
            team_of().kickoff()
        made.approve()
        team.stream = True
        with resumable("order-7"):
            team.kickoff()
        team.stream = False
        # part of no run: what was approved for the order is not its
        with pytest.raises(ApprovalPending):
            team.kickoff()
        assert paid == []
        with resumable("order-7"):
            assert team_of().kickoff().raw == "done"
        assert paid == ["ann"]


async def _aread(stream: Any) -> str:
    async for _chunk in stream:
        pass
    return stream.result.raw


@pytest.mark.parametrize("whose", ["user:alice", None])
def test_a_stream_is_never_read_for_another_user(native, recorded, signed, whose):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate(whose, scope=["pay"]) if whose else nullcontext():
        stream = team.kickoff()
    with made.guard.delegate("user:bob", scope=["pay"]):
        with pytest.raises(ConfigError, match="another delegation in force") as refused:
            read(stream)
        assert refused.value.code == "crew.elsewhere"
        assert (paid, signed(made.guard)) == ([], [])
        assert read(team.kickoff()) == "done"  # his own is
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:bob"])


@pytest.mark.parametrize("begin", ["akickoff", "kickoff_async"])
async def test_an_async_stream_is_never_read_for_another_user(native, recorded, signed, begin):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        stream = await getattr(team, begin)()
    with made.guard.delegate("user:bob", scope=["pay"]):
        with pytest.raises(ConfigError, match="another delegation in force"):
            await _aread(stream)
        assert (paid, signed(made.guard)) == ([], [])
        assert await _aread(await getattr(team, begin)()) == "done"
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:bob"])


def test_a_stream_is_read_where_its_delegation_is_in_force_again(native, recorded, signed):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]) as lent_here:
        stored = lent_here.dumps()
        stream = team.kickoff()
    with made.guard.resume(stored):
        assert read(stream) == "done"
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:alice"])


def _in_a_bare_thread(stream: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(read, stream).result()


@pytest.mark.parametrize("reading", [read, _in_a_bare_thread])
def test_a_stream_that_is_read_outside_its_block_does_not_act_by_itself(
    native, recorded, signed, reading
):
    """An agent that may act by itself, and was kicked off with less than it may do."""
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["look", "pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["look"]):
        stream = team.kickoff()
    with pytest.raises(ConfigError, match="another delegation in force") as refused:
        reading(stream)
    assert refused.value.code == "crew.elsewhere"
    assert (paid, signed(made.guard)) == ([], [])


def test_a_stream_that_was_kicked_off_for_nobody_is_read_anywhere_for_nobody(
    native, recorded, signed
):
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    _in_a_bare_thread(guard_crew(native.crew(worker, stream=True), made.guard).kickoff())
    assert (paid, [call.code for call in signed(made.guard)]) == (["ann"], [""])


def test_a_stream_that_is_read_where_its_delegation_has_ended_is_refused_on_record(
    native, recorded, signed
):
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        stream, context = team.kickoff(), contextvars.copy_context()
    context.run(read, stream)
    assert (paid, [call.code for call in signed(made.guard)]) == ([], ["delegation.ended"])
