"""Files that a configuration or an option names: named pipes in their place, and files of others.

Nobody writes into the pipes. Whoever opens one to read, as a file is opened, waits for ever: an
alarm ends the test then.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from agentguard import Guard
from agentguard.cli.approvals import approver
from agentguard.cli.commands import main
from agentguard.domain import config
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.errors import AgentguardError, ConfigError
from agentguard.policy.cedar import CedarEngine
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine

OTHERS = 12345
"""The number of a user and of a group that are not this user's."""


@pytest.fixture(autouse=True)
def at_once():
    """Fail where somebody waits."""

    def rang(*_):
        raise AssertionError("somebody waits for the pipe")

    before = signal.signal(signal.SIGALRM, rang)
    signal.setitimer(signal.ITIMER_REAL, 600)  # of a machine with much else to do
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path, template, monkeypatch) -> Path:
    """A whole project: a founded state, its configuration, and files for the commands' options."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    for path, text in {
        "agentguard.toml": 'trust_domain = "acme.example"\nstate = "state"\nanchor = "anchor"\n'
        '[keys]\npassphrase_file = "passphrase"\n[policy]\npath = "policies"\n'
        '[agents.reader]\nauthority = "own"\n',
        "passphrase": "correct horse battery staple\n",
        "policies/authz.rego": "package agent.authz\nallow := true\n",
        "policies/data.json": "{}",
        "policies/authz_test.toml": '[[case]]\nname = "a"\ninput.action = "b"\nexpect = "allow"\n',
        "policies/authz_test.rego": "package agent.authz_test\n",
        "cedar/authz.cedar": "permit(principal, action, resource);",
        "cedar/schema.cedarschema": "",
        "other.rego": "package agent.authz\nallow := true\n",
        "input.json": '{"action": "read"}',
        "anything": "x",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "passphrase").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENTGUARD_PASSPHRASE", raising=False)
    return tmp_path


@pytest.fixture
def cli(monkeypatch, capsys):
    """``cli(*ARGS)`` is ``agentguard ARGS`` in this process."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["agentguard", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return left.value.code or 0, shown.out + shown.err

    return run


def with_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_the_twin_opens(folder):
    with Guard.open() as guard:
        assert guard.new_agent("reader").call(guard.tool(name="read")(lambda: 1)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "agentguard.toml",
        "passphrase",
        "policies/authz.rego",
        "policies/data.json",
        "state/keys/issuer",
        "state/keys/log",
        "state/trust.json",
    ],
)
def test_a_guard_and_the_doctor_refuse_a_pipe(folder, cli, name):
    with_pipe(folder / name)
    for opens in (Guard.open, Guard.find):
        with pytest.raises(AgentguardError, match="it is no regular file") as refused:
            opens()
        assert Path(name).name in str(refused.value)
        assert "give this user the right" not in str(refused.value)  # a right does not help
    code, said = cli("doctor")
    assert code == 1
    assert "it is no regular file" in said


def test_a_folder_in_the_place_of_a_configuration_is_no_question_of_rights(folder, cli):
    (folder / "agentguard.toml").unlink()
    (folder / "agentguard.toml").mkdir()
    code, said = cli("doctor", "--json", "--config", "agentguard.toml")
    assert code == 1
    assert "can't be read (it is no regular file): put what belongs there in its place" in said


def test_a_pipe_is_not_passed_over_for_a_configuration_further_up(folder, monkeypatch):
    below = folder / "below"
    below.mkdir()
    assert config.find(below) == folder / "agentguard.toml"
    os.mkfifo(below / "agentguard.toml")
    assert config.find(below) == below / "agentguard.toml"


@pytest.mark.parametrize("name", ["authz.cedar", "schema.cedarschema"])
def test_a_cedar_policy_and_its_schema_are_files(folder, name):
    with_pipe(folder / "cedar" / name)
    with pytest.raises(AgentguardError, match="it is no regular file"):
        CedarEngine.load(folder / "cedar")


