"""A receiver with its store, and a guard whose calls prove requests, for attacks on proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from proof_scene import ProofScene
from request_logs import TwoSides


@pytest.fixture(scope="session")
def founded_sides(tmp_path_factory) -> TwoSides:
    """The domains of an agent and of a tool's server, which nobody has used yet."""
    sides = TwoSides(tmp_path_factory.mktemp("sides"))
    sides.found()
    return sides


@pytest.fixture
def sides(founded_sides, tmp_path) -> TwoSides:
    """A fresh copy of both domains."""
    return founded_sides.copied(tmp_path)


@pytest.fixture
def scene(tmp_path) -> Iterator[ProofScene]:
    scene = ProofScene(tmp_path)
    with scene.guard:
        yield scene
