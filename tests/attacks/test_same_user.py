"""A state and an anchor that one user can write are rolled back together: nobody can tell."""

from __future__ import annotations

import json
import os
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentguard import ConfigError, Decision
from agentguard.cli.commands import app
from agentguard.domain import config, domain
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine

PASSPHRASE = b"correct horse"
AGENT, WITNESS = 23451, 23452

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")


@pytest.fixture
def project(tmp_path) -> Path:
    """A log with a call, its anchor beside it, and copies of both from before the call."""
    folder = tmp_path / "project"
    folder.mkdir()
    text = 'trust_domain = "acme.example"\nanchor = "../anchor"\n'
    text += '[policy]\nengine = "function"\npath = "unused:unused"\n'
    text += '[agents.reader]\nauthority = "own"\n'
    (folder / "agentguard.toml").write_text(text)
    settings = config.load(folder / "agentguard.toml")
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    for name in (".agentguard", "../anchor"):
        shutil.copytree(folder / name, tmp_path / "old" / Path(name).name)
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), "x")
        assert guard.verify().witness == "same user"
    return folder


def roll_back(project: Path) -> None:
    for name in (".agentguard", "anchor"):
        target = project / name if name == ".agentguard" else project.parent / name
        shutil.rmtree(target)
        shutil.copytree(project.parent / "old" / name, target)


def verify(project: Path, *options: str | Path) -> tuple[int, dict[str, object], str]:
    given = ["audit", "verify", "--config", str(project / "agentguard.toml"), *map(str, options)]
    as_json = CliRunner().invoke(app, [*given, "--json"], prog_name="agentguard")
    shown = CliRunner().invoke(app, given, prog_name="agentguard")
    return as_json.exit_code, json.loads(as_json.stdout), shown.stdout


def give(folder: Path, owner: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, owner)


def test_both_rolled_back_are_not_said_to_be_anchored(project):
    roll_back(project)
    code, report, shown = verify(project)
    assert (code, report["ok"], report["witness"]) == (0, True, "same user")
    assert "\nanchored, same user: by the checkpoints in" in shown
    assert "\nanchored:" not in shown


def test_checkpoints_that_somebody_else_has_appended_find_it(project):
    kept = project.parent / "checkpoints"
    (head,) = project.parent.glob("anchor/*/head")
    kept.write_bytes(head.read_bytes())
    code, report, shown = verify(project, "--against", kept)
    assert (code, report["witness"]) == (0, "outside")
    assert "\nanchored: by the checkpoints in" in shown
    roll_back(project)
    code, report, shown = verify(project, "--against", kept)
    assert (code, report["ok"], report["witness"]) == (1, False, None)
    assert "its tail is cut off" in shown


def test_checkpoints_vouch_for_no_entry_that_came_later(project):
    """With them, a log whose newest entries are cut off is anchored as well."""
    (old,) = (project.parent / "old").glob("anchor/*/head")
    size = int(old.read_text().split("\n")[1])
    code, report, shown = verify(project, "--against", old)
    assert (code, report["witness"]) == (0, "outside")
    assert f"entries from {size} on" in str(report["unchecked"])
    assert "NOT CHECKED: whether entries" in " ".join(shown.split())
    (new,) = project.parent.glob("anchor/*/head")
    assert verify(project, "--against", new)[1]["unchecked"] == []


@as_root
def test_an_anchor_of_another_user_is_outside_and_finds_it(project):
    """``witness`` copies the anchor into a folder of its own; ``agent`` rolls back what is its."""
    theirs = project.parent / "witness"
    shutil.copytree(project.parent / "anchor", theirs)
    give(theirs, WITNESS)
    give(project / ".agentguard", AGENT)
    code, report, shown = verify(project, "--anchor", theirs)
    assert (code, report["witness"]) == (0, "outside")
    assert "\nanchored: by the checkpoints in" in shown
    (old,) = (project.parent / "old").glob("anchor/*/head")
    assert verify(project, "--anchor", theirs, "--against", old)[1]["unchecked"] == []
    roll_back(project)
    give(project / ".agentguard", AGENT)
    code, report, shown = verify(project, "--anchor", theirs)
    assert (code, report["witness"], "its tail is cut off" in shown) == (1, None, True)


