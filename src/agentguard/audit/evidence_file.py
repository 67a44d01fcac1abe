"""The format of the file with the evidence of one call: its members, writing and reading.

The file is one JSON object in canonical form, and a line feed (evidence-format.md). ``evidence.py``
verifies the content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

from agentguard.audit import tlog_proof
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Role
from agentguard.audit.tlog_proof import TlogProof
from agentguard.errors import DecodeError, EncodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64_decode, b64_encode, is_integer

TYPE: Final = "urn:agentguard:evidence:v1"
"""The ``type`` of the file."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""The size of the longest file that ``loads`` accepts, in bytes."""

_ROLES: Final[Mapping[str, Role]] = {role: role for role in get_args(Role)}


class LoggedEntry(NamedTuple):
    """An entry's canonical bytes, and the proof that the log contains the entry."""

    body: bytes
    proof: TlogProof


class Extension(NamedTuple):
    """The checkpoint that a statement carries, and the proof that the log extends it."""

    checkpoint: Checkpoint
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """The content of a file, well formed and not verified."""

    invocation_id: str
    entries: tuple[LoggedEntry, ...]
    consistency: Extension
    attachments: tuple[Attachment, ...]

    def dumps(self) -> bytes:
        """Return the file's bytes; raises ``EncodeError`` for an attachment that is no text."""
        entries: list[JSON] = [
            {"entry": one.body.decode(), "proof": one.proof.dumps()} for one in self.entries
        ]
        seen = self.consistency.checkpoint
        consistency: JSON = {
            "origin": seen.origin,
            "size": seen.size,
            "root": b64_encode(seen.root),
            "proof": [b64_encode(value) for value in self.consistency.hashes],
        }
        attachments: list[JSON] = [
            {
                "role": one.role,
                "commitment": one.commitment,
                "salt": b64_encode(one.salt),
                "data": _text(one.data),
            }
            for one in self.attachments
        ]
        members = {
            "type": TYPE,
            "invocation_id": self.invocation_id,
            "entries": entries,
            "consistency": consistency,
            "attachments": attachments,
        }
        return canonical.dumps(members) + b"\n"

    @classmethod
    def loads(
        cls, data: bytes, read_entry: Callable[[str, str], LoggedEntry] | None = None
    ) -> EvidenceFile:
        """Read a file that ``dumps`` could have written, byte for byte.

        ``read_entry`` reads an entry as ``logged_entry`` does, which is the default. Raises
        ``DecodeError``: ``evidence.malformed``, or as its parts do (``json.*``,
        ``proof.malformed``, ``note.malformed``, ``base64.malformed``).
        """
        read_entry = read_entry or logged_entry
        value, is_canonical = _decoded(data)
        match value:
            case {
                "type": "urn:agentguard:evidence:v1",
                "invocation_id": str(invocation_id),
                "entries": [*entries],
                "consistency": consistency,
                "attachments": [*attachments],
                **others,
            } if not others:
                file = cls(
                    invocation_id,
                    tuple(_parse_entry(item, read_entry) for item in entries),
                    _parse_extension(consistency),
                    tuple(_parse_attachment(item) for item in attachments),
                )
            case _:
                expected = "attachments, consistency, entries, invocation_id, type"
                raise _malformed(f"expected the members {expected}")
        if not is_canonical:
            problem = (
                "it is not in its canonical form, with a line feed at its end: the file was "
                "changed on its way; ask for the bytes as they were written"
            )
            raise _malformed(problem)
        return file


def _decoded(data: object) -> tuple[JSON, bool]:
    """Decode a JSON text, and return whether ``dumps`` would write the value as this text."""
    with suppress(DecodeError):  # the slower decoder below raises the error, if there is one
        if isinstance(data, bytes) and data.endswith(b"\n"):
            return canonical.loads_canonical(data[:-1]), True
    value = canonical.loads(data, limit=MAX_BYTES)
    return value, canonical.dumps(value) + b"\n" == data


def logged_entry(entry: str, proof: str) -> LoggedEntry:
    """Read an entry and its proof; raises ``DecodeError`` as ``tlog_proof.parse`` does."""
    return LoggedEntry(entry.encode(), tlog_proof.parse(proof))


def _parse_entry(value: JSON, read_entry: Callable[[str, str], LoggedEntry]) -> LoggedEntry:
    match value:
        case {"entry": str(body), "proof": str(proof), **others} if not others:
            return read_entry(body, proof)
    raise _malformed("an item of entries has an entry and its proof, and no more")


def _parse_extension(value: JSON) -> Extension:
    match value:
        case {
            "origin": str(origin),
            "size": size,
            "root": str(root),
            "proof": [*hashes],
            **others,
        } if not others and is_integer(size):
            checkpoint = Checkpoint(origin, size, b64_decode(root))
            return Extension(checkpoint, tuple(b64_decode(str(value)) for value in hashes))
    raise _malformed("consistency has origin, size, root and proof, and no more")


def _parse_attachment(value: JSON) -> Attachment:
    match value:
        case {
            "role": str(role),
            "commitment": str(commitment),
            "salt": str(salt),
            "data": str(data),
            **others,
        } if not others and role in _ROLES:
            return Attachment(_ROLES[role], commitment, b64_decode(salt), data.encode())
    raise _malformed("an attachment has role, commitment, salt and data, and no more")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        message = "what stands beside the log is no JSON text"
        raise EncodeError(message, code="json.unencodable") from None


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a file with evidence: {problem}", code="evidence.malformed")
