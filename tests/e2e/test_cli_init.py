"""``agentguard init``: everything that a guard needs, or nothing at all."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rounds(key: Path) -> int:
    """Return the rounds of bcrypt's KDF that a key file names (PROTOCOL.key of OpenSSH)."""
    lines = key.read_text().splitlines()[1:-1]
    rest = base64.b64decode("".join(lines)).removeprefix(b"openssh-key-v1\0")
    for _cipher_kdf in range(2):
        rest = rest[4 + int.from_bytes(rest[:4]) :]
    salt = 8 + int.from_bytes(rest[4:8])
    return int.from_bytes(rest[salt : salt + 4])


@pytest.fixture
def loose_umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_it_founds_a_domain_that_is_sound(project):
    result = project.run("init")
    assert (result.returncode, result.stderr) == (0, "")
    assert {"agentguard.toml", "policies/authz.rego", ".agentguard/log.sqlite"} <= files_below(
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
    assert (
        "name your tools in agentguard.toml ([tools]) and in policies/authz.rego\n" in result.stdout
    )
    assert 'guard_tools(tools, "assistant")' in result.stdout
    assert "guard_crew(crew, Guard.find())" in result.stdout


@pytest.mark.slow("all rounds of bcrypt for each key, in processes of their own")
def test_its_keys_have_all_rounds_of_bcrypt_and_so_have_new_ones(project):
    assert project.process("init", umask=0o002).returncode == 0
    assert mode(project.state) == 0o700
    assert project.process("keys", "rotate", "log").returncode == 0
    assert {rounds(file) for file in (project.state / "keys").iterdir()} == {24}
    assert project.json("doctor")["ok"] is True


def test_a_key_has_all_rounds_of_bcrypt(project):
    """One key, as ``init`` writes keys, in a process whose bcrypt is not that of the tests."""
    script = """
import os
from agentguard.signing.keys import Ed25519Signer
print(Ed25519Signer.from_seed(os.urandom(32)).to_openssh(b"of this test").decode(), end="")
"""
    written = project.interpreter("-c", script)
    key = project.folder / "key"
    key.write_text(written.stdout)
    assert rounds(key) == 24


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
    uncommented = text.replace("# [tools.", "[tools.").replace("# requires", "requires")
    tools = {"unlisted": "deny", "read_file": {"requires": ["files:read"]}}
    assert tomllib.loads(uncommented)["tools"] == tools


@pytest.mark.parametrize(
    ("action", "paths", "code"),
    [
        ("read_file", {"path": "README.md"}, 0),
        ("read_file", {"path": "docs/a.b/c"}, 0),
        ("read_file", {"path": "docs/.env"}, 1),
        ("read_file", {"path": "."}, 1),
        ("read_file", {"path": ["README.md"]}, 1),
        ("read_file", {"path": None}, 1),
        ("read_file", {"file_path": "README.md"}, 1),
        ("read_file", {}, 1),
        ("delete_file", {"path": "README.md"}, 1),
    ],
)
def test_its_policy_allows_reads_alone(told, action, paths, code):
    call = {"agent": {"type": "assistant"}, "action": action, "args": {}, "paths": paths}
    result = told.run("policy", "eval", "-", input=json.dumps(call))
    assert (result.returncode, result.stderr) == (code, "")


def test_a_folder_a_domain_and_an_anchor_of_ones_own(project):
    result = project.run("init", "made/here", "--anchor", "witness dir", "--trust-domain", "a.b")
    assert (result.returncode, result.stderr) == (0, "")
    folder = project.folder / "made" / "here"
    written = tomllib.loads((folder / "agentguard.toml").read_text())
    assert written["anchor"] == str(project.folder / "witness dir")
    (log,) = (project.folder / "witness dir").iterdir()
    assert files_below(log) == {"head", "state.json", "state.lock", "trust.json"}
    assert mode(log) == 0o700
    assert not project.anchor.exists()
    report = project.json("audit", "verify", "--config", folder / "agentguard.toml")
    assert report["witness"] == "same user"
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


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("agentguard.toml", "config.invalid"),
        ("policies/authz.rego", "storage.exists"),
        (".agentguard", "storage.exists"),
    ],
)
def test_nothing_is_overwritten(project, name, code):
    existing = project.folder / name
    existing.parent.mkdir(exist_ok=True)
    existing.write_text("mine")
    before = files_below(project.folder)
    result = project.run("init")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error [{code}]: ")
    assert existing.read_text() == "mine"
    assert files_below(project.folder) == before
    assert files_below(project.home) == set()


