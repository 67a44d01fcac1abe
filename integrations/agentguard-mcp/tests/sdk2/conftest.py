"""Guarded servers of each kind, with the guards of both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mcp_scene import MODES, Scene


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., Scene]]:
    """Make scenes, and close their guards at the end."""
    scenes: list[Scene] = []

    def _make(*arguments: Any, **more: Any) -> Scene:
        scenes.append(Scene(tmp_path, *arguments, **more))
        return scenes[-1]

    yield _make
    for scene in scenes:
        scene.close()


@pytest.fixture(params=MODES)
def scene(request, make) -> Scene:
    """A guarded server, of the SDK and of fastmcp by turns."""
    return make(request.param)


@pytest.fixture
def mode(scene) -> str:
    """The era of the protocol: the newest revision, or the one with a handshake."""
    return MODES[scene.kind]
