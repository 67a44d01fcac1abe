"""``agentguard init``: everything that a guard needs, or nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import tomllib
from pathlib import Path

import pytest

from agentguard.keys import Ed25519Signer


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
    assert files_below(log) == {"0.checkpoint", "states", "trust.json"}
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


# --- killed ---------------------------------------------------------------------------------------


def kill_at(step, project, cli):
    """Run ``init`` in a child that is killed at its ``step``-th sync; False if it was not."""
    child = os.fork()
    if child == 0:
        try:
            sync, steps = os.fsync, iter(range(1, step))

            def counted(file):
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(file)

            os.fsync = counted
            cli(project, "init")
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_step_it_goes_on_or_begins_anew(project, cli, monkeypatch):
    monkeypatch.setitem(Ed25519Signer.to_openssh.__kwdefaults__, "rounds", 1)
    founded, killed = [], True
    for step in range(1, 100, 1 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 2):
        for path in (project.home, project.folder):
            shutil.rmtree(path)
            path.mkdir()
        killed = kill_at(step, project, cli)
        if not killed:
            break
        before = project.state.exists() and (project.state / "trust.json").read_bytes()
        founded.append(bool(before))
        if (project.folder / "agentguard.toml").exists():  # it was the last to be synced
            assert cli(project, "init").returncode == 2
        else:
            assert cli(project, "init").returncode == 0
        after = (project.state / "trust.json").read_bytes()
        assert before in (False, after)
        assert cli(project, "doctor").returncode == 0
        assert not list(project.folder.glob("*.founding"))
    assert not killed
    assert set(founded) == {True, False}


def test_a_state_whose_passphrase_is_not_at_hand_is_not_taken_up(project, cli):
    assert cli(project, "init").returncode == 0
    (passphrase,) = (project.home / ".config" / "agentguard").iterdir()
    (project.folder / "agentguard.toml").unlink()
    kept = passphrase.rename(project.home / "kept")
    before = files_below(project.folder)
    refused = cli(project, "init")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [storage.exists]: ")
    passphrase.write_text("another")
    passphrase.chmod(0o600)
    assert cli(project, "init").stderr.startswith("error [key.passphrase]: ")
    kept.rename(passphrase)
    other = cli(project, "init", "--trust-domain", "other.example")
    assert other.stderr.startswith("error [config.invalid]: ")
    assert files_below(project.folder) == before
    (project.folder / "policies/authz.rego").write_text("mine")
    assert cli(project, "init").returncode == 0
    assert (project.folder / "policies/authz.rego").read_text() == "mine"
