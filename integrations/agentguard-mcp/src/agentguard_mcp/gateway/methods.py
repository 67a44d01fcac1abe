"""The revisions of MCP, and what of each the gateway passes on without a decision.

The lists are those of the revisions 2024-11-05 to 2026-07-28. What stands in none of them does not
pass: nobody knows whether a server or a client runs code for it. Tasks are left out, since a task
goes on after its decision.
"""

from __future__ import annotations

from typing import Final

LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""The revisions with ``initialize`` and sessions, from the oldest to the newest."""

PASSED: Final = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "ping",
        "prompts/list",
        "resources/list",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        "subscriptions/listen",
        "tools/list",
    }
)
"""The requests of a client that go on without a decision."""

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

CLIENT_NOTICES: Final = frozenset(
    {
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)
"""The notices of a client that go on to the server."""

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
