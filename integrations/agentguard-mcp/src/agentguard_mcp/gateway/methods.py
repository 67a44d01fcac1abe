"""The methods of MCP that pass through a gateway without a decision, in either direction."""

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
"""The requests of a client that go on without a decision (MCP 2024-11-05 to 2026-07-28)."""

FROM_SERVER: Final = frozenset(
    {"elicitation/create", "ping", "roots/list", "sampling/createMessage"}
)
"""The requests of a server that go on to the client."""
