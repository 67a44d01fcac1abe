"""Which requests and notices of MCP the gateway passes on without a decision, in each direction.

The lists are those of the revisions 2024-11-05 to 2026-07-28. What stands in none of them does not
pass: nobody knows whether a server or a client runs code for it. Tasks are left out, since a task
goes on after its decision.
"""

from __future__ import annotations

from typing import Final

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
