"""Clocks that fail, run backwards or jump: time never goes back, and nothing slips by."""

from __future__ import annotations

import dataclasses
from datetime import datetime

import pytest

from agentguard import Decision, Denied, Guard

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001  that is the mistake


@pytest.fixture
def timed(clock):
    """A guard on the clock in the test's hand."""
    return Guard.ephemeral(lambda _: Decision.allow())


@pytest.fixture
def tool(timed, ran):
    return timed.tool(ran.append)


def refused(agent, tool):
    with pytest.raises(Denied) as caught:
        agent.call(tool, "refused")
    return caught.value.code


def test_a_clock_that_is_a_little_behind_is_fine(clock, timed, tool, ran, seen, examine):
    agent = timed.new_agent("a")
    agent.call(tool, 1)
    for behind in (0.001, 30, 29.9):
        clock.advance(seconds=-behind)
        agent.call(tool, behind)
    times = [entry.at for entry in seen(timed).entries if entry.kind == "call"]
    assert times == sorted(times)
    assert len(ran) == 4
    assert examine(timed).ok


def test_a_clock_far_behind_denies_until_it_has_caught_up(clock, timed, tool, ran, seen, examine):
    agent = timed.new_agent("a")
    agent.call(tool, "before")
    clock.advance(seconds=-61)
    assert refused(agent, tool) == "clock.skew"
    clock.advance(seconds=0.5)
    assert refused(agent, tool) == "clock.skew"
    clock.advance(seconds=0.6)
    agent.call(tool, "after")
    assert ran == ["before", "after"]
    assert [code for _d, code in seen(timed).codes] == ["", "clock.skew", "clock.skew", ""]
    assert examine(timed).ok


@pytest.mark.parametrize(
    "now", [None, 5, "2026-01-01", NAIVE], ids=["none", "int", "text", "naive"]
)
def test_a_clock_that_tells_no_time_denies(clock, timed, tool, ran, seen, examine, now):
    agent = timed.new_agent("a")
    good = clock.now
    clock.now = now
    assert refused(agent, tool) == "clock.failed"
    clock.now = good
    agent.call(tool, "twin")
    assert ran == ["twin"]
    assert seen(timed).codes == [("deny", "clock.failed"), ("allow", "")]
    assert examine(timed).ok


def test_a_clock_that_raises_denies_without_its_text(clock, timed, tool, ran, seen, examine):
    agent = timed.new_agent("a")
    clock.error = OSError("ntp.internal")
    assert refused(agent, tool) == "clock.failed"
    clock.error = None
    assert "ntp.internal" not in str(seen(timed).authorizations)
    agent.call(tool, "twin")
    assert ran == ["twin"]
    assert examine(timed).ok


def test_a_clock_that_fails_while_the_tool_runs_does_not_lose_the_outcome(
    clock, timed, seen, examine
):
    @timed.tool
    def break_the_clock():
        clock.error = OSError()
        return "done"

    assert timed.new_agent("a").call(break_the_clock) == "done"
    clock.error = None
    assert seen(timed).statuses == ["ok"]
    assert examine(timed).ok


@pytest.mark.parametrize("idle", [3299, 3301, 3599, 3601, 7200, 86400 * 30])
def test_an_idle_agent_renews_its_credential(clock, timed, tool, ran, seen, examine, idle):
    agent = timed.new_agent("a")
    agent.call(tool, 1)
    clock.advance(seconds=idle)
    agent.call(tool, 2)
    assert ran == [1, 2]
    identities = [entry for entry in seen(timed).entries if entry.kind == "identity"]
    assert len(identities) == (1 if idle < 3300 else 2)
    assert examine(timed).ok


def test_a_refusal_after_a_long_pause_does_not_spoil_the_log(clock, timed, tool, examine):
    """Whatever refuses a call, the log in which it stands must verify."""
    agent = timed.new_agent("a")
    clock.advance(hours=2)
    with pytest.raises(Denied):
        agent.call(tool, unknown=1)
    assert examine(timed).problems == ()
    clock.advance(hours=2)
    agent._caller.instance().ports = dataclasses.replace(
        agent._caller.instance().ports, entropy=lambda _size: b""
    )
    assert refused(agent, tool) == "entropy.failed"
    assert examine(timed).problems == ()


def test_an_agent_without_authority_is_denied_for_longer_than_its_credential(clock, ran, examine):
    def nobody_asks(_document):
        raise AssertionError

    guard = Guard.ephemeral(nobody_asks, config={"agents": {"a": {}}})
    agent, tool = guard.new_agent("a"), guard.tool(ran.append)
    for _ in range(3):
        assert refused(agent, tool) == "delegation.missing"
        clock.advance(hours=2)
    assert examine(guard).problems == ()


def test_a_call_that_straddles_a_renewal_verifies(clock, timed, tool, ran, examine):
    agent = timed.new_agent("a")

    def slow(_arguments):
        clock.advance(seconds=3400)
        agent.call(tool, "meanwhile")  # renews
        return {}

    straddling = timed.tool(facts=slow, gives=[], name="straddling")(ran.append)
    agent.call(straddling, "late")
    assert ran == ["meanwhile", "late"]
    report = examine(timed)
    assert report.problems == ()
    assert report.in_doubt == ()


def test_a_tool_that_outlives_its_credential_has_an_outcome_that_verifies(clock, timed, examine):
    @timed.tool
    def slow():
        clock.advance(days=2)

    timed.new_agent("a").call(slow)
    assert examine(timed).problems == ()
    assert examine(timed).in_doubt == ()


def test_an_authorization_beyond_the_credential_is_found(clock, timed, tool, ran, examine):
    """The twin of all the above: a credential that had run out does not vouch for an allow."""
    agent = timed.new_agent("a")
    agent._caller.instance()._renew_at = 2**40  # an instance that never renews
    agent.call(tool, 1)
    assert examine(timed).ok
    clock.advance(hours=2)
    agent.call(tool, 2)
    report = examine(timed)
    assert not report.ok
    assert "credential" in report.problems[0].what


def test_reopening_with_a_clock_behind_the_log_denies(place, clock, ran):
    guard = place.open()
    guard.new_agent("reader").call(guard.tool(ran.append), 1)
    guard.close()
    clock.advance(hours=-1)
    guard = place.open()
    assert refused(guard.new_agent("reader"), guard.tool(ran.append)) == "clock.skew"
    guard.close()
    clock.advance(hours=1)
    guard = place.open()
    guard.new_agent("reader").call(guard.tool(ran.append), 2)
    guard.close()
    assert ran == [1, 2]
    assert place.examine().ok
