"""The proof of a request is on record before anybody has the proof; a record that lies is found."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from embedded_parts import runtime_of
from proof_scene import BODY, URL
from request_logs import QUERY
from tool_servers import in_call

from agentguard import ProofError
from agentguard.audit.entry import Record
from agentguard.audit.kinds.running import ProofEntry
from agentguard.call.releases import ProofRecord, ReleaseSubject, RequestRecord
from agentguard.delegation.context import idempotency_key
from agentguard.errors import StorageError
from agentguard.proof.presentation import prove_request
from agentguard.signing.canonical import sha256_hex


def test_the_proof_is_durably_on_record_before_the_tool_has_the_proof(sides):
    seen = list[Any]()

    def pay():
        assert sides.agent.entries("proof") == []
        proof = prove_request("POST", f"{URL}/pay?{QUERY}", BODY)
        (entry,) = sides.agent.entries("proof")  # as another process reads the files
        seen.append((entry.members, proof, idempotency_key()))

    with sides.agent.open() as guard:
        in_call(guard, pay, audience=[URL, "https://other.example"])
    ((members, proof, invocation_id),) = seen
    (call,) = sides.agent.entries("call")
    assert members["request"] == {
        "method": "POST",
        "url": f"{URL}/pay",
        "query_sha256": sha256_hex(QUERY.encode()),
        "body_sha256": sha256_hex(BODY),
    }
    assert members["audience"] == URL
    assert members["proof"]["sha256"] == sha256_hex(proof.proof.encode())
    assert members["invocation_id"] == invocation_id == call.invocation_id
    assert members["invocation_sha256"] == call.invocation_sha256
    assert (members["agent"], members["tool"]) == (call.agent, "pay")
    assert sides.agent.verify().ok


def test_without_a_record_there_is_no_proof(sides, put_faults):
    got = list[object]()

    def pay():
        faults.before = StorageError("the disk is full", code="storage.full")
        try:
            got.append(prove_request("POST", f"{URL}/pay", BODY))
        except ProofError as error:
            got.append((error.code, "the disk is full" in str(error)))
        faults.before = None
        got.append(bool(prove_request("POST", f"{URL}/pay", BODY)))  # the twin

    with sides.agent.open() as guard:
        faults = put_faults(guard)
        in_call(guard, pay, audience=[URL])
    assert got == [("proof.failed", True), True]
    assert len(sides.agent.entries("proof")) == 1
    assert sides.agent.verify().ok


def test_a_proof_that_is_refused_leaves_no_record(sides):
    def pay():
        with pytest.raises(ProofError):
            prove_request("POST", "https://evil.example/pay", BODY)

    with sides.agent.open() as guard:
        in_call(guard, pay, audience=[URL])
    assert sides.agent.entries("proof") == []


def test_neither_the_query_nor_the_body_nor_the_proof_is_in_the_state(sides):
    with sides.open() as opened:
        sent = opened.send(body=b"a body with hunter2-4711")
    proof = dict(sent.headers)["DPoP"]
    for side in (sides.agent, sides.server):
        kept = b"".join(one.read_bytes() for one in side.state.rglob("*") if one.is_file())
        for secret in (QUERY.encode(), b"hunter2-4711", proof.encode(), proof[-40:].encode()):
            assert secret not in kept
        assert hashlib.sha256(proof.encode()).hexdigest().encode() in kept  # the twin


LIES: dict[str, dict[str, Any]] = {
    "a call that is not there": {"invocation_sha256": "0" * 64},
    "another id": {"invocation_id": "0" * 32},
    "another place": {"place": 0},
    "another tool": {"tool": "read"},
    "another agent": {"agent": "spiffe://acme.example/agent/other/x"},
}


@pytest.mark.parametrize("lie", [*LIES, "another log", "another audience", "no digest", "none"])
def test_a_record_that_lies_is_found(sides, lie):
    """The holder of the log's key appends an entry while the call runs."""

    def pay():
        (call,) = sides.agent.entries("call")
        place = guard_log.head.size - 1
        subject = ReleaseSubject(
            str(call.invocation_id),
            call.invocation_sha256,
            place,
            call.agent,
            call.tool,
            None,
            frozenset(),
        )._replace(**LIES.get(lie, {}))
        audience = "https://evil.example" if lie == "another audience" else URL
        request = RequestRecord("POST", f"{URL}/pay", None, "1" * 64)
        digest = "no digest" if lie == "no digest" else "2" * 64
        at = sides.agent.entries("call")[0].at
        said = ProofRecord(request, "request", audience, "forged", digest)
        record = ProofEntry.new(said, subject, at=at)
        if lie == "another log":
            record = record._replace(body=record.body.replace(b'"log":0', b'"log":1'))
        guard_log.append(record)

    with sides.agent.open() as guard:
        guard_log = runtime_of(guard).current_ports().log
        in_call(guard, pay, audience=[URL])
    report = sides.agent.verify()
    assert report.ok is (lie == "none")
    assert len(report.problems) == (lie != "none")


@pytest.mark.parametrize("is_late", [True, False])
def test_a_record_after_the_outcome_is_found(sides, is_late):
    with sides.open() as opened:
        opened.send()
        if is_late:
            opened.guard.flush()
            (entry,) = sides.agent.entries("proof")
            forged = json.dumps(
                {"kind": "proof", "at": entry.at, **entry.members},
                sort_keys=True,
                separators=(",", ":"),
            ).encode()
            summary = entry.summary
            opened.append("agent", lambda at: Record(forged, summary))
    assert sides.agent.verify().ok is not is_late
