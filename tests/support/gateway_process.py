"""An MCP gateway over HTTP in a process of its own (``agentguard mcp serve``), and its clients."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from preloaded import Preloaded, Talk

_SERVES = """
import runpy, sys

sys.argv = ["agentguard", "mcp", "serve", "--name", *{words!r}]
runpy.run_module("agentguard.cli", run_name="__main__", alter_sys=True)
"""

TYPES: Final = {"accept": "application/json, text/event-stream"}
_MODERN: Final = "2026-07-28"
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": _MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def begin_gateway(
    programs: Preloaded,
    folder: Path,
    name: str,
    before: str = "",
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Talk:
    """Start a gateway for ``[mcp.NAME]`` of the agentguard.toml in a folder.

    The process runs the code ``before`` first. ``options`` are those of the command.
    """
    serves = _SERVES.format(words=[name, *options])
    return programs.talk("-c", before + serves, cwd=folder, env=env)


@contextmanager
def gateway_process(
    programs: Preloaded, folder: Path, name: str, before: str = ""
) -> Iterator[str]:
    """Have a gateway serve as ``begin_gateway`` says, and yield the URL for clients.

    SIGTERM ends the gateway with the block.
    """
    process = begin_gateway(programs, folder, name, before)
    line = process.stdout.readline()
    if not line.startswith("serving at "):
        raise AssertionError(process.communicate())
    try:
        yield line.removeprefix("serving at ").strip()
    finally:
        os.kill(process.pid, signal.SIGTERM)
        _said, errors = process.communicate()
    assert process.returncode == 0, errors


def ask(url: str, token: str | None, method: str, **params: Any) -> httpx.Response:
    """Send a request of revision 2026-07-28, which has no sessions."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": _META}}
    headers = {**TYPES, "mcp-protocol-version": _MODERN, "mcp-method": method}
    if "name" in params:
        headers["mcp-name"] = params["name"]
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return httpx.post(url, json=message, headers=headers, timeout=30)


def challenge_of(refused: httpx.Response) -> dict[str, str]:
    """Return what ``WWW-Authenticate: Bearer`` of a refusal says (RFC 6750, 3)."""
    scheme, _, members = refused.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', members))
