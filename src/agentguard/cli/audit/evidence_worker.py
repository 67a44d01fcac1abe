"""A process that verifies evidence files: a task is their paths, and the answer what they prove.

Both are JSON. An answer to a file is the object that ``evidence verify --json`` prints for the
file. ``evidence_batch.py`` has the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from agentguard.audit import evidence_file
from agentguard.audit.evidence import EvidenceVerifier
from agentguard.cli.audit import evidence_report
from agentguard.cli.terminal import files
from agentguard.domain import worker
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument

Answer = dict[str, object]


def dumps(paths: Sequence[Path], trust: bytes) -> bytes:
    """Return a task as bytes: paths of files, and the trust document to verify them with."""
    return json.dumps({"paths": list(map(str, paths)), "trust": trust.decode()}).encode()


def answer(path: Path, verifier: EvidenceVerifier) -> Answer:
    """Return what a file proves; a file that can't be read is like one that does not verify."""
    try:
        # One byte more than the limit, so that a file which is too long is refused.
        data = files.read_or_stdin(path, evidence_file.MAX_BYTES + 1)
        proved = evidence_report.as_json(verifier.verify(data))
    except AgentguardError as error:
        return {"file": str(path), "ok": False, "code": error.code, "problem": str(error)}
    return {"file": str(path), **proved}


@lru_cache(1)
def _verifier(trust: str) -> EvidenceVerifier:
    return EvidenceVerifier(TrustDocument.loads(trust.encode()))


def _answers(task: bytes) -> bytes:
    members = json.loads(task)
    verifier = _verifier(members["trust"])
    return json.dumps([answer(Path(path), verifier) for path in members["paths"]]).encode()


if __name__ == "__main__":
    worker.work(_answers)
