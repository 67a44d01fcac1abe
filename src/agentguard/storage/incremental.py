"""Reads a shard on from where the shard was read before, and verifies every entry on the way.

Each entry is hashed into the tree, up to the shard's newest checkpoint. The tree's root has to be
the checkpoint's, a key of the log has to have signed the checkpoint, and the anchor has to have
seen a part of the same tree. So a row that somebody has changed, removed, added or moved is found
when a state is opened, and not only by ``audit verify``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from agentguard.audit import merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.merkle import CompactRange
from agentguard.audit.restrictions import ReadPlace
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import sqlite
from agentguard.storage.anchor import ROLLED_BACK, Anchor
from agentguard.storage.reader import StateReader


class DivergedError(Exception):
    """The shard did not grow from the place where it was read before: read it from its start."""


class Progress(NamedTuple):
    """How far a shard was read, and its newest checkpoint's note; None for an empty shard."""

    place: ReadPlace
    note: bytes | None


class IncrementalReader(NamedTuple):
    """The shards of a state, their anchors (None for nowhere), and the keys that count."""

    state: Path
    anchors: Path | None
    trust: TrustDocument
    reader: StateReader

    def read(
        self,
        shard: int,
        place: ReadPlace,
        add: Callable[[bytes], None],
        *,
        may_be_empty: bool = False,
        is_sure: bool = False,
    ) -> Progress:
        """Hand each entry past ``place`` to ``add``, and return how far the shard was read.

        The entries count only once this returns. ``is_sure`` says that nobody who writes the state
        can have set ``place`` back; then the anchor may have seen less. Raises ``DivergedError``
        where the shard did not grow from ``place``; ``StorageError``: ``storage.rolled_back`` where
        the anchor has seen another tree, ``storage.corrupt``, ``anchor.*``; ``VerificationError``
        where no key of the log has signed the head.
        """
        origin = self.trust.origin(shard)
        keys = [trusted.key for trusted in self.trust.keys_for("log")]
        # before the shard: the shard had each entry before the anchor saw it
        seen = Anchor(self.anchors, origin, keys).read()
        with self.reader.snapshot(shard):
            note = self.reader.checkpoint(shard)
            if note is None and may_be_empty and seen is None:
                return Progress(ReadPlace(), None)
            head = self._head(shard, note or b"", origin)
            if seen is not None and seen.size < place.size and not is_sure:
                raise DivergedError  # entries before ``place`` have to agree with the anchor, too
            return Progress(self._entries(shard, place, head, seen, add), note)

    def _head(self, shard: int, note: bytes, origin: str) -> Checkpoint:
        try:
            return _verified(note, self.trust, origin)
        except AgentguardError as error:
            message = (
                f"the newest checkpoint of {self._path(shard)} does not verify ({error}): run "
                "agentguard audit verify, find out who changed it, and restore the state; nothing "
                "is written until then"
            )
            raise VerificationError(message, code=error.code) from error

    def _entries(
        self,
        shard: int,
        place: ReadPlace,
        head: Checkpoint,
        seen: Checkpoint | None,
        add: Callable[[bytes], None],
    ) -> ReadPlace:
        self._compare(shard, head.size, head.root, head, seen)
        if place.size > head.size:
            raise DivergedError
        try:
            tree = CompactRange.decode(place.size, place.peaks)
        except AgentguardError:
            raise DivergedError from None
        self._compare(shard, tree.size, tree.root(), head, seen, has_start=place.size > 0)
        for index, body in self.reader.entries(shard, after=place.size - 1):
            if index != tree.size:
                raise sqlite.damaged(self._path(shard), f"entry {tree.size} is not there")
            tree.append(merkle.leaf_hash(body))
            if tree.size > head.size:
                break
            add(body)
            if seen is not None and tree.size == seen.size:
                self._compare(shard, tree.size, tree.root(), head, seen, has_start=place.size > 0)
        if (tree.size, tree.root()) != (head.size, head.root):
            if place.size > 0:
                raise DivergedError
            what = "its entries are not those of its newest checkpoint"
            raise sqlite.damaged(self._path(shard), what)
        return ReadPlace(tree.size, tree.encode())

    def _compare(
        self,
        shard: int,
        size: int,
        root: bytes,
        head: Checkpoint,
        seen: Checkpoint | None,
        *,
        has_start: bool = False,
    ) -> None:
        """Compare a tree of the shard with what the anchor has seen."""
        if seen is None or (size == seen.size and root == seen.root):
            return
        if seen.size > head.size:
            what = f"{self._path(shard)} has {head.size} entries, but its anchor has seen more"
        elif size == seen.size:
            if has_start:
                raise DivergedError
            what = (
                f"the first {size} entries of {self._path(shard)} are not those that its anchor "
                "has seen"
            )
        else:
            return
        raise StorageError(f"{what}: {ROLLED_BACK}", code="storage.rolled_back")

    def _path(self, shard: int) -> Path:
        return sqlite.shard_path(self.state, shard)


@lru_cache(maxsize=256)
def _verified(note: bytes, trust: TrustDocument, origin: str) -> Checkpoint:
    """Verify a head once: most shards are idle, and are read again and again."""
    return statements.check_checkpoint(note, trust, origin)[0]
