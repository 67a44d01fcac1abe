"""The head: one signed statement over the log and the map, made anew with each commit.

A head is a signed note (C2SP signed-note) with a text of agentguard's own, since a checkpoint has
no room for the map's root (C2SP tlog-checkpoint). Its first line is no name of a log, so that no
head passes for a checkpoint, nor the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import parse_time
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import PublicKey, Signer

KIND: Final = "agentguard head v1"
_TEXT: Final = re.compile(rf"{KIND}\n([^\n]+)\n([0-9]{{1,19}})\n([^\n]+)\n([^\n]+)\n([^\n]+)\n")


class Head(NamedTuple):
    """The state of a store.

    ``log`` is the name of the log, ``size`` the number of its entries and ``root`` their RFC 6962
    root; ``map_root`` is the root of the map, and ``at`` the newest time in the log (RFC 3339).
    """

    log: str
    size: int
    root: bytes
    map_root: bytes
    at: str

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the same log and size."""
        return Checkpoint(self.log, self.size, self.root)

    def text(self) -> bytes:
        """Return what is signed."""
        point = self.checkpoint.body().decode()
        return f"{KIND}\n{point}{b64_encode(self.map_root)}\n{self.at}\n".encode()


def sign(head: Head, signer: Signer) -> bytes:
    """Return the head as a note that ``signer`` has signed under the log's name."""
    return checkpoint.sign_note(head.text(), head.log, signer)


def verify(note: object, keys: Iterable[PublicKey], log: str) -> tuple[Head, PublicKey]:
    """Return the head of a log that one of ``keys`` has signed, and that key.

    Raises ``DecodeError`` and ``VerificationError``: ``head.malformed`` for another text or another
    log's head, ``signature.missing``, ``signature.invalid``, ``note.malformed``.
    """
    text, key = checkpoint.verify_note(note, keys, log)
    head = _read(text)
    if head is None or head.log != log:
        raise VerificationError(f"not a head of the log {log}", code="head.malformed")
    return head, key


def parse(note: object) -> Head:
    """Read a head without verifying it; raises ``DecodeError`` (``note.malformed``)."""
    head = _read(checkpoint.note_text(note))
    if head is None:
        raise DecodeError("not the head of a log", code="note.malformed")
    return head


def _read(text: str) -> Head | None:
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    name, size, root, map_root, at = match.groups()
    head = Head(name, int(size), b64_decode(root), b64_decode(map_root), at)
    parse_time(at)
    return head if head.text().decode() == text else None
