"""A user logs out at the provider: what an MCP gateway over HTTP then still does for the user.

The gateway is a client of a guard server, whose token service takes the log-out. A real provider's
log-out is in ``test_keycloak.py``.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import TYPES, ask, challenge_of, gateway_process
from login_provider import Provider, acme
from ports import free_port
from served_place import founded_place

ROOT = Path(__file__).parents[2]
SCRIPTED = ROOT / "integrations" / "agentguard-mcp" / "tests" / "support" / "scripted_server.py"
COMMAND = json.dumps([sys.executable, "-I", "-S", str(SCRIPTED)])

CONFIG = """
[service]
issuer = "{service}"
listen = "127.0.0.1:{service_port}"

{acme}logout_audience = ["chat"]

[principals."user:bob"]
roles = ["customer"]

[clients.gateway]
uid = {uid}
agents = ["helper"]

[mcp.files]
command = {command}
agent = "helper"

[mcp.files.serve]
listen = "127.0.0.1:{port}"
url = "{url}"

[mcp.files.oauth]
issuers = ["acme"]
ignore_scope = true
"""

POLICY = """package agent.authz
default allow := false
allow if input.action == "echo"
"""

HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}

SOON = """
from agentguard_mcp.gateway.http import bearer, endpoint

bearer.RECHECK = endpoint.RECHECK = 0.2
"""
"""Code for a gateway that verifies tokens again after 0.2 seconds, and not after a minute."""


class LogIn:
    """A user who has logged in, and whose client speaks to the gateway at ``url``."""

    def __init__(self, scene: Scene, user: str) -> None:
        self._scene = scene
        self._of = {"sub": f"sub-of-{user}", "sid": secrets.token_hex(8)}
        self._token = scene.provider.token(preferred_username=user, aud=scene.url, **self._of)
        self.headers = {**TYPES, "authorization": f"Bearer {self._token}"}

    def ask(self, method: str, **params: Any) -> httpx.Response:
        """Send a request that needs no session."""
        return ask(self._scene.url, self._token, method, **params)

    def call(self) -> httpx.Response:
        """Call a tool."""
        return self.ask("tools/call", name="echo", arguments={"text": "a"})

    def begin(self) -> None:
        """Begin a session (revision 2025-11-25), in which ``call_in_session`` calls."""
        begun = httpx.post(self._scene.url, json=HELLO, headers=self.headers, timeout=30)
        self.headers["mcp-session-id"] = begun.headers["mcp-session-id"]

    def call_in_session(self) -> httpx.Response:
        """Call a tool in the session."""
        params = {"name": "echo", "arguments": {"text": "a"}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return httpx.post(self._scene.url, json=call, headers=self.headers, timeout=30)

    def log_out(self) -> None:
        """Have the provider tell the token service that the user has logged out."""
        form = {"logout_token": self._scene.provider.logout_token(aud="chat", **self._of)}
        answer = httpx.post(f"{self._scene.service}/backchannel-logout", data=form, timeout=30)
        assert answer.status_code == 200, answer.text


class Scene:
    """A guard server with a token service, and a gateway in front of a server with tools."""

    def __init__(self, provider: Provider, service: str, url: str) -> None:
        self.provider = provider
        self.service = service
        self.url = url

    def log_in(self, user: str) -> LogIn:
        """Return a new log-in of a user."""
        return LogIn(self, user)


@contextmanager
def serving(programs, tmp_path, before: str = "") -> Iterator[tuple[Scene, Any]]:
    """Start the guard server and the gateway, whose process runs the code ``before`` first."""
    provider = Provider(tmp_path)
    port, service_port = free_port(), free_port()
    url, service = f"http://127.0.0.1:{port}/mcp", f"http://127.0.0.1:{service_port}"
    table = acme(url, keys=f'jwks_file = "{provider.path}"')
    given = {"port": port, "service_port": service_port, "url": url, "service": service}
    more = CONFIG.format(**given, acme=table, uid=os.getuid(), command=COMMAND)
    with founded_place(programs, more) as place:
        (place.folder / "authz.rego").write_text(POLICY, encoding="utf-8")
        place.start()
        with gateway_process(programs, place.folder, "files", before) as served:
            assert served == url
            yield Scene(provider, service, url), place
        assert place.verify().problems == ()


def works(answer: httpx.Response) -> bool:
    """Return whether a call ran."""
    return answer.status_code == 200 and answer.json()["result"]["isError"] is False


def test_the_call_after_a_log_out_is_refused_at_once(programs, tmp_path):
    with serving(programs, tmp_path) as (scene, place):
        alice, elsewhere, bob = (scene.log_in(user) for user in ("alice", "alice", "bob"))
        assert [works(one.call()) for one in (alice, elsewhere, bob)] == [True] * 3
        alice.begin()
        bob.begin()
        alice.log_out()
        refused = alice.call_in_session()
        assert refused.status_code == 401
        assert challenge_of(refused)["error"] == "invalid_token"
        assert "delegation.logged_out" in refused.text
        assert bob.call_in_session().status_code == 200  # the twin
        assert works(bob.call())  # the twin
        assert works(elsewhere.call())  # the twin: the same user, who has logged in twice
        assert alice.call().status_code == 401
        assert works(scene.log_in("alice").call())
        refusals = [(one.principal, one.code) for one in place.calls() if one.decision == "deny"]
    assert refusals == [("user:alice", "delegation.logged_out")]


def test_lists_and_streams_end_once_the_gateway_looks_again(programs, tmp_path):
    with serving(programs, tmp_path, SOON) as (scene, _place), httpx.Client(timeout=30) as http:
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        listening = {}
        for one in (alice, bob):
            one.begin()
            listening[one] = {**one.headers, "accept": "text/event-stream"}
        short = httpx.Timeout(30, read=1)
        with (
            http.stream("GET", scene.url, headers=listening[bob], timeout=short) as of_bob,
            http.stream("GET", scene.url, headers=listening[alice]) as of_alice,
        ):
            assert (of_alice.status_code, of_bob.status_code) == (200, 200)
            alice.log_out()
            of_alice.read()  # the stream ends
            with pytest.raises(httpx.ReadTimeout):
                of_bob.read()  # the twin goes on
        assert alice.ask("tools/list").status_code == 401
        assert bob.ask("tools/list").status_code == 200  # the twin
        assert scene.log_in("alice").ask("tools/list").status_code == 200