@as_root
@pytest.mark.parametrize(
    "weak", ["a file", "the folder", "above", "everybody", "an access list", "root's state"]
)
def test_an_anchor_that_the_agent_can_change_somewhere_is_not_outside(project, weak):
    theirs = project.parent / "home" / "witness"
    shutil.copytree(project.parent / "anchor", theirs)
    give(theirs, WITNESS)
    give(project / ".agentguard", AGENT)
    (folder,) = theirs.iterdir()
    match weak:
        case "a file":
            os.chown(folder / "head", AGENT, AGENT)
        case "the folder":
            os.chown(folder, AGENT, AGENT)
        case "above":
            os.chown(theirs.parent, AGENT, AGENT)
        case "everybody":
            theirs.chmod(0o777)
        case "an access list":
            let_write(theirs, AGENT)
        case "root's state":
            give(project / ".agentguard", 0)
    code, report, _shown = verify(project, "--anchor", theirs)
    assert (code, report["witness"]) == (0, "same user")


@as_root
@pytest.mark.parametrize(("owner", "witness"), [(AGENT, "same user"), (WITNESS, "outside")])
def test_whoever_owns_a_link_in_a_sticky_folder_can_turn_it(project, owner, witness):
    theirs, shared = project.parent / "witness", project.parent / "shared"
    shutil.copytree(project.parent / "anchor", theirs)
    give(theirs, WITNESS)
    give(project / ".agentguard", AGENT)
    shared.mkdir()
    shared.chmod(0o1777)
    # else Linux follows no link of the witness there (fs.protected_symlinks)
    os.chown(shared, WITNESS, WITNESS)
    link = shared / "anchor"
    link.symlink_to(theirs)
    os.chown(link, owner, owner, follow_symlinks=False)
    code, report, _shown = verify(project, "--anchor", link)
    assert (code, report["witness"]) == (0, witness)


@pytest.mark.parametrize("shared", ["agentguard.toml", ".", ".."])
def test_a_configuration_that_an_access_list_lets_another_user_write_is_refused(project, shared):
    """The mode's bits of the group are the most that the list gives, and the group may be alone."""
    path = (project / shared).resolve()
    before = path.stat().st_mode & 0o777
    let_write(path, AGENT)
    with pytest.raises(ConfigError, match="others can write") as caught:
        config.load(project / "agentguard.toml")
    assert caught.value.code == "config.exposed"
    path.chmod(before & ~0o022)  # as the message says: nothing that the list gives is left
    assert config.load(project / "agentguard.toml").trust_domain == "acme.example"


@as_root
@pytest.mark.parametrize("given", ["agentguard.toml", "."])
def test_a_configuration_of_another_user_is_refused_by_the_owners_name(project, given):
    """Root, say, with the configuration of the guard server's user."""
    path = (project / given).resolve()
    os.chown(path, AGENT, AGENT)
    with pytest.raises(ConfigError, match=rf"belongs to the user \D*{AGENT}") as caught:
        config.load(project / "agentguard.toml")
    assert (caught.value.code, str(path) in str(caught.value)) == ("config.exposed", True)
    assert "runs as root (0)" in str(caught.value)
    os.chown(path, 0, 0)
    assert config.load(project / "agentguard.toml").trust_domain == "acme.example"


def let_write(path: Path, user: int) -> None:
    """Give a user the right to write a file, as ``setfacl -m u:USER:rwx`` does."""
    nobody = 0xFFFFFFFF
    kinds = [(1, 7, nobody), (2, 7, user), (4, 5, nobody), (16, 7, nobody), (32, 5, nobody)]
    packed = b"".join(struct.pack("<HHI", *one) for one in kinds)
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except (AttributeError, OSError):
        pytest.skip("no access lists here")
