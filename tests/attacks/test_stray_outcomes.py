"""An outcome whose call's authorization never got into the log: what it may say, and hide.

A call that is interrupted while its authorization is written says afterwards that its tool did not
run; where the authorization is not in the log, nothing but this outcome names the call. By its
columns a call in doubt is found, or hidden.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress

import pytest
from click.testing import CliRunner

from agentguard import Decision, Denied, StorageError
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry, UnsignedOutcome, outcome_statement
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Summary
from agentguard.call.invocation import timestamp
from agentguard.cli.audit import log_row as rows
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.commands import app
from agentguard.errors import VerificationError
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in


@pytest.fixture
def opened(place):
    with place.open() as guard:
        yield guard


@pytest.fixture
def agent(opened):
    return opened.new_agent("reader")


def interrupt(guard, agent, ran, put_faults, *, durable, flush=True):
    """Make a call that is interrupted before, or after, its authorization is durable."""
    faults, error = put_faults(guard), KeyboardInterrupt()
    faults.before, faults.after = (None, error) if durable else (error, None)
    with pytest.raises(KeyboardInterrupt):
        agent.call(guard.tool(ran.append, name="note"), "interrupted")
    faults.before = faults.after = None
    if flush:
        guard.flush()


def leave_in_doubt(guard, agent, ran, monkeypatch):
    """Make a call whose outcome can't be handed over; return its id and its invocation's digest."""
    with monkeypatch.context() as patched:
        patched.setattr(guard._parts.runtime._ports.log, "enqueue", lambda _record: 1 / 0)
        agent.call(guard.tool(ran.append, name="note"), "in doubt")
    return last_call(guard)


def last_call(guard):
    """Return the index of the newest authorization in the log, and its content."""
    parsed = [(index, parse_entry(body)) for index, body in guard.reader().entries()]
    return [(index, one) for index, one in parsed if isinstance(one, CallEntry)][-1]


def in_doubt_by_columns(place):
    with closing(StoredLog.of(place.config.state)) as reader:
        return [row.invocation_id for row in History(reader).rows(Filter(in_doubt=True))]


def strays(place):
    with closing(sqlite3.connect(path_in(place.config.state))) as connection:
        asked = "SELECT idx, invocation_id FROM entry WHERE status = 'not_run'"
        return connection.execute(asked).fetchall()


@pytest.mark.parametrize("durable", [True, False])
def test_an_interrupted_call_is_not_in_doubt(place, opened, agent, ran, put_faults, durable):
    """Its outcome is found by its id, whether its authorization is in the log or not."""
    interrupt(opened, agent, ran, put_faults, durable=durable)
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    assert in_doubt_by_columns(place) == []
    with closing(StoredLog.of(place.config.state)) as reader:
        parsed = [parse_entry(body) for _index, body in reader.entries()]
    (said,) = [one for one in parsed if isinstance(one, OutcomeEntry)]
    assert said.predicate["authorization"] is None
    assert said.ended.invocation_id == strays(place)[0][1]
    assert ran == []


@pytest.mark.parametrize("is_joint", [False, True])
def test_a_stray_outcome_is_shown_with_its_signer(place, opened, agent, ran, put_faults, is_joint):
    """Also where the instance has signed it together with the next call."""
    interrupt(opened, agent, ran, put_faults, durable=False, flush=not is_joint)
    agent.call(opened.tool(ran.append, name="note"), "next")
    ((index, _id),) = strays(place)
    with closing(StoredLog.of(place.config.state)) as reader:
        entry = reader.entry(index)
    assert entry is not None
    assert (b'"joint"' in entry.body) == is_joint
    command = ["audit", "show", str(index), "--state", str(place.config.state)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert agent._caller.instance().actor.signer.key_id in shown.output
    assert place.examine().problems == ()


def test_its_column_hides_no_call_in_doubt(place, opened, agent, ran, monkeypatch, put_faults):
    interrupt(opened, agent, ran, put_faults, durable=False)
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), (call.invocation_id,))
    assert in_doubt_by_columns(place) == [call.invocation_id]
    ((stray, _id),) = strays(place)
    with closing(sqlite3.connect(path_in(place.config.state))) as connection:
        changed = "UPDATE entry SET invocation_id = ? WHERE idx = ?"
        connection.execute(changed, [call.invocation_id, stray])
        connection.commit()
    assert in_doubt_by_columns(place) == []  # that is what it would be done for
    report = place.examine()
    assert report.in_doubt == (call.invocation_id,)
    (problem,) = report.problems
    assert (problem.index, "(invocation_id)" in problem.what) == (stray, True)


def say(guard, agent, subject, *, named, column=None):
    """Have the agent itself sign that a call was not run, and append that."""
    log = guard._parts.runtime._ports.log
    at = timestamp(log.last_at)
    statement = outcome_statement(
        subject,
        authorization=named,
        status="not_run",
        result=None,
        result_type=None,
        error_type=None,
        started_at=None,
        ended_at=at,
    )
    signer = agent._caller.instance().actor.signer
    about = Summary("outcome", at, column or named, agent.id, status="not_run")
    return log.append(UnsignedOutcome.of(statement, signer, about, None).signed()).index


def test_an_agent_that_says_it_of_a_call_in_doubt_under_its_id(
    place, opened, agent, ran, monkeypatch
):
    """By the columns the call is not in doubt any more; by its digest it is."""
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    lie = say(opened, agent, "0" * 64, named=call.invocation_id)
    report = place.examine()
    assert report.in_doubt == (call.invocation_id,)
    assert [problem.index for problem in report.problems] == [lie]


def test_an_agent_that_says_it_under_an_id_of_its_own(place, opened, agent, ran, monkeypatch):
    """The twin: that is what an interrupted call looks like."""
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    say(opened, agent, "0" * 64, named="0" * 32)
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), (call.invocation_id,))


def test_an_outcome_names_the_call_that_it_is_of(place, opened, agent, ran, monkeypatch):
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    lie = say(opened, agent, call.invocation_sha256, named="0" * 32, column=call.invocation_id)
    (problem,) = place.examine().problems
    assert (problem.index, "names another call" in problem.what) == (lie, True)


def test_evidence_of_it_names_the_call_as_well(place, opened, agent, ran, monkeypatch):
    """The log alone proves what its verification refuses, unless the evidence is asked, too."""
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    say(opened, agent, call.invocation_sha256, named="0" * 32, column=call.invocation_id)
    with pytest.raises(VerificationError, match="names another call") as caught:
        prove_call(opened.reader(), opened.trust, call.invocation_id)
    assert caught.value.code == "statement.mismatch"


def test_the_twin_names_it(place, opened, agent, ran, monkeypatch):
    _index, call = leave_in_doubt(opened, agent, ran, monkeypatch)
    say(opened, agent, call.invocation_sha256, named=call.invocation_id)
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    proved = verify_evidence(
        prove_call(opened.reader(), opened.trust, call.invocation_id), opened.trust
    )
    assert proved.outcome is not None
    assert proved.outcome.status == "not_run"


@pytest.mark.parametrize("named", ["its own", "another"])
def test_a_call_that_ran_is_not_said_not_to_have_run(place, opened, agent, ran, named):
    """Two files with evidence would prove both: that the call returned, and that it did not run."""
    agent.call(opened.tool(ran.append, name="note"), "ran")
    opened.flush()
    call = last_call(opened)[1]
    assert place.examine().problems == ()
    name = str(call.invocation_id) if named == "its own" else "0" * 32
    lie = say(opened, agent, call.invocation_sha256, named=name)
    (problem,) = place.examine().problems
    assert (problem.index, "has an outcome already" in problem.what) == (lie, True)


def test_a_call_that_was_denied_has_no_outcome(place, ran):
    with place.open(lambda _call: Decision.deny("no")) as guard:
        agent = guard.new_agent("reader")
        with pytest.raises(Denied):
            agent.call(guard.tool(ran.append, name="note"), "denied")
        call = last_call(guard)[1]
        assert place.examine().problems == ()
        lie = say(guard, agent, call.invocation_sha256, named=str(call.invocation_id))
    (problem,) = place.examine().problems
    assert (problem.index, "was denied" in problem.what) == (lie, True)


def test_what_was_not_run_is_said_once_and_not_ahead_of_the_call(place, opened, agent, ran):
    """The twin is an interrupted call; here its outcome is repeated, or its call comes later."""
    index = say(opened, agent, "0" * 64, named="0" * 32)
    assert place.examine().problems == ()
    again = say(opened, agent, "0" * 64, named="0" * 32)
    assert again == index + 1
    assert [problem.index for problem in place.examine().problems] == [again]


# --- what an id is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x$(touch pwned); rm -rf ~ #", "", "0" * 31, "0" * 33, "A" * 32, "\u0660" * 32]
)
def test_an_agent_does_not_choose_what_an_id_looks_like(
    place, opened, agent, ran, monkeypatch, name
):
    """It goes into commands that people are told to paste, and into the names of files."""
    drawn = "agentguard.flow.prepare._entropy"
    monkeypatch.setattr(drawn, lambda _line, refusal: (bytes(32), name, refusal))
    with suppress(Denied, StorageError):
        agent.call(opened.tool(ran.append, name="note"), "hostile")
    problems = place.examine().problems
    assert any("$.invocation_id" in problem.what for problem in problems)
    with closing(StoredLog.of(place.config.state)) as reader:
        damaged = [row for row in History(reader).rows() if row.kind == "damaged"]
        assert damaged
        assert name == "" or all(name not in json.dumps(row.as_json()) for row in damaged)


def test_a_command_to_paste_holds_no_text_of_the_log_but_an_id():
    for hostile in ("x$(touch pwned); rm -rf ~ #", "0" * 32 + "\n", "--help", "", None):
        command = rows.remedy(hostile)
        assert command == "agentguard resolve INDEX --ran|--not-ran --note TEXT"
    assert rows.remedy("0" * 32).startswith(f"agentguard resolve {'0' * 32} --ran|")
