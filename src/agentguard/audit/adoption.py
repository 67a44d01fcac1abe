"""An adoption: the admin key says that the log goes on in a state that is behind its anchor.

It names each shard of which the anchor had seen more, or something else, with the anchor's signed
checkpoint. Those entries are not in the log any more, and whoever verifies the log is told so.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.audit import checkpoint, statements
from agentguard.audit.entry import Entry
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, is_integer


class Lost(NamedTuple):
    """A shard that goes on from ``entries``, None where the shard is gone.

    ``anchored`` is the note of the checkpoint that the anchor had.
    """

    shard: int
    entries: int | None
    anchored: str

    def seen(self) -> int:
        """Return how many entries the anchor had seen; raises ``DecodeError``."""
        return checkpoint.parse(self.anchored.encode()).checkpoint.size

    def words(self) -> str:
        """Tell it to people; raises ``DecodeError``."""
        if self.entries is None:
            return f"shard {self.shard} with {self.seen()} entries is gone"
        return (
            f"shard {self.shard} goes on from {self.entries} entries, where its anchor had seen "
            f"{self.seen()}"
        )


class Adoption(NamedTuple):
    """What an adoption says, and when."""

    lost: tuple[Lost, ...]
    note: str
    at: str

    def words(self) -> str:
        """Tell it to people; raises ``DecodeError``."""
        lost = "; ".join(one.words() for one in self.lost) or "nothing is lost"
        return f"the log goes on in this state ({lost}): {self.note}"


def check(parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True) -> Adoption:
    """Return what an adoption says, each checkpoint in it verified.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    _key, statement = statements.check_by("admin", parsed, trust, at, signatures=signatures)
    if statement.subject_sha256 != canonical.sha256_hex(trust.trust_domain.encode()):
        raise _malformed()
    said = _of(statement.predicate, parsed.at)
    for one in said.lost:
        statements.check_checkpoint(one.anchored.encode(), trust, trust.origin(one.shard))
    return said


def read(parsed: Entry) -> Adoption:
    """Read what an adoption says, unverified; raises as ``check`` does."""
    _key_id, statement = statements.read_sealed(parsed)
    return _of(statement.predicate, parsed.at)


def _of(predicate: object, at: str) -> Adoption:
    match predicate:
        case {"lost": [*lost], "note": str(note), **others} if not others:
            return Adoption(tuple(_lost(one) for one in lost), note, at)
    raise _malformed()


def _lost(value: JSON) -> Lost:
    match value:
        case {"shard": shard, "entries": entries, "anchored": str(anchored), **others}:
            counted = entries is None or is_integer(entries)
            if not others and is_integer(shard) and counted:
                one = Lost(shard, entries if is_integer(entries) else None, anchored)
                one.seen()
                return one
    raise _malformed()


def _malformed() -> DecodeError:
    return DecodeError("not a statement of an adoption", code="entry.malformed")
