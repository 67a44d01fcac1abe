"""functions.md as a reader follows it: each Python block runs, in a project of the page's commands.

The project has the page's own policy, once under the page's configuration and once under that which
``agentguard init`` wrote. The table of commands of cli.md is held against the command line.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import docs_pages
import pytest
from denial_lines import without_denials

from agentguard import Denied, Guard
from agentguard.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGE = docs_pages.text("how-to/functions")
COMMANDS = docs_pages.text("reference/cli")
LACKS = "agent assistant, acting for user:alice, lacks the scope files:read scope.exceeded"
REASON = "the path must lead into the project, and to no hidden file"


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def environment(home):
    """That of a user whose programs are this environment's, and who has set nothing up."""
    ours = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTGUARD_", "XDG_"))}
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**ours, "HOME": str(home), "PATH": search}


def agentguard(cwd, line):
    """Run a command line of agentguard's."""
    return commands.run(shlex.split(line), cwd=cwd, env=environment(cwd.parent))


def typed(text, cwd):
    """Run a block of commands in a shell."""
    return subprocess.run(
        ["/bin/sh", "-ec", text],
        cwd=cwd,
        env=environment(cwd.parent),
        capture_output=True,
        text=True,
        check=False,
    )


def followed(text, cwd):
    """Run a block of commands, those of agentguard's in this process; return the last."""
    ran = None
    for line in text.splitlines():
        assert ran is None or ran.returncode == 0, ran
        first, *words = shlex.split(line, comments=True)
        ran = agentguard(cwd, shlex.join(words)) if first == "agentguard" else typed(line, cwd)
    return ran


def configured(written):
    """the page's configuration, with the one line of init's that it says to keep."""
    (toml,) = blocks("toml")
    line = re.compile(r"^passphrase_file = .*$", re.MULTILINE)
    (kept,) = line.findall(written)
    changed, count = line.subn(lambda _match: kept, toml)
    assert count == 1
    return changed


ALSO_INITS = pytest.mark.slow("runs all once more, under the configuration that init writes")


@pytest.fixture(scope="module", params=["page", pytest.param("init", marks=ALSO_INITS)])
def project(request, tmp_path_factory):
    """A project of the page: its commands and policy, and the configuration of one of the two."""
    folder = tmp_path_factory.mktemp("home") / "project"
    folder.mkdir()
    (text,) = (block for block in blocks("sh") if "agentguard init" in block)
    made = (followed if request.param == "page" else typed)(text, folder)
    assert made.returncode == 0, made.stdout + made.stderr
    toml = folder / "agentguard.toml"
    if request.param == "page":
        toml.write_text(configured(toml.read_text()))
    else:
        toml.write_text(f"{toml.read_text()}\n[tools.read_file]\n")
    (rego,) = blocks("rego")
    (folder / "policies" / "authz.rego").write_text(rego)
    return folder


BLOCKS = docs_pages.prints(PAGE)


@pytest.mark.parametrize(("block", "prints"), BLOCKS, ids=["own", "memory", "langchain", "user"])
def test_a_python_block_prints_what_the_page_says(programs, project, block, prints):
    words = (*docs_pages.WARNINGS_ARE_ERRORS, "-c", block)
    ran = programs.run(*words, cwd=project, env=environment(project.parent))
    assert (ran.returncode, ran.stdout) == (0, prints), ran.stderr


def read_file(path):
    """Stand for the page's tool."""
    return f"read {path}"


def read_file_of_another_shape(file):
    """Have no argument that the page's policy knows."""
    return f"read {file}"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Call ``read_file`` with this function and these arguments, under the page's policy alone."""
    (rego,) = blocks("rego")
    (tmp_path / "authz.rego").write_text(rego)
    agents = {"assistant": {"type": "assistant", "authority": "own"}}

    monkeypatch.chdir(tmp_path)

    def call(function, **arguments):
        config = {"agents": agents, "paths": {"path": "."}}
        with Guard.ephemeral(tmp_path / "authz.rego", config=config) as guard:
            tool = guard.tool(name="read_file")(function)
            return guard.new_agent("assistant").call(tool, **arguments)

    return call


@pytest.mark.parametrize("path", ["notes.md", "notes/monday.md", "a..b/c.d", "a//b", "a/../b"])
def test_the_policy_lets_a_path_inside_pass(reader, path):
    assert reader(read_file, path=path) == f"read {path}"


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "/etc/passwd",
        "",
        ".env",
        "a/.git/config",
        None,
        7,
    ],
)
def test_the_policy_denies_any_other_path(reader, path):
    with pytest.raises(Denied) as denied:
        reader(read_file, path=path)
    assert (denied.value.reason, denied.value.code) == (REASON, "policy.denied")


