"""The revisions of MCP, and what of a server the gateway passes on to a client.

The lists are those of the revisions 2024-11-05 to 2026-07-28. What is in none of them does not
pass: nobody knows whether a client runs code for it. What of a client passes is in
``agentguard_mcp.params``.
"""

from __future__ import annotations

from typing import Final

LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""The revisions with ``initialize`` and sessions, from the oldest to the newest."""

REMOVED: Final = frozenset(
    {
        "initialize",
        "logging/setLevel",
        "ping",
        "resources/subscribe",
        "resources/unsubscribe",
    }
)
"""The requests that revision 2026-07-28 does not have any more.

A server that took ``initialize`` on the connection that callers share would speak another revision.
"""

FROM_SERVER: Final = frozenset(
    {"elicitation/create", "ping", "roots/list", "sampling/createMessage"}
)
"""The requests of a server that go on to the client."""

SERVER_NOTICES: Final = frozenset(
    {
        "notifications/cancelled",
        "notifications/elicitation/complete",
        "notifications/message",
        "notifications/progress",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    }
)
"""The notices of a server that go on to the client."""
