"""A gateway in the process of a test, between a client that the test plays and a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import Settings, environment, serve
from agentguard_mcp.gateway.messages import MAX_LINE

SERVER = Path(__file__).with_name("scripted_server.py")
CODE = "dev.agentguard/code"
LIMIT = 20.0


def command(**options: Any) -> tuple[str, ...]:
    """Return the command of the scripted server."""
    return (sys.executable, "-I", "-S", str(SERVER), json.dumps(options))


def settings(*, options: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """Return settings of a gateway in front of the scripted server."""
    given = {"server": "files", "agent": "assistant", "command": command(**(options or {}))}
    source = {"PATH": "/usr/bin:/bin", "SECRET": "hidden"}
    return Settings(**{**given, "environment": environment(source), "timeout": LIMIT, **changes})


@dataclass
class Client:
    """A client of the gateway, which speaks the protocol by hand.

    ``notices`` has the notifications and requests that came beside the answers, in their order.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    notices: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0

    def send(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> None:
        """Write a message without a wait; a notification unless ``id`` is given."""
        message = {"jsonrpc": "2.0", "method": method, "params": params or {}, **more}
        self.write(json.dumps(message).encode())

    def write(self, line: bytes) -> None:
        """Write the bytes of one line."""
        self.writer.write(line + b"\n")

    async def next(self) -> dict[str, Any]:
        """Return the next message, empty at the end."""
        async with asyncio.timeout(LIMIT):
            line = await self.reader.readline()
        return json.loads(line) if line else {}

    async def answer(self, identifier: object) -> dict[str, Any]:
        """Return the answer to a request."""
        while message := await self.next():
            if "method" not in message and message["id"] == identifier:
                return message
            self.notices.append(message)
        raise EOFError

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request, and return its answer."""
        self.last += 1
        self.send(method, params, id=self.last)
        return await self.answer(self.last)

    async def awake(self) -> None:
        """Wait until the server answers: its start may take longer than a short time-out."""
        while "error" in await self.ask("ping"):
            pass

    async def call(self, tool: str, text: str = "", **params: Any) -> dict[str, Any]:
        """Call a tool, and return the result."""
        answer = await self.ask("tools/call", {"name": tool, "arguments": {"text": text}, **params})
        result: dict[str, Any] = answer["result"]
        return result

    async def tools(self) -> list[str]:
        """Return the names of the tools that the gateway shows."""
        return [one["name"] for one in (await self.ask("tools/list"))["result"]["tools"]]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds: another process, or another task, makes it true."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110  nobody tells when
            await asyncio.sleep(0.01)


def code_of(result: dict[str, Any]) -> str:
    """Return the reason code of the gateway's own answer to a call."""
    assert result["isError"] is True, result
    code: str = result["_meta"][CODE]
    return code


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the scripted server has received with a call."""
    assert result.get("isError") is not True, result
    received: dict[str, Any] = json.loads(result["content"][0]["text"])
    return received


@asynccontextmanager
async def gateway(
    recorded: RecordedGuard, given: Settings | None = None, limit: int = MAX_LINE
) -> AsyncIterator[Client]:
    """Run a gateway until the block ends, where the client goes away.

    The gateway takes ``limit`` bytes of a line, and twice as many before it reads them.
    """
    ours, theirs = socket.socketpair()
    streams = await asyncio.open_connection(sock=theirs, limit=limit)
    serving = asyncio.create_task(serve(recorded.guard, given or settings(), *streams))
    reader, writer = await asyncio.open_connection(sock=ours, limit=2 * MAX_LINE)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        async with asyncio.timeout(LIMIT):
            await serving
