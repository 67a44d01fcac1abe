"""Commands that read change nothing: neither the state nor its anchor, by content, mode or time."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard.cli.commands import app

WRITING = {
    "serve",
    "server accept",
    "server status",  # asks a process, and reads no state
    "server reload",  # likewise
    "mcp run",  # starts a server of the Model Context Protocol; "mcp diff" and "mcp pin" do, too
    "mcp serve",
    "mcp diff",
    "mcp pin",
    "mcp install",
    "run",
    "init",
    "adopt",
    "approvals approve",
    "approvals reject",
    "approvals import",
    "revoke",
    "freeze",
    "thaw",
    "resolve",
    "erase",
    "keys rotate",
    "trust pin",
}
"""The commands that change a state or its anchor."""

ONLY_READING = {"agents", "audit", "evidence", "policy", "token"}
"""The groups of which no command changes a state."""

NO_REQUEST = "0" * 12

# of the rest some have nothing to read here, and end with an error
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "doctor": (),
    "policy check": (),
    "policy test": (),
    "policy eval": ("input.json",),
    "policy replay": (),
    "agents list": (),
    "agents show": ("assistant",),
    "approvals list": (),
    "approvals show": (NO_REQUEST,),
    "approvals export": (NO_REQUEST,),
    "trace": ("--last",),
    "revocations": (),
    "audit list": (),
    "audit show": ("CALL",),
    "audit tail": ("--no-follow",),
    "audit export": (),
    "audit verify": (),
    "audit match": (".agentguard", ".agentguard"),
    "evidence make": ("CALL", "-o", "made.json"),
    "evidence export": ("-o", "exported"),
    "evidence verify": ("call.json", "--trust", "trust.json"),
    "token exchange": ("--help",),  # it asks a service, and no state
    "token inspect": ("token",),
    "token verify": ("token",),
    "keys list": (),
    "trust export": (),
}


def commands_of_the_tree() -> set[str]:
    commands: set[str] = set()
    for name, command in app.commands.items():
        inner = getattr(command, "commands", None)
        commands |= {name} if inner is None else {f"{name} {one}" for one in inner}
    return commands - {"demo"}  # another distribution's


def test_each_command_reads_or_writes():
    assert {*ARGUMENTS} | WRITING == commands_of_the_tree()
    assert not {*ARGUMENTS} & WRITING
    assert not {command for command in WRITING if command.partition(" ")[0] in ONLY_READING}


@pytest.fixture(scope="module")
def read(tmp_path_factory, told):
    """A project with files to be read; and the id of a call in its log."""
    project = told.copy(tmp_path_factory.mktemp("read") / "place")
    program = (
        "from agentguard import Guard\n"
        "with Guard.open('agentguard.toml') as guard:\n"
        "    agent = guard.new_agent('assistant')\n"
        "    with guard.delegate('user:alice', scope=['files:read']) as task:\n"
        "        open('token', 'w').write(agent.access_token().token)\n"
    )
    delegated = project.python("-c", program)
    assert (delegated.returncode, delegated.stderr) == (0, "")
    rows = project.lines("audit", "list")
    call = next(row["invocation_id"] for row in rows if row["outcome"] == "ok")
    (project.folder / "input.json").write_text('{"action": "read_file"}')
    assert project.run("trust", "export", "-o", "trust.json").returncode == 0
    assert project.run("evidence", "make", call, "-o", "call.json").returncode == 0
    return project, call


def contents(project) -> dict[str, Any]:
    """Mode, time of change and content of all files of the state and its anchor.

    But for the files with which SQLite's readers and writers agree on where the log ends (-shm).
    """
    files = [path for folder in (project.state, project.anchor) for path in folder.rglob("*")]
    assert len(files) > 10
    return {
        str(path): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in files
        if not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_command_that_reads_changes_nothing(read, command):
    project, call = read
    before = contents(project)
    arguments = [call if argument == "CALL" else argument for argument in ARGUMENTS[command]]
    result = project.run(*command.split(), *arguments)
    if NO_REQUEST in arguments:
        assert "[request.unknown]" in result.stderr
    else:
        assert result.returncode in (0, 1), result.stderr
        assert result.stdout or "-o" in arguments
    assert contents(project) == before
