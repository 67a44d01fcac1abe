"""What a client under another user reaches: files, the server's process, descriptors of others."""

from __future__ import annotations

import array
import ctypes
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from served_intruder import (
    MALLORY,
    SERVER,
    STRANGER,
    VICTIM,
    Intruder,
    acting_as,
    in_process_of,
)

from agentguard import Guard, ServerError
from agentguard.client.dial import AtPath
from agentguard.client.link import Link
from agentguard.wire.frame import Frame, encode
from agentguard.wire.stream import Stream

HELLO = encode(Frame({"op": "hello", "protocol": 1, "session": None}))


def answer_to(connected):
    connected.settimeout(30)
    try:
        return Stream(connected).read().header
    except (OSError, ValueError):
        return None


# --- files ----------------------------------------------------------------------------------------


def test_keys_log_and_secrets_are_unreadable(place):
    files = [path for path in (place.folder / "state").rglob("*") if path.is_file()]
    files += [place.folder / name for name in ("passphrase", "token")]
    assert len(files) > 5

    def read_all():
        readable = []
        for path in files:
            for mode in ("rb", "ab"):
                try:
                    with path.open(mode):
                        readable.append(path)
                except PermissionError:
                    pass
        return readable

    assert in_process_of(MALLORY, read_all) == "[]"
    assert in_process_of(MALLORY, lambda: list((place.folder / "state").iterdir())) == (
        "PermissionError"
    )
    assert in_process_of(MALLORY, lambda: (place.folder / "authz.rego").read_bytes() != b"") == (
        "True"  # the twin: what everybody may read
    )


def test_nobody_else_replaces_the_socket_or_locks_the_server_out(place, intrude):
    def attack():
        done = []
        for work in (
            (place.folder / "s").unlink,
            lambda: (place.folder / "s").rename(place.folder / "t"),
            (place.folder / "s.lock").touch,
        ):
            try:
                work()
                done.append(work)
            except PermissionError:
                pass
        return done

    assert in_process_of(MALLORY, attack) == "[]"
    assert intrude().error is None  # the twin


# --- the server's process -------------------------------------------------------------------------

ATTACH, PIDFD_OPEN, PIDFD_GETFD = 16, 434, 438


def takes(pid):
    """Return in which ways a process gets at another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    ways = []
    for name in ("mem", "environ", "maps", "fd/0", "cwd", "root", "exe"):
        try:
            path = f"/proc/{pid}/{name}"
            if name in ("mem", "environ", "maps"):
                os.close(os.open(path, os.O_RDONLY))
            else:
                Path(path).readlink()
            ways.append(name)
        except OSError:
            pass
    if libc.ptrace(ATTACH, pid, 0, 0) == 0:
        os.waitpid(pid, 0)
        libc.ptrace(17, pid, 0, 0)  # PTRACE_DETACH
        ways.append("ptrace")
    held = libc.syscall(PIDFD_OPEN, pid, 0)
    if held >= 0:
        for number in range(64):
            if libc.syscall(PIDFD_GETFD, held, number, 0) >= 0:
                ways.append(f"pidfd_getfd {number}")
                break
    local = struct.pack("PN", ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    remote = struct.pack("PN", 0x400000, 8)
    if libc.process_vm_readv(pid, local, 1, remote, 1, 0) > 0:
        ways.append("process_vm_readv")
    return ways


def test_a_debugger_of_another_user_gets_nothing(place):
    pid = place.server.pid
    assert in_process_of(MALLORY, lambda: takes(pid)) == "[]"


SERVES = """
import os, runpy, sys
from pathlib import Path
from agentguard.domain import config
from agentguard.guard import embedded

# the check of a policy starts Python, whose files the server's user may not be able to read
engine = embedded.open_engine(config.load(Path("agentguard.toml").resolve()))
embedded.open_engine = lambda _settings: engine
for path in (Path(), *Path().rglob("*")):
    os.chown(path, 64005, 64005)
