"""Paths that a model chooses, in a folder that somebody else has filled with links.

The policies decide by ``input.paths``, and the tools open by ``agentguard.paths.Folder``.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.cli import setup
from agentguard.errors import ConfigError
from agentguard.paths import Folder

STARTER = Path(setup.__file__).parent / "template" / "authz.rego"
SECRET = "what nobody may read"
AGENTS = {"assistant": {"type": "assistant", "authority": "own"}}


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A cloned repository with links in it, a secret beside it; it is the working directory."""
    repository = tmp_path / "clone"
    (repository / "notes").mkdir(parents=True)
    (repository / "notes" / "today.md").write_text("harmless")
    (repository / ".env").write_text(SECRET)
    (tmp_path / "secret").write_text(SECRET)
    for name, target in {
        "notes/key.md": "../../secret",
        "notes/env.md": "../.env",
        "up": "..",
        "root": "/",
        "loop": "loop",
        "again": "notes/today.md",
        "process": "/proc/self",
    }.items():
        (repository / name).symlink_to(target)
    monkeypatch.chdir(repository)
    return repository


@pytest.fixture
def read():
    """Return what a guarded ``read_file`` answers, opened as a tool without a helper opens it."""

    def call(path, *, policy=STARTER, root="."):
        tables = {"agents": AGENTS, "paths": {"path": root}}
        with Guard.ephemeral(policy, config=tables) as guard:

            @guard.tool
            def read_file(path):
                return Path(path).read_text()

            return guard.new_agent("assistant").call(read_file, path)

    return call


@pytest.mark.parametrize("path", ["notes/today.md", "again", "up/clone/notes/today.md"])
def test_what_leads_into_the_folder_is_read(clone, read, path):
    assert read(path) == "harmless"
    assert read(str(clone / path)) == "harmless"


OUT = [
    "notes/key.md",
    "notes/env.md",
    "up/secret",
    "root/etc/passwd",
    "process/environ",
    "loop",
    "/etc/passwd",
    "../secret",
    ".env",
    "notes/../.env",
    "notes/../../secret",
    ".",
    "",
    "\0",
    None,
    7,
    True,
    [],
    ["notes/today.md"],
    {"$made": True},
]


@pytest.mark.parametrize("path", OUT, ids=lambda path: repr(path)[:20])
def test_what_leads_out_of_it_or_to_a_hidden_file_is_denied(clone, read, path):
    with pytest.raises(Denied) as denied:
        read(path)
    assert denied.value.code == "policy.denied"


@pytest.mark.parametrize("path", ["etc/passwd", "proc/self/environ"])
def test_the_working_directory_is_no_folder_of_the_project(clone, read, monkeypatch, path):
    monkeypatch.chdir("/")
    with pytest.raises(Denied):
        read(path, root=str(clone))
    assert read(str(clone / "again"), root=str(clone)) == "harmless"
    with pytest.raises(ConfigError, match="expected a folder below the root of the file"):
        read(path, root="/")


def test_a_tool_without_the_table_reads_nothing_by_that_policy(clone):
    with Guard.ephemeral(STARTER, config={"agents": AGENTS}) as guard, pytest.raises(Denied):
        guard.new_agent("assistant").call(guard.tool(name="read_file")(lambda path: path), "again")


def test_a_place_is_that_of_the_argument_as_sent_whatever_the_tool_declares(clone):
    with Guard.ephemeral(STARTER, config={"agents": AGENTS, "paths": {"path": "."}}) as guard:
        tool = guard.tool(name="read_file")(lambda **given: given["path"])
        agent = guard.new_agent("assistant")
        assert agent.call(tool, path="again") == "again"
        with pytest.raises(Denied):
            agent.call(tool, path="notes/key.md")