def test_a_policy_that_a_program_hands_over_is_a_file(folder):
    with_pipe(folder / "other.rego")
    with pytest.raises(AgentguardError, match="it is no regular file"):
        RegoEngine.load(folder / "other.rego")


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_what_a_connection_to_an_opa_server_takes_is_a_file(folder, name):
    with_pipe(folder / "pipe")
    more = {"certificate": folder / "anything"} if name == "key" else {}
    if name == "certificate":
        more = {"key": folder / "anything"}
    with pytest.raises(ConfigError, match="it is no regular file"):
        OpaEngine(Server("https://localhost:1", **{**more, name: folder / "pipe"}), "data.a")


COMMANDS = (
    ("policy", "check", "pipe"),
    ("policy", "check", "--config", "pipe"),
    ("policy", "eval", "pipe"),
    ("policy", "eval", "input.json", "--policy", "pipe"),
    ("policy", "test", "pipe"),
    ("policy", "replay", "pipe"),
    ("audit", "verify", "--against", "pipe"),
    ("audit", "verify", "--trust", "pipe"),
    ("evidence", "verify", "pipe", "--trust", "state/trust.json"),
    ("evidence", "verify", "anything", "--trust", "pipe"),
    ("audit", "list", "--config", "pipe"),
    ("approvals", "import", "pipe"),
    ("approvals", "approve", "--request", "pipe", "--key", "anything"),
    ("token", "inspect", "./pipe"),
    ("token", "verify", "./pipe", "--trust", "state/trust.json"),
    ("agents", "list", "--config", "pipe"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_waits_for_no_pipe(folder, cli, words):
    os.mkfifo(folder / "pipe")
    code, said = cli(*words)
    assert code == 2, said
    assert "it is no regular file" in said


def test_an_approver_s_key_is_a_file(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(AgentguardError, match="it is no regular file"):
        approver.signer(folder / "pipe")


@pytest.mark.parametrize("name", ["authz_test.toml", "authz_test.rego"])
def test_nor_for_one_among_the_tests_of_a_policy(folder, cli, name, monkeypatch):
    bin_ = folder / "bin"
    bin_.mkdir()
    opa = "#!/bin/sh\nexec cat policies/*_test.rego\n"  # as OPA reads them
    (bin_ / "opa").write_text(opa)
    (bin_ / "opa").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    with_pipe(folder / "policies" / name)
    code, said = cli("policy", "test", "--require-opa")
    assert code == 2
    assert "it is no regular file" in said


# --- who else may write them ----------------------------------------------------------------------


def exposed(folder) -> str:
    """What a guard and the doctor say of the rights, which is the same."""
    with pytest.raises(ConfigError) as refused:
        Guard.open()
    assert refused.value.code == "config.exposed"
    return str(refused.value)


@pytest.mark.parametrize("named", [".", "policies"])
def test_a_folder_in_which_others_can_replace_what_decides_is_refused(folder, cli, named):
    (folder / "agentguard.toml").write_text(
        (folder / "agentguard.toml").read_text().replace('"policies"', '"policies/authz.rego"')
    )
    (folder / named).chmod(0o777)
    said = exposed(folder)
    assert "others can write the folder" in said
    assert "chmod go-w" in said
    code, shown = cli("doctor")
    assert code == 1
    assert "others can write the folder" in shown
    (folder / named).chmod(0o1777)  # as /tmp: there nobody moves another's files
    Guard.open().close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("named", ["agentguard.toml", "policies/authz.rego", "."])
def test_what_belongs_to_another_user_or_a_shared_group_is_refused(folder, named):
    os.chown(folder / named, OTHERS, 0)
    assert "chown" in exposed(folder)
    os.chown(folder / named, 0, OTHERS)
    Guard.open().close()
    (folder / named).chmod(0o775)
    assert "chmod go-w" in exposed(folder)
    os.chown(folder / named, 0, 0)  # a group of one's own, as a umask of 002 leaves a clone
    Guard.open().close()


def test_a_link_does_not_hide_the_folder_of_its_file(folder):
    shared = folder / "shared"
    shared.mkdir()
    shutil.move(folder / "policies" / "authz.rego", shared / "authz.rego")
    (folder / "policies" / "authz.rego").symlink_to(shared / "authz.rego")
    assert configured_engine(config.load(folder / "agentguard.toml")).name == "rego"
    shared.chmod(0o777)
    assert str(shared) in exposed(folder)


@pytest.fixture
def above(folder, monkeypatch) -> Path:
    """Two folders above the project: ``above/between/project``."""
    inside = folder / "above" / "between" / "project"
    inside.mkdir(parents=True)
    for name in ("agentguard.toml", "passphrase", "policies", "state", "anchor"):
        shutil.move(folder / name, inside / name)
    monkeypatch.chdir(inside)
    return folder / "above"


def test_nor_is_a_folder_in_which_the_whole_project_can_be_replaced(above):
    """Who can rename a folder above puts another project there, such as an old one."""
    Guard.open().close()
    for one in (above, above / "between"):
        one.chmod(0o777)
        assert f"others can write the folder {one}," in exposed(above)
        one.chmod(0o1777)  # nobody moves another's folders there
        Guard.open().close()
        one.chmod(0o755)


def test_nor_is_a_folder_through_which_a_link_leads_to_the_policy(folder):
    """From one link to the next: neither the way as written nor its end passes ``between``."""
    between = folder / "between"
    between.mkdir()
    shutil.move(folder / "policies", folder / "real")
    (between / "link").symlink_to(folder / "real")
    (folder / "policies").symlink_to("between/link")
    Guard.open().close()
    between.chmod(0o777)
    assert f"others can write the folder {between}," in exposed(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_link_of_somebody_else_is_refused_where_all_make_links(folder):
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    shutil.move(folder / "policies", folder / "real")
    (folder / "policies").symlink_to(shared / "link")
    (shared / "link").symlink_to(folder / "real")
    Guard.open().close()
    os.chown(shared / "link", OTHERS, OTHERS, follow_symlinks=False)
    if PROTECTED.exists() and PROTECTED.read_text().strip() == "1":
        with pytest.raises(ConfigError, match="Permission denied"):
            Guard.open()
    else:
        assert f"chown on the folder and {shared / 'link'}" in exposed(folder)


PROTECTED = Path("/proc/sys/fs/protected_symlinks")
"""Has 1 where Linux itself follows no such link, as most distributions set it."""

SOURCES = [
    *(Path(__file__).parents[2] / "src").rglob("*.py"),
    *(Path(__file__).parents[2] / "integrations").glob("*/src/**/*.py"),
]
OWN = {
    "src/agentguard/cli/setup/starter.py": "its templates, which are part of the package",
    "src/agentguard/client/launch.py": "the terminal, of which no text is read",
    "src/agentguard/paths.py": "for tools, by a walk of its own; it refuses them as well",
}


def test_no_file_is_read_but_by_the_functions_that_refuse_pipes():
    """Whoever adds a read is sent to ``storage/files.py``, or writes down here why not."""
    found = {}
    for path in SOURCES:
        name = path.relative_to(Path(__file__).parents[2]).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="open")):
                    found[name] = node.lineno
                case ast.Call(func=ast.Attribute(attr="read_text" | "read_bytes")):
                    found[name] = node.lineno
                case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="open"), args=args):
                    if "O_RDONLY" in ast.unparse(args[1]):
                        found[name] = node.lineno
    ours = {
        name for name in found if "/agentguard_demo/" not in name
    }  # the demo makes what it reads
    assert ours == {*OWN, "src/agentguard/storage/files.py"}
