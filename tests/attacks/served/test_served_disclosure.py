"""No answer of the guard server names its files, or agents of others, to a client."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agentguard import ServerError, errors
from agentguard.call.decision import Decision
from agentguard.call.responsibility import CODES
from agentguard.client.dial import Inherited
from agentguard.errors import AgentguardError
from agentguard.server.connection import refuse
from agentguard.server.disclosure import disclosed
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

HIDDEN = "/srv/guard/state/log: [agents.clerk]"
OWN = ("anchor", "clock", "config", "entropy", "key", "storage", "trust")
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentguardError)
]
KNOWN = sorted({*CODES, *(kind.default_code for kind in KINDS), "agent.unknown"})


def is_own(code: str) -> bool:
    return code == "agent.unknown" or code.partition(".")[0] in OWN


@pytest.mark.parametrize("code", [code for code in KNOWN if is_own(code)])
def test_what_is_the_servers_own_matter_arrives_as_a_code_alone(code, caplog):
    decision = values.decision(Decision("deny", code, (HIDDEN,)))
    answers: list[dict[str, Any]] = [{"decision": decision}, {"reports": [["decided", decision]]}]
    answers += [{"error": values.error(kind(HIDDEN, code=code))} for kind in KINDS]
    for answer in answers:
        told = str(disclosed(answer, may_log=True))
        assert "/srv" not in told
        assert "clerk" not in told
        assert code in told
    assert caplog.text.count(HIDDEN) == len(answers)


@pytest.mark.parametrize("code", [code for code in KNOWN if not is_own(code)])
def test_what_is_the_clients_matter_arrives_whole(code):
    decision = values.decision(Decision("deny", code, ("over the limit of 500",)))
    error = values.error(AgentguardError("over the limit of 500", code=code))
    for answer in ({"decision": decision}, {"error": error}):
        assert disclosed(answer, may_log=True) == answer


@pytest.mark.parametrize("op", ["agent", "instance"])
def test_a_client_learns_no_path_and_no_agents_of_others(mallory, place, op):
    with pytest.raises(AgentguardError) as caught:
        mallory.got(op, name="no-such")
    assert caught.value.code == "agent.refused"
    assert str(place.folder) not in str(caught.value)
    assert "clerk" not in str(caught.value)
    assert mallory.code(op, name="mole") is None


def test_a_program_hears_that_the_server_is_full():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(16):
            mine, given = socket.socketpair()
            with given:
                Stream(theirs).write_with(Frame({}), given.fileno())
            refuse(mine, ServerError("it is full", code="server.busy"))
        with pytest.raises(ServerError) as caught:
            Inherited(ours.fileno())(30)
    assert caught.value.code == "server.busy"