os.setgroups([])
os.setresgid(64005, 64005, 64005)
os.setresuid(64005, 64005, 64005)
sys.argv = ["agentguard", "serve"]
runpy.run_module("agentguard.cli", run_name="__main__", alter_sys=True)
"""

SLEEPS = """
import ctypes, os, sys
os.setgroups([])
os.setresgid(64005, 64005, 64005)
os.setresuid(64005, 64005, 64005)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as a process is that no other user has started
print("serving", flush=True)
import time
time.sleep(120)
"""


@pytest.mark.parametrize(("program", "is_open"), [(SERVES, False), (SLEEPS, True)])
def test_a_debugger_of_the_servers_own_user_gets_nothing(own_place, program, is_open):
    place = own_place
    place.stop()
    place.server = place.programs.begin("-c", program, cwd=place.folder)
    place.wait_for(lambda: "serving" in place.said())
    pid = place.server.pid
    ways = in_process_of(SERVER, lambda: takes(pid))
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    (core,) = [line.split()[4:6] for line in limits.splitlines() if "core file" in line]
    if is_open:
        assert "mem" in ways
        assert "ptrace" in ways
        assert "pidfd_getfd" in ways
    else:
        assert ways == "[]"
        assert core == ["0", "0"]
        client = Intruder(place, MALLORY)
        client.close()
        assert client.error is None


# --- the connection -------------------------------------------------------------------------------


def test_a_stranger_is_refused(place):
    with acting_as(STRANGER), pytest.raises(ServerError) as caught:
        Guard.connect(place.url)
    assert caught.value.code == "server.stranger"
    with acting_as(MALLORY):  # the twin
        guard = Guard.connect(place.url)
        guard.close()


def test_a_stranger_holds_no_connection(place, dial):
    held = [dial(STRANGER) for _ in range(200)]
    for connected in held:
        assert Stream(connected).read().header["error"]["code"] == "server.stranger"
        assert connected.recv(1) == b""
    place.wait_for(lambda: place.status()["connections"] == 0)


def test_a_descriptor_passed_on_speaks_for_nobody(place, greeted):
    for uid, is_served in ((MALLORY, True), (VICTIM, False), (0, False), (STRANGER, False)):
        connected = greeted()
        with acting_as(uid):
            connected.sendall(HELLO)
        answer = answer_to(connected)
        assert (answer is not None and "session" in answer) == is_served


def test_a_descriptor_passed_on_in_the_middle_of_a_frame_speaks_for_nobody(place, greeted):
    for uid, is_served in ((MALLORY, True), (VICTIM, False)):
        connected = greeted()
        with acting_as(MALLORY):
            connected.sendall(HELLO[:10])
        with acting_as(uid):
            connected.sendall(HELLO[10:])
        answer = answer_to(connected)
        assert (answer is not None and "session" in answer) == is_served


def test_a_descriptor_passed_on_after_the_hello_speaks_for_nobody(place, intrude):
    for uid, is_served in ((MALLORY, True), (VICTIM, False)):
        client = intrude()
        client.uid = uid
        client.tell("instance", name="mole")
        answer = answer_to(client.socket)
        assert (answer is not None and "uri" in answer) == is_served


def test_credentials_can_not_be_forged(place):
    def forge():
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.connect(str(place.folder / "s"))
        Stream(connected).read()
        forged = struct.pack("3i", os.getpid(), VICTIM, VICTIM)
        connected.sendmsg([HELLO], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)])
        return "sent"

    assert in_process_of(MALLORY, forge) == "PermissionError"


def test_descriptors_are_not_taken(place, mallory, greeted):
    before = place_files(place)
    for _ in range(50):
        connected = greeted()
        sent = array.array("i", [0] * 10)
        with acting_as(MALLORY):
            connected.sendmsg([HELLO], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
        assert answer_to(connected) is None
    place.wait_for(lambda: place_files(place) <= before + 5, "the descriptors are closed")
    assert mallory.agent("mole")  # the twin


def place_files(place):
    return len(list(Path(f"/proc/{place.server.pid}/fd").iterdir()))


def test_urgent_bytes_do_no_harm(place, mallory, greeted):
    for data in (b"x", HELLO):
        connected = greeted()
        with acting_as(MALLORY):
            try:
                connected.send(data, socket.MSG_OOB)
                connected.sendall(HELLO)
            except OSError:  # a kernel without them
                pass
    assert mallory.agent("mole")


# --- sessions -------------------------------------------------------------------------------------


def test_a_stolen_session_is_of_no_use_to_another_user(place, victim, intrude):
    handle = victim.greeting["session"]
    stolen = intrude(session=handle)
    assert stolen.error["code"] == "server.restarted"
    guessed = intrude(session="0" * 64)
    assert guessed.error == stolen.error  # whether there is one, nobody learns
    joined = intrude(VICTIM, session=handle)  # the twin
    assert joined.error is None
    agent = victim.agent("clerk")
    assert joined.call(agent, joined.tool("note"), {"text": "x"}).header["step"] == "run"


@pytest.mark.parametrize("handle", ["", "x", "\0", "é" * 100, 5, [], {}, True, 1e300])
def test_a_handle_that_is_none_is_refused(place, handle, intrude):
    client = intrude(session=handle)
    assert client.error["code"] in {"server.restarted", "frame.malformed"}


def test_a_session_that_was_ended_is_over_on_all_connections(place, mallory, intrude):
    other = intrude(session=mallory.greeting["session"])
    agent, tool = mallory.agent("mole"), mallory.tool("note")
    assert other.call(agent, tool).header["step"] == "run"  # the twin
    assert mallory.code("end") is None
    assert mallory.is_closed()
    with suppress(BrokenPipeError):  # it may be closed already
        other.tell("flush")
    assert other.is_closed()
    assert intrude(session=mallory.greeting["session"]).error is not None


@pytest.mark.parametrize("protocol", [0, 2, None, "1", [1], 1e30])
def test_another_protocol_is_refused(place, protocol, greeted):
    connected = greeted()
    with acting_as(MALLORY):
        connected.sendall(encode(Frame({"op": "hello", "protocol": protocol, "session": None})))
    assert answer_to(connected)["error"]["code"] == "server.protocol"


def test_requests_before_the_hello_are_refused(place, greeted):
    for op in ("flush", "authorize", "approvals.pending", "status", "end"):
        connected = greeted()
        with acting_as(MALLORY):
            connected.sendall(encode(Frame({"op": op})))
        assert answer_to(connected)["error"]["code"] == "server.protocol"


def test_a_link_of_the_library_works_for_a_client(place):
    with acting_as(MALLORY):
        link = Link(AtPath(place.folder / "s"), timeout=30)
        assert link.connect().client == "mallory"
        link.close()
