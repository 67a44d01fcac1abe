"""Which MCP server a tool comes from, where the application's own configuration names the server.

A server announces a name of its own, and ``langchain.mcp`` copies this name into the metadata of
each tool. A hostile server can announce the name of another server, so no origin is made of an
announced name. How tools of other kinds are named stands in ``binding.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from agentguard.adapters import require_supported

_ADAPTERS: Final = "langchain_mcp_adapters.tools"
_LANGCHAIN: Final = "langchain.mcp.tools"
_GUARDED: Final = "agentguard_mcp.fastmcp"
_PREFIX: Final = "mcp:"


@functools.cache
def require_mcp() -> None:
    """Raise ``ConfigError`` for other versions, which may keep the server's name elsewhere."""
    require_supported("agentguard-langchain", "langchain-mcp-adapters", "mcp")


def mcp_origin(function: Callable[..., Any]) -> str | None:
    """Return ``mcp:<server>`` for the function of a tool whose server the application has named.

    None for any other function, and for a tool of a server without a name in the configuration.
    Raises ``ConfigError`` (``framework.unsupported``) for a function of langchain-mcp-adapters in a
    version that may keep the name elsewhere.
    """
    if not inspect.isfunction(function):
        return None
    if function.__module__ == _ADAPTERS:
        require_mcp()
        # the adapters keep the server's name in the closure of each tool's function, only
        server = inspect.getclosurevars(function).nonlocals.get("server_name")
        return _PREFIX + server if isinstance(server, str) and server else None
    if function.__module__ == _LANGCHAIN:
        kept = inspect.getclosurevars(function).nonlocals
        return _origin_of_client(kept.get("client"), getattr(kept.get("tool"), "name", None))
    return None


def _origin_of_client(client: Any, tool: object) -> str | None:
    """Return the origin of a tool that this client or group of clients of fastmcp calls."""
    if not isinstance(tool, str):
        return None
    members = getattr(client, "clients", None)
    if isinstance(members, Mapping):
        return _by_prefix(members, tool)
    transport: Any = getattr(client, "transport", None)
    servers = getattr(getattr(transport, "config", None), "mcpServers", None)
    if isinstance(servers, Mapping):
        if len(servers) == 1:
            return _PREFIX + str(*servers)
        return _by_prefix(servers, tool) if getattr(transport, "name_as_prefix", False) else None
    if type(transport).__module__ == _GUARDED:
        audience = str(transport.audience)
        return audience if audience.startswith(_PREFIX) else _PREFIX + audience
    url = getattr(transport, "url", None)
    return _origin_of_url(url) if isinstance(url, str) else None


def _by_prefix(servers: Collection[str], tool: str) -> str | None:
    """Return the origin of a tool whose name begins with the name of its server.

    ``a_b_c`` may be the tool ``b_c`` of the server ``a``, or the tool ``c`` of the server ``a_b``.
    The tool has no origin then, because each of the two servers decides which tools it lists.
    """
    named = [server for server in servers if tool.startswith(f"{server}_")]
    return _PREFIX + named[0] if len(named) == 1 else None


def _origin_of_url(url: str) -> str | None:
    """Return the origin of a server at a URL; None for a URL with parts that may hold a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    has_more = parts.query or parts.fragment or "@" in parts.netloc
    return None if has_more or not parts.netloc else _PREFIX + url
