"""Programs of ``agentguard run`` that want more than one agent, and others who want their place."""

from __future__ import annotations

import array
import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from launched import OTHER, interpreter_of_other, why_not_other
from served_intruder import (
    DESK,
    MALLORY,
    STRANGER,
    VICTIM,
    Intruder,
    acting_as,
    dialled,
    in_process_of,
)
from served_place import Place

from agentguard.client.launch import channel_for
from agentguard.domain import config
from agentguard.errors import ConfigError
from agentguard.wire.frame import Frame, encode
from agentguard.wire.stream import Stream

PROGRAM = 64_101
"""The user of the programs, who is in no table of ``[clients]``."""

ASKS = encode(Frame({"op": "connection"}))


class Program(Intruder):
    """A program with code of its own, on a connection that it gets over its channel."""

    def __init__(self, channel: socket.socket, uid: int, session: str | None = None) -> None:
        self.channel = channel
        self.uid = uid
        self.socket = connection(channel, uid)
        self.stream = Stream(self.socket)
        self.stream.read()
        self.greeting = self.ask("hello", protocol=1, session=session).header
        self.error = self.greeting.get("error")


def connection(channel: socket.socket, uid: int) -> socket.socket:
    """Return a new connection, for which a process of ``uid`` asks."""
    with acting_as(uid):
        channel.send(ASKS)
    _answer, descriptor = Stream(channel).read_with()
    assert descriptor is not None
    made = socket.socket(fileno=descriptor)
    made.settimeout(60)
    return made


Launch = Callable[..., socket.socket]


@pytest.fixture
def launch(place: Place) -> Iterator[Launch]:
    """Ask the server for a channel, as root's ``agentguard run`` does."""
    made: list[socket.socket] = []

    def launch(
        agent: str = "clerk", uid: int = PROGRAM, vouches_for: Sequence[str] = ()
    ) -> socket.socket:
        channel = channel_for(place.folder / "s", agent, uid, vouches_for, timeout=30)
        channel.settimeout(60)
        made.append(channel)
        return channel

    yield launch
    for one in made:
        one.close()


@pytest.fixture
def start(launch: Launch) -> Iterator[Callable[..., Program]]:
    """Start a program, and connect as the program."""
    made: list[Program] = []

    def start(*, uid: int = PROGRAM, **asked: object) -> Program:
        made.append(Program(launch(uid=uid, **asked), uid))
        return made[-1]

    yield start
    for one in made:
        one.close()


def is_closed(channel: socket.socket) -> bool:
    """Whether the server has closed a channel; waits for an answer or the end."""
    try:
        return channel.recv(1 << 16) == b""
    except ConnectionError:
        return True


# --- what a program is ----------------------------------------------------------------------------


def test_a_program_is_no_other_agent(start):
    program = start()
    for name in ("helper", "mole", "*", "cl*"):
        assert program.code("agent", name=name) in ("agent.refused", "agent.unknown")
        assert program.code("instance", name=name) in ("agent.refused", "agent.unknown")
    assert program.code("instance", name="clerk") is None


def test_a_program_vouches_for_nobody_whom_the_launcher_has_not_named(start):
    terms = {"scope": ["read"], "expires_in": 60, "max_depth": 2, "audience": None}
    program = start(agent="helper")
    assert program.code("delegate", subject="user:alice", **terms) == "principal.refused"
    program = start(agent="helper", vouches_for=["user:al*"])
    assert program.code("delegate", subject="user:mallory", **terms) == "principal.refused"
    assert program.code("delegate", subject="user:alice", **terms) is None


def test_a_program_answers_no_request_by_its_word(start, intrude):
    asked = {"request": "{}", "verdict": "approve", "principal": "user:bob", "note": ""}
    assert start().code("approvals.vouch", **asked) == "approval.refused"
    assert intrude(DESK).code("approvals.vouch", **asked) != "approval.refused"


def test_a_program_does_not_look_after_the_server_even_under_its_user(start, place):
    program = start(uid=os.getuid())
    assert program.greeting["isolation"] == "same-user"
    assert program.code("status") == "server.remote"
    assert program.code("accept_tool", agent="clerk", tool="note") == "server.remote"
    assert place.status()["draining"] is False  # the twin: the server's own user, by path