def test_a_failure_half_way_leaves_nothing(project):
    (project.home / ".config").write_text("a file where a folder is needed")
    anchors = project.home / ".local" / "state" / "agentguard"
    anchors.mkdir(parents=True)
    (anchors / "another").mkdir()
    (anchors / "another" / "head").write_text("another domain's")
    result = project.run("init", "new")
    assert result.returncode == 2
    assert result.stderr.startswith("error [storage.readonly]: ")
    assert files_below(project.folder) == set()
    assert files_below(anchors) == {"another", "another/head"}
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


def kill_at(step, project):
    """Run ``init`` in a child that is killed at its ``step``-th sync; False if it was not.

    What it has not synced is lost.
    """
    child = os.fork()
    if child == 0:
        try:
            sync, steps = os.fsync, iter(range(1, step))

            def counted(file):
                if next(steps, None) is None:
                    if stat.S_ISREG(os.fstat(file).st_mode):
                        os.ftruncate(file, 0)
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(file)

            os.fsync = counted
            project.run("init")
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def steps(project, monkeypatch):
    """Return the syncs at which ``init`` is killed here: all of them, or some and the last ones."""
    count = itertools.count()
    with monkeypatch.context() as patched:
        sync = os.fsync
        patched.setattr(os, "fsync", lambda file: (next(count), sync(file)))
        assert project.run("init").returncode == 0
    last = next(count)
    if os.environ.get("AGENTGUARD_ROUNDS") == "full":
        return range(1, last + 1)
    return sorted({*range(1, last, 6), *range(last - 2, last + 1)})


def left_over(project):
    """What a killed ``init`` leaves that the next one should have taken away."""
    return [*project.folder.glob("*.founding"), *project.folder.rglob("*.new")]


def test_killed_at_any_step_it_goes_on_or_begins_anew(project, monkeypatch):
    founded = []
    for step in steps(project, monkeypatch):
        for path in (project.home, project.folder):
            shutil.rmtree(path)
            path.mkdir()
        assert kill_at(step, project)
        before = project.state.exists() and (project.state / "trust.json").read_bytes()
        founded.append(bool(before))
        assert project.run("init").returncode == 0
        after = (project.state / "trust.json").read_bytes()
        assert before in (False, after)
        assert project.run("doctor").returncode == 0
        assert left_over(project) == []
    assert set(founded) == {True, False}


def test_a_state_whose_passphrase_is_not_at_hand_is_not_taken_up(project):
    assert project.run("init").returncode == 0
    (passphrase,) = (project.home / ".config" / "agentguard").iterdir()
    (project.folder / "agentguard.toml").unlink()
    kept = passphrase.rename(project.home / "kept")
    before = files_below(project.folder)
    refused = project.run("init")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [storage.exists]: ")
    passphrase.write_text("another")
    passphrase.chmod(0o600)
    assert project.run("init").stderr.startswith("error [key.passphrase]: ")
    kept.rename(passphrase)
    other = project.run("init", "--trust-domain", "other.example")
    assert other.stderr.startswith("error [config.invalid]: ")
    assert files_below(project.folder) == before
    (project.folder / "policies/authz.rego").write_text("mine")
    assert project.run("init").returncode == 0
    assert (project.folder / "policies/authz.rego").read_text() == "mine"


# --- a configuration that is there already ------------------------------------------------------


@pytest.fixture
def cloned(project, tmp_path):
    """A project as git has it, in the home of somebody else."""
    assert project.run("init", "--trust-domain", "acme.example").returncode == 0
    clone = replace(project, home=tmp_path / "other", folder=tmp_path / "clone")
    clone.home.mkdir()
    clone.folder.mkdir()
    shutil.copy(project.folder / "agentguard.toml", clone.folder)
    shutil.copytree(project.folder / "policies", clone.folder / "policies")
    return clone


def committed(project) -> dict[str, bytes]:
    names = ("agentguard.toml", "policies/authz.rego")
    return {name: (project.folder / name).read_bytes() for name in names}


def test_a_clone_gets_its_keys_and_its_log(cloned):
    before = committed(cloned)
    missing = cloned.run("audit", "list")
    assert f"run agentguard init {cloned.folder}" in missing.stderr
    result = cloned.run("init")
    assert (result.returncode, result.stderr) == (0, "")
    assert committed(cloned) == before
    assert (cloned.state / ".gitignore").read_text() == "*\n"
    assert mode(cloned.state) == 0o700
    (passphrase,) = (cloned.home / ".config" / "agentguard").iterdir()
    assert mode(passphrase) == 0o600
    made, left = result.stdout.split("Unchanged:")
    assert f"\n  ~/{passphrase.relative_to(cloned.home)}\n" in made
    assert "agentguard.toml" in left
    assert "agentguard.toml" not in made
    assert cloned.json("doctor")["ok"] is True
    assert cloned.json("audit", "verify")["witness"] == "same user"
    assert json.loads((cloned.state / "trust.json").read_text())["trust_domain"] == "acme.example"
    again = cloned.run("init")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error [storage.exists]: ")
    assert "agentguard doctor" in again.stderr
    assert cloned.json("doctor")["ok"] is True


