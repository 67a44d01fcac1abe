"""Clients of a guard server on other machines: TLS, and a certificate for each client."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from certificates import LONG, Authority
from served_remote import BATCH, WEB, Remote

from agentguard import ApprovalPending, ConfigError, Denied, ServerError
from agentguard.call.client import Client as CallClient
from agentguard.client.dial import AtHost
from agentguard.client.link import Link
from agentguard.domain.config.server import Host
from agentguard.wire.frame import Frame
from agentguard.wire.stream import EndedError, Stream

SOON = """
from agentguard.server import tls
known = tls.Known
tls.Known = lambda client, ends_at: known(client, ends_at - 3599)
"""
"""Code for a server to which a certificate of one hour ends in one second."""


@pytest.fixture
def remote(founded) -> Remote:
    return Remote(founded)


def test_a_remote_client_makes_calls_as_its_agents(remote):
    guard = remote.open(remote.authority.issue("web", WEB))
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="note", requires=["read"])(lambda: "ok")
    with guard.delegate("user:alice", scope=["read"]):
        assert agent.call(tool) == "ok"
    with pytest.raises(ConfigError) as caught:
        guard.new_agent("helper")
    assert caught.value.code == "agent.refused"
    guard.close()
    (call,) = remote.place.calls()
    assert call.client == CallClient(name="web", isolation="remote")
    assert remote.place.verify().ok


def test_a_policy_reads_that_a_client_is_remote(remote):
    guard = remote.open(remote.authority.issue("web", WEB))
    with pytest.raises(Denied) as caught:
        guard.new_agent("clerk").call(guard.tool(name="far")(lambda: "ok"))
    assert "only from afar" in caught.value.reason


def test_a_remote_client_sees_requests_and_loses_its_rights_with_a_reload(remote):
    place, path = remote.place, remote.place.folder / "agentguard.toml"
    web, batch = remote.authority.issue("web", WEB), remote.authority.issue("batch", BATCH)
    guard = remote.open(web)
    agent, note = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(guard.tool(name="pay")(lambda: "paid"))
    remote.open(batch).close()

    def listed() -> str:
        words = ("-m", "agentguard.cli", "approvals", "list", "--json")
        return str(place.programs.run(*words, cwd=place.folder / "batch").stdout)

    def reload() -> None:
        command = ("-m", "agentguard.cli", "server", "reload")
        assert "clients" in place.programs.run(*command, cwd=place.folder).stdout

    assert pending.value.request.request_id not in listed()
    batch_right = 'agents = ["helper"]\nsees_requests = true'
    path.write_text(path.read_text("utf-8").replace('agents = ["helper"]', batch_right), "utf-8")
    reload()
    assert pending.value.request.request_id in listed()
    assert agent.call(note) == "ok"
    path.write_text(path.read_text("utf-8").replace(WEB, f"{WEB}0"), "utf-8")
    reload()
    with pytest.raises(Denied) as denied:
        agent.call(note)
    assert denied.value.code == "server.stranger"
    with pytest.raises(ServerError):
        remote.open(web)


@pytest.mark.parametrize("uris", [["spiffe://acme.example/other"], [], [WEB, BATCH]])
def test_a_certificate_that_is_no_clients_is_refused(remote, uris):
    with pytest.raises(ServerError) as caught:
        remote.open(remote.authority.issue("stranger", *uris))
    assert caught.value.code == "server.unreachable"
    assert "SPIFFE ID" in str(caught.value)  # the server can't say why
    assert "[clients]" in str(caught.value)
    assert remote.open(remote.authority.issue("web", WEB)).new_agent("clerk").name == "clerk"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_the_certificates_of_the_page_are_taken(founded):
    page = (Path(__file__).parents[2] / "docs/how-to/server-operations.md").read_text("utf-8")
    (commands,) = (block for block in page.split("```") if block.startswith("sh\nissue()"))
    commands = commands.removeprefix("sh\n").replace("DNS:guard.acme.example", "IP:127.0.0.1")
    folder = founded.folder / "made"
    folder.mkdir()
    subprocess.run(["sh", "-ec", commands], cwd=folder, check=True, capture_output=True)
    files = (folder / "server.pem", folder / "server.key")
    remote = Remote(founded, server=files, ca=folder / "ca.pem")
    client = remote.open((folder / "web-1.pem", folder / "web-1.key"), ca=folder / "ca.pem")
    assert client.new_agent("clerk").call(client.tool(name="note")(lambda: "ok")) == "ok"
    with pytest.raises(ServerError):  # the server's certificate is no client's
        remote.open(files, ca=folder / "ca.pem")


def test_a_certificate_of_another_authority_is_refused(remote):
    other = Authority(remote.place.folder, "other")
    with pytest.raises(ServerError):
        remote.open(other.issue("forged", WEB))


def test_a_file_of_a_client_that_is_not_there_is_named(remote):
    files = remote.authority.issue("web", WEB)
    absent = remote.place.folder / "absent.pem"
    for given, ca, name in (
        (files, absent, f"ca ({absent})"),
        ((absent, files[1]), None, f"certificate ({absent})"),
    ):
        with pytest.raises(ConfigError) as caught:
            remote.open(given, **({} if ca is None else {"ca": ca}))
        assert name in str(caught.value)
    remote.open(files)  # the twin


def test_an_expired_certificate_is_refused(remote):
    with pytest.raises(ServerError):
        remote.open(remote.authority.issue("late", WEB, hours=-1))


def test_a_server_that_another_authority_vouches_for_is_refused(remote):
    other = Authority(remote.place.folder, "other")
    with pytest.raises(ServerError):
        remote.open(remote.authority.issue("web", WEB), ca=other.file)


def test_a_server_of_another_name_is_refused(remote):
    with pytest.raises(ServerError):
        remote.open(remote.authority.issue("web", WEB), host="localhost")


def test_without_a_certificate_nobody_is_greeted(remote):
    with pytest.raises((ssl.SSLError, OSError)), remote.socket(None) as connected:
        Stream(connected).read()


def test_an_older_tls_is_refused(remote):
    files = remote.authority.issue("web", WEB)
    with pytest.raises((ssl.SSLError, OSError)):
        remote.socket(files, maximum_version=ssl.TLSVersion.TLSv1_2)
    with remote.socket(files) as connected:  # the twin
        assert Stream(connected).read().header == {"protocol": 1}


def test_a_client_without_tls_is_refused_and_stops_nobody(remote):
    with socket.create_connection(("127.0.0.1", remote.port), timeout=30) as plain:
        plain.sendall(b"\0" * 4096)
        with pytest.raises((OSError, EOFError, AssertionError)):
            assert plain.recv(1) == b"\x01"
    assert remote.open(remote.authority.issue("web", WEB)).new_agent("clerk").name == "clerk"


def test_a_session_is_joined_by_its_own_client_alone(remote):
    web = remote.open(remote.authority.issue("web", WEB))
    handle = web._parts._link._sessions[0]
    hello = {"op": "hello", "protocol": 1, "session": handle}
    with remote.socket(remote.authority.issue("batch", BATCH)) as connected:
        stream = Stream(connected)
        stream.read()
        stream.write(Frame(hello))
        assert stream.read().header["error"]["code"] == "server.restarted"
    with remote.socket(remote.authority.issue("web2", WEB)) as connected:  # the twin
        stream = Stream(connected)
        stream.read()
        stream.write(Frame(hello))
        assert stream.read().header["client"] == "web"


def test_a_remote_client_starts_no_programs(remote):
    with remote.socket(remote.authority.issue("web", WEB)) as connected:
        stream = Stream(connected)
        stream.read()
        stream.write(Frame({"op": "launch", "agent": "clerk", "uid": 0, "vouches_for": []}))
        assert stream.read().header["error"]["code"] == "server.launch"


@pytest.mark.parametrize(("hours", "seconds"), [(2, 7200), (24 * 400, 86_400)])
def test_a_connection_serves_until_its_certificate_ends_or_for_a_day(remote, hours, seconds):
    with remote.socket(remote.authority.issue("web", WEB, hours=hours)) as connected:
        stream = Stream(connected)
        assert stream.read().header == {"protocol": 1}
        stream.write(Frame({"op": "hello", "protocol": 1, "session": None}))
        assert seconds - 200 < stream.read().header["ends_in"] <= seconds
        assert not connected.session.has_ticket  # it would stand for the certificate after its end


def greeted(connected: ssl.SSLSocket) -> Stream:
    """Return a connection on which a client has a session."""
    stream = Stream(connected)
    stream.read()
    stream.write(Frame({"op": "hello", "protocol": 1, "session": None}))
    assert "session" in stream.read().header
    return stream


@pytest.mark.parametrize("position", range(4), ids=["root", "upper", "lower", "own"])
def test_a_connection_ends_with_the_first_certificate_of_its_chain(founded, position):
    """Each certificate of a chain in turn ends in an hour, and the others last for a year."""
    hours = [1 if one == position else LONG for one in range(4)]
    root = Authority(founded.folder, "root", hours=hours[0])
    upper = Authority(founded.folder, "upper", above=root, hours=hours[1])
    lower = Authority(founded.folder, "lower", above=upper, hours=hours[2])
    lasting = Authority(founded.folder, "lasting")
    both = founded.folder / "both.pem"
    both.write_bytes(root.file.read_bytes() + lasting.file.read_bytes())
    remote = Remote(founded, SOON, ca=both)
    beside = Authority(founded.folder, "beside", above=lasting)
    with (
        remote.socket(lower.issue("web", WEB, hours=hours[3])) as web,
        remote.socket(beside.issue("batch", BATCH, hours=LONG)) as batch,
    ):
        lasts = greeted(batch)
        web.settimeout(30)
        with pytest.raises((EndedError, ConnectionError, ssl.SSLError)):
            greeted(web).read()  # on a slow machine, the certificate has ended before
        lasts.write(Frame({"op": "flush"}))  # the twin
        assert lasts.read().header == {}


def test_an_idle_connection_ends_with_its_certificate(founded):
    remote = Remote(founded, SOON)
    with (
        remote.socket(remote.authority.issue("web", WEB, hours=1)) as web,
        remote.socket(remote.authority.issue("batch", BATCH, hours=2)) as batch,
    ):
        lasting = greeted(batch)
        web.settimeout(30)
        with pytest.raises((EndedError, ConnectionError, ssl.SSLError)):
            greeted(web).read()  # on a slow machine, the certificate has ended before
        lasting.write(Frame({"op": "flush"}))  # the twin
        assert lasting.read().header == {}


def test_a_client_takes_a_certificate_that_has_replaced_the_first(remote):
    other = Authority(remote.place.folder, "other")
    files = remote.authority.issue("web", WEB)
    good = [file.read_bytes() for file in files]
    forged = [
        file.read_bytes() for file in other.issue("web", WEB)
    ]  # now in the place of the first
    host = Host("127.0.0.1", remote.port, remote.authority.file, *files)
    link = Link(AtHost(host), timeout=30)
    with pytest.raises(ServerError):
        link.connect()
    files[0].write_bytes(good[0])  # the key is the forged one's still
    with pytest.raises(ServerError):
        link.connect()
    files[1].write_bytes(good[1])
    assert link.connect().client == "web"
    files[0].write_bytes(forged[0])  # between two files, the last whole pair counts
    assert link.connect().client == "web"
    files[1].write_bytes(forged[1])
    with pytest.raises(ServerError):
        link.connect()
    link.close()
