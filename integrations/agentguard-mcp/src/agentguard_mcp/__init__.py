"""agentguard for the Model Context Protocol (MCP).

``agentguard_mcp.gateway`` guards servers that nobody changes. ``client.py`` proves the requests of
a client, and ``server.py`` guards a server of the SDK 2 or of fastmcp 4. ``messages.py`` and
``request_guard.py`` are about JSON-RPC values, and know no SDK. The names here are imported when
they are first used, so that the gateway needs no SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentguard.adapters import require_supported

if TYPE_CHECKING:
    from agentguard_mcp.client import guard_transport
    from agentguard_mcp.request_guard import current_caller
    from agentguard_mcp.server import guard_server

__all__ = ["current_caller", "guard_server", "guard_transport"]

_HOMES = {
    "current_caller": "agentguard_mcp.request_guard",
    "guard_server": "agentguard_mcp.server",
    "guard_transport": "agentguard_mcp.client",
}
"""In which module each name stands."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and finds a name that is misspelt

    def __getattr__(name: str) -> Any:
        """Import a name of the public API at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        require_supported("agentguard-mcp", "mcp")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
