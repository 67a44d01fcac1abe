"""Proofs from the stored levels of the tree are the proofs of the whole tree."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaf_tree import LeafTree

from agentguard.audit.merkle import CompactRange, verify_consistency, verify_inclusion
from agentguard.errors import StorageError
from agentguard.store import tree

MOST = 700
LEAVES = [sha256(str(i).encode()).digest() for i in range(MOST)]


class Stored:
    """The stored levels of a tree of ``MOST`` leaves, as rows."""

    def __init__(self):
        self.rows = {(0, i): leaf for i, leaf in enumerate(LEAVES)}
        grown, self.roots = CompactRange(), [CompactRange().root()]
        for leaf in LEAVES:
            completed: list[tree.Completed] = []
            grown.append(leaf, completed)
            self.rows.update({(level, i): root for level, i, root in tree.stored(completed)})
            self.roots.append(grown.root())

    def hashes(self, level, first, last):
        return [self.rows[level, i] for i in range(first, last) if (level, i) in self.rows]


STORED = Stored()


@given(st.integers(1, MOST), st.data())
def test_a_proof_from_stored_levels_is_that_of_the_tree(size, data):
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, STORED.hashes)
    assert proof == LeafTree(LEAVES[:size]).inclusion_proof(index)
    verify_inclusion(index, size, LEAVES[index], proof, STORED.roots[size])
    older = data.draw(st.integers(1, size))
    proof = tree.consistency_proof(older, size, STORED.hashes)
    assert proof == LeafTree(LEAVES[:size]).consistency_proof(older)
    verify_consistency(older, size, STORED.roots[older], STORED.roots[size], proof)


def test_one_row_is_stored_for_fifteen_entries():
    above = [row for row in STORED.rows if row[0] > 0]
    assert len(above) == MOST // 16 + MOST // 256
    assert {level for level, _i in above} == {4, 8}


def test_a_missing_row_is_an_error_and_no_other_proof():
    stored = Stored()
    del stored.rows[4, 0]
    with pytest.raises(StorageError) as caught:
        tree.inclusion_proof(20, 100, stored.hashes)
    assert caught.value.code == "storage.corrupt"
    assert tree.inclusion_proof(3, 100, stored.hashes)  # reads no such row
