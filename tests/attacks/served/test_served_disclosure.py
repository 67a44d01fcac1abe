"""No answer of the guard server names its files, or agents of others, to a client."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from served_intruder import MALLORY, Intruder, described, require_root
from served_place import founded_place

from agentguard import ServerError, errors
from agentguard.approvals.status import PastRequest, RequestEndedError, RequestStatus
from agentguard.call.decision import Decision
from agentguard.call.reason_codes import CODES
from agentguard.client.dial import Inherited
from agentguard.errors import AgentguardError
from agentguard.server.connection import refuse
from agentguard.server.disclosure import disclosed
from agentguard.signing import canonical
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

HIDDEN = "/srv/guard/state/log: [agents.clerk]"
PAGE = Path(__file__).parents[3] / "docs/reference/reason-codes.md"
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentguardError)
]
REGISTRY = sorted(re.findall(r"^\| `([^`]+)`", PAGE.read_text("utf-8"), re.MULTILINE))
"""All reason codes: the page is complete (tests/unit/test_reason_codes.py)."""

UNKNOWN = (
    "brand.new",
    "tool.new",
    "approvals.new",
    "Approval.pending",
    "secret.",
    ".",
    "storage",
    "é.x",
)
TOLD = frozenset(
    """
    agent approval arguments base64 call calls chain delegation domain dsse encode entry facts frame
    hop invalid_scope journal json jws jwt node policy principal proof redaction request scope
    secret server signature site statement subagent tool
    """.split()  # noqa: SIM905
)
"""The nouns of which a text may go to a client; of some of them not each text."""

OWN = frozenset(
    """
    agent.unknown delegation.failed journal.missing journal.malformed policy.error policy.invalid
    principal.failed proof.failed proof.unrecorded secret.failed server.address server.reload
    server.unreachable signature.failed
    """.split()  # noqa: SIM905
)
"""Codes of such nouns whose texts name files, addresses or what else is the server's alone."""


def never() -> bool:
    return False


def decided(code: str, text: str) -> dict[str, Any]:
    return values.decision(Decision("deny", code, (text,)))


def answers(code: str, text: str) -> list[Frame]:
    """Return each form in which an answer has a code and a text."""
    status = RequestStatus("0" * 32, "approved", call="refused", code=code, reason=text)
    past = PastRequest("2026-01-01T00:00:00Z", "agent", "user:alice", "note", status)
    headers: list[dict[str, Any]] = [
        {"step": "denied", "decision": decided(code, text)},
        {"step": "run", "reports": [["decided", decided(code, text), None]]},
        {"status": values.status(status)},
        {"ended": [values.past_request(past)] * 2},
        {"error": values.error(RequestEndedError(status))},
        *({"error": values.error(kind(text, code=code))} for kind in KINDS),
    ]
    entry = {"step": "evaluation", "decision": decided(code, text), "entry": {"reasons": [text]}}
    statement = canonical.dumps({"reasons": [text]})
    return [*map(Frame, headers), Frame(entry, [statement, b"salt"])]


def is_whole(code: str) -> bool:
    """Whether a client gets the text of this code."""
    told = [disclosed(answer, never) == answer for answer in answers(code, HIDDEN)]
    assert told == [told[0]] * len(told)
    return told[0]


@pytest.mark.parametrize("code", [*REGISTRY, *UNKNOWN, *(kind.default_code for kind in KINDS)])
def test_a_text_goes_to_a_client_under_a_code_that_is_known_as_harmless_alone(code):
    noun = code.partition(".")[0]
    if is_whole(code):
        assert noun in TOLD
        assert code not in OWN
        assert code in REGISTRY
        return
    for answer in answers(code, HIDDEN):
        told = disclosed(answer, never)
        assert "/srv" not in str(told)
        assert "clerk" not in str(told)
        assert code in str(told)


def test_what_a_model_reads_and_what_the_registry_has_arrives_whole():
    assert len(REGISTRY) > 300
    told = set(filter(is_whole, REGISTRY))
    assert {code for code, who in CODES.items() if who.party == "agent"} <= told
    assert {code.partition(".")[0] for code in told} == TOLD
    assert not told & OWN
    assert {*REGISTRY} >= OWN


def test_the_log_has_each_text_that_a_client_is_not_told(caplog):
    asked: list[object] = []

    def may_log() -> bool:
        asked.append(None)
        return True

    for answer in answers("policy.denied", HIDDEN):  # asks for no room in the log
        disclosed(answer, may_log)
    assert asked == []
    for answer in answers("storage.failed", HIDDEN):
        disclosed(answer, may_log)
    assert caplog.text.count(HIDDEN) == len(asked) == len(answers("", "")) + 1  # a list has two


@pytest.mark.parametrize("op", ["agent", "instance"])
def test_a_client_learns_no_path_and_no_agents_of_others(mallory, place, op):
    with pytest.raises(AgentguardError) as caught:
        mallory.got(op, name="no-such")
    assert caught.value.code == "agent.refused"
    assert str(place.folder) not in str(caught.value)
    assert "clerk" not in str(caught.value)
    assert mallory.code(op, name="mole") is None


MORE = f"""
[tools]
unlisted = "deny"

[tools.note]

[agents.mole]
authority = "own"

[clients.mallory]
uid = {MALLORY}
agents = ["mole"]
vouches_for = ["user:alice", "user:nobody"]
"""


def test_a_client_learns_no_path_from_the_calls_that_are_refused(programs):
    require_root()
    with founded_place(programs, MORE) as place:
        place.folder.chmod(0o755)
        place.start()
        mallory = Intruder(place, MALLORY)
        agent, note = mallory.agent("mole"), mallory.tool("note")
        for _ in range(80):  # a client that is told all has used up no room in the log
            assert mallory.code("flush") is None
        request_id = "0" * 32
        assert mallory.call(agent, note, {}, request_id=request_id).header["step"] == "run"
        assert mallory.ask("secret", request_id=request_id, name="TOKEN").blobs  # the twin
        (place.folder / "token").unlink()
        said = [mallory.ask("secret", request_id=request_id, name="TOKEN")]
        assert said[0].header["error"]["code"] == "secret.failed"
        said.append(mallory.ask("tool", tool=described("unlisted")))
        said.append(mallory.call(agent, said[1].header["name"], {}))
        assert said[2].header["decision"]["code"] == "tool.unconfigured"
        terms = {"audience": None, "expires_in": 60.0, "max_calls": None, "task_id": None}
        for subject, code in (
            ("user:alice", "scope.exceeded"),
            ("user:nobody", "principal.unknown"),
        ):
            said.append(mallory.ask("delegate", subject=subject, scope=["admin"], **terms))
            assert said[-1].header["error"]["code"] == code
            assert "agentguard.toml" in said[-1].header["error"]["message"]  # the twin: which file
        for answer in said:
            assert str(place.folder) not in str(answer)
        assert str(place.folder / "token") in place.said()
        mallory.close()


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
