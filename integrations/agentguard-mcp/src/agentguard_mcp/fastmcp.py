"""``GuardedTransport``: the transport of a fastmcp 4 client whose requests are proved.

Import this module by its own name, where fastmcp is installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any

from agentguard_mcp.client import guard_transport

_transports: Any = import_module("fastmcp.client.transports.base")
_session: Any = import_module("mcp").ClientSession


class GuardedTransport(_transports.ClientTransport):  # type: ignore[misc]  # fastmcp is not in each environment
    """Connects ``fastmcp.Client`` over a transport of the SDK, with a proof in each request.

    ``connect`` returns a new transport of the SDK for each connection, as in
    ``lambda: streamable_http_client(URL)``. ``audience`` is that of ``guard_transport``, and the
    origin of the tools that ``langchain.mcp`` makes of the server's (``mcp:<audience>``, or the
    audience itself where it begins with ``mcp:``).
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Any]], audience: str
    ) -> None:
        self._connect = connect
        self._audience = audience

    @property
    def audience(self) -> str:
        """The name of the server, as the application has configured the server."""
        return self._audience

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: object = None, **session: Any
    ) -> AsyncIterator[Any]:
        """Yield a session of the SDK that is not initialized yet."""
        del transport_options
        guarded = guard_transport(self._connect(), self._audience)
        async with guarded as (read, write, *_more), _session(read, write, **session) as made:
            yield made
