"""RFC 6962: the inclusion and consistency cases of transparency-dev/merkle, negatives included."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentguard.audit.merkle import verify_consistency, verify_inclusion
from agentguard.errors import VerificationError
from agentguard.signing.canonical import b64_decode


def cases(vectors: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((vectors / "merkle" / "testdata" / kind).rglob("*.json")):
        yield str(path), json.loads(path.read_text())


def fails(check: Callable[..., None], *arguments: object) -> bool:
    try:
        check(*arguments)
    except VerificationError as error:
        return error.code == "proof.invalid"
    return False


def hashes(case: dict[str, Any]) -> list[bytes]:
    return [b64_decode(item) for item in case["proof"] or ()]


def test_inclusion_98_of_98(vectors: Path) -> None:
    seen: Counter[bool] = Counter()
    for name, case in cases(vectors, "inclusion"):
        leaf, root = b64_decode(case["leafHash"] or ""), b64_decode(case["root"] or "")
        place = case["leafIdx"], case["treeSize"]
        refused = fails(verify_inclusion, *place, leaf, hashes(case), root)
        assert refused is case["wantErr"], name
        seen[refused] += 1

    assert seen.total() == 98
    assert seen[False] >= 5


def test_consistency_98_of_98(vectors: Path) -> None:
    seen: Counter[bool] = Counter()
    for name, case in cases(vectors, "consistency"):
        roots = b64_decode(case["root1"] or ""), b64_decode(case["root2"] or "")
        sizes = case["size1"], case["size2"]
        refused = fails(verify_consistency, *sizes, *roots, hashes(case))
        assert refused is case["wantErr"], name
        seen[refused] += 1

    assert seen.total() == 98
    assert seen[False] >= 5