def test_the_policy_denies_a_call_without_a_path(reader):
    with pytest.raises(Denied) as denied:
        reader(read_file_of_another_shape, file="../x")
    assert denied.value.reason == REASON


HOLD = """
import os, sys
from agentguard import Guard
with Guard.open("agentguard.toml") as guard:
    print("open", flush=True)
    sys.stdin.read()
    agent = guard.new_agent("assistant")
    own = agent.id
    if os.fork() == 0:
        print(agent.id == own, flush=True)
        os._exit(0)
    os.wait()
    print(agent.id == own)
"""


def test_two_processes_open_one_state_and_so_does_a_fork(project):
    options: Any = {"cwd": project, "env": environment(project.parent), "text": True}
    pipes: Any = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", HOLD], **pipes, **options) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "open\n"
        command = [sys.executable, "-c", BLOCKS[0][0]]
        second = subprocess.run(command, capture_output=True, check=False, **options)
        first.stdin.close()
        assert first.stdout.read() == "False\nTrue\n"
    assert first.returncode == 0
    assert second.stdout == f"a note\n{REASON} policy.denied\n"
    assert without_denials(second.stderr) == ""
    verified = agentguard(project, "audit verify")
    assert verified.stdout.startswith("consistent: ")
    assert "Several processes may open one state." in PAGE


def test_no_python_block_is_left_out():
    assert len(blocks("python")) == len(BLOCKS) == 4


def test_the_set_up_is_sound(project):
    ran = agentguard(project, "doctor")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    checked = agentguard(project, "policy check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def all_commands():
    """The commands of agentguard itself: ``agentguard init``, ``agentguard audit list``, ..."""
    found: dict[str, Any] = {}
    own: dict[str, Any] = {**app.commands}
    for name, command in own.items():
        for inner, one in getattr(command, "commands", {}).items():
            found[f"agentguard {name} {inner}"] = one.resolve().callback
        if not hasattr(command, "commands") and name != "demo":  # another distribution's
            found[f"agentguard {name}"] = command.resolve().callback
    return found


def test_the_table_of_commands_is_complete():
    named = set(re.findall(r"^\| `(agentguard [a-z -]+)` \|", COMMANDS, re.MULTILINE))
    assert named | {"agentguard agents show"} == {"agentguard demo", *all_commands()}
    assert "`agents show`" in COMMANDS


WRITING = {"init", "keys rotate", "trust pin", "run", "serve", "server accept", "token exchange"}
WRITING |= {"approvals approve", "approvals reject", "approvals import"}
WRITING |= {"mcp run", "mcp serve", "mcp pin", "mcp install", "server reload", "revocations"}
JSON_ANYWAY = {"approvals export", "audit export", "trust export"}
JSON_ANYWAY |= {"evidence make", "evidence export"}


def test_the_commands_that_read_take_json_but_for_those_that_write_it_anyway():
    without = {
        name.removeprefix("agentguard ")
        for name, callback in all_commands().items()
        if "json" not in inspect.signature(callback).parameters
    }
    assert without - WRITING == JSON_ANYWAY
    (listed,) = re.findall(r"whose output is JSON anyway \((.*?)\)", COMMANDS, re.DOTALL)
    assert set(re.findall(r"`([a-z ]+)`", listed)) == JSON_ANYWAY


@pytest.mark.parametrize(
    "command",
    [
        "agents list",
        "agents show assistant",
        "audit list",
        "audit tail --no-follow",
        "audit export",
        "audit verify",
        "keys list",
        "policy check",
        "revocations",
        "trust export",
    ],
)
def test_commands_that_read_need_no_passphrase(project, tmp_path, command):
    assert elsewhere(project, tmp_path, command).returncode == 0


def test_but_for_doctor(project, tmp_path):
    ran = elsewhere(project, tmp_path, "doctor")
    assert ran.returncode == 1
    assert re.search(r"^fail +keys: .*passphrase", ran.stdout, re.MULTILINE)
    assert "need no passphrase (but for `doctor`" in COMMANDS


def elsewhere(project, home, command):
    """Run a command for somebody with the project, but not with the passphrase of its keys."""
    (home / ".local").symlink_to(project.parent / ".local")  # where the anchor is
    return commands.run(shlex.split(command), cwd=project, env=environment(home))