def test_the_calls_of_a_program_have_its_name_on_record(start, place):
    program = start()
    program.call(program.agent("clerk"), program.tool("note"))
    (call,) = place.calls()
    assert call.client is not None
    assert (call.client.name, call.client.isolation) == ("run:clerk", "separate-user")


def test_the_records_of_programs_are_each_users_own(start):
    program, other = start(), start(uid=MALLORY)
    program.got("runs.write", b"of the program", name="run")
    for name in ("run", f"{PROGRAM}\0run", f"run:clerk\0{PROGRAM}\0run"):
        assert other.got("runs.read", name=name).header["is_there"] is False
        other.got("runs.write", b"forged", name=name)
    assert program.got("runs.read", name="run").blobs == [b"of the program"]
    again = start()  # the twin: a program of the same user goes on with a run
    assert again.got("runs.read", name="run").blobs == [b"of the program"]


def test_a_program_under_the_user_of_no_client_has_nothing_by_path(place, start):
    assert start().code("instance", name="clerk") is None  # the twin
    assert asked_to_launch(place, PROGRAM, op="hello", protocol=1) == "server.stranger"


def test_a_program_under_the_user_of_a_client_has_only_the_table_s_rights_by_path(start, intrude):
    program, client = start(uid=MALLORY), intrude(MALLORY)
    assert (program.code("agent", name="clerk"), program.code("agent", name="mole")) == (
        None,
        "agent.refused",
    )
    assert (client.code("agent", name="clerk"), client.code("agent", name="mole")) == (
        "agent.refused",
        None,
    )


def test_the_session_of_a_program_is_joined_over_its_channel_alone(launch, intrude):
    channel, other = launch(uid=MALLORY), launch(uid=MALLORY)
    program = Program(channel, MALLORY)
    handle = program.greeting["session"]
    by_path, of_other = intrude(MALLORY, session=handle), Program(other, MALLORY, handle)
    joined = Program(channel, MALLORY, handle)
    assert [one.error and one.error["code"] for one in (by_path, of_other)] == [
        "server.restarted"
    ] * 2
    assert joined.error is None
    agent = program.agent("clerk")
    assert joined.call(agent, joined.tool("note"), {"text": "x"}).header["step"] == "run"
    for one in (program, of_other, joined):
        one.close()


def test_the_records_of_runs_are_those_of_the_program_s_kind(start, intrude):
    clerk, helper = start(), start(agent="helper")
    assert clerk.code("runs.write", b"mine", name="n") is None
    assert start().got("runs.read", name="n").blobs == [b"mine"]  # the same agent, started again
    for other in (helper, intrude(MALLORY), intrude(VICTIM)):
        assert not other.got("runs.read", name="n").blobs


def test_no_client_of_the_configuration_has_the_name_of_a_program(place):
    def read(name: str) -> config.Config:
        tables = {"server": {"url": "unix:s"}, "clients": {name: {"uid": 1}}}
        return config.parse(tables, source="agentguard.toml", base=place.folder)

    with pytest.raises(ConfigError, match="names with run:"):
        read("run:clerk")
    assert read("run-clerk").clients


# --- who starts programs --------------------------------------------------------------------------


def asked_to_launch(place: Place, by: int, **members: object) -> str | None:
    """Ask for a channel as a user; return the code of the refusal, None for a channel."""
    asked = {"op": "launch", "agent": "clerk", "uid": by, "vouches_for": [], **members}
    connected = dialled(place.folder / "s", by)
    stream = Stream(connected)
    try:
        first = stream.read().header
        if "error" in first:
            return str(first["error"]["code"])
        with acting_as(by):
            stream.write(Frame(asked))
        answer, descriptor = stream.read_with()
        if descriptor is not None:
            os.close(descriptor)
        assert (descriptor is None) == ("error" in answer.header)
        return answer.header["error"]["code"] if descriptor is None else None
    finally:
        stream.close()


def test_no_other_user_starts_programs(place):
    assert asked_to_launch(place, STRANGER) == "server.stranger"
    for uid in (MALLORY, VICTIM, DESK):
        assert asked_to_launch(place, uid) == "server.launch"
        assert asked_to_launch(place, uid, uid=0) == "server.launch"
    assert asked_to_launch(place, 0, uid=MALLORY) is None


