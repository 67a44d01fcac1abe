"""Programs of ``agentguard run``: an inherited connection, bound to one agent and one user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from launched import OTHER, interpreter_of_other, program, uid_of_other, why_not_other

from agentguard import ConfigError, Guard
from agentguard.client.dial import VARIABLE

as_other = pytest.mark.skipif(why_not_other() is not None, reason=str(why_not_other()))

CALLS = """
guard = Guard.connect()
agent = guard.new_agent("clerk")
print(agent.call(note(guard), "x"))
guard.close()
"""


def run(place, code, *options, python=(sys.executable,), env=None):
    return place.programs.run(
        *("-m", "agentguard.cli", "run", "--agent", "clerk", *options, "--"),
        *(*python, "-c", program(code)),
        cwd=place.folder,
        env=env,
    )


def test_a_program_is_the_agent_that_it_was_started_as(place):
    result = run(place, CALLS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "noted x\n", "")
    (call,) = place.calls()
    assert call.client is not None
    assert (call.client.name, call.client.isolation) == ("run:clerk", "same-user")
    assert [one.status for one in place.outcomes()] == ["ok"]
    assert place.verify().ok


@as_other
def test_a_program_under_another_user(place):
    code = CALLS + "print(os.getresuid(), os.getresgid(), os.getgroups(), os.environ['USER'])"
    result = run(place, code, "--user", OTHER, python=interpreter_of_other())
    assert (result.returncode, result.stderr) == (0, "")
    uid = uid_of_other()
    assert f"({uid}, {uid}, {uid})" in result.stdout
    assert result.stdout.rstrip().endswith(OTHER)
    (call,) = place.calls()
    assert call.client is not None
    assert (call.client.name, call.client.isolation) == ("run:clerk", "separate-user")


def test_the_exit_code_is_the_program_s_own(place):
    assert run(place, "sys.exit(7)").returncode == 7
    assert run(place, "os.kill(os.getpid(), 9)").returncode == -9


def test_the_program_gets_one_descriptor_and_one_variable(place):
    code = """
