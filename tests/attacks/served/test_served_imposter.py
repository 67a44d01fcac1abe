"""Another user at the server's socket: a client finds out, and hands over no call.

The users serve sockets and connect to them in earnest, so these tests need root.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served_intruder import MALLORY, SERVER, VICTIM, acting_as, in_process_of, require_root

from agentguard import Denied
from agentguard.client.dial import AtPath
from agentguard.client.imposter import UNMAPPED
from agentguard.errors import AgentguardError

ROOT = 0

Serve = Callable[[int, Path], Path]


@pytest.fixture
def tree() -> Iterator[Path]:
    """A folder of root's with folders of several users."""
    require_root()
    top = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))
    top.chmod(0o755)
    for name, uid, mode in (
        ("server", SERVER, 0o755),
        ("group", SERVER, 0o775),
        ("open", SERVER, 0o777),
        ("mallory", MALLORY, 0o755),
        ("nobody", UNMAPPED, 0o755),
        ("tmp", ROOT, 0o1777),
        ("shared", ROOT, 0o777),
    ):
        (top / name).mkdir()
        (top / name).chmod(mode)
        os.chown(top / name, uid, uid)
    (top / "mallory" / "server").mkdir()
    os.chown(top / "mallory" / "server", SERVER, SERVER)
    with acting_as(MALLORY):
        (top / "tmp" / "squat").mkdir()
        (top / "tmp" / "link").symlink_to(top / "mallory")
    for folder in ("tmp", "shared"):  # of "shared", everybody can take the link out
        (top / folder / "of-root").symlink_to(top / "server")
    (top / "link").symlink_to("server")
    yield top
    shutil.rmtree(top)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Listens at a path under a user."""
    listening: list[socket.socket] = []

    def serve(uid: int, path: Path) -> Path:
        listening.append(socket.socket(socket.AF_UNIX))
        path.parent.chmod((mode := path.parent.stat().st_mode) | 0o002)  # to get there at all
        with acting_as(uid):
            listening[-1].bind(str(path))
            listening[-1].listen()
        path.parent.chmod(mode)
        path.chmod(0o666)
        return path

    yield serve
    for one in listening:
        one.close()


def code(client: int, path: Path) -> str:
    """Return the reason code with which a client of this user refuses the server at a path."""

    def connects() -> str | None:
        try:
            AtPath(path)(5).close()
        except AgentguardError as error:
            return error.code
        return None

    return str(in_process_of(client, connects))


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (MALLORY, "server/s"),
        (MALLORY, "group/s"),
        (MALLORY, "open/s"),
        (SERVER, "open/s"),
        (SERVER, "group/s"),
        (MALLORY, "tmp/s"),
        (MALLORY, "tmp/squat/s"),
        (SERVER, "tmp/s"),
        (SERVER, "mallory/server/s"),
        (SERVER, "shared/of-root/s"),
        (UNMAPPED, "tmp/s"),
    ],
)
def test_a_server_that_anybody_could_be_is_refused(tree, serve, server, name):
    assert code(VICTIM, serve(server, tree / name)) == "server.imposter"


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (SERVER, "server/s"),
        (ROOT, "tmp/s"),
        (ROOT, "open/s"),
        (VICTIM, "tmp/s"),
        (MALLORY, "mallory/s"),  # the path names what is mallory's
        (UNMAPPED, "nobody/s"),
    ],
)
def test_a_server_that_nobody_else_can_be_is_accepted(tree, serve, server, name):
    assert code(VICTIM, serve(server, tree / name)) == "None"


def test_a_link_counts_as_the_folder_in_which_it_is(tree, serve):
    serve(MALLORY, tree / "mallory" / "s")
    serve(SERVER, tree / "server" / "s")
    assert code(VICTIM, tree / "tmp" / "link" / "s") == "server.imposter"
    assert code(VICTIM, tree / "tmp" / "of-root" / ".." / "mallory" / "s") == "None"
    assert code(VICTIM, tree / "tmp" / "of-root" / "s") == "None"  # the twins
    assert code(VICTIM, tree / "link" / "s") == "None"


def test_the_number_of_users_without_a_number_is_nobodys_own(tree, serve):
    assert code(UNMAPPED, serve(UNMAPPED, tree / "tmp" / "s")) == "server.imposter"
    assert code(UNMAPPED, serve(UNMAPPED, tree / "nobody" / "s")) == "None"


def test_a_call_goes_to_no_server_that_has_taken_the_place_of_another(own_place, serve):
    guard, ran = own_place.connect(), []
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: ran.append(1))
    agent.call(tool)
    own_place.stop()
    own_place.folder.chmod(0o777)
    serve(MALLORY, own_place.folder / "s")
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == "server.imposter"
    own_place.folder.chmod(0o755)
    (own_place.folder / "s").unlink()
    own_place.start()
    agent.call(tool)
    assert ran == [1, 1]
