"""Two calls with one id, as an agent that makes its own ids can have them.

The id then names either call, so ``audit verify`` reports the later call, with both places. A
person names each of them by its place.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import commands
import pytest
from shared_ids import share_id

from agentguard import Decision, Denied, Guard
from agentguard.audit.entry import parse_entry
from agentguard.domain import keystore
from agentguard.domain.verify import examine
from agentguard.storage.reader import StateReader
from agentguard.storage.sqlite import shard_path


def places(place, kind="authorization"):
    """The indices of the entries of a kind in shard 0."""
    with closing(StateReader(place.config.state)) as reader:
        return [index for index, body in reader.entries(0) if parse_entry(body).kind == kind]


def note(guard, ran, name="note"):
    return guard.tool(name=name)(ran.append)


def found(report):
    return [(one.shard, one.index, one.what) for one in report.problems]


def shared(later, first):
    what = f"its call has the id of another call, at {first} in this shard: name each by its place"
    return (0, later, what)


def make_calls(place, ran, number):
    """Make calls after two others, which have ids of their own."""
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = note(guard, ran)
        for count in range(2):
            agent.call(tool, count)
        with pytest.MonkeyPatch.context() as patch:
            share_id(patch)
            for count in range(number):
                agent.call(tool, count)
    return places(place)[2:]


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_with_one_id_are_found_with_both_places(place, ran, jobs):
    first, *later = make_calls(place, ran, 3)
    with closing(StateReader(place.config.state)) as reader:
        trust = keystore.load_trust(place.config.state)
        report = examine(reader, trust, anchor=place.config.anchor, jobs=jobs)
    assert found(report) == [shared(index, first) for index in later]
    assert report.in_doubt == ()


def test_the_twin_one_call_has_the_id(place, ran):
    make_calls(place, ran, 1)
    assert place.examine().problems == ()
    assert len(ran) == 3


def test_the_command_says_both_places(place, ran):
    first, second = make_calls(place, ran, 2)
    trust = place.config.base / "trust.json"
    trust.write_bytes(keystore.load_trust(place.config.state).dumps())
    words = ["audit", "verify", "--state", place.config.state, "--trust", trust]
    shown = commands.run([*words, "--json"], env={}, cwd=place.config.base)
    assert shown.returncode == 1
    (problem,) = json.loads(shown.stdout)["problems"]
    assert (problem["shard"], problem["index"]) == (0, second)
    assert f"another call, at {first} in this shard" in problem["what"]


def test_a_denied_call_has_no_other_calls_id_either(place, ran, monkeypatch):
    def decide(call):
        return Decision.allow() if call["args"]["object"] else Decision.deny()

    share_id(monkeypatch)
    with place.open(decide) as guard:
        agent, tool = guard.new_agent("reader"), note(guard, ran)
        with pytest.raises(Denied):
            agent.call(tool, 0)
        agent.call(tool, 1)
    denied, allowed = places(place)
    assert found(place.examine()) == [shared(allowed, denied)]


def test_in_memory_they_are_found_as_well(ran, monkeypatch):
    share_id(monkeypatch)
    with Guard.ephemeral(lambda _: Decision.allow()) as guard:
        agent, tool = guard.new_agent("a"), note(guard, ran)
        agent.call(tool, 1)
        assert guard.verify().problems == ()
        agent.call(tool, 2)
        (problem,) = guard.verify().problems
    assert "its call has the id of another call" in problem.what


def test_columns_that_were_changed_give_no_call_another_id(place, ran):
    """The problem is that they were changed."""
    make_calls(place, ran, 1)
    first, second, _third = places(place)
    with closing(sqlite3.connect(shard_path(place.config.state, 0))) as connection:
        asked = "SELECT invocation_id FROM summaries WHERE idx = ?"
        ((invocation_id,),) = connection.execute(asked, [first]).fetchall()
        changed = "UPDATE summaries SET invocation_id = ? WHERE idx = ?"
        connection.execute(changed, [invocation_id, second])
        connection.commit()
    (problem,) = place.examine().problems
    assert (problem.index, "(invocation_id)" in problem.what) == (second, True)


def test_of_many_calls_with_one_id_a_hundred_are_listed(place, ran):
    first, *later = make_calls(place, ran, 130)
    assert found(place.examine())[:100] == [shared(index, first) for index in later[:100]]
