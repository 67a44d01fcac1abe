"""README.md as a reader follows it: every Python block runs, in a project made with its commands.

The project has the README's own configuration and policy. What the README lists or links to is held
against what is there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentguard.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
CLI = [sys.executable, "-m", "agentguard.cli"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(command, cwd):
    environment = {**os.environ, "HOME": str(cwd.parent), "AGENTGUARD_PASSPHRASE": "of this test"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "project"
    folder.mkdir()
    made = run([*CLI, "init", "--trust-domain", "acme.example"], folder)
    assert made.returncode == 0, made.stderr
    (toml,) = blocks("toml")
    (rego,) = blocks("rego")
    (folder / "agentguard.toml").write_text(toml)
    (folder / "policies" / "authz.rego").write_text(rego)
    (folder / "notes.md").write_text("a note")
    return folder


@pytest.mark.parametrize(
    ("number", "prints"),
    [
        (0, "a note\n"),
        (1, "a note\nhidden files and parent folders are not for agents policy.denied\n"),
        (2, "42000 cents to rent\n"),
    ],
)
def test_a_python_block_runs_and_does_what_the_text_says(project, number, prints):
    ran = run([sys.executable, "-W", "error", "-c", blocks("python")[number]], project)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == prints


def test_no_python_block_is_left_out():
    assert len(blocks("python")) == 3


def test_the_set_up_is_sound(project):
    ran = run([*CLI, "doctor"], project)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    checked = run([*CLI, "policy", "check"], project)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def commands():
    """The commands that exist: ``agentguard init``, ``agentguard audit list``, ..."""
    for command in app.registered_commands:
        yield f"agentguard {command.name}"
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            yield f"agentguard {group.name} {command.name or command.callback.__name__}"


def test_the_table_of_commands_is_complete():
    named = set(re.findall(r"^\| `(agentguard [a-z ]+)` \|", README, re.MULTILINE))
    assert named | {"agentguard agents show"} == set(commands())
    assert "`agents show`" in README


def test_it_begins_with_the_two_commands():
    first = README.index("```\nscripts/demo ")
    assert README[first:].startswith("```\nscripts/demo")
    assert "\nscripts/test " in README[first : first + 200]
    for script in ("demo", "test", "timeline"):
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
