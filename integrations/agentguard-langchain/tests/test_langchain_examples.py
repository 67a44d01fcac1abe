"""The examples and the guide run as they stand, offline, and do what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"

OUTPUT = {
    "langchain_tools.py": """\
spiffe://ephemeral.invalid/agent/code-reviewer/KEY
open_pr: success: opened a pull request for agent/fix in payments-api
merge_pr: error: Denied: merge_pr was not run. Reason: direct merges to main require human \
approval [policy.denied]. Do not retry: repeating the same call will not help.
The pull request is open; merging it is up to a person.
""",
    "async_agent.py": """\
ahead: a transfer may be 100 at most
call-alice: success: 20 to alice
call-bob: error: Denied: transfer was not run. Reason: a transfer may be 100 at most \
[policy.denied]. Do not retry: repeating the same call will not help.
call-carol: success: 100 to carol
""",
}


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.sub(r"/[A-Za-z0-9_-]{43}\n", "/KEY\n", done.stdout) == OUTPUT[name]
    assert list(tmp_path.iterdir()) == []


def test_the_guide_runs():
    blocks = list(Sybil([PythonCodeBlockParser()]).parse(ROOT / "docs" / "langchain.md").examples())
    assert len(blocks) == 3
    for block in blocks:
        block.evaluate()
    blocks[0].namespace["guard"].close()
