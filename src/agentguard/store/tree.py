"""The stored part of the log's Merkle tree, from which a proof is a few look-ups.

Of the complete subtrees, those of every fourth level are stored: one row for 15 entries. The leaves
stand beside their entries. What is read here is unverified: whoever gets a proof checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from agentguard.audit import merkle
from agentguard.errors import StorageError

STRIP: Final = 4
"""Every level that this divides is stored."""

Completed = tuple[int, int, bytes]
"""A complete subtree: its level, its index and its root."""

Hashes = Callable[[int, int, int], Sequence[bytes]]
"""Returns the stored hashes of a level, from one index to before another; 0 has the leaves."""


def stored(completed: Iterable[Completed]) -> Iterator[Completed]:
    """Yield those of the completed subtrees that are stored."""
    return (one for one in completed if one[0] % STRIP == 0)


def inclusion_proof(index: int, size: int, hashes: Hashes) -> list[bytes]:
    """Return the proof of a leaf in the tree of ``size`` (RFC 9162, 2.1.3.1).

    Raises ``IndexError`` for no such leaf, ``StorageError`` (``storage.corrupt``) for no such rows.
    """
    return [_root(*part, hashes) for part in merkle.inclusion_parts(index, size)]


def consistency_proof(size1: int, size2: int, hashes: Hashes) -> list[bytes]:
    """Return the proof that one tree extends another (RFC 9162, 2.1.4.1); raises as above."""
    return [_root(*part, hashes) for part in merkle.consistency_parts(size1, size2)]


def _root(start: int, end: int, hashes: Hashes) -> bytes:
    """Return the root over a range of leaves whose parts are complete subtrees."""
    peaks: list[bytes] = []
    while start < end:
        most = (end - start).bit_length() - 1
        level = min((start & -start).bit_length() - 1, most) if start else most
        peaks.append(_subtree(level, start >> level, hashes))
        start += 1 << level
    root = peaks[-1]
    for peak in peaks[-2::-1]:
        root = merkle.node_hash(peak, root)
    return root


def _subtree(level: int, index: int, hashes: Hashes) -> bytes:
    """Return the root of a complete subtree, from the stored level below it or at it."""
    below = level % STRIP
    first, last = index << below, (index + 1) << below
    level -= below
    found = [*hashes(level, first, last)]
    if len(found) != last - first:
        message = (
            f"hashes of the log's tree are missing at the level {level}: keep a copy, and run "
            "agentguard audit verify"
        )
        raise StorageError(message, code="storage.corrupt")
    while len(found) > 1:
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [merkle.node_hash(left, right) for left, right in pairs]
    return found[0]
