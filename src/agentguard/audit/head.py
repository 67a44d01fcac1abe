"""The head: the checkpoint of the log and the map, signed anew with each commit.

A head is a checkpoint (C2SP tlog-checkpoint) in a signed note (C2SP signed-note). Two extension
lines have what decides later calls: the root of the map, and the newest time in the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import parse_time
from agentguard.audit.merkle import HASH_SIZE
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import PublicKey, Signer

_TEXT: Final = re.compile(r"([^\n]+)\n([0-9]{1,19})\n([^\n]+)\nmap ([^\n]+)\ntime ([^\n]+)\n")


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
        """The three lines of it that every checkpoint has."""
        return Checkpoint(self.log, self.size, self.root)

    def text(self) -> bytes:
        """Return what is signed."""
        point = self.checkpoint.body().decode()
        return f"{point}map {b64_encode(self.map_root)}\ntime {self.at}\n".encode()


def sign(head: Head, signer: Signer) -> bytes:
    """Return the head as a note that ``signer`` has signed under the log's name."""
    return checkpoint.sign_note(head.text(), head.log, signer)


def parse(note: object) -> Head:
    """Read a head without verifying it, also one that others have signed as well.

    Raises ``DecodeError`` (``note.malformed``, ``base64.malformed``, ``entry.malformed``).
    """
    return _read(checkpoint.read_note(note)[0])


def verify(note: object, keys: Iterable[PublicKey], log: str) -> tuple[Head, PublicKey]:
    """Return the head of a log, and the key of ``keys`` that has signed it.

    The caller checks whether the key was valid at that time. Raises ``DecodeError`` as ``parse``
    does, and ``VerificationError``: ``checkpoint.origin`` for another log's, ``signature.missing``,
    ``signature.invalid``.
    """
    text, signatures = checkpoint.read_note(note)
    head = _read(text)
    if head.log != log:
        raise VerificationError(
            f"expected a checkpoint of {log}, the log of the trust document, found one of "
            f"{head.log!r}: one of the two is not the one you mean",
            code="checkpoint.origin",
        )
    return head, checkpoint.verify_note(text, signatures, keys, log)


def _read(text: str) -> Head:
    match = _TEXT.fullmatch(text)
    if match is not None:
        log, size, root, map_root, at = match.groups()
        head = Head(log, int(size), b64_decode(root), b64_decode(map_root), at)
        parse_time(at)
        if head.text().decode() == text and len(head.map_root) == HASH_SIZE:
            return head
    message = "not a checkpoint of agentguard: expected origin, size, root, map and time"
    raise DecodeError(message, code="note.malformed")
