"""Checkpoints of the log (C2SP tlog-checkpoint) in signed notes (C2SP signed-note).

A checkpoint states the number of entries in a log and the root over them. Checkpoints are written,
signed, parsed and verified here. ``merkle.py`` computes roots, and ``storage/`` keeps checkpoints.
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
_BODY: Final = re.compile(r"([^\n]*)\n([0-9]{1,19})\n([^\n]*)\n")


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
        """Return the text that is signed, without extension lines (tlog-checkpoint)."""
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


class SignedCheckpoint(NamedTuple):
    """A parsed note: the checkpoint, its ``body`` as signed, and the signatures, unverified."""

    checkpoint: Checkpoint
    body: bytes
    signatures: tuple[NoteSignature, ...]


def sign(checkpoint: Checkpoint, signer: Signer) -> bytes:
    """Return the checkpoint as a note that ``signer`` has signed under the log's origin."""
    return sign_note(checkpoint.body(), checkpoint.origin, signer)


def sign_note(text: bytes, name: str, signer: Signer) -> bytes:
    """Return a text, which ends with a line feed, as a note signed under the key's ``name``."""
    signed = key_id(name, signer.public_key) + signer.sign(text)
    return text + f"\n{_DASH} {name} {b64_encode(signed)}\n".encode()


def verify_note(note: object, keys: Iterable[PublicKey], name: str) -> tuple[str, PublicKey]:
    """Return the text of a note, and the key of ``keys`` that has signed it under ``name``.

    The first key whose id is in the note must have signed it. Raises ``DecodeError``
    (``note.malformed``, ``base64.malformed``) and ``VerificationError`` (``signature.missing``,
    ``signature.invalid``).
    """
    text, signatures = _parse_note(note)
    for key in keys:
        line = _signature_by(key, name, signatures)
        if line is not None:
            key.verify(line.signature, text.encode())
            return text, key
    message = f"the note of {name} has no signature with a key that is known for it"
    raise VerificationError(message, code="signature.missing")


def parse(note: object) -> SignedCheckpoint:
    """Read a note with a checkpoint, without verifying it.

    Raises ``DecodeError`` (``note.malformed``, ``base64.malformed``) for a note that differs from
    what ``sign`` writes, also for one with extension lines; further signatures are accepted.
    """
    text, signatures = _parse_note(note)
    match = _BODY.fullmatch(text)
    if match is None:
        raise _malformed("a checkpoint is three lines: origin, size and root")
    origin, size, root = match.groups()
    checkpoint = Checkpoint(origin, int(size), b64_decode(root))
    body = text.encode()
    if checkpoint.body() != body:
        raise _malformed("the checkpoint is not in its canonical form")
    return SignedCheckpoint(checkpoint, body, signatures)


def note_text(note: object) -> str:
    """Return the text of a note, unverified; raises ``DecodeError`` as ``parse`` does."""
    return _parse_note(note)[0]


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


def verify_any(
    note: bytes, keys: Iterable[PublicKey], *, origin: str
) -> tuple[Checkpoint, PublicKey]:
    """Return the checkpoint of the log ``origin``, and the key of ``keys`` that has signed it.

    The first key whose id is in the note must have signed the note; a signature by another key does
    not replace an invalid one. Raises ``DecodeError`` as ``parse`` does, and ``VerificationError``:
    ``checkpoint.origin`` for another log's, ``signature.missing``, ``signature.invalid``.
    """
    point = parse(note).checkpoint
    if point.origin != origin:
        raise VerificationError(
            f"expected a checkpoint of {origin}, the log of the trust document, found one of "
            f"{point.origin!r}: one of the two is not the one you mean",
            code="checkpoint.origin",
        )
    return point, verify_note(note, keys, origin)[1]


def key_id(name: str, key: PublicKey) -> bytes:
    """Return the 4 bytes by which a note names an Ed25519 key (signed-note, "Signatures")."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_SIZE]


def _parse_note(note: object) -> tuple[str, tuple[NoteSignature, ...]]:
    """Split a note into its text and its signatures."""
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


def _parse_signature(line: str) -> NoteSignature:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise _malformed("a signature line has a dash, a name and base64")
    _check_name(match[1])
    data = b64_decode(match[2])
    if len(data) <= _KEY_ID_SIZE:
        raise _malformed("a signature begins with the 4 bytes of its key's id")
    return NoteSignature(match[1], data[:_KEY_ID_SIZE], data[_KEY_ID_SIZE:])


def _signature_by(
    key: PublicKey, name: str, signatures: tuple[NoteSignature, ...]
) -> NoteSignature | None:
    expected = key_id(name, key)
    return next((one for one in signatures if (one.name, one.key_id) == (name, expected)), None)


@lru_cache(maxsize=64)
def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise _malformed("a key's name has no spaces, control characters or plus signs")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a signed note with a checkpoint: {problem}", code="note.malformed")
