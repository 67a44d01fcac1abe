"""The command line as a whole: help, exit codes, lazy loading, and its page in the docs."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from agentguard.cli.commands import app
from agentguard.cli.terminal import location

COMMANDS = [
    "init",
    "doctor",
    "policy check",
    "policy test",
    "policy eval",
    "policy replay",
    "agents list",
    "agents show",
    "approvals list",
    "approvals show",
    "approvals approve",
    "approvals reject",
    "approvals export",
    "approvals import",
    "trace",
    "audit list",
    "audit show",
    "audit tail",
    "audit export",
    "audit verify",
    "audit match",
    "evidence make",
    "evidence export",
    "evidence verify",
    "token exchange",
    "token inspect",
    "token verify",
    "revoke",
    "freeze",
    "thaw",
    "revocations",
    "resolve",
    "erase",
    "serve",
    "run",
    "server status",
    "server reload",
    "server accept",
    "mcp run",
    "mcp serve",
    "mcp pin",
    "mcp diff",
    "mcp install",
    "keys list",
    "keys rotate",
    "trust export",
    "trust pin",
    "adopt",
]
GROUPS = [
    *("policy", "agents", "approvals", "audit", "evidence", "token", "keys", "trust", "server"),
    "mcp",
]
PAGES = Path(__file__).parents[2] / "docs" / "reference" / "cli"
HEAVY = [
    "jwt",
    "httpcore",
    "keyring",
    "httpx",
    "httpx2",
    "starlette",
    "opentelemetry.sdk",
    "langchain",
    "langchain_core",
    "langgraph",
    "crewai",
    "cedarpy",
    "regorus",
    "agentguard_langchain",
    "agentguard_mcp",
]


def shown_in_the_docs() -> str:
    return "".join(page.read_text("utf-8") for page in PAGES.glob("*.md"))


def help_of(command: str) -> str:
    arguments = [*command.split(), "--help"]
    shown = CliRunner().invoke(app, arguments, prog_name="agentguard", terminal_width=80)
    assert shown.exit_code == 0
    return shown.stdout.rstrip()


def test_help_imports_no_framework(project):
    script = (
        "import sys\nsys.argv = ['agentguard', '--help']\n"
        "from agentguard.cli.commands import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    shown = project.interpreter("-c", script)
    assert (shown.returncode, shown.stderr) == (0, "[]\n")
    for name in ("demo", *(command.partition(" ")[0] for command in COMMANDS)):
        assert f"\n  {name} " in shown.stdout


def test_the_version(project):
    assert project.run("--version").stdout == f"agentguard {version('agentguard')}\n"


@pytest.mark.parametrize(
    "command",
    [["bogus"], ["audit", "bogus"], ["audit", "list", "--bogus"], ["audit", "show"]],
)
def test_a_wrong_command_line(command):
    shown = CliRunner().invoke(app, command, prog_name="agentguard")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "Usage: agentguard" in shown.stderr


def test_ctrl_c_is_no_failed_check(monkeypatch):
    monkeypatch.setattr(location, "load", Mock(side_effect=KeyboardInterrupt))
    ended = CliRunner().invoke(app, ["agents", "list"])
    assert (ended.exit_code, ended.output) == (130, "")


def test_a_demo_that_is_not_installed_names_the_command_that_installs_it(project):
    script = (
        "import importlib.metadata as metadata, sys\n"
        "metadata.entry_points = lambda **_: ()\n"
        "sys.argv = ['agentguard', 'demo', '--json']\n"
        "from agentguard.cli.commands import main\nmain()"
    )
    result = project.interpreter("-c", script)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error [command.missing]: agentguard demo needs agentguard-demo, which is not "
        "installed: from a clone of the project, run pip install . "
        "./integrations/agentguard-langchain ./integrations/agentguard-demo\n"
    )


@pytest.fixture
def distribution(project):
    """Another distribution with commands: a good one, a broken one, a bold one."""
    folder = project.folder / "site"
    described = folder / "other-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[agentguard.commands]\ngreet = other:greet\nbroken = other_broken:x\naudit = other:greet\n"
        "none = other:nothing\n"
    )
    (folder / "other.py").write_text(
        "import click\n"
        "@click.command()\n"
        "@click.argument('name')\n"
        "@click.option('--loud', is_flag=True)\n"
        "def greet(name, loud):\n"
        "    print(name.upper() if loud else name)\n"
        "nothing = print\n"
    )
    (folder / "other_broken.py").write_text("import not_there_at_all\n")
    return {"PYTHONPATH": str(folder)}


def test_another_distribution_brings_a_command(project, distribution):
    shown = project.process("greet", "Ada", "--loud", env=distribution)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "ADA\n", "")
    assert "A command of other." in project.process("--help", env=distribution).stdout
    assert "--loud" in project.process("greet", "--help", env=distribution).stdout
    wrong = project.process("greet", env=distribution)
    assert (wrong.returncode, "Missing argument" in wrong.stderr) == (2, True)


def test_what_another_distribution_lacks_is_named(project, distribution):
    result = project.process("broken", env=distribution)
    assert result.returncode == 2
    said = "agentguard broken needs not_there_at_all, which is not installed"
    assert result.stderr == f"error [command.missing]: {said}\n"


def test_what_is_no_command_of_click_is_refused(project, distribution):
    result = project.process("none", env=distribution)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error [command.missing]: agentguard none: expected a command of Click, found <built-in"
    )


def test_another_distribution_replaces_no_command(project, distribution):
    assert "verify" in project.process("audit", "--help", env=distribution).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_in_the_docs_shows_the_help_as_it_is(command):
    assert f"```text\n{help_of(command)}\n```" in shown_in_the_docs(), (
        f"docs/reference/cli/ is not current: put the output of agentguard {command} --help there"
    )


def test_every_command_is_in_the_page():
    listed = {
        f"{group} {line.split()[0]}".strip()
        for group in ("", *GROUPS)
        for line in help_of(group).partition("Commands:\n")[2].splitlines()
    }
    own = listed - {*GROUPS}
    assert own == {*COMMANDS, "demo"}
    for command in own:
        assert f"agentguard {command}`\n" in shown_in_the_docs()


def test_a_mistake_in_a_path_is_an_error_and_no_traceback(project):
    (project.folder / "agentguard.toml").write_text(
        'state = "a\\u0000b"\n[policy]\npath = "authz.rego"\n'
    )
    result = project.run("audit", "list")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [config.invalid]: ")


def test_an_error_is_one_line_whatever_is_in_it(project):
    hostile = "no\x1b[2J\u202ewhere\nallow"
    result = project.run("audit", "list", "--state", hostile)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert r"no\x1b[2J\u202ewhere; allow" in result.stderr


def test_python_is_the_one_of_this_environment(project):
    """The other tests run the package that is under test, and not one installed elsewhere."""
    where = project.python("-c", "import agentguard; print(agentguard.__file__)").stdout
    assert Path(where.strip()).is_file()
    assert where.strip() == sys.modules["agentguard"].__file__
