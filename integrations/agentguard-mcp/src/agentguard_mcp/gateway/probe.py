"""Asks a server for its tools, as a client would, and makes pins of the answer.

The server is started for this alone and ended afterwards. A server may offer a tool only to clients
that can do something for the server, so the probe says that it can do what the gateway passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentguard import AgentguardError, Guard, ServerError
from agentguard_mcp.gateway import answers, error_codes
from agentguard_mcp.gateway.calls import Calls
from agentguard_mcp.gateway.connect import opened
from agentguard_mcp.gateway.messages import (
    Message,
    RequestId,
    cleaned,
    is_request,
    is_response,
    read,
)
from agentguard_mcp.gateway.methods import LEGACY
from agentguard_mcp.gateway.pins import Pins, pins_of
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.tool_list import all_tools
from agentguard_mcp.gateway.upstream import (
    NotSentError,
    RefusedError,
    Upstream,
    UpstreamLostError,
)
from agentguard_mcp.gateway.upstream.protocol import not_started
from agentguard_mcp.params import MODERN, STANDARD

_CAPABILITIES: Final[dict[str, Any]] = {
    "elicitation": {"form": {}, "url": {}},
    "roots": {"listChanged": True},
    "sampling": {"context": {}, "tools": {}},
}
_CLIENT: Final = {"name": "agentguard", "version": "1"}
_FAILURES: Final = (
    TimeoutError,
    NotSentError,
    RefusedError,
    UpstreamLostError,
    LookupError,
    ValueError,
    AgentguardError,
)
_MAX_LINES: Final = 10_000
_SETTLES: Final = 0.3
"""Seconds in which a server that has just been started may still change its tools."""


def list_tools(settings: Settings, config: Path | None = None) -> Pins:
    """Ask the server of ``settings`` for its tools, and return their pins.

    A server on stdio is started for this. A server with secrets or a token gets them as the gateway
    gives them, by a guarded call of the agent; ``config`` is then the agentguard.toml of the guard.
    Raises ``ConfigError`` for a server that can't be started, ``ServerError`` (``tool.unlisted``)
    for one that ends, breaks the protocol or does not answer within the time-out of ``settings``,
    ``DecodeError`` (``pins.malformed``) for tools that can't be pinned, and what ``Guard.open`` and
    ``Calls.start`` raise.
    """
    if config is None or not (settings.secrets or settings.bearer):
        return asyncio.run(_listed(settings, {}))
    with Guard.open(config) as guard:
        return asyncio.run(_listed_with_secrets(settings, guard))


async def _listed_with_secrets(settings: Settings, guard: Guard) -> Pins:
    agent = await asyncio.to_thread(guard.new_agent, settings.agent)
    secrets = await Calls(guard, agent, settings, not_started).start()
    return await _listed(settings, secrets)


async def _listed(settings: Settings, secrets: Mapping[str, str]) -> Pins:
    lost: asyncio.Queue[Exception] = asyncio.Queue()

    def on_lost(_identifier: RequestId, error: Exception) -> None:
        lost.put_nowait(error)

    upstream = await opened(settings, secrets, on_lost)
    try:
        async with asyncio.timeout(settings.timeout):
            return pins_of(settings.server, await _Probe(upstream, lost).tools())
    except _FAILURES as error:
        if isinstance(error, AgentguardError) and error.code == "pins.malformed":
            raise
        message = (
            f"the MCP server {settings.server} does not say which tools it has: "
            f"{_why(error, settings)}. {_next_step(settings)}"
        )
        raise ServerError(message, code="tool.unlisted") from error
    finally:
        await upstream.end()


def _why(error: Exception, settings: Settings) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {settings.timeout:g} seconds"
    return str(error) or type(error).__name__


def _next_step(settings: Settings) -> str:
    if settings.url is not None:
        return "See whether the server is up, and whether the URL is right"
    return (
        "Read what the server says on standard error, and start its command by itself; a variable "
        "that the server needs is named by --env, or by env in agentguard.toml"
    )


class _Probe:
    def __init__(self, upstream: Upstream, lost: asyncio.Queue[Exception]) -> None:
        self._upstream = upstream
        self._lost = lost
        self._meta: dict[str, Any] = {}
        self._number = 0
        self._has_changed = False

    async def tools(self) -> list[Any]:
        """Return the server's tools, once they have settled."""
        hello = {
            "protocolVersion": LEGACY[-1],
            "capabilities": _CAPABILITIES,
            "clientInfo": _CLIENT,
        }
        if "result" in await self._ask("initialize", hello):
            self._upstream.send({"method": "notifications/initialized"})
        else:
            self._meta = {
                f"{STANDARD}protocolVersion": MODERN,
                f"{STANDARD}clientCapabilities": _CAPABILITIES,
                f"{STANDARD}clientInfo": _CLIENT,
            }
        tools = await self._pages()
        try:
            async with asyncio.timeout(_SETTLES):
                while not self._has_changed:
                    await self._next()
        except TimeoutError:
            return tools
        await asyncio.sleep(_SETTLES)  # tools are often added one by one, with a notice each
        return await self._pages()

    async def _pages(self) -> list[Any]:
        tools = await all_tools(self._ask, {})
        if not all(isinstance(one, dict) for one in tools):
            raise ValueError("a tool is no JSON object")
        return tools

    async def _ask(self, method: str, params: dict[str, Any]) -> Message:
        self._number += 1
        number = self._number
        if self._meta:
            params = {**params, "_meta": self._meta}
        self._upstream.send({"id": number, "method": method, "params": params})
        for _line in range(_MAX_LINES):
            message = await self._next()
            if is_response(message) and message.get("id") == number:
                return message
        raise ValueError("the server sends more than the probe reads")

    async def _next(self) -> Message:
        """Return the next message of the server, and answer a request of the server's own."""
        coming = asyncio.ensure_future(self._upstream.next())
        losing = asyncio.ensure_future(self._lost.get())
        both = (coming, losing)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if losing.done() and not coming.done():
                raise losing.result()
            line = await coming
        finally:
            for one in both:
                one.cancel()
        if not line:
            raise UpstreamLostError
        try:
            message = cleaned(read(line))  # as the gateway reads it: pins agree
        except AgentguardError:
            return {}  # a line that is no message: some servers print such lines
        if message.get("method") == "notifications/tools/list_changed":
            self._has_changed = True
        elif is_request(message):
            self._upstream.send(_reply(message))
        return message


def _reply(request: Message) -> Message:
    """Return the answer to a request of the server: the probe has no roots, and does no more."""
    replies: dict[str, Any] = {"roots/list": {"roots": []}, "ping": {}}
    if request["method"] in replies:
        return {"id": request["id"], "result": replies[request["method"]]}
    return answers.error(request["id"], error_codes.METHOD_NOT_FOUND, "no such method")
