"""The example runs, and its page shows what the example prints: a guarded server on a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[4] / "examples" / "mcp_server"


def test_the_example_prints_what_its_page_shows(tmp_path):
    (shown,) = re.findall(r"```text\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    program = [sys.executable, "-W", "error", str(FOLDER / "main.py")]
    done = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.returncode) == (shown, 0), done.stderr
    assert "[server] 4200 cents to rent, by agent:payer for user:alice" in done.stderr
    assert done.stderr.count("[server]") == 1
