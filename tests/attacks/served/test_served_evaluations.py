"""A client of a guard server that has an evaluation has nothing with which a tool could run."""

from __future__ import annotations

import pytest
from served_intruder import new_id

from agentguard.signing import canonical, dsse
from agentguard.signing.dsse import Envelope

NOTE = canonical.dumps({"text": "x"})
ENDED = {"ending": "DONE", "type": "builtins.str", "has_journal": False}
REQUEST = {"method": "POST", "url": "https://x.example/", "body_sha256": "0" * 64}


def evaluated(client, **members):
    """Return the id of a request for an evaluation of an allowed call."""
    request_id = new_id()
    names = client.agent("clerk"), client.tool("note")
    answer = client.call(*names, NOTE, op="evaluation", request_id=request_id, **members)
    assert (answer.header["step"], answer.header["decision"]["outcome"]) == ("evaluation", "allow")
    return request_id, names


def test_an_evaluation_has_no_secret_no_proof_and_no_outcome(victim, place):
    request_id, names = evaluated(victim)
    assert victim.code("secret", request_id=request_id, name="TOKEN") == "secret.refused"
    assert victim.code("proof", request_id=request_id, **REQUEST) is not None
    assert victim.code("facts", NOTE, request_id=request_id, types={}) == "frame.malformed"
    victim.ask("outcome", b"", b"", request_id=request_id, **ENDED)
    assert (place.calls(), place.outcomes()) == ([], [])
    run = new_id()  # the twin: a call
    assert victim.call(*names, NOTE, request_id=run).header["step"] == "run"
    assert victim.code("secret", request_id=run, name="TOKEN") is None
    assert victim.code("outcome", b"", b"", request_id=run, **ENDED) is None
    victim.got("flush")
    assert len(place.outcomes()) == 1
    assert place.verify().ok


def test_the_request_of_an_evaluation_is_no_request_of_a_call(victim, place):
    request_id, names = evaluated(victim)
    again = victim.call(*names, NOTE, request_id=request_id)
    assert again.header["error"]["code"] == "frame.malformed"
    assert place.calls() == []


def test_an_evaluation_is_no_call_around_another(victim, place):
    request_id, names = evaluated(victim)
    inner = victim.call(*names, NOTE, inside=request_id)
    assert inner.header["step"] == "run"
    assert [call.inside for call in place.calls()] == [None]


def test_a_request_that_comes_again_makes_one_entry(victim, place):
    request_id, names = new_id(), (victim.agent("clerk"), victim.tool("note"))
    asked = {"op": "evaluation", "request_id": request_id}
    first, again = (victim.call(*names, NOTE, **asked) for _ in range(2))
    assert first == again
    assert [one.kind for one in place.entries()].count("evaluation") == 1


def test_a_client_evaluates_no_agent_of_another_client(mallory, victim):
    names = mallory.agent("mole"), mallory.tool("note")
    own = victim.agent("clerk"), victim.tool("note")
    stolen = mallory.call(own[0] + "x", names[1], NOTE, op="evaluation")
    assert "error" in stolen.header
    read = mallory.call(*names, NOTE, op="evaluation")
    assert read.header["step"] == "evaluation"
    signed = Envelope.parse(canonical.loads(read.blobs[0]))
    predicate = dsse.parse_statement(signed.payload, "evaluation").predicate
    assert predicate["client"] == "mallory"


@pytest.mark.parametrize("arguments", [b"", b"[]", b"{", b'{"a":1,"a":1}', b'{ "a":1}'], ids=repr)
def test_malformed_arguments_make_no_entry(victim, place, arguments):
    before = len(place.entries())
    names = victim.agent("clerk"), victim.tool("note")
    answer = victim.call(*names, arguments, op="evaluation")
    assert answer.header["error"]["code"] == "frame.malformed"
    assert [one.kind for one in place.entries()[before:]] == ["identity"]
