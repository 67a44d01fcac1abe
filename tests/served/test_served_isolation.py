"""How a client is kept apart from its guard server, as the server sees it; who starts programs."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest

from agentguard import ServerError
from agentguard.domain.config.clients import ClientConfig
from agentguard.guard.embedded import open_embedded
from agentguard.server.launch import read_launch
from agentguard.server.peer import Peer
from agentguard.server.sessions import Sessions

SERVER, OTHER = 64_001, 64_002


@pytest.mark.parametrize(
    ("uid", "isolation"), [(0, "same-user"), (SERVER, "same-user"), (OTHER, "separate-user")]
)
def test_root_is_no_user_apart_from_the_server(founded, monkeypatch, uid, isolation):
    parts = open_embedded(founded.settings, None, is_server=True)
    monkeypatch.setattr(os, "getuid", lambda: SERVER)
    settings = replace(founded.settings, clients={"c": ClientConfig("c", uid)})
    sessions, (ours, theirs) = Sessions(settings, settings.server, parts), socket.socketpair()
    with ours, theirs:
        peer = Peer(ours, sessions.shares.of(uid), uid=uid)
        session = sessions.join(None, peer, None)
        assert session.isolation == isolation
        assert session.looks_after_server is (isolation == "same-user")
        stranger = Peer(ours, sessions.shares.of(64_003), uid=64_003)
        with pytest.raises(ServerError) as refused:
            sessions.join(None, stranger, None)
        assert (refused.value.code, "the user 64003" in str(refused.value)) == (
            "server.stranger",
            True,
        )
        gone = ClientConfig("web", None, spiffe="spiffe://acme.example/web")
        with pytest.raises(ServerError, match="this certificate or token") as refused:
            sessions.join(None, Peer(ours, stranger.share, client=gone), None)
        assert refused.value.code == "server.stranger"
    sessions.end()
    parts.close()


@pytest.mark.parametrize(
    ("requester", "uid", "is_refused"),
    [
        (0, OTHER, False),
        (0, SERVER, False),
        (SERVER, SERVER, False),
        (SERVER, OTHER, True),
        (OTHER, OTHER, True),
        (0, 0, True),
        (SERVER, 0, True),
    ],
)
def test_root_starts_programs_for_all_and_the_server_s_user_for_itself(requester, uid, is_refused):
    asked = {"uid": uid, "agent": "clerk", "vouches_for": []}
    if is_refused:
        with pytest.raises(ServerError) as refused:
            read_launch(asked, requester, SERVER, lambda _agent: None)
        assert refused.value.code == "server.launch"
    else:
        assert read_launch(asked, requester, SERVER, lambda _agent: None).uid == uid
