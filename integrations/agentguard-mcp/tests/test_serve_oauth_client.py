"""The OAuth client of the SDK 1 finds the issuer by itself, logs in, and asks for more scope."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from gateway_scene import settings, until
from http_scene import served
from login_provider import Provider
from mcp import ClientSession
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import OAuth

SCOPES = ("files:read", "files:write")


class Login:
    """An authorization server of a few lines, whose users agree to everything at once.

    RFC 8414 (metadata), RFC 7591 (registration), RFC 6749, 4.1 (codes), RFC 8707 (resource).
    """

    def __init__(self, provider: Provider, issuer: str) -> None:
        self._provider = provider
        self._issuer = issuer
        self.asked: list[dict[str, str]] = []

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"].decode()
        path, status = scope["path"], 200
        if path == "/.well-known/oauth-authorization-server":
            answer = {
                "issuer": self._issuer,
                "authorization_endpoint": f"{self._issuer}/authorize",
                "token_endpoint": f"{self._issuer}/token",
                "registration_endpoint": f"{self._issuer}/register",
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
            }
        elif path == "/register":
            answer, status = {**json.loads(body), "client_id": "app"}, 201
        elif path == "/token":
            answer = self._token(parse_qs(body))
        else:
            answer, status = {}, 404
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    def _token(self, form):
        request = self.asked[-1]
        assert form["resource"] == [request["resource"]]
        token = self._provider.token(
            iss=self._issuer,
            aud=form["resource"][0],
            exp=int(time.time()) + 300,
            scope=request["scope"],
            azp="app",
        )
        return {"access_token": token, "token_type": "Bearer", "scope": request["scope"]}

    async def redirect(self, url: str) -> None:
        """Stand for the user's browser."""
        query = parse_qs(urlsplit(url).query)
        self.asked.append({name: values[0] for name, values in query.items()})

    async def callback(self) -> tuple[str, str]:
        """Return the code and the state with which the browser comes back."""
        return "code", self.asked[-1]["state"]


class Memory:
    """What the client keeps: its tokens and its registration."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


@asynccontextmanager
async def login(folder):
    """Run an authorization server, and return it with its provider's keys and its URL."""
    bound = socket.create_server(("127.0.0.1", 0))
    issuer = f"http://127.0.0.1:{bound.getsockname()[1]}"
    provider = Provider(folder)
    serving = Login(provider, issuer)
    server = uvicorn.Server(uvicorn.Config(serving, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started)
    try:
        yield serving, provider, issuer
    finally:
        server.should_exit = True
        await task


def free_port() -> int:
    """Return a port that no connection takes by chance, as one from 32768 on might be."""
    while True:
        port = secrets.choice(range(20_000, 30_000))
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.mark.slow("it imports the client of the SDK, and runs three servers")
async def test_the_client_logs_in_and_steps_up(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    async with login(tmp_path) as (serving, provider, issuer):
        recorded = RecordedGuard.make(
            agents={"assistant": {"max_scope": list(SCOPES)}},
            issuers={"acme": {**provider.table(), "issuer": issuer, "audience": [url]}},
            tools={"fail": {"requires": ["files:write"]}},
        )
        asked = OAuth({issuer: SCOPES}, scopes=("files:read",))
        metadata = OAuthClientMetadata(redirect_uris=["http://127.0.0.1:1/back"], client_name="app")
        auth = OAuthClientProvider(
            url,
            metadata,
            Memory(),
            redirect_handler=serving.redirect,
            callback_handler=serving.callback,
        )
        async with (
            served(recorded, settings(), port=port, url=url, oauth=asked),
            httpx.AsyncClient(auth=auth, trust_env=False) as http,
            streamable_http_client(url, http_client=http) as (read, write, _session),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            assert (await client.call_tool("echo", {"text": "a"})).isError is False
            assert [one["scope"] for one in serving.asked] == ["files:read"]
            failed = await client.call_tool("fail", {"text": "b"})
            assert failed.content[0].text.startswith("{")  # the server's own answer
            assert [one["scope"] for one in serving.asked][1:] == ["files:read files:write"]
            assert {one["resource"] for one in serving.asked} == {url}
    assert recorded.outcomes() == ["ok", "error"]
    assert [call.principal for call in recorded.calls()] == ["user:alice"] * 3
    recorded.require_sound()
    recorded.guard.close()