def test_a_clone_whose_configuration_names_no_trust_domain_gets_nothing(cloned):
    toml = cloned.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace("trust_domain =", "# trust_domain ="))
    result = cloned.run("init")
    assert result.returncode == 2
    assert "trust_domain: expected a domain name, as in 'acme.example', found none" in result.stderr
    assert not cloned.state.exists()


def test_a_passphrase_that_is_there_is_taken_and_kept(cloned):
    named = tomllib.loads((cloned.folder / "agentguard.toml").read_text())["keys"]
    file = cloned.home / named["passphrase_file"].removeprefix("~/")
    file.parent.mkdir(parents=True)
    file.write_text("mine\n")
    file.chmod(0o600)
    result = cloned.run("init")
    assert (result.returncode, result.stderr) == (0, "")
    assert file.read_text() == "mine\n"
    assert file.name in result.stdout.split("Unchanged:")[1]
    assert cloned.json("doctor")["ok"] is True


def test_a_clone_with_the_passphrase_in_the_environment(cloned):
    toml = cloned.folder / "agentguard.toml"
    toml.write_text(toml.read_text().partition("[keys]")[0] + '[policy]\npath = "policies"\n')
    result = cloned.run("init")
    assert (result.returncode, result.stdout) == (2, "")
    assert "AGENTGUARD_PASSPHRASE, or [keys] passphrase_file" in result.stderr
    assert not cloned.state.exists()
    secret = {"AGENTGUARD_PASSPHRASE": "correct horse"}
    assert cloned.run("init", env=secret).returncode == 0
    assert files_below(cloned.home / ".config") == set()
    assert cloned.run("doctor", env=secret).returncode == 0


def test_a_clone_is_completed_or_left_alone(cloned):
    before = files_below(cloned.folder)
    (cloned.home / ".config").write_text("a file where a folder is needed")
    assert cloned.run("init").returncode == 2
    assert files_below(cloned.folder) == before
    assert [path for path in cloned.home.rglob("*") if path.name == "head"] == []
    (cloned.home / ".config").unlink()
    options = cloned.run("init", "--trust-domain", "other.example")
    assert (options.returncode, options.stdout) == (2, "")
    assert "leave out --trust-domain and --anchor" in options.stderr
    assert files_below(cloned.folder) == before
    assert cloned.run("init").returncode == 0


def test_killed_in_a_clone_it_has_completed_it_or_begins_anew(cloned, monkeypatch):
    configuration, completed, kept = committed(cloned), [], []
    for step in steps(cloned, monkeypatch):
        shutil.rmtree(cloned.home)
        cloned.home.mkdir()
        shutil.rmtree(cloned.state, ignore_errors=True)
        assert kill_at(step, cloned)
        completed.append(cloned.state.exists())
        secrets = {path: path.read_text() for path in cloned.home.rglob("*.passphrase")}
        kept.append(bool(secrets))
        assert cloned.run("init").returncode == (2 if completed[-1] else 0)
        assert all(path.read_text() == secret for path, secret in secrets.items())
        assert committed(cloned) == configuration
        assert cloned.run("doctor").returncode == 0
        assert left_over(cloned) == []
        assert list(cloned.home.rglob("*.passphrase.new")) == []
    assert set(completed) == {True, False}
    assert set(kept) == {True, False}


def test_a_passphrase_is_not_put_with_the_keys(cloned):
    toml = cloned.folder / "agentguard.toml"
    text = toml.read_text()
    line = next(line for line in text.splitlines() if line.startswith("passphrase_file"))
    toml.write_text(text.replace(line, 'passphrase_file = ".agentguard/passphrase"'))
    before = files_below(cloned.folder)
    result = cloned.run("init")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [config.invalid]: ")
    assert "name a file outside" in result.stderr
    assert files_below(cloned.folder) == before
    toml.write_text(text.replace(line, 'passphrase_file = "passphrase"'))
    assert cloned.run("init").returncode == 0


@pytest.mark.parametrize("below", [(), ("new",), ("new", "er")])
def test_a_file_is_no_folder(project, below):
    (project.folder / "file").write_text("mine")
    result = project.run("init", Path("file", *below))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"error [storage.exists]: {project.folder / 'file'} is not a folder: name a folder\n"
    )
    assert files_below(project.folder) == {"file"}
