"""A guard server whose clients are the users of a Unix group."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from contextlib import closing

from launched import OTHER, uid_of_other
from served_intruder import STRANGER, Intruder, dialled, require_root

from agentguard.wire.stream import Stream

CREW = """
[clients.own]
uid = {own}

[clients.crew]
group = "{group}"
agents = ["clerk"]
"""

MEMBERS = """
import grp
from pathlib import Path

class Crew:
    gr_gid = 64_999

    @property
    def gr_mem(self):
        return Path("members").read_text().split()

grp.getgrnam = {"crew": Crew()}.__getitem__
"""
"""Code for a server on a machine with a group ``crew``, whose users a file names."""


def serve(founded, group: str, before: str = "") -> None:
    require_root()
    path = founded.folder / "agentguard.toml"
    text = CREW.format(own=os.getuid(), group=group)
    path.write_text(path.read_text("utf-8") + text, "utf-8")
    founded.folder.chmod(0o755)
    founded.start(before)


def refusal(founded, uid: int) -> str:
    """Return the code with which the server refuses a user who connects."""
    with closing(dialled(founded.folder / "s", uid)) as connected:
        return str(Stream(connected).read().header["error"]["code"])


def test_a_user_of_the_group_is_a_client_with_a_name_of_their_own(founded):
    group = grp.getgrgid(pwd.getpwnam(OTHER).pw_gid).gr_name
    serve(founded, group)
    member = Intruder(founded, uid_of_other())
    assert member.greeting["client"] == f"crew/{OTHER}"
    step = member.call(member.agent("clerk"), member.tool("note")).header["step"]
    assert step == "run"
    assert member.code("instance", name="helper") == "agent.refused"
    (call,) = founded.calls()
    assert call.client is not None
    assert (call.client.name, call.client.isolation) == (f"crew/{OTHER}", "separate-user")
    assert refusal(founded, STRANGER) == "server.stranger"
    doctor = founded.programs.run("-m", "agentguard.cli", "doctor", cwd=founded.folder)
    assert f"client crew/{OTHER}" in doctor.stdout
    member.close()


def test_who_has_left_the_group_is_a_client_until_the_reload(founded):
    members, other = founded.folder / "members", uid_of_other()
    members.write_text(OTHER)
    serve(founded, "crew", MEMBERS)
    one, reloads = Intruder(founded, other), 0
    assert one.agent("clerk")

    def reload() -> None:
        nonlocal reloads
        reloads += 1
        os.kill(founded.server.pid, signal.SIGHUP)
        founded.wait_for(lambda: founded.said().count("loaded anew: clients\n") == reloads)

    members.write_text("")
    assert one.agent("clerk")
    Intruder(founded, other).close()
    reload()
    assert one.code("instance", name="clerk") == "server.stranger"
    assert refusal(founded, other) == "server.stranger"
    members.write_text(OTHER)
    reload()
    with closing(Intruder(founded, other)) as back:
        assert back.agent("clerk")
    one.close()


def test_a_group_that_is_gone_leaves_the_earlier_clients_in_force(founded):
    (founded.folder / "members").write_text(OTHER)
    serve(founded, "crew", MEMBERS)
    path = founded.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8").replace('"crew"', '"crow"'), "utf-8")
    os.kill(founded.server.pid, signal.SIGHUP)
    founded.wait_for(lambda: "clients.crew.group: expected the name of a group" in founded.said())
    with closing(Intruder(founded, uid_of_other())) as member:
        assert member.greeting["client"] == f"crew/{OTHER}"
