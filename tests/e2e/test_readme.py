"""README.md as a reader follows it: each Python block runs, and prints what README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import docs_pages
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
AGENT, CREW = docs_pages.prints(README)


def environment(home):
    """That of a user who has set nothing up."""
    ours = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTGUARD_", "XDG_"))}
    return {**ours, "HOME": str(home)}


def test_the_agent_prints_what_readme_says(programs, tmp_path):
    words = (*docs_pages.WARNINGS_ARE_ERRORS, "-c", AGENT[0])
    ran = programs.run(*words, cwd=tmp_path, env=environment(tmp_path))
    assert (ran.returncode, ran.stdout) == (0, AGENT[1]), ran.stderr


on_crewais_python = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="CrewAI is not for this Python"
)


@on_crewais_python
@pytest.mark.slow("imports CrewAI, which takes seconds, in a process of its own")
def test_so_does_the_crew(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", CREW[0]],
        cwd=tmp_path,
        env=environment(tmp_path) | {"CREWAI_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, CREW[1]), ran.stderr


@on_crewais_python
def test_so_does_the_crew_in_this_process(tmp_path, monkeypatch, capsys):
    """The tests of the CrewAI adapter, where these run as well, have imported CrewAI before."""
    monkeypatch.chdir(tmp_path)
    for name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_STORAGE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path)))
    with warnings.catch_warnings(action="ignore"):  # CrewAI itself warns, as it is imported
        exec(compile(CREW[0], "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out.endswith(CREW[1])


def test_readme_is_read_in_five_minutes():
    assert len(README.splitlines()) <= 150
    assert README.count("```python\n") == 2


def test_it_begins_with_the_two_commands():
    first = README.index("```sh\nscripts/demo ")
    assert "\nscripts/test " in README[first : first + 200]
    assert README.index("```") == first
    for script in ("demo", "test", "docs", "timeline"):
        assert os.access(ROOT / "scripts" / script, os.X_OK)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/timeline.svg" in links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_the_picture_is_of_a_run_and_fetches_nothing():
    picture = (ROOT / "docs" / "timeline.svg").read_text("utf-8").replace("&#160;", " ")
    for shown in ("direct merges to main require human approval", "anchored", "FOUND"):
        assert shown in picture
    assert not re.search(r"@font-face|url\(['\"]?http|href=['\"]http", picture)
