"""``agentguard init``: everything that a guard needs, or nothing at all."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_founds_a_domain_that_is_sound(project):
    result = project.run("init", umask=0o002)
    assert (result.returncode, result.stderr) == (0, "")
    assert {"agentguard.toml", "policies/authz.rego", ".agentguard/shards/0.sqlite"} <= files_below(
        project.folder
    )
    assert mode(project.folder / "agentguard.toml") == 0o644
    assert mode(project.folder / "policies" / "authz.rego") == 0o644
    assert mode(project.state) == 0o700
    assert (project.state / ".gitignore").read_text() == "*\n"
    (passphrase,) = (project.home / ".config" / "agentguard").iterdir()
    assert mode(passphrase) == 0o600
    assert len(passphrase.read_text().strip()) >= 43
    assert passphrase.read_text().strip() not in result.stdout
    assert project.json("doctor")["ok"] is True
    assert "agentguard doctor" in result.stdout
    assert f"\n  ~/{passphrase.relative_to(project.home)}\n" in result.stdout
    assert "name your tools in policies/authz.rego\n" in result.stdout
    assert 'guard_tools(tools, "assistant")' in result.stdout


def test_what_it_writes_is_to_be_edited(project):
    assert project.run("init", "--trust-domain", "acme.example").returncode == 0
    written = tomllib.loads((project.folder / "agentguard.toml").read_text())
    assert written["trust_domain"] == "acme.example"
    assert written["anchor"] == "~/.local/state/agentguard"
    assert written["agents"] == {
        "assistant": {"type": "assistant", "authority": "own", "max_scope": ["files:read"]}
    }
    assert written["keys"]["passphrase_file"].startswith("~/.config/agentguard/")
    text = (project.folder / "agentguard.toml").read_text()
    uncommented = text.replace("# [tools", "[tools").replace("# requires", "requires")
    assert tomllib.loads(uncommented)["tools"] == {"read_file": {"requires": ["files:read"]}}


@pytest.mark.parametrize(
    ("action", "args", "code"),
    [
        ("read_file", {"path": "README.md"}, 0),
        ("read_file", {"path": "docs/a.b/c"}, 0),
        ("read_file", {"path": "a/../../x"}, 1),
        ("read_file", {"path": "/etc/passwd"}, 1),
        ("read_file", {"path": "a//b"}, 1),
        ("read_file", {"path": "~/x"}, 1),
        ("read_file", {"path": "docs/.env"}, 1),
        ("read_file", {"path": ""}, 1),
        ("read_file", {"path": ["README.md"]}, 1),
        ("read_file", {"file_path": "README.md"}, 1),
        ("read_file", {}, 1),
        ("delete_file", {"path": "README.md"}, 1),
    ],
)
def test_its_policy_allows_reads_alone(told, action, args, code):
    call = {"agent": {"type": "assistant"}, "action": action, "args": args}
    result = told.run("policy", "eval", "-", input=json.dumps(call))
    assert (result.returncode, result.stderr) == (code, "")


def test_a_folder_a_domain_and_an_anchor_of_ones_own(project):
    result = project.run("init", "made/here", "--anchor", "witness dir", "--trust-domain", "a.b")
    assert (result.returncode, result.stderr) == (0, "")
    folder = project.folder / "made" / "here"
    written = tomllib.loads((folder / "agentguard.toml").read_text())
    assert written["anchor"] == str(project.folder / "witness dir")
    (log,) = (project.folder / "witness dir").iterdir()
    assert files_below(log) == {"0.checkpoint", "trust.json"}
    assert mode(log) == 0o700
    assert not project.anchor.exists()
    report = project.json("audit", "verify", "--config", folder / "agentguard.toml")
    assert report["anchored"] is True
    assert "cd made/here" in result.stdout


def test_no_anchor_is_a_choice_that_verify_names(project):
    assert project.run("init", "--anchor", "").returncode == 0
    assert project.json("audit", "verify")["anchored"] is False
    assert not project.anchor.exists()


def test_a_passphrase_from_the_environment_is_written_nowhere(project):
    secret = "correct horse battery staple"
    result = project.run("init", env={"AGENTGUARD_PASSPHRASE": secret})
    assert result.returncode == 0
    assert not (project.home / ".config").exists()
    assert secret not in result.stdout + (project.folder / "agentguard.toml").read_text()
    without = project.json("doctor", code=1)
    assert {c["check"]: c["status"] for c in without["checks"]}["keys"] == "fail"
    with_it = project.run("doctor", env={"AGENTGUARD_PASSPHRASE": secret})
    assert with_it.returncode == 0


def test_the_passphrase_goes_where_xdg_says(project, tmp_path):
    result = project.run("init", env={"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    assert result.returncode == 0
    assert len(list((tmp_path / "xdg" / "agentguard").glob("*.passphrase"))) == 1
    assert project.json("doctor")["ok"] is True


@pytest.mark.parametrize("name", ["agentguard.toml", "policies/authz.rego", ".agentguard"])
def test_nothing_is_overwritten(project, name):
    existing = project.folder / name
    existing.parent.mkdir(exist_ok=True)
    existing.write_text("mine")
    before = files_below(project.folder)
    result = project.run("init")
    assert result.returncode == 2
    assert result.stderr.startswith("error [storage.exists]: ")
    assert existing.read_text() == "mine"
    assert files_below(project.folder) == before
    assert files_below(project.home) == set()


def test_a_failure_half_way_leaves_nothing(project):
    (project.home / ".config").write_text("a file where a folder is needed")
    anchors = project.home / ".local" / "state" / "agentguard"
    anchors.mkdir(parents=True)
    (anchors / "another").mkdir()
    (anchors / "another" / "0.checkpoint").write_text("another domain's")
    result = project.run("init", "new")
    assert result.returncode == 2
    assert result.stderr.startswith("error [storage.readonly]: ")
    assert files_below(project.folder) == set()
    assert files_below(anchors) == {"another", "another/0.checkpoint"}
    (project.home / ".config").unlink()
    assert project.run("init", "new").returncode == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--trust-domain", "Not A Domain"], "config.invalid"),
        (["--anchor", ".agentguard/anchor"], "anchor.inside"),
        (["--anchor", "a\udcff"], "config.invalid"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_made(project, options, code):
    result = project.run("init", *options)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error [{code}]: ")
    assert files_below(project.folder) == set()
    assert files_below(project.home) == set()
