"""The server behind a gateway, as a process: what the process inherits, and how the process ends.

The process gets an environment that the gateway's settings name in full, no open file but its three
streams, and a session of its own. It inherits the standard error of the gateway, as a server that a
client starts by itself inherits the client's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Final, Self

from agentguard import ConfigError
from agentguard_mcp.gateway.messages import MAX_LINE, Message, write
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.upstream.protocol import GRACE, TOO_LONG, UpstreamLostError

MAX_UNREAD: Final = 2 * MAX_LINE
"""The most bytes that wait for a process that does not read, before the process counts as lost."""

_CHUNK: Final = 1 << 20
_NONE: Final[Mapping[str, str]] = MappingProxyType({})

INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
"""The variables that a server gets in any case: they say where and in which language it runs."""


class ServerProcess:
    """A server on stdio, which runs as a child. Make one with ``start``."""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.SubprocessTransport
    ) -> None:
        assert process.stdin is not None  # noqa: S101  start has asked for both pipes
        assert process.stdout is not None  # noqa: S101
        self._process = process
        self._transport = transport
        self._input = process.stdin
        self._output = process.stdout

    @classmethod
    async def start(cls, settings: Settings, secrets: Mapping[str, str] = _NONE) -> Self:
        """Start the server with the variables ``secrets`` beside those of the settings.

        Raises ``ConfigError`` for a command that can't be started.
        """
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                partial(asyncio.subprocess.SubprocessStreamProtocol, MAX_LINE, loop),
                *settings.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=None,
                env={**settings.environment, **secrets},
                start_new_session=True,  # Ctrl-C is for the gateway, which ends the server
            )
        except (OSError, ValueError) as error:
            message = (
                f"the MCP server {settings.server} can't be started: {error}. Install the program, "
                "or name its whole path"
            )
            raise ConfigError(message) from error
        return cls(asyncio.subprocess.Process(transport, protocol, loop), transport)

    def send(self, message: Message) -> None:
        """Write a message, without a wait for the process.

        Raises ``UpstreamLostError`` for a process that has ended or does not read, and
        ``EncodeError``.
        """
        line = write(message)
        transport = self._input.transport
        if transport.is_closing():
            raise UpstreamLostError
        if transport.get_write_buffer_size() + len(line) > MAX_UNREAD:
            transport.abort()
            raise UpstreamLostError("the server does not read")
        self._input.write(line)

    async def next(self) -> bytes:
        """Return the server's next line, empty at its end; raises ``UpstreamLostError``.

        The error is for a line beyond ``MAX_LINE``.
        """
        try:
            line: bytes = await self._output.readuntil()
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError as error:
            raise UpstreamLostError(TOO_LONG) from error
        return line

    async def end(self, *, at_once: bool = False) -> None:
        """End the process: close its input, then SIGTERM, then SIGKILL to all of its session.

        ``at_once`` gives the process no time to end by itself: it has broken the protocol.
        """
        self._input.close()
        if at_once:
            self._kill(signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE)
                break
            self._kill(number)
        self._kill(signal.SIGKILL)  # what the process has started and left behind
        with suppress(TimeoutError):  # what stands in the pipe keeps the pipe open
            async with asyncio.timeout(GRACE):
                while await self._output.read(_CHUNK):
                    continue
                await self._process.wait()
        self._transport.close()  # a process that has left the session may hold the pipes open

    def _kill(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def environment(source: Mapping[str, str], names: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the environment of a server: what each server gets, and the variables ``names``.

    No variable of agentguard's own is part of it, since such a variable may be a passphrase. Raises
    ``ConfigError`` if ``names`` has one, or has a variable that ``source`` lacks.
    """
    for name in names:
        if name.upper().startswith("AGENTGUARD_"):
            message = f"{name} is a variable of agentguard's own, which no MCP server gets"
            raise ConfigError(message)
        if name not in source:
            raise ConfigError(f"the environment has no variable {name} for the MCP server")
    return {name: source[name] for name in (*INHERITED, *names) if name in source}
