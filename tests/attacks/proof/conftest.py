"""A receiver with its store, and a guard whose calls prove requests, for attacks on proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from proof_scene import ProofScene


@pytest.fixture
def scene(tmp_path) -> Iterator[ProofScene]:
    scene = ProofScene(tmp_path)
    with scene.guard:
        yield scene
