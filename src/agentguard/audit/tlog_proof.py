"""Proofs that an entry is in a log, as text (C2SP tlog-proof).

A proof is written and read here. ``merkle.py`` verifies the path of hashes, and ``checkpoint.py``
the checkpoint at the proof's end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agentguard.audit.merkle import HASH_SIZE
from agentguard.errors import DecodeError
from agentguard.signing.canonical import MAX_BYTES, b64_decode, b64_encode

HEADER: Final = "c2sp.org/tlog-proof@v1"
"""The first line of a proof (C2SP tlog-proof, "Format")."""

_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An entry's index, its inclusion proof (32 bytes each), and the signed checkpoint.

    A proof with a line of extra data is refused, because nobody would verify the data.
    """

    index: int
    hashes: tuple[bytes, ...]
    note: bytes

    def dumps(self) -> str:
        """Return the proof as text (C2SP tlog-proof, "Format")."""
        path = "".join(f"{b64_encode(value)}\n" for value in self.hashes)
        return f"{HEADER}\nindex {self.index}\n{path}\n{self.note.decode()}"


def parse(text: object) -> TlogProof:
    """Read a proof that ``dumps`` could have written; the note in the proof is not parsed.

    Raises ``DecodeError`` (``proof.malformed``, ``base64.malformed``).
    """
    if not isinstance(text, str):
        raise _malformed("it is no text")
    if len(text) > MAX_BYTES:
        raise _malformed(f"it is longer than {MAX_BYTES} characters")
    # the checkpoint begins after the first empty line, because no line before is empty
    head, separator, note = text.partition("\n\n")
    lines = head.split("\n")
    index = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
    if lines[0] != HEADER or index is None or not separator:
        raise _malformed("expected the header, an index, hashes, an empty line and a checkpoint")
    hashes = tuple(b64_decode(line) for line in lines[2:])
    if any(len(value) != HASH_SIZE for value in hashes):
        raise _malformed(f"every hash of a proof is {HASH_SIZE} bytes")
    return TlogProof(int(index[1]), hashes, note.encode())


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a proof of inclusion: {problem}", code="proof.malformed")
