"""The versions of CrewAI that the adapter runs on: its project, its page and its import agree.

How a range is read stands in tests/unit/test_frameworks.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
IMPORTING = """
import sys
try:
    import agentguard_crewai
finally:
    assert "crewai" not in sys.modules
"""


@pytest.mark.parametrize("version", ["1.15.10", "1.15.29", "1.16.0"])
def test_the_adapter_looks_before_it_imports_anything_of_crewai(tmp_path, version):
    made = tmp_path / f"crewai-{version}.dist-info"  # as installers leave it
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.4\nName: crewai\nVersion: {version}\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", IMPORTING]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "agentguard.errors.ConfigError: agentguard-crewai needs crewai<1.16,>=1.15.30, and crewai "
        f"{version} is installed: install a version that it runs on (pip install "
        "'crewai<1.16,>=1.15.30')"
    )


def test_what_is_installed_of_the_adapter_asks_for_what_its_project_and_its_page_do():
    folder = ROOT / "integrations" / "agentguard-crewai"
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    written = {str(Requirement(one)) for one in project["project"]["dependencies"]}
    assert written == {str(Requirement(one)) for one in requires("agentguard-crewai") or ()}
    assert "crewai<1.16,>=1.15.30" in written
    page = (ROOT / "docs" / "crewai.md").read_text("utf-8")
    assert "CrewAI 1.15.30 or newer, below 1.16" in page
