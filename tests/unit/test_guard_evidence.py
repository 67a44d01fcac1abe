"""What a program asks a guard for after a call: its evidence, and whether the log holds."""

from __future__ import annotations

import threading

import pytest

from agentguard import (
    Decision,
    Guard,
    TrustDocument,
    VerificationError,
    idempotency_key,
    verify_evidence,
)
from agentguard.audit.findings import Problem
from agentguard.errors import CallError


def called(guard: Guard) -> str:
    @guard.tool
    def pay(cents: int) -> str:
        return idempotency_key()

    return guard.new_agent("payer").call(pay, cents=7)


def test_the_evidence_of_a_call_verifies_elsewhere_and_with_no_other_trust_document():
    guard = Guard.ephemeral(lambda _: Decision.allow())
    data = guard.prove(called(guard))
    trust = TrustDocument.loads(guard.trust.dumps())
    assert verify_evidence(data, trust).call.allowed
    other = Guard.ephemeral(lambda _: Decision.allow())
    with pytest.raises(VerificationError):
        verify_evidence(data, other.trust)
    with pytest.raises(CallError):
        other.prove("0" * 32)


def test_evidence_without_attachments_shows_no_arguments():
    guard = Guard.ephemeral(lambda _: Decision.allow())
    invocation_id = called(guard)
    assert b'"cents"' not in guard.prove(invocation_id, attachments=False)
    assert guard.prove(invocation_id) != guard.prove(invocation_id, attachments=False)


def test_a_guard_verifies_its_log():
    guard = Guard.ephemeral(lambda _: Decision.allow())
    called(guard)
    report = guard.verify()
    assert report.ok
    assert not report.anchored  # nobody keeps a checkpoint of a log in memory


def test_a_log_in_memory_is_verified_while_it_is_written():
    guard = Guard.ephemeral(lambda _: Decision.allow())
    before = guard.reader()
    problems: list[Problem] = []
    writer = threading.Thread(target=lambda: [called(guard) for _ in range(300)])
    writer.start()
    while writer.is_alive():
        problems += guard.verify().problems
    assert problems == []
    assert len(list(before.stored())) < len(list(guard.reader().stored()))
