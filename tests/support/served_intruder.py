"""Clients of a guard server that speak raw frames, under any user of the machine.

The tests have to be root for that: the kernel tells the server who sends each message.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served_place import Place

from agentguard.errors import AgentguardError
from agentguard.signing import canonical
from agentguard.signing.keys import Ed25519Signer
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

MALLORY, VICTIM, DESK, STRANGER, SERVER, APPROVER = range(64_001, 64_007)
"""Users of the machine, none of whom has a name."""

CAROL = Ed25519Signer.from_seed(os.urandom(32))
"""The key of an approver."""

CLIENTS = f"""
[approvers.carol]
principal = "user:carol"
keys = ["{CAROL.public_key.openssh()}"]
roles = ["manager"]

[agents.mole]
authority = "own"
max_scope = ["pay", "read"]

[principals."user:mallory"]
roles = ["customer"]

[clients.own]
uid = {os.getuid()}
agents = ["clerk", "helper"]
vouches_for = ["user:alice"]

[clients.mallory]
uid = {MALLORY}
agents = ["mole"]
vouches_for = ["user:mallory"]

[clients.victim]
uid = {VICTIM}
agents = ["clerk", "helper"]
vouches_for = ["user:alice"]

[clients.desk]
uid = {DESK}
answers = true

[clients.approver]
uid = {APPROVER}
sees_requests = true
"""


def require_root() -> None:
    """Skip where no process can be made under another user."""
    if os.geteuid() != 0:
        pytest.skip("only root makes processes under other users")


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be another user in this process: a message has that sender."""
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def in_process_of(uid: int, work: Callable[[], Any]) -> Any:
    """Do ``work`` in a process of another user that can't come back; return the result as text."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():  # pytest-xdist has threads, of which the child needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        said = "died"
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said = str(work())
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent has to see it
            said = type(error).__name__
        finally:
            os.write(writes, said.encode()[:4000])
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


class Intruder:
    """A client with code of its own. ``greeting`` is the server's answer to the hello."""

    def __init__(self, place: Place, uid: int, session: str | None = None) -> None:
        self.uid = uid
        self.socket = dialled(place.folder / "s", uid)
        self.stream = Stream(self.socket)
        self.stream.read()
        self.greeting = self.ask("hello", protocol=1, session=session).header
        self.error = self.greeting.get("error")

    def ask(self, op: object, *blobs: bytes, **members: Any) -> Frame:
        """Send a request, and return the answer."""
        self.tell(op, *blobs, **members)
        return self.stream.read()

    def tell(self, op: object, *blobs: bytes, **members: Any) -> None:
        """Send a request, and read no answer."""
        with acting_as(self.uid):
            self.stream.write(Frame({"op": op, **members}, blobs))

    def got(self, op: object, *blobs: bytes, **members: Any) -> Frame:
        """Send a request, and return the answer; raise an error in the answer."""
        answer = self.ask(op, *blobs, **members)
        if "error" in answer.header:
            raise values.read_error(answer.header["error"])
        return answer

    def code(self, op: object, *blobs: bytes, **members: Any) -> str | None:
        """Send a request; return the reason code of its error, None for a request that works."""
        try:
            self.got(op, *blobs, **members)
        except AgentguardError as error:
            return error.code
        return None

    def agent(self, name: str) -> str:
        """Have an instance of an agent; return the name of the instance."""
        return str(self.got("instance", name=name).header["name"])

    def tool(self, name: str, **members: Any) -> str:
        """Register a tool; return its name in the session."""
        return str(self.got("tool", tool=described(name, **members)).header["name"])

    def call(self, agent: str, tool: str, arguments: Any = None, **members: Any) -> Frame:
        """Ask for the authorization of a call; return the answer."""
        asked = {**CALL, "request_id": new_id(), "agent": agent, "tool": tool, **members}
        data = arguments if isinstance(arguments, bytes) else canonical.dumps(arguments or {})
        return self.ask(asked.pop("op"), data, **asked)

    def is_closed(self) -> bool:
        """Whether the server has closed this connection."""
        self.socket.settimeout(30)
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.stream.close()


CALL = {
    "op": "authorize",
    "site": ["c", None, None, None],
    "task_id": None,
    "delegation": None,
    "folder": "/",
    "inside": None,
    "refusal": None,
    "has_codec": False,
    "reentrant": False,
    "is_traced": False,
    "unbound": [],
}
"""What a client says of a call, beside the names and the arguments."""


def described(name: str, **members: Any) -> dict[str, Any]:
    """Return a tool as a client describes it."""
    return {
        "name": name,
        "description": "",
        "schema": {},
        "origin": "app:tool",
        "requires": [],
        "resource": None,
        "attributes": {},
        "has_facts": False,
        "gives": [],
        "pinned_origin": None,
        "pinned_schema": None,
        "unlisted": None,
        **members,
    }


def new_id() -> str:
    """Return the id of a new request."""
    return os.urandom(16).hex()


def dialled(path: Path, uid: int) -> socket.socket:
    """Return a connection to a socket, made by another user."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(60)
    with acting_as(uid):
        made.connect(str(path))
    return made
