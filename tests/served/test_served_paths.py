"""Paths in arguments: they start where the client works, and lead where the server sees them lead.

``tests/attacks/test_paths.py`` has the paths of a guard in the process of its agent.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from served_intruder import VICTIM, in_process_of, require_root
from served_remote import WEB, Remote

from agentguard import Denied
from agentguard.paths import Folder

RULE = 'allow if {\n\tinput.action == "read_file"\n\tinput.paths.path\n}\n'


@pytest.fixture
def project(founded) -> Path:
    """The folder of the client, which is not that of the server."""
    folder: Path = founded.folder / "project"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "today.md").write_text("harmless")
    (folder / "notes" / "key.md").symlink_to("../../passphrase")
    with (founded.folder / "authz.rego").open("a", encoding="utf-8") as policy:
        policy.write(f"\n{RULE}")
    toml = founded.folder / "agentguard.toml"
    toml.write_text(f'{toml.read_text("utf-8")}\n[paths]\npath = "project"\n', encoding="utf-8")
    return folder


@pytest.fixture
def place(project, founded):
    founded.start()
    return founded


def reading(guard):
    """Return a function that reads a file as a guarded tool does."""
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="read_file")(lambda path: Path(path).read_text("utf-8"))
    return lambda path: agent.call(tool, path)


def test_a_relative_path_starts_at_the_folder_of_the_client(place, project, monkeypatch):
    read = reading(place.connect())
    monkeypatch.chdir(project)
    assert read("notes/today.md") == read(str(project / "notes" / "today.md")) == "harmless"
    monkeypatch.chdir(project / "notes")
    assert read("today.md") == "harmless"
    # in a folder of that name, which the server has as well
    monkeypatch.chdir("/")
    for path in ("project/notes/today.md", "etc/passwd", "notes/today.md", "."):
        with pytest.raises(Denied):
            read(path)


def test_a_path_leads_out_by_a_link_or_by_dots(place, project, monkeypatch):
    read = reading(place.connect())
    monkeypatch.chdir(project)
    for path in ("notes/key.md", "../passphrase", "notes/../../passphrase", "a\0b", "x" * 5000):
        with pytest.raises(Denied):
            read(path)
    assert read("notes/../notes/today.md") == "harmless"


def test_in_a_folder_without_a_name_a_relative_path_leads_nowhere(place, project, monkeypatch):
    read = reading(place.connect())
    for name in (b"gone", b"\xff"):
        folder = project / os.fsdecode(name)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if name == b"gone":
            folder.rmdir()
        with pytest.raises(Denied):
            read("../notes/today.md")
        assert read(str(project / "notes" / "today.md")) == "harmless"
        monkeypatch.chdir(project)


def test_a_path_of_a_client_on_another_machine_leads_nowhere(founded, project, monkeypatch):
    with (founded.folder / "agentguard.toml").open("a", encoding="utf-8") as toml:
        toml.write(f'[clients.own]\nuid = {os.getuid()}\nagents = ["clerk"]\n')
    remote = Remote(founded)
    monkeypatch.chdir(project)
    read = reading(remote.open(remote.authority.issue("web", WEB)))
    for path in ("notes/today.md", str(project / "notes" / "today.md")):
        with pytest.raises(Denied):
            read(path)
    assert reading(founded.connect())("notes/today.md") == "harmless"  # the twin


def test_a_path_through_a_folder_that_the_server_can_not_look_into_leads_nowhere(founded, project):
    """Its links are out of sight there: the path could lead anywhere."""
    require_root()
    founded.folder.chmod(0o755)
    private, folder = project / "private", Folder(project)
    private.mkdir(mode=0o700)
    (private / "link").symlink_to("/usr")
    for path in ("private/today.md", "private/link/../../notes/today.md", "private"):
        found = in_process_of(VICTIM, partial(folder.resolve, str(project / path)))
        assert found == ("PermissionError" if path != "private" else str(private))
    new = project / "new" / "file.md"
    assert in_process_of(VICTIM, lambda: folder.resolve(str(new))) == str(new)
