"""Adoptions: the administrator states that the log continues in a state behind its anchor.

An adoption names each shard of which the anchor has more entries, or other entries, with the
anchor's signed checkpoint. The log lacks these entries from then on, and ``audit verify`` reports
the loss. It also names each shard that no anchor vouches for: nobody knows what is lost there.
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.audit import checkpoint, statements
from agentguard.audit.entry import Entry
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, is_integer


class LostEntries(NamedTuple):
    """The loss in one shard, which continues from ``entries``; None where the shard is gone.

    ``anchored`` is the note of the anchor's checkpoint.
    """

    shard: int
    entries: int | None
    anchored: str

    def anchored_size(self) -> int:
        """Return the number of entries in the anchor's checkpoint; raises ``DecodeError``."""
        return checkpoint.parse(self.anchored.encode()).checkpoint.size

    def words(self) -> str:
        """Return the loss in words; raises ``DecodeError``."""
        if self.entries is None:
            return f"shard {self.shard} with {self.anchored_size()} entries is gone"
        return (
            f"shard {self.shard} goes on from {self.entries} entries, where its anchor had seen "
            f"{self.anchored_size()}"
        )


class Unanchored(NamedTuple):
    """A shard that no anchor vouches for: its number of entries, and the newest one's time."""

    shard: int
    entries: int
    newest: str

    def words(self) -> str:
        """Return what is known of the shard, and what nobody knows."""
        return (
            f"no anchor vouches for shard {self.shard}, whose {self.entries} entries end at "
            f"{self.newest}: nobody knows whether later ones are lost"
        )


class Adoption(NamedTuple):
    """The content of an adoption, and the time of its entry (RFC 3339)."""

    lost: tuple[LostEntries, ...]
    unanchored: tuple[Unanchored, ...]
    note: str
    at: str

    def words(self) -> str:
        """Return the adoption in words; raises ``DecodeError``."""
        found = [one.words() for one in self.lost] + [one.words() for one in self.unanchored]
        lost = "; ".join(found) or "nothing is lost"
        return f"the log goes on in this state ({lost}): {self.note}"


def check_adoption(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> Adoption:
    """Return the content of an adoption, with each checkpoint in it verified.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    _key, statement = statements.check_signed_by("admin", entry, trust, at, signatures=signatures)
    if statement.subject_sha256 != canonical.sha256_hex(trust.trust_domain.encode()):
        raise _malformed()
    adoption = _read_predicate(statement.predicate, entry.at)
    for one in adoption.lost:
        statements.check_checkpoint(one.anchored.encode(), trust, trust.origin(one.shard))
    return adoption


def read_adoption(entry: Entry) -> Adoption:
    """Read the content of an adoption, unverified; raises as ``check_adoption`` does."""
    _key_id, statement = statements.read_statement(entry)
    return _read_predicate(statement.predicate, entry.at)


def _read_predicate(predicate: object, at: str) -> Adoption:
    match predicate:
        case {
            "lost": [*lost],
            "unanchored": [*unanchored],
            "note": str(note),
            **others,
        } if not others:
            unknown = tuple(_read_unanchored(one) for one in unanchored)
            return Adoption(tuple(_read_loss(one) for one in lost), unknown, note, at)
    raise _malformed()


def _read_unanchored(value: JSON) -> Unanchored:
    match value:
        case {"shard": shard, "entries": entries, "newest": str(newest), **others}:
            if not others and is_integer(shard) and is_integer(entries):
                return Unanchored(shard, entries, newest)
    raise _malformed()


def _read_loss(value: JSON) -> LostEntries:
    match value:
        case {"shard": shard, "entries": entries, "anchored": str(anchored), **others}:
            has_size = entries is None or is_integer(entries)
            if not others and is_integer(shard) and has_size:
                one = LostEntries(shard, entries if is_integer(entries) else None, anchored)
                one.anchored_size()
                return one
    raise _malformed()


def _malformed() -> DecodeError:
    return DecodeError("not a statement of an adoption", code="entry.malformed")
