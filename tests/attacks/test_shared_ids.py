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
from edited_logs import PASSPHRASE
from embedded_parts import runtime_of
from shared_ids import share_id

from agentguard import Decision, Denied, Guard, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.domain import keystore
from agentguard.domain.verify import examine
from agentguard.store.journal import LoggedJournal
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in


def places(place, kind="call"):
    """The indices of the entries of a kind."""
    with closing(StoredLog.of(place.config.state)) as reader:
        return [index for index, body in reader.entries() if parse_entry(body).kind == kind]


def note(guard, ran, name="note"):
    return guard.tool(name=name)(ran.append)


def found(report):
    return [(one.index, one.what) for one in report.problems]


def shared(later, first):
    what = f"its call has the id of another call, at {first}: name each by its index"
    return (later, what)


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
    with closing(StoredLog.of(place.config.state)) as reader:
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
    assert problem["index"] == second
    assert f"another call, at {first}" in problem["what"]


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
    with closing(sqlite3.connect(path_in(place.config.state))) as connection:
        asked = "SELECT invocation_id FROM entry WHERE idx = ?"
        ((invocation_id,),) = connection.execute(asked, [first]).fetchall()
        changed = "UPDATE entry SET invocation_id = ? WHERE idx = ?"
        connection.execute(changed, [invocation_id, second])
        connection.commit()
    (problem,) = place.examine().problems
    assert (problem.index, "(invocation_id)" in problem.what) == (second, True)


def test_of_many_calls_with_one_id_a_hundred_are_listed(place, ran):
    first, *later = make_calls(place, ran, 130)
    assert found(place.examine())[:100] == [shared(index, first) for index in later[:100]]


# --- what a person says of one of them ------------------------------------------------------------

TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"
[policy]
engine = "function"
path = "unused:unused"
[agents.reader]
authority = "own"
[agents.writer]
authority = "own"
"""


class Codec:
    """Keeps a result as text."""

    def dumps(self, result):
        return str(result).encode()

    def loads(self, data):
        return data.decode()


class Calls:
    """Calls at stable sites, all of which get one id; ``ran`` is what was done."""

    def __init__(self, place, ran):
        self.place, self.ran = place, ran
        (place.config.base / "agentguard.toml").write_text(TABLES, "utf-8")

    def make(self, what, *, in_doubt=False):
        """Make a call as a framework does; the outcome of one in doubt does not reach the log."""
        with self.place.open() as guard, pytest.MonkeyPatch.context() as patch:
            share_id(patch)
            if in_doubt:
                log = runtime_of(guard).current_ports().log
                patch.setattr(log, "append", only_signed(log.append))
                patch.setattr(LoggedJournal, "keeping", lambda *_given: 1 / 0)
            tool = note(guard, self.ran)
            call = Invocation.bind(
                tool.spec, lambda: Arguments.of({"what": what}), CallSite(what, thread="t")
            )
            options = CallOptions(codec=Codec())
            return adapters.run(
                guard.new_agent("reader"),
                call,
                lambda: self.ran.append(what) or f"did {what}",
                options,
            )

    def resolve(self, index, answer):
        words = ["resolve", str(index), answer, "--note", "asked the bank"]
        env = {"AGENTGUARD_PASSPHRASE": PASSPHRASE.decode(), "COLUMNS": "200"}
        return commands.run(words, env=env, cwd=self.place.config.base)

    def resolved(self):
        """The places that the resolutions in the log name."""
        said = [one for one in self.place.seen().entries if isinstance(one, ResolutionEntry)]
        doubts = len(self.place.examine().in_doubt)
        return [(one.call.index, one.ran) for one in said], doubts


def only_signed(append):
    def appended(record, **given):
        if record.summary.kind == "outcome":
            raise OSError("the disk is gone")
        return append(record, **given)

    return appended


@pytest.fixture
def calls(place, ran):
    return Calls(place, ran)


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("answer", ["--ran", "--not-ran"])
def test_a_resolution_is_of_the_call_at_the_place_that_is_named(calls, place, nth, answer):
    for what in ("one", "other"):
        calls.make(what, in_doubt=True)
    indices = places(place)
    assert calls.resolved() == ([], 2)
    done = calls.resolve(indices[nth], answer)
    assert done.returncode == 0, done.stderr
    assert calls.resolved() == ([(indices[nth], answer == "--ran")], 1)
    again = calls.resolve(indices[nth], answer)
    assert (again.returncode, "its resolution is on record" in again.stderr) == (2, True)
    other = calls.resolve(indices[1 - nth], answer)
    assert other.returncode == 0, other.stderr
    assert calls.resolved() == (
        [(i, answer == "--ran") for i in (indices[nth], indices[1 - nth])],
        0,
    )


@pytest.mark.parametrize("nth", [0, 1])
def test_a_call_with_an_outcome_does_not_settle_the_other(calls, place, nth):
    for number, what in enumerate(("one", "other")):
        calls.make(what, in_doubt=number == nth)
    indices = places(place)
    refused = calls.resolve(indices[1 - nth], "--ran")
    assert (refused.returncode, "its outcome is on record" in refused.stderr) == (2, True)
    assert calls.resolve(indices[nth], "--ran").returncode == 0
    assert calls.resolved() == ([(indices[nth], True)], 0)


@pytest.mark.parametrize("answer", ["--ran", "--not-ran"])
def test_a_resolution_leaves_the_journal_entry_of_the_other_call(calls, place, ran, answer):
    assert calls.make("done") == "did done"
    calls.make("doubtful", in_doubt=True)
    assert calls.resolve(places(place)[1], answer).returncode == 0
    assert calls.make("done") == "did done"  # from the journal
    if answer == "--ran":
        with pytest.raises(Denied) as caught:
            calls.make("doubtful")
        assert caught.value.code == "journal.unreplayable"
    else:
        calls.make("doubtful")  # the twin: this one may be made anew
    assert ran == ["done", "doubtful", *(["doubtful"] if answer == "--not-ran" else [])]