def test_a_program_starts_no_program(launch):
    asked = {"op": "launch", "agent": "helper", "vouches_for": ["*"]}
    for uid in (PROGRAM, 0):
        connected = Stream(connection(launch(uid=uid), uid))
        connected.read()
        with acting_as(uid):
            connected.write(Frame({**asked, "uid": uid}))
        answer, descriptor = connected.read_with()
        assert (answer.header["error"]["code"], descriptor) == ("server.launch", None)
        connected.close()
    channel = launch()
    with acting_as(PROGRAM):
        channel.send(encode(Frame({**asked, "uid": PROGRAM})))
    assert is_closed(channel)


@pytest.mark.parametrize(
    "members",
    [
        {"uid": -1},
        {"uid": (1 << 32) - 1},
        {"uid": 1 << 40},
        {"uid": True},
        {"uid": "1000"},
        {"uid": None},
        {"uid": 1.5},
        {"agent": "nobody-s"},
        {"agent": "*"},
        {"agent": "cl*"},
        {"agent": ["clerk", "helper"]},
        {"agent": None},
        {"vouches_for": "user:*"},
        {"vouches_for": [1]},
        {"vouches_for": None},
    ],
)
def test_a_malformed_request_starts_nothing(place, members):
    assert asked_to_launch(place, 0, **members) in ("frame.malformed", "agent.unknown")
    assert asked_to_launch(place, 0) is None


# --- the descriptor -------------------------------------------------------------------------------


def test_a_channel_that_was_passed_on_is_of_no_use(launch):
    def ask(channel: socket.socket) -> Callable[[], object]:
        def ask() -> object:
            channel.send(ASKS)
            return Stream(channel).read_with()[1] is not None

        return ask

    for uid in (VICTIM, MALLORY, STRANGER):
        channel = launch()
        assert in_process_of(uid, ask(channel)) == "EndedError"
        assert is_closed(channel)
    assert in_process_of(PROGRAM, ask(launch())) == "True"


def test_a_connection_that_was_passed_on_is_of_no_use(launch):
    def ask(program: Program) -> Callable[[], object]:
        def ask() -> object:
            program.stream.write(Frame({"op": "instance", "name": "clerk"}))
            return "uri" in program.stream.read().header

        return ask

    for uid, said in ((VICTIM, "EndedError"), (PROGRAM, "True")):
        program = Program(launch(), PROGRAM)
        assert in_process_of(uid, ask(program)) == said
        program.close()


def test_the_rest_of_a_channel_goes_on_beside_a_thief(start):
    """Whoever passes a channel on loses the channel alone, and no connection."""
    program = start()
    agent, tool = program.agent("clerk"), program.tool("note")
    channel = program.channel
    with acting_as(MALLORY):
        channel.send(ASKS)
    assert is_closed(channel)
    assert program.call(agent, tool, {"text": "x"}).header["step"] == "run"


def test_the_server_takes_no_descriptor(place, launch, start):
    folder = Path(f"/proc/{place.server.pid}/fd")
    before = len(list(folder.iterdir()))
    sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 10))]
    for _ in range(20):
        channel = launch()
        with acting_as(PROGRAM):
            channel.sendmsg([ASKS], sent)
        assert is_closed(channel)
        channel.close()
    place.wait_for(lambda: len(list(folder.iterdir())) <= before, "the descriptors are closed")
    assert start().code("instance", name="clerk") is None  # the twin


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        ASKS[:-1],
        ASKS + b"x",
        bytes(range(64)),
        b"\0" * 1000,
        encode(Frame({"op": "hello", "protocol": 1, "session": None})),
        encode(Frame({"op": ["connection"]})),
        encode(Frame({"op": "connection"}, [b"x" * 70_000])),
    ],
)
def test_a_packet_that_is_no_request_ends_the_channel_alone(launch, packet):
    channel, other = launch(), launch()
    with acting_as(PROGRAM):
        channel.send(packet)
    assert is_closed(channel)
    Program(other, PROGRAM).close()


def test_a_program_that_reads_no_answer_holds_up_nobody(place, launch, start):
    """Few descriptors wait for a program at a time: those in flight are counted for the server."""
    folder = Path(f"/proc/{place.server.pid}/fd")
    before, channel = len(list(folder.iterdir())), launch()
    channel.setblocking(False)
    with acting_as(PROGRAM):
        for _ in range(2000):
            try:
                channel.send(ASKS)
            except BlockingIOError:
                time.sleep(0.001)
    assert len(list(folder.iterdir())) < before + 100
    good = start()
    assert good.code("instance", name="clerk") is None


