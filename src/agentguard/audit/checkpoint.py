"""Checkpoints of the log (C2SP tlog-checkpoint), and signed notes (C2SP signed-note).

A checkpoint states the number of entries in a log and the root over them. ``head.py`` has the one
that the log signs, as a note, and ``merkle.py`` computes roots.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from agentguard.audit.merkle import HASH_SIZE
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import MAX_BYTES, b64_decode, b64_encode
from agentguard.signing.keys import PublicKey, Signer

_ED25519: Final = b"\x01"
_KEY_ID_SIZE: Final = 4
_DASH: Final = "\u2014"
_MAX_SIZE: Final = 2**63 - 1
_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f\ud800-\udfff]+")
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_LINE: Final = re.compile(rf"{_DASH} ([^ ]+) ([^ ]+)")
_LINE: Final = re.compile(r"([^ ]+) ([0-9]{1,19}) ([^ ]+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's state: its origin, its number of entries, and its RFC 6962 root (32 bytes).

    Raises ``DecodeError`` (``note.malformed``) for what can't be written as a checkpoint.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_name(self.origin)
        if not 0 <= self.size <= _MAX_SIZE or len(self.root) != HASH_SIZE:
            raise _malformed("a checkpoint has a size from 0 to 2^63-1 and a root of 32 bytes")

    def body(self) -> bytes:
        """Return the three lines of every checkpoint; extension lines may follow."""
        return f"{self.origin}\n{self.size}\n{b64_encode(self.root)}\n".encode()

    def line(self) -> str:
        """Return one line, ``origin size root``, for a span; ``parse_line`` reads the line."""
        return f"{self.origin} {self.size} {b64_encode(self.root)}"


class WitnessedCheckpoint(NamedTuple):
    """A checkpoint from outside the log; ``whose`` names its source in the words of findings."""

    point: Checkpoint
    whose: str = "a checkpoint kept outside the log"


class NoteSignature(NamedTuple):
    """One signature line of a note: the key's name, its id (4 bytes) and the signature."""

    name: str
    key_id: bytes
    signature: bytes


def sign_note(text: bytes, name: str, signer: Signer) -> bytes:
    """Return a text, which ends with a line feed, as a note signed under the key's ``name``."""
    signed = key_id(name, signer.public_key) + signer.sign(text)
    return text + f"\n{_DASH} {name} {b64_encode(signed)}\n".encode()


def read_note(note: object) -> tuple[str, tuple[NoteSignature, ...]]:
    """Return the text of a note, with its last line feed, and the signatures, all unverified.

    Raises ``DecodeError`` (``note.malformed``, ``base64.malformed``).
    """
    if not isinstance(note, bytes):
        raise _malformed("it is no bytes")
    if len(note) > MAX_BYTES:
        raise _malformed(f"it is longer than {MAX_BYTES} bytes")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if _CONTROL.search(whole):
        raise _malformed("it holds a control character")
    # The signature lines begin after the last empty line, because none of them is empty.
    text, separator, lines = whole.rpartition("\n\n")
    if not text or not separator or not lines.endswith("\n"):
        raise _malformed("expected a text, an empty line and signature lines")
    signatures = tuple(_parse_signature(line) for line in lines[:-1].split("\n"))
    if len({(s.name, s.key_id) for s in signatures}) != len(signatures):
        raise _malformed("two signatures name the same key")
    return text + "\n", signatures


def verify_note(
    text: str, signatures: Iterable[NoteSignature], keys: Iterable[PublicKey], name: str
) -> PublicKey:
    """Return the key of ``keys`` that has signed a note's text under ``name``.

    The first key whose id is among the signatures must have signed it; a signature by another key
    does not replace an invalid one. Raises ``VerificationError`` (``signature.missing``,
    ``signature.invalid``).
    """
    found = {(one.name, one.key_id): one.signature for one in signatures}
    for key in keys:
        signature = found.get((name, key_id(name, key)))
        if signature is not None:
            key.verify(signature, text.encode())
            return key
    message = f"the note of {name} has no signature with a key that is known for it"
    raise VerificationError(message, code="signature.missing")


def parse_line(line: object) -> Checkpoint:
    """Read what ``Checkpoint.line`` writes, which has no signature.

    Raises ``DecodeError`` (``note.malformed``, ``base64.malformed``).
    """
    match = _LINE.fullmatch(line) if isinstance(line, str) else None
    point = Checkpoint(match[1], int(match[2]), b64_decode(match[3])) if match is not None else None
    if point is None or point.line() != line:
        raise DecodeError(
            "not a checkpoint in one line: expected its origin, size and root in base64",
            code="note.malformed",
        )
    return point


def key_id(name: str, key: PublicKey) -> bytes:
    """Return the 4 bytes by which a note names an Ed25519 key (signed-note, "Signatures")."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_SIZE]


def _parse_signature(line: str) -> NoteSignature:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise _malformed("a signature line has a dash, a name and base64")
    _check_name(match[1])
    data = b64_decode(match[2])
    if len(data) <= _KEY_ID_SIZE:
        raise _malformed("a signature begins with the 4 bytes of its key's id")
    return NoteSignature(match[1], data[:_KEY_ID_SIZE], data[_KEY_ID_SIZE:])


@lru_cache(maxsize=64)
def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise _malformed("a key's name has no spaces, control characters or plus signs")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a signed note with a checkpoint: {problem}", code="note.malformed")
