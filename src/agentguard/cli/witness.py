"""Checkpoints that somebody else has kept, read from files: what ``verify --against`` takes.

A file holds signed notes, one after another, or is the evidence of a call, whose checkpoints count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentguard.audit import checkpoint, inclusion, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.errors import AgentguardError, DecodeError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument

_NOTE: Final = re.compile(rb"(?:[^\n]+\n)+\n(?:\xe2\x80\x94 [^\n]*\n)+")
"""A text without empty lines, an empty line, and signature lines (C2SP signed-note)."""


def kept(path: Path, trust: TrustDocument) -> list[Checkpoint]:
    """Return the checkpoints in a file, each signed by a log key of ``trust`` for its log.

    Raises ``DecodeError`` or ``VerificationError``, which name the file, and ``StorageError``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): name a file that this user can read"
        raise StorageError(message, code="storage.missing") from error
    try:
        return [_verified(note, trust) for note in _notes(data)]
    except DecodeError as error:
        message = f"{path} holds neither signed checkpoints nor evidence: {error}"
        raise DecodeError(message, code=error.code) from error
    except AgentguardError as error:
        message = f"{path} can't vouch for this log: {error}"
        raise VerificationError(message, code=error.code) from error


def _verified(note: bytes, trust: TrustDocument) -> Checkpoint:
    origin = checkpoint.parse(note).checkpoint.origin
    inclusion.shard_number(origin, trust)
    return statements.check_checkpoint(note, trust, origin)[0]


def _notes(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"{"):
        # one shard's entries stand under one checkpoint, which is there once for each
        yield from dict.fromkeys(held.proof.note for held in EvidenceFile.loads(data).entries)
        return
    place = 0
    while place < len(data):
        found = _NOTE.match(data, place)
        if found is None:
            raise DecodeError("expected a signed note at its end", code="note.malformed")
        yield found[0]
        place = found.end()
    if place == 0:
        raise DecodeError("it is empty", code="note.malformed")
