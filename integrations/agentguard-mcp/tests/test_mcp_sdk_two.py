"""The tests in ``sdk2``: in an environment with the SDK 2 of MCP and fastmcp 4, made for them.

The SDK 2 can't share an environment with langchain-mcp-adapters and CrewAI. Where the environment
can't be made, for example without a network, the tests are skipped; with CI=true they fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = Path(__file__).with_name("sdk2")


@pytest.fixture
def python() -> str:
    made = subprocess.run(
        [ROOT / "scripts" / "mcp-environment", sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        reason = f"scripts/mcp-environment makes no environment: {made.stderr.strip()[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return made.stdout.strip()


@pytest.mark.slow("runs the tests of the SDK 2 in an environment of their own")
def test_the_tests_of_the_sdk_two_pass(python, tmp_path):
    options = ["-c", str(TESTS / "pytest.ini"), "--rootdir", str(TESTS), "-q", "-rs"]
    done = subprocess.run(
        [python, "-m", "pytest", *options, str(TESTS)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
