"""Merkle trees: known roots, the stored range, and proofs spoilt in each way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest
from leaf_tree import LeafTree

from agentguard.audit import merkle
from agentguard.errors import DecodeError, VerificationError

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(13)]


def tree(count: int = len(LEAVES)) -> merkle.CompactRange:
    grown = merkle.CompactRange()
    for leaf in LEAVES[:count]:
        grown.append(leaf)
    return grown


def root_of(leaves: Sequence[bytes]) -> bytes:
    grown = merkle.CompactRange()
    for leaf in leaves:
        grown.append(leaf)
    return grown.root()


def test_leaves_and_nodes_are_hashed_apart() -> None:
    left, right = LEAVES[:2]

    assert merkle.leaf_hash(b"x") == hashlib.sha256(b"\x00x").digest()
    assert merkle.node_hash(left, right) == hashlib.sha256(b"\x01" + left + right).digest()
    assert merkle.node_hash(left, right) != merkle.leaf_hash(left + right)
    assert merkle.node_hash(left, right) != merkle.node_hash(right, left)


def test_small_trees_have_the_roots_that_one_writes_by_hand() -> None:
    a, b, c = LEAVES[:3]
    assert tree(0).root() == merkle.EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert tree(1).root() == a
    assert tree(2).root() == merkle.node_hash(a, b)
    assert tree(3).root() == merkle.node_hash(merkle.node_hash(a, b), c)


def test_a_copy_grows_by_itself() -> None:
    original = tree(5)
    root = original.root()
    copied = original.copy()
    copied.append(LEAVES[5])

    assert (original.size, original.root()) == (5, root)
    assert (copied.size, copied.root()) == (6, tree(6).root())


@pytest.mark.parametrize("count", range(len(LEAVES)))
def test_a_stored_range_grows_like_the_one_in_memory(count: int) -> None:
    stored = merkle.CompactRange.decode(count, tree(count).encode())
    assert len(tree(count).encode()) == 32 * count.bit_count()
    for leaf in LEAVES[count:]:
        stored.append(leaf)
    assert stored.root() == tree().root()


@pytest.mark.parametrize(
    ("size", "data"),
    [(0, bytes(32)), (1, b""), (1, bytes(31)), (1, bytes(64)), (3, bytes(32)), (-1, bytes(32))],
)
def test_a_stored_range_of_another_size_is_refused(size: int, data: bytes) -> None:
    with pytest.raises(DecodeError) as refused:
        merkle.CompactRange.decode(size, data)
    assert refused.value.code == "merkle.malformed"


Spoil = Callable[[list[bytes]], list[bytes]]
SPOILT: dict[str, Spoil] = {
    "shorter": lambda proof: proof[:-1],
    "beginning lost": lambda proof: proof[1:],
    "longer": lambda proof: [*proof, proof[-1]],
    "zero appended": lambda proof: [*proof, bytes(32)],
    "zero before": lambda proof: [bytes(32), *proof],
    "reversed": lambda proof: proof[::-1],
    "emptied": lambda proof: [],
    "a hash cut": lambda proof: [proof[0][:-1], *proof[1:]],
    "a hash too long": lambda proof: [proof[0] + b"\0", *proof[1:]],
    "a bit flipped": lambda proof: [bytes([proof[0][0] ^ 1]) + proof[0][1:], *proof[1:]],
    "hashes joined": lambda proof: [proof[0] + proof[1], *proof[2:]],
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_inclusion_proof_is_refused(how: str) -> None:
    root = tree().root()
    for index, leaf in enumerate(LEAVES):
        proof = LeafTree(LEAVES).inclusion_proof(index)
        merkle.verify_inclusion(index, 13, leaf, proof, root)
        with pytest.raises(VerificationError) as refused:
            merkle.verify_inclusion(index, 13, leaf, SPOILT[how](proof), root)
        assert refused.value.code == "proof.invalid"


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 34, 64, 65, 200])
def test_an_inclusion_proof_leads_to_no_other_root(size: int) -> None:
    leaves = [merkle.leaf_hash(b"%d" % index) for index in range(size)]
    grown = LeafTree(leaves)
    root = root_of(leaves)
    wrong = bytes([root[0] ^ 1]) + root[1:]
    for index in {0, size // 2, size - 1}:
        proof = grown.inclusion_proof(index)
        merkle.verify_inclusion(index, size, leaves[index], proof, root)
        for other in (wrong, root[:-1], b"", bytes(32)):
            with pytest.raises(VerificationError) as refused:
                merkle.verify_inclusion(index, size, leaves[index], proof, other)
            assert refused.value.code == "proof.invalid"
        with pytest.raises(VerificationError) as refused:
            merkle.verify_inclusion(index, size, merkle.leaf_hash(b"other"), proof, root)
        assert refused.value.code == "proof.invalid"


@pytest.mark.parametrize("old", [1, 2, 3, 8, 31, 32, 33, 64, 65, 199])
def test_a_consistency_proof_leads_to_no_other_roots(old: int) -> None:
    leaves = [merkle.leaf_hash(b"%d" % index) for index in range(200)]
    proof = LeafTree(leaves).consistency_proof(old)
    root1, root2 = root_of(leaves[:old]), root_of(leaves)
    merkle.verify_consistency(old, 200, root1, root2, proof)
    for right in (root1, root2):
        for wrong in (bytes([right[0] ^ 1]) + right[1:], right[:-1], b"", bytes(32)):
            old_root = wrong if right == root1 else root1
            new_root = wrong if right == root2 else root2
            with pytest.raises(VerificationError) as refused:
                merkle.verify_consistency(old, 200, old_root, new_root, proof)
            assert refused.value.code == "proof.invalid"


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 9, 11])
def test_a_spoilt_consistency_proof_is_refused(how: str, size: int) -> None:
    old, new = tree(size).root(), tree().root()
    proof = LeafTree(LEAVES).consistency_proof(size)
    merkle.verify_consistency(size, 13, old, new, proof)

    with pytest.raises(VerificationError) as refused:
        merkle.verify_consistency(size, 13, old, new, SPOILT[how](proof))
    assert refused.value.code == "proof.invalid"


@pytest.mark.parametrize(("index", "size"), [(-1, 13), (13, 13), (0, 0), (2**70, 13), (5, -3)])
def test_a_leaf_outside_the_tree_is_refused(index: int, size: int) -> None:
    proof = LeafTree(LEAVES).inclusion_proof(12)
    merkle.verify_inclusion(12, 13, LEAVES[12], proof, tree().root())
    with pytest.raises(VerificationError) as refused:
        merkle.verify_inclusion(index, size, LEAVES[12], proof, tree().root())
    assert refused.value.code == "proof.invalid"


def test_another_size_of_the_tree_is_refused() -> None:
    proof = LeafTree(LEAVES).inclusion_proof(4)
    for size in (5, 8, 17, 100, 2**64):
        with pytest.raises(VerificationError):
            merkle.verify_inclusion(4, size, LEAVES[4], proof, tree().root())


def test_an_inner_node_is_not_taken_for_a_leaf() -> None:
    pair = merkle.node_hash(LEAVES[0], LEAVES[1])
    root = merkle.node_hash(pair, merkle.node_hash(LEAVES[2], LEAVES[3]))
    proof = LeafTree(LEAVES[:4]).inclusion_proof(0)
    merkle.verify_inclusion(0, 4, LEAVES[0], proof, root)

    with pytest.raises(VerificationError):
        merkle.verify_inclusion(0, 4, pair, proof[1:], root)
    # Whoever hashes entries by leaf_hash can't be given a node's children as an entry either.
    assert merkle.leaf_hash(LEAVES[0] + LEAVES[1]) != pair


def test_one_size_has_one_root() -> None:
    root, other = tree().root(), merkle.leaf_hash(b"other")
    merkle.verify_consistency(13, 13, root, root, [])
    merkle.verify_consistency(0, 0, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, [])

    for size1, size2, root1, root2, proof in (
        (13, 13, root, other, []),
        (13, 13, root, root, [root]),
        (0, 0, other, other, []),
        (0, 13, merkle.EMPTY_ROOT, root, []),
        (13, 5, root, tree(5).root(), []),
        (-1, 13, root, root, []),
        (8, 13, tree(8).root(), root, []),
    ):
        with pytest.raises(VerificationError) as refused:
            merkle.verify_consistency(size1, size2, root1, root2, proof)
        assert refused.value.code == "proof.invalid"


def test_there_is_no_proof_of_what_is_not_there() -> None:
    for index in (-1, 13):
        with pytest.raises(IndexError):
            LeafTree(LEAVES).inclusion_proof(index)
    for size in (-1, 0, 14):
        with pytest.raises(IndexError):
            LeafTree(LEAVES).consistency_proof(size)
    assert LeafTree(LEAVES).consistency_proof(13) == []
