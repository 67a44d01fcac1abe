"""Each denial of a call under a delegation is on record for the person, through a guard server.

The twin of ``tests/unit/flow/test_refused_persons.py``, which has the reasons for a denial.
"""

from __future__ import annotations

import json
import time
from contextvars import copy_context
from datetime import UTC, datetime

import pytest
from served_place import PASSPHRASE

from agentguard import AgentguardError, DelegationError, Denied, current_delegation
from agentguard.adapters import refusing_agent
from agentguard.domain import administration

ALICE = "user:alice"


def error_of(function, *arguments):
    with pytest.raises(AgentguardError) as caught:
        function(*arguments)
    return caught.value


def refusing(agent, error):
    refused = DelegationError(str(error), code=error.code, delegation=error.delegation)
    return refusing_agent(agent, refused)


def valid(_founded, _guard, agent, lent):
    return agent.under(lent)


def expired(_founded, guard, agent, _lent):
    short = guard.delegate(ALICE, scope=["read"], expires_in=1)
    time.sleep(1.1)
    return agent.under(short)


def expired_before_a_start(founded, guard, agent, _lent):
    short = guard.delegate(ALICE, scope=["read"], expires_in=1)
    founded.stop()
    time.sleep(1.1)
    founded.start()
    return agent.under(short)


def stored_and_expired(_founded, guard, agent, _lent):
    stored = guard.delegate(ALICE, scope=["read"], expires_in=1).dumps()
    time.sleep(1.1)
    return refusing(agent, error_of(guard.resume, stored))


def revoked(founded, _guard, agent, lent):
    now = datetime.now(UTC)
    administration.revoke(founded.settings, PASSPHRASE, lent.id, note="gone", now=now)
    return agent.under(lent)


def ended(_founded, _guard, agent, lent):
    with lent:
        context = copy_context()
    return refusing(agent, context.run(error_of, current_delegation))


def too_narrow(_founded, _guard, agent, lent):
    return refusing(agent, error_of(lambda: lent.narrowed(scope=["write"])))


def altered(_founded, guard, agent, lent):
    stored = json.loads(lent.dumps())
    stored["hops"][0] = stored["hops"][0][:-8] + "AAAAAAAA"
    return refusing(agent, error_of(guard.resume, json.dumps(stored).encode()))


def only_named(_founded, _guard, agent, _lent):
    return refusing_agent(agent, DelegationError("not today", delegation=ALICE))


PROVED = {
    expired: True,
    expired_before_a_start: True,
    stored_and_expired: True,
    revoked: True,
    ended: True,
    too_narrow: True,
    altered: False,
    only_named: False,
}


def test_denials_through_a_guard_server_are_the_persons(founded):
    founded.start()
    guard = founded.connect()
    agent, note = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    for state in (valid, *PROVED):
        lent = guard.delegate(ALICE, scope=["read"])
        caller = state(founded, guard, agent, lent)
        if state is valid:  # the twin
            assert caller.call(note) == "noted"
            continue
        with pytest.raises(Denied):
            caller.call(note)
        guard.flush()
        call = founded.calls()[-1]
        said = state.__name__, call.decision, call.principal, call.is_proved
        assert said == (state.__name__, "deny", ALICE, PROVED[state])
    shown = founded.programs.run(
        "-m", "agentguard.cli", "audit", "list", "--json", "--principal", ALICE, cwd=founded.folder
    )
    listed = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [one["proved"] for one in listed] == [True, *PROVED.values()]
    table = founded.programs.run(
        "-m", "agentguard.cli", "audit", "list", "--principal", ALICE, cwd=founded.folder
    )
    assert table.stdout.count("(unproved)") == 2
    assert founded.verify().problems == ()
