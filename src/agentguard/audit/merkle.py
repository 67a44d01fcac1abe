"""RFC 6962 Merkle trees: hashes, the compact range of a growing tree, proofs and their checks.

All functions work on bytes (RFC 9162, 2.1, with SHA-256). ``entry.py`` defines the content of a
leaf, and ``checkpoint.py`` the signature over a root.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from agentguard.errors import DecodeError, VerificationError

HASH_SIZE: Final = 32
"""The size of every hash here, in bytes."""

EMPTY_ROOT: Final = sha256().digest()
"""The root of the tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 9162, 2.1.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node over its two children (RFC 9162, 2.1.1)."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The part of a tree that is needed to append leaves and to compute the root.

    A range holds one hash for each bit that is set in ``size``: the roots of the complete subtrees
    of the tree, the largest first.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._size

    def append(self, leaf: bytes, completed: list[tuple[int, int, bytes]] | None = None) -> None:
        """Add a leaf by its hash (32 bytes).

        ``completed`` gets each subtree that the leaf completes, as its level, index and root: the
        leaves from ``index << level`` on.
        """
        size, level = self._size, 0
        self._size = size + 1
        peaks = self._peaks
        while size & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            size, level = size >> 1, level + 1
            if completed is not None:
                completed.append((level, size, leaf))
        peaks.append(leaf)

    def root(self) -> bytes:
        """Return the tree's root (RFC 9162, 2.1.1)."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = node_hash(peak, root)
        return root

    def copy(self) -> CompactRange:
        """Return another range with the same leaves."""
        other = CompactRange()
        other._size = self._size
        other._peaks = self._peaks.copy()
        return other

    def encode(self) -> bytes:
        """Return the hashes one after another, the largest subtree's first."""
        return b"".join(self._peaks)

    @classmethod
    def decode(cls, size: int, data: bytes) -> CompactRange:
        """Read what ``encode`` has written for a tree of ``size`` leaves.

        Raises ``DecodeError`` (``merkle.malformed``). The hashes are not checked: compare
        ``root()`` with a signed checkpoint.
        """
        if size < 0 or len(data) != HASH_SIZE * size.bit_count():
            raise DecodeError(
                f"{len(data)} bytes are no compact range of {size} leaves", code="merkle.malformed"
            )
        decoded = cls()
        decoded._size = size
        decoded._peaks = [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]
        return decoded


def inclusion_parts(index: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges of leaves whose roots prove the leaf at ``index`` in a tree of ``size``.

    Raises ``IndexError`` if there is no such leaf. RFC 9162, 2.1.3.1.
    """
    if not 0 <= index < size:
        message = f"no leaf {index} in a tree of {size}"
        raise IndexError(message)
    parts: list[tuple[int, int]] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    return parts[::-1]


def consistency_parts(size1: int, size2: int) -> list[tuple[int, int]]:
    """Return the ranges of leaves whose roots prove that the tree of ``size2`` extends the other.

    Raises ``IndexError`` if there are fewer leaves, or ``size1`` is 0. RFC 9162, 2.1.4.1.
    """
    if not 0 < size1 <= size2:
        message = f"no consistency proof from {size1} leaves to {size2}"
        raise IndexError(message)
    parts: list[tuple[int, int]] = []
    start, end = 0, size2
    while size1 != end:
        middle = start + _split(end - start)
        if size1 <= middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    if start:  # the verifier knows the old root, but not the root of this part
        parts.append((start, end))
    return parts[::-1]


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Return if ``proof`` shows the leaf hash at ``index`` in the tree of ``size`` and ``root``.

    Raises ``VerificationError`` (``proof.invalid``). RFC 9162, 2.1.3.2.
    """
    _check_hashes(leaf, *proof)
    if not 0 <= index < size:
        raise _invalid(f"no leaf {index} in a tree of {size}")
    node, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _invalid("the inclusion proof is too long")
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise _invalid("the inclusion proof is too short")
    if computed != root:
        raise _invalid(f"the inclusion proof of leaf {index} does not lead to the root")


def verify_consistency(
    size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]
) -> None:
    """Return if ``proof`` shows that the tree of ``size2`` extends the one of ``size1``.

    Raises ``VerificationError`` (``proof.invalid``). RFC 9162, 2.1.4.2.
    """
    _check_hashes(*proof)
    if not 0 <= size1 <= size2:
        raise _invalid(f"a tree of {size2} leaves does not extend one of {size1}")
    if size1 == size2:
        if proof:
            raise _invalid("the consistency proof of two equal trees should be empty")
        if root1 != root2:
            raise _invalid(f"two roots for the same {size1} leaves: a fork")
        if size1 == 0 and root1 != EMPTY_ROOT:
            raise _invalid("the root is not the empty tree's")
        return
    if size1 == 0:  # every tree extends the empty one: nothing would bind root2
        raise _invalid("there is no consistency proof from the empty tree")
    # Where size1 is a power of two, the old root is itself the first node of the path.
    path = list(proof) if size1 & (size1 - 1) else [root1, *proof]
    if not path:
        raise _invalid("the consistency proof is too short")
    _walk_consistency(size1 - 1, size2 - 1, root1, root2, path)


def _walk_consistency(node: int, last: int, root1: bytes, root2: bytes, path: list[bytes]) -> None:
    """Rebuild both roots along ``path`` (RFC 9162, 2.1.4.2, steps 4 to 7)."""
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _invalid("the consistency proof is too long")
        if node & 1 or node == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise _invalid("the consistency proof is too short")
    if old != root1 or new != root2:
        raise _invalid("the consistency proof does not lead to both roots")


def _split(size: int) -> int:
    """Return the largest power of two that is smaller than ``size`` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def _check_hashes(*hashes: bytes) -> None:
    if any(len(value) != HASH_SIZE for value in hashes):
        raise _invalid(f"every hash of a proof is {HASH_SIZE} bytes")


def _invalid(problem: str) -> VerificationError:
    return VerificationError(problem, code="proof.invalid")
