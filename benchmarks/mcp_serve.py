"""What the MCP gateway over HTTP adds to a call: wall time and CPU time, beside the bare server.

    uv run python benchmarks/mcp_serve.py [--calls N] [--repetitions N] [--modern]

All subjects serve the same tool, over streamable HTTP: a server of the SDK 2 (``mcp_subjects.py``),
``agentguard mcp serve`` in front of the same server on stdio, and the proxy of fastmcp in front of
the same server on stdio, which passes calls on and decides nothing. Beside these, the gateway on
stdio (``agentguard mcp run``) shows what HTTP itself costs. The gateway serves a named
principal on loopback, users with access tokens (OAuth, RS256), or callers who prove each call. The
client is one connection that stays open, and speaks HTTP by hand. ``mcp_gateway.py`` says what the
figures are.
"""

from __future__ import annotations

import json
import socket
import time
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from mcp_gateway import (
    AGENTGUARD,
    BARE,
    SUBJECTS,
    Cost,
    Peer,
    environment_of_sdk_two,
    founded,
    made_notes,
    run,
)
from mcp_subjects import AUDIENCE

from agentguard import Guard

PROVED = "mcp serve, call proofs"
USERS = "mcp serve, OAuth"
ISSUER = "https://login.example"
GATEWAY = """
[mcp.{name}]
agent = "{agent}"
recheck = 60
command = {command}
{caller}
[mcp.{name}.serve]
listen = "127.0.0.1:{port}"
url = "http://127.0.0.1:{port}/mcp"
"""
OAUTH = """
[mcp.users.oauth]
issuers = ["login"]
scope_claim = ""

[issuers.login]
issuer = "{issuer}"
jwks_file = "jwks.json"
audience = ["{url}"]
algorithms = ["RS256"]

[issuers.login.users]
claim = "sub"
"""


class HttpPeer(Peer):
    """A server or a gateway at a port of this machine, and a client on one connection."""

    def __init__(
        self, command: Sequence[str], home: Path, port: int, token: str | None = None
    ) -> None:
        super().__init__(command, home)
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
        }
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._connection = HTTPConnection("127.0.0.1", port)
        for _ in range(600):
            with suppress(ConnectionRefusedError):
                self._connection.connect()
                self._connection.close()  # each request opens a closed connection
                return
            time.sleep(0.05)
        raise SystemExit(f"nothing listens: {command}")

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, and read the answer to the end."""
        self._exchange(message)

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        for answer in self._exchange(message):
            if answer.get("id") == self.number:
                return answer
        raise SystemExit(f"no answer to {method}")

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        headers, params = dict(self._headers), message.get("params", {})
        if "_meta" in params and "io.modelcontextprotocol/protocolVersion" in params["_meta"]:
            headers["mcp-protocol-version"] = "2026-07-28"
            headers["mcp-method"] = message["method"]
            if "name" in params:
                headers["mcp-name"] = params["name"]
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._connection.request("POST", "/mcp", body, headers)
        answer = self._connection.getresponse()
        session, text = answer.getheader("mcp-session-id"), answer.read().decode()
        if answer.status not in (200, 202):
            raise SystemExit(f"{answer.status}: {text}")
        if session is not None:
            self._headers |= {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
        if (answer.getheader("content-type") or "").startswith("text/event-stream"):
            lines = [line for line in text.split("\n") if line.startswith("data: {")]
            return [json.loads(line.removeprefix("data: ")) for line in lines]
        return [json.loads(text)] if text else []

    def cost(self, calls: Sequence[dict[str, Any]]) -> Cost:
        """Make calls one after another, on a new connection: a server closes one that is idle."""
        self._connection.close()
        self._connection.connect()
        return super().cost(calls)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self.process.terminate()
        self.process.wait()


def part(data: bytes) -> str:
    """Return a part of a token."""
    return urlsafe_b64encode(data).decode().rstrip("=")


def login(folder: Path, url: str) -> str:
    """Return the access token of a user, whose issuer's keys are in ``jwks.json`` there."""
    key = rsa.generate_private_key(65537, 2048)
    numbers = key.public_key().public_numbers()
    size = key.key_size // 8
    public = {"n": part(numbers.n.to_bytes(size, "big")), "e": part(numbers.e.to_bytes(3, "big"))}
    jwk = {"kty": "RSA", "kid": "login", "alg": "RS256", "use": "sig", **public}
    (folder / "jwks.json").write_text(json.dumps({"keys": [jwk]}), encoding="utf-8")
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": url, "sub": "alice", "client_id": "c", "iat": now}
    header = {"alg": "RS256", "typ": "at+jwt", "kid": "login"}
    whole = {**claims, "exp": now + 3600, "jti": "login"}
    body = ".".join(part(json.dumps(one).encode()) for one in (header, whole))
    return f"{body}.{part(key.sign(body.encode(), padding.PKCS1v15(), SHA256()))}"


def free_ports(number: int) -> list[int]:
    """Return ports at which nobody listens now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def started(home: Path, guard: Guard, *, is_modern: bool) -> dict[str, Peer]:
    """Start all subjects."""
    python, notes = environment_of_sdk_two(), str(made_notes(home))
    ports = dict(zip(("bare", "proxy", "open", "users", "proofs"), free_ports(5), strict=True))
    (home / "trust.json").write_bytes(guard.trust.dumps())
    proofs = f'proofs = "{home}/proofs.sqlite"\ntrust = ["{home}/trust.json"]'
    callers = {
        "open": ("assistant", ""),
        "users": ("assistant", ""),
        "proofs": ("mcp-server", f'audience = "{AUDIENCE}"\n{proofs}'),
    }
    command = json.dumps([python, str(SUBJECTS), "bare", notes])
    tables = {
        name: GATEWAY.format(
            name=name, agent=agent, command=command, caller=caller, port=ports[name]
        )
        for name, (agent, caller) in callers.items()
    }
    url = f"http://127.0.0.1:{ports['users']}/mcp"
    tables["users"] += OAUTH.format(issuer=ISSUER, url=url)
    config = founded(home, tables)
    token = login(config.parent, url)

    def gateway(name: str, command: str = "serve") -> list[str]:
        return [*AGENTGUARD, "mcp", command, "--config", str(config), "--name", name]

    def serving(name: str) -> HttpPeer:
        return HttpPeer(gateway(name), home, ports[name], token if name == "users" else None)

    def subject(kind: str) -> HttpPeer:
        words = [python, str(SUBJECTS), kind, notes, "--port", str(ports[kind])]
        return HttpPeer(words, home, ports[kind])

    peers: dict[str, Peer] = {
        BARE: subject("bare"),
        "mcp serve": serving("open"),
        USERS: serving("users"),
        PROVED: serving("proofs"),
        "mcp run, on stdio": Peer(gateway("open", "run"), home),
        "fastmcp's proxy": subject("proxy"),
    }
    for peer in peers.values():
        peer.greet(is_modern=is_modern)
    return peers


if __name__ == "__main__":
    run("What the MCP gateway over HTTP adds to a call.", started, {PROVED})
