"""The versions of CrewAI that the adapter runs on: its project, its page and its import agree.

How a range is read stands in tests/unit/test_frameworks.py.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
VERSIONS = ("1.15.10", "1.15.28", "1.16.0")
IMPORTING = """
import sys
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    try:
        import agentguard_crewai
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    assert "crewai" not in sys.modules
    del sys.path[0]
"""


def test_the_adapter_looks_before_it_imports_anything_of_crewai(tmp_path):
    for version in VERSIONS:  # as installers leave them
        made = tmp_path / version / f"crewai-{version}.dist-info"
        made.mkdir(parents=True)
        (made / "METADATA").write_text(f"Metadata-Version: 2.4\nName: crewai\nVersion: {version}\n")
    command = [sys.executable, "-c", IMPORTING, *(tmp_path / version for version in VERSIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"ConfigError: agentguard-crewai needs crewai<1.16,>=1.15.29, and crewai {version} is "
        "installed: install a version that it runs on (pip install 'crewai<1.16,>=1.15.29')"
        for version in VERSIONS
    ]


def test_what_is_installed_of_the_adapter_asks_for_what_its_project_and_its_page_do():
    folder = ROOT / "integrations" / "agentguard-crewai"
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    written = {str(Requirement(one)) for one in project["project"]["dependencies"]}
    assert written == {str(Requirement(one)) for one in requires("agentguard-crewai") or ()}
    assert "crewai<1.16,>=1.15.29" in written
    page = (ROOT / "docs" / "how-to" / "crewai.md").read_text("utf-8")
    assert "CrewAI 1.15.29 or newer, below 1.16" in page
