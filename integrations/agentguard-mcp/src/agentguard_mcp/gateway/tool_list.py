"""``ToolList``: asks a server for its list of tools, page by page, and again once the list is old.

``catalog.py`` holds what the server says against the pins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Protocol

from agentguard_mcp.gateway.catalog import MAX_TOOLS, Catalog
from agentguard_mcp.gateway.messages import (
    MAX_LINE,
    Message,
    encoded,
    is_modern,
    meta_of,
)
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.listing import LIST
from agentguard_mcp.params import STANDARD, protocol_meta

_MAX_PAGES: Final = 100


class Ask(Protocol):
    """Sends a request of the gateway's own to the server, and returns the response.

    Raises ``TimeoutError``, ``UpstreamLostError`` and, over HTTP, ``NotSentError`` and
    ``RefusedError``.
    """

    def __call__(self, method: str, params: dict[str, Any], /) -> Awaitable[Message]:
        """Ask the server."""


class ToolList:
    """Keeps ``catalog`` at the tools that a server has now, for the calls of one connection."""

    def __init__(self, settings: Settings, catalog: Catalog, ask: Ask) -> None:
        self._recheck = settings.recheck
        self._catalog = catalog
        self._ask = ask
        self._lock = asyncio.Lock()
        self._listed_at: float | None = None
        self._meta: dict[str, Any] = {}

    def forget(self) -> None:
        """Note that the server's tools have changed: the next ``refresh`` asks for the list."""
        self._listed_at = None

    def hear(self, request: Message) -> None:
        """Note that the catalog has learned what the server has answered a client's own list.

        Clients may share a connection. The tools of a client that can do other things are not those
        of the next call.
        """
        if _meta_like(request) != self._meta:
            self.forget()

    async def refresh(self, request: Message) -> None:
        """Ask the server for its tools, unless a list that is new enough is known.

        ``request`` is the client's, whose revision and capabilities the question has: a list counts
        for a client of the same ones. Calls that wait share the next list, which was asked for
        after they came. Raises as ``all_tools`` does.
        """
        clock, meta = asyncio.get_running_loop().time, _meta_like(request)
        oldest = clock() - self._recheck
        async with self._lock:
            if self._listed_at is not None and self._listed_at >= oldest and self._meta == meta:
                return
            begun = self._listed_at = clock()
            self._meta = meta
            try:
                tools = await all_tools(self._ask, {"_meta": meta} if meta else {})
            except BaseException:
                self._listed_at = None
                raise
            self._catalog.replace(tools)
            if self._listed_at != begun:  # a notice of a change has come meanwhile
                self._listed_at = None


async def all_tools(ask: Ask, params: dict[str, Any]) -> list[Any]:
    """Return all pages of a server's list of tools; ``params`` are those of the first request.

    Raises ``LookupError`` for an answer without a list and for a list without an end, and what
    ``ask`` raises.
    """
    tools: list[Any] = []
    size = 0
    for _page in range(_MAX_PAGES):
        result = (await ask(LIST, params)).get("result", {})
        page = result.get("tools")
        if not isinstance(page, list) or len(tools) + len(page) > MAX_TOOLS:
            raise LookupError("an answer has no list of tools, or too many")
        if tools:  # one page is one message
            size += len(encoded(page))
        if size > MAX_LINE:
            raise LookupError("the list of tools is too long")
        tools += page
        cursor = result.get("nextCursor")
        if not isinstance(cursor, str):
            return tools
        params = {**params, "cursor": cursor}
    raise LookupError("the list of tools has too many pages")


def _meta_like(request: Message) -> dict[str, Any]:
    """Return the ``_meta`` of a list in the revision of a client's request."""
    if not is_modern(request):
        return {}
    meta = protocol_meta(meta_of(request))
    return {key: value for key, value in meta.items() if key.startswith(STANDARD)}
