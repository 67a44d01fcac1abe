"""The walks of layers.md and their picture: current, as ``scripts/walks`` draws them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow("it founds a trust domain under all rounds of bcrypt, in a process of its own")
def test_the_table_and_the_picture_are_current(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "walks.py"), "--check"]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=home, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
