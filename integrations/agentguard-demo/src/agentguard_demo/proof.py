"""Proves who approved or rejected a call, from the call's evidence alone.

The evidence is the file that ``agentguard evidence make`` writes. The demo reads the file again and
verifies the evidence with the trust document outside the state, as a third party would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agentguard import Evidence, TrustDocument
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.storage.files import write_new
from agentguard.store.reader import StoredLog
from agentguard_demo.setting import Setting
from agentguard_demo.steps import Step


class Proof(NamedTuple):
    """A file with the evidence of one call, and the verified evidence."""

    path: Path
    evidence: Evidence


def prove(setting: Setting, steps: Sequence[Step]) -> list[Proof]:
    """Write and verify the evidence of each call that a person approved or rejected.

    Raises ``VerificationError``, ``DecodeError`` or ``StorageError``.
    """
    trust = TrustDocument.loads(setting.trust_file.read_bytes())
    proofs: list[Proof] = []
    reader = StoredLog.of(setting.state)
    try:
        for step in steps:
            if not step.has_answers or step.invocation_id is None:
                continue
            path = setting.directory / f"evidence-{step.index}.json"
            write_new(path, prove_call(reader, trust, step.invocation_id))
            proofs.append(Proof(path, verify_evidence(path.read_bytes(), trust)))
    finally:
        reader.close()
    return proofs
