"""A tool's server behind a real nginx, with the limits that nginx has by default."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nginx
import pytest
from tool_servers import (
    SCOPE,
    ToolServer,
    allow,
    application,
    listed,
    proof_of,
    receiver,
    send,
    send_plainly,
)

from agentguard import Guard
from agentguard.proof import CallerMiddleware

pytestmark = pytest.mark.slow("starts a real nginx")

SERVER = """
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1;
        }}
        location /api/ {{
            proxy_pass {upstream}/;
        }}
    }}
"""

NAMES = [f"agent-{number}" for number in range(8)]


@pytest.fixture
def guard() -> Iterator[Guard]:
    agents: dict[str, Any] = {name: {"max_scope": SCOPE} for name in (*NAMES, "payer")}
    with Guard.ephemeral(allow, config={"agents": agents}) as guard:
        yield guard


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "nginx").mkdir()
    return tmp_path / "nginx"


@pytest.fixture(params=["", "/api"], ids=["at the root", "below a path that nginx removes"])
def url(request, guard, tmp_path, folder, port) -> Iterator[str]:
    """The URL under which callers reach the server."""
    base = f"http://127.0.0.1:{port}{request.param}"
    server = ToolServer(
        lambda _own: CallerMiddleware(application(), receiver(base, guard, tmp_path))
    )
    block = SERVER.format(port=port, upstream=server.url)
    try:
        with nginx.running(folder, port, block):
            yield base
    finally:
        server.stop()


def through(guard: Guard, agents: list[str], url: str) -> httpx.Response:
    """Have each agent call the next, and the last one send a request; return the answer."""
    made = [guard.new_agent(name) for name in agents]

    def act(number: int) -> httpx.Response:
        if number == len(made):
            return send(f"{url}/pay?x=%2F", url, json={"cents": 5})
        return made[number].call(tool, number + 1)

    tool = guard.tool(name="act")(act)
    with guard.delegate("user:alice", scope=SCOPE, audience=[url], max_depth=16):
        return made[0].call(tool, 1)


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_a_request_of_a_deep_chain_passes_nginx(guard, url, depth):
    answer = through(guard, NAMES[:depth], url)
    assert answer.status_code == 200, answer.text
    assert answer.json()["actors"][-1] == f"agent:{NAMES[depth - 1]}"
    assert (answer.json()["query"], answer.json()["body"]) == ("x=%2F", '{"cents":5}')


def test_what_passes_nginx_is_verified_all_the_same(guard, url):
    sent = listed(proof_of(guard, f"{url}/pay", audience=[url]))
    changed = send_plainly("POST", f"{url}/pay", headers=sent, content=b"x")
    assert changed.status_code == 401
    assert send_plainly("POST", f"{url}/pay", headers=sent).status_code == 200  # the twin
    assert send_plainly("POST", f"{url}/pay", headers=sent).status_code == 401  # a second time


def test_nginx_refuses_a_header_as_long_as_a_token_with_its_chain_was(guard, url):
    """8,635 bytes for three agents, before the chain came out of the token."""
    sent = listed(proof_of(guard, f"{url}/pay", audience=[url]))
    long = {"X-Long": "x" * 8635}
    assert send_plainly("POST", f"{url}/pay", headers=[*sent, *long.items()]).status_code == 400
    assert send_plainly("POST", f"{url}/pay", headers=sent).status_code == 200  # the twin