# --- the program of the command -------------------------------------------------------------------


def started(place: Place, *words: str, user: str = OTHER) -> str:
    """Run a program as root's ``agentguard run`` does; return what it prints."""
    result = place.programs.run(
        *("-m", "agentguard.cli", "run", "--agent", "clerk", "--user", user, "--"),
        *words,
        cwd=place.folder,
        env={**os.environ, "AGENTGUARD_PASSPHRASE": "swordfish", "PATH": "/usr/bin:/bin"},
    )
    return result.stdout + result.stderr


def test_a_program_reads_neither_keys_nor_log(place):
    for name in ("passphrase", "token"):
        assert "Permission denied" in started(place, "cat", name)
    assert "Permission denied" in started(place, "ls", "state")
    assert "package agent.authz" in started(place, "cat", "authz.rego")  # the twin


def test_a_program_has_nothing_of_root_s(place):
    said = started(place, "cat", "/proc/self/status")
    rows = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    account = pwd.getpwnam(OTHER)
    assert rows["Uid"].split() == [str(account.pw_uid)] * 4
    assert rows["Gid"].split() == [str(account.pw_gid)] * 4
    assert rows["Groups"].split() == [str(one) for one in os.getgrouplist(OTHER, account.pw_gid)]
    assert {rows[name].strip("0") for name in ("CapPrm", "CapEff", "CapAmb")} == {""}
    assert rows["NoNewPrivs"] == "1"
    assert "swordfish" not in started(place, "env")


def test_a_program_gets_no_file_of_the_launcher_s(place):
    secret = place.folder / "passphrase"
    code = (
        "import os, runpy, sys\n"
        f"os.set_inheritable(os.open({str(secret)!r}, os.O_RDONLY), True)\n"
        "sys.argv = ['agentguard', 'run', '--agent', 'clerk', '--user', sys.argv[1], '--',"
        " 'ls', '-l', '/proc/self/fd']\n"
        "runpy.run_module('agentguard.cli', run_name='__main__', alter_sys=True)\n"
    )
    result = place.programs.run("-c", code, OTHER, cwd=place.folder)
    assert result.returncode == 0
    assert "passphrase" not in result.stdout
    assert " 3 -> socket:" in result.stdout


IN_A_TERMINAL = """
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b""
try:
    while data := os.read(terminal, 1000):
        said += data
except OSError:
    pass
print(said.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

TYPES = """
import errno, fcntl, os, sys, termios
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
    print("typed")
except OSError as error:
    print(errno.errorcode[error.errno])
sys.exit(7)
"""


BECOMES = """
import os, pwd, sys
account = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setresgid(*[account.pw_gid] * 3)
os.setresuid(*[account.pw_uid] * 3)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes a user, and keeps the terminal."""


@pytest.mark.skipif(why_not_other() is not None, reason=str(why_not_other()))
def test_a_program_types_nothing_into_root_s_terminal(place):
    def said(*launcher: str) -> list[str]:
        words = (*launcher, *interpreter_of_other(), "-c", TYPES)
        return place.programs.run("-c", IN_A_TERMINAL, *words, cwd=place.folder).stdout.split()

    run = ("-m", "agentguard.cli", "run", "--agent", "clerk", "--user", OTHER, "--")
    assert said(sys.executable, *run) == ["EPERM", "7"]
    switch = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if not switch.exists() or switch.read_text(encoding="ascii").strip() == "1":
        assert said(sys.executable, "-c", BECOMES, OTHER) == ["xtyped", "7"]  # the twin


SIGNALLED = """
import os, pty, signal, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-m", "agentguard.cli", "run", *sys.argv[2:]])
while b"ready" not in os.read(terminal, 1000):
    pass
os.kill(child, int(sys.argv[1]))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done", 5),
        ("echo ready; exec sleep 600", 128 + signal.SIGTERM),
    ],
)
def test_a_program_in_a_terminal_gets_the_signals_of_its_launcher(place, program, code):
    words = ("--agent", "clerk", "--user", OTHER, "--", "sh", "-c", program)
    result = place.programs.run(
        "-c", SIGNALLED, str(signal.SIGTERM.value), *words, cwd=place.folder
    )
    assert result.stdout == f"{code}\n"