from agentguard.client.dial import VARIABLE
print([int(one) for one in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{one}")])
print({name: text for name, text in os.environ.items() if "AGENTGUARD" in name})
"""
    env = {name: text for name, text in os.environ.items() if "AGENTGUARD" not in name}
    secrets = {"AGENTGUARD_PASSPHRASE": "s", "AGENTGUARD_APPROVER_PASSPHRASE": "s"}
    result = run(place, code, env=env | secrets)
    assert result.stdout == f"[0, 1, 2, 3]\n{{'{VARIABLE}': '3'}}\n"


def test_the_options_of_the_program_are_its_own(place):
    result = place.programs.run(
        *("-m", "agentguard.cli", "run", "--agent", "clerk", "echo", "--agent", "--help"),
        cwd=place.folder,
    )
    assert (result.returncode, result.stdout) == (0, "--agent --help\n")


def test_threads_get_connections_of_their_own(place):
    result = run(
        place,
        """
from concurrent.futures import ThreadPoolExecutor
guard = Guard.connect()
agent, tool = guard.new_agent("clerk"), note(guard)
with ThreadPoolExecutor(24) as pool:
    assert list(pool.map(lambda n: agent.call(tool, n), range(200))) == [
        f"noted {n}" for n in range(200)
    ]
guard.close()
""",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(place.calls()) == 200
    assert place.verify().in_doubt == ()


def test_forked_processes_have_sessions_of_their_own(place):
    result = run(
        place,
        """
guard = Guard.connect()
agent, tool = guard.new_agent("clerk"), note(guard)
agent.call(tool, "parent")
children = []
for n in range(4):
    children.append(os.fork())
    if not children[-1]:
        for m in range(10):
            agent.call(tool, f"{n} {m}")
        guard.close()
        os._exit(0)
for m in range(10):
    agent.call(tool, f"parent {m}")
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
guard.close()
""",
    )
    assert (result.returncode, result.stderr) == (0, "")
    calls = place.calls()
    assert (len(calls), len({one.agent for one in calls})) == (51, 5)
    assert place.verify().in_doubt == ()


def test_two_guards_of_one_program(place):
    result = run(place, CALLS + CALLS)
    assert (result.returncode, result.stdout) == (0, "noted x\nnoted x\n")


def test_a_guard_is_found_with_and_without_a_configuration(place):
    code = """
os.chdir("/")
found = Guard.find()
assert found is Guard.find()
found.new_agent("clerk").call(note(found), "without")
os.chdir(sys.argv[1])
for guard in (Guard.find(), Guard.open()):
    assert guard is not found
    guard.new_agent("clerk").call(note(guard), "with")
    guard.close()
"""
    result = place.programs.run(
        *("-m", "agentguard.cli", "run", "--agent", "clerk", "--", sys.executable),
        *("-c", program(code), place.folder),
        cwd=place.folder,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert {call.client.name for call in place.calls() if call.client} == {"run:clerk"}
    assert len(place.calls()) == 3


def test_a_program_vouches_for_whom_the_launcher_names(place):
    code = """
guard = Guard.connect()
agent, tool = guard.new_agent("clerk"), note(guard)
with guard.delegate("user:alice", scope=["read"]):
    print(agent.call(tool, "x"))
"""
    assert run(place, code, "--vouches-for", "user:*").stdout == "noted x\n"
    refused = run(place, code)
    assert refused.returncode == 1
    assert "run:clerk may not vouch for user:alice" in refused.stderr


def test_a_program_whose_server_was_started_anew_has_to_be_started_again(place):
    code = """
guard = Guard.connect()
agent, tool = guard.new_agent("clerk"), note(guard)
agent.call(tool, "before")
print("ready", flush=True)
sys.stdin.readline()
try:
    agent.call(tool, "after")
except Denied as denied:
    print(denied.code, denied.reason, flush=True)
"""
    talk = place.programs.talk(
        *("-m", "agentguard.cli", "run", "--agent", "clerk", "--", sys.executable),
        *("-c", program(code)),
        cwd=place.folder,
    )
    assert talk.stdout.readline() == "ready\n"
    place.stop()
    place.start()
    said, _errors = talk.communicate("\n")
    assert said.startswith("server.unreachable ")
    assert "start the program again with agentguard run" in said
    assert run(place, CALLS).returncode == 0  # started again, the program goes on


def test_a_program_that_is_started_without_the_descriptor_says_so(place):
    code = f"""
import subprocess
one = {program(CALLS)!r}
print(subprocess.run([sys.executable, "-c", one], pass_fds=[3]).returncode, flush=True)
bad = subprocess.run([sys.executable, "-c", one], stderr=subprocess.PIPE, text=True)
print(bad.returncode, bad.stderr)
"""
    result = run(place, code)
    assert result.stdout.startswith("noted x\n0\n1 ")
    assert "agentguard.errors.ConfigError: AGENTGUARD_SERVER_FD: the descriptor 3" in result.stdout
    assert "pass_fds" in result.stdout


@pytest.mark.parametrize("number", ["", "x", "-1", "99999", "9" * 30, "0", "2"])
def test_a_variable_that_names_no_channel(monkeypatch, number):
    monkeypatch.setenv(VARIABLE, number)
    with pytest.raises(ConfigError) as caught:
        Guard.connect()
    assert caught.value.code == "server.inherited"


def test_without_the_variable_a_url_is_needed(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError) as caught:
        Guard.connect()
    assert caught.value.code == "server.inherited"


def test_a_url_in_the_code_comes_first(place, monkeypatch):
    monkeypatch.setenv(VARIABLE, "99999")
    with Guard.connect(place.url) as guard:
        assert guard.new_agent("clerk").name == "clerk"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--agent", "nobody-s", "--", "true"), "error [agent.unknown]"),
        (("--agent", "clerk", "--user", "no-such-user", "--", "true"), "'no-such-user' is no user"),
        (("--agent", "clerk", "--", "/no/such/program"), "no program /no/such/program that"),
        (("--agent", "clerk", "--", "nosuchprog"), "there is no program nosuchprog that this"),
        (("--agent", "clerk"), "Missing argument"),
        (("--", "true"), "Missing option '--agent'"),
    ],
)
def test_a_program_that_cannot_be_started(place, words, problem):
    result = place.programs.run("-m", "agentguard.cli", "run", *words, cwd=place.folder)
    assert result.returncode == 2
    assert problem in result.stderr


def test_without_a_server_no_program_starts(founded):
    result = run(founded, "print('started')")
    assert (result.returncode, result.stdout) == (2, "")
    assert "error [server.unreachable]" in result.stderr
    founded.start()
    assert run(founded, "print('started')").stdout == "started\n"


def test_a_program_needs_no_table_of_clients(founded):
    with (founded.folder / "agentguard.toml").open("a", encoding="utf-8") as file:
        file.write('[clients.somebody]\nuid = 64001\nagents = ["helper"]\n')
    founded.start()
    assert run(founded, CALLS).stdout == "noted x\n"
    by_path = CALLS.replace("connect()", f"connect({founded.url!r})")
    assert "may not be the agent clerk" in run(founded, by_path).stderr


@pytest.fixture
def served_by_other(founded, tmp_path):
    """A trust domain whose server runs under another user."""
    uid, folder = uid_of_other(), founded.folder
    folder.chmod(0o755)
    above = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))  # of root, and in it the socket's
    above.chmod(0o755)
    (above / "run").mkdir(mode=0o755)
    os.chown(above / "run", uid, pwd.getpwuid(uid).pw_gid)
    url = f"unix:{above / 'run' / 's'}"
    settings = folder / "agentguard.toml"
    settings.write_text(settings.read_text("utf-8").replace("unix:s", url), "utf-8")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, pwd.getpwuid(uid).pw_gid)
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(
            [*interpreter_of_other(), "-m", "agentguard.cli", "serve"],
            stdout=output,
            stderr=output,
            user=uid,
            group=pwd.getpwuid(uid).pw_gid,
            extra_groups=[],
            cwd=folder,
        )
    founded.wait_for(lambda: "serving" in founded.said())
    (tmp_path / "agentguard.toml").write_text(f'[server]\nurl = "{url}"\n')
    yield founded
    server.kill()
    server.wait()
    shutil.rmtree(above)


@as_other
def test_root_starts_programs_for_a_server_of_another_user(served_by_other, tmp_path):
    place, own = served_by_other, ("--config", tmp_path / "agentguard.toml")
    result = run(place, CALLS, *own, "--user", "daemon", python=interpreter_of_other())
    assert (result.returncode, result.stdout, result.stderr) == (0, "noted x\n", "")
    isolated = {call.client.isolation for call in place.calls() if call.client}
    assert isolated == {"separate-user"}
    result = run(place, CALLS, *own, "--user", OTHER, python=interpreter_of_other())
    assert result.returncode == 0
    isolated = {call.client.isolation for call in place.calls() if call.client}
    assert isolated == {"separate-user", "same-user"}


@as_other
def test_root_starts_no_program_under_root_for_a_server_of_another_user(served_by_other, tmp_path):
    own = ("--config", tmp_path / "agentguard.toml")
    result = run(served_by_other, CALLS, *own)
    assert (result.returncode, result.stdout) == (2, "")
    assert "error [server.launch]" in result.stderr
    assert "--user" in result.stderr
    theirs = run(served_by_other, CALLS, "--user", OTHER)  # root takes no word of another user
    assert (theirs.returncode, theirs.stdout) == (2, "")
    assert "error [config.exposed]" in theirs.stderr


@as_other
def test_the_server_s_own_user_starts_programs_under_no_other_user(served_by_other):
    folder = served_by_other.folder

    def start(*options):
        return subprocess.run(
            [
                *(*interpreter_of_other(), "-m", "agentguard.cli", "run", "--agent", "clerk"),
                *(*options, "--", *interpreter_of_other(), "-c", program(CALLS)),
            ],
            check=False,
            capture_output=True,
            text=True,
            user=OTHER,
            group=pwd.getpwnam(OTHER).pw_gid,
            extra_groups=[],
            cwd=folder,
        )

    refused = start("--user", "daemon")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "error [server.launch]: only root starts a program under another" in refused.stderr
    assert start().stdout == "noted x\n"