@pytest.mark.parametrize("more", ["sync", "async"])
async def test_places_stand_beside_facts_of_the_application(clone, more):
    seen = []

    def policy(call):
        seen.append((call["paths"], call["size"]))
        return Decision.allow()

    def facts(args):
        return {"size": len(args)}

    async def afacts(args):
        return facts(args)

    with Guard.ephemeral(policy, config={"paths": {"path": "."}}) as one:
        look_up = facts if more == "sync" else afacts
        tool = one.tool(name="read_file", facts=look_up, gives=["size"])(lambda path: path)
        await one.new_agent("a").acall(tool, "notes/../again")
        await one.new_agent("a").acall(tool, "notes/key.md")
    assert seen == [({"path": "notes/today.md"}, 1), ({}, 1)]


# --- opened without leaving the folder ------------------------------------------------------------


def test_a_folder_opens_what_is_inside_it(clone):
    folder = Folder(".")
    assert folder.read_text("again") == "harmless"
    with folder.open("notes/new.md", "w") as file:
        file.write("é")
    assert (clone / "notes" / "new.md").read_bytes() == "é".encode()
    with folder.open("notes/new.md", "rb") as file:
        assert file.read() == "é".encode()
    with pytest.raises(FileExistsError):
        folder.open("notes/new.md", "x")


@pytest.mark.parametrize("path", ["notes/key.md", "up/secret", "root/etc/passwd", "\0"])
@pytest.mark.parametrize("mode", ["r", "w", "ab", "x", "r+"])
def test_and_nothing_outside_it(clone, path, mode):
    with pytest.raises(PermissionError):
        Folder(clone).open(path, mode)
    assert (clone.parent / "secret").read_text() == SECRET


def test_a_pipe_is_not_waited_for(clone):
    os.mkfifo(clone / "pipe")
    with pytest.raises(OSError, match="it is no regular file: 'pipe'"):
        Folder(clone).read_text("pipe")


@pytest.mark.parametrize("place", ["notes", "notes/today.md"])
def test_a_link_that_is_put_there_after_the_check_leads_nowhere(clone, monkeypatch, place):
    """The race is won by the attacker: between the path's resolution and its opening."""
    resolve = Folder.resolve
    (clone.parent / "today.md").write_text(SECRET)

    def then_swap(folder, path):
        resolved = resolve(folder, path)
        (clone / place).rename(clone / "aside")
        (clone / place).symlink_to(clone.parent if place == "notes" else clone.parent / "secret")
        return resolved

    monkeypatch.setattr(Folder, "resolve", then_swap)
    with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
        Folder(clone).open("notes/today.md")


def test_a_folder_that_is_swapped_without_pause_is_never_left(clone):
    folder, ended = Folder(clone), threading.Event()
    outside = clone.parent / "outside"
    outside.mkdir()
    (outside / "today.md").write_text(SECRET)

    def swap():
        notes, aside, link = clone / "notes", clone / "aside", clone / "link"
        link.symlink_to(outside)
        while not ended.is_set():
            notes.rename(aside)
            link.rename(notes)
            notes.rename(link)
            aside.rename(notes)

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        seen = set()
        for _ in range(2000):
            try:
                seen.add(folder.read_text("notes/today.md"))
            except OSError as error:
                seen.add(type(error).__name__)
    finally:
        ended.set()
        attacker.join()
    assert SECRET not in seen
    assert "harmless" in seen


def test_the_folder_itself_is_no_file_of_its_own_name(tmp_path):
    """As in ``agentguard/agentguard``: its name leads to another file, below it."""
    root = tmp_path / "proj"
    root.mkdir()
    (root / "proj").write_text("not what the policy saw")
    folder = Folder(root)
    for path in (str(root), f"{root}/."):
        for mode in ("r", "w"):
            with pytest.raises(IsADirectoryError):
                folder.open(path, mode)
    assert folder.read_text(str(root / "proj")) == "not what the policy saw"


def test_a_path_that_is_too_long_leads_nowhere(tmp_path):
    folder = Folder(tmp_path)
    long = str(tmp_path / ("a" * 300))
    for path in (long, str(tmp_path / ("a/" * 200_000))):
        with pytest.raises(PermissionError):
            folder.resolve(path)
