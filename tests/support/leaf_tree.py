"""A Merkle tree in a list of leaves, with its proofs, as RFC 9162 defines them.

The store makes its proofs from the hashes that it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentguard.audit.merkle import CompactRange, consistency_parts, inclusion_parts


class LeafTree(list[bytes]):
    """The hashes (32 bytes) of all leaves of a tree."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        super().__init__(leaves)

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The proof that a leaf is in the tree; raises ``IndexError`` (RFC 9162, 2.1.3.1)."""
        return [self._root(*part) for part in inclusion_parts(index, len(self))]

    def consistency_proof(self, size: int) -> list[bytes]:
        """The proof that the first leaves are a tree before; raises ``IndexError`` (2.1.4.1)."""
        return [self._root(*part) for part in consistency_parts(size, len(self))]

    def _root(self, start: int, end: int) -> bytes:
        tree = CompactRange()
        for leaf in self[start:end]:
            tree.append(leaf)
        return tree.root()
