"""Stores on both engines."""

from __future__ import annotations

import pytest
from store_place import Place


@pytest.fixture(params=["file", "memory"])
def place(tmp_path, request):
    made = Place(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def on_disk(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()
