"""Reads the log on from where it was read before, and verifies every entry on the way.

Each entry is hashed into the tree, up to the newest head. The tree's root has to be the head's, a
key of the log has to have signed the head, and the anchor has to have seen a part of the same tree.
So an entry that somebody has changed, removed, added or moved is found when a state is opened, and
not only by ``audit verify``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from itertools import islice
from pathlib import Path

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.head import Head
from agentguard.audit.merkle import CompactRange
from agentguard.audit.restrictions import ReadPlace
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import anchor, sqlite
from agentguard.storage.anchor import ROLLED_BACK
from agentguard.store.anchor import Anchor
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in


class DivergedError(Exception):
    """The log did not grow from the place where it was read before: read it from its start."""


def read_on(
    state: Path,
    anchors: Path | None,
    trust: TrustDocument,
    place: ReadPlace,
    add: Callable[[bytes], None],
    *,
    is_sure: bool = False,
) -> ReadPlace:
    """Hand each entry past ``place`` to ``add``, and return how far the log was read.

    The entries count only once this returns. ``anchors`` is the folder of all anchors, None for
    nowhere. ``is_sure`` says that nobody who writes the state can have set ``place`` back; then the
    anchor may have seen less. Raises ``DivergedError`` where the log did not grow from ``place``;
    ``StorageError``: ``storage.rolled_back`` where the anchor has seen another tree,
    ``storage.corrupt``, ``anchor.*``; ``VerificationError`` where no key of the log has signed the
    head.
    """
    seen = None
    if anchors is not None:
        # before the log: the log had each entry before the anchor saw it
        at = anchor.head_path(anchors, trust.log)
        seen = Anchor(at, trust.log, lambda: trust.keys_for("log")).read()
    with closing(StoredLog.of(state)) as reader:
        head = _head(reader.head(), trust, state)
        if seen is not None and seen.size < place.size and not is_sure:
            raise DivergedError  # entries before ``place`` have to agree with the anchor, too
        _compare(state, head.size, head.root, head, seen)
        if place.size > head.size:
            raise DivergedError
        try:
            tree = CompactRange.decode(place.size, place.peaks)
        except AgentguardError:
            raise DivergedError from None
        has_start = place.size > 0
        _compare(state, tree.size, tree.root(), head, seen, has_start=has_start)
        entries = reader.entries(after=place.size - 1)
        for index, body in islice(entries, head.size - place.size):
            if index != tree.size:
                raise sqlite.damaged(path_in(state), f"entry {tree.size} is not there")
            tree.append(merkle.leaf_hash(body))
            add(body)
            if seen is not None and tree.size == seen.size:
                _compare(state, tree.size, tree.root(), head, seen, has_start=has_start)
    if (tree.size, tree.root()) != (head.size, head.root):
        if has_start:
            raise DivergedError
        raise sqlite.damaged(path_in(state), "its entries are not those of its head")
    return ReadPlace(tree.size, tree.encode())


def _head(note: bytes | None, trust: TrustDocument, state: Path) -> Head:
    try:
        return _verified(note or b"", trust)
    except AgentguardError as error:
        message = (
            f"the head of {path_in(state)} does not verify ({error}): run agentguard audit verify, "
            "find out who changed it, and restore the state; nothing is written until then"
        )
        raise VerificationError(message, code=error.code) from error


@lru_cache(maxsize=16)
def _verified(note: bytes, trust: TrustDocument) -> Head:
    keys = (trusted.key for trusted in trust.keys_for("log"))
    return heads.verify(note, keys, trust.log)[0]


def _compare(
    state: Path, size: int, root: bytes, head: Head, seen: Head | None, *, has_start: bool = False
) -> None:
    """Compare a tree of the log with what the anchor has seen."""
    if seen is None or (size == seen.size and root == seen.root):
        return
    path = path_in(state)
    if seen.size > head.size:
        what = f"{path} has {head.size} entries, but its anchor has seen {seen.size}"
    elif size == seen.size:
        if has_start:
            raise DivergedError
        what = f"the first {size} entries of {path} are not those that its anchor has seen"
    else:
        return
    raise StorageError(f"{what}: {ROLLED_BACK}", code="storage.rolled_back")
