"""What of a configuration a running server can load anew, and what only a new start changes.

The state, the keys, the addresses and the limits of a server are those of its start. ``sessions``
has the server go by the rest of another configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from agentguard.domain.config import Config
from agentguard.errors import ServerError
from agentguard.signing import canonical

_FIXED: Final = frozenset(
    {"trust_domain", "state", "anchor", "keys", "server", "service", "telemetry"}
)
"""The keys and tables that only a new start changes."""

_OF_SERVICE: Final = frozenset({"issuers", "clients"})
"""The tables that only a new start changes where the server is a token service, too."""


def changes(earlier: Config, now: Config) -> tuple[str, ...]:
    """Return the names of the keys and tables that differ, sorted.

    Raises ``ServerError`` (``server.reload``) for a change that only a new start can make.
    """
    before, after = _tables(earlier), _tables(now)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    fixed = changed & (_FIXED if now.service is None else _FIXED | _OF_SERVICE)
    if fixed:
        raise _needs_start(now, sorted(fixed))
    is_remote = now.server is not None and now.server.tls is not None
    if is_remote and _has_token_client(earlier) is not _has_token_client(now):
        raise _needs_start(now, ["the first or the last client with a token in clients"])
    return tuple(sorted(changed))


def _tables(settings: Config) -> dict[str, Any]:
    return dict(canonical.loads_object(settings.encoded))


def _has_token_client(settings: Config) -> bool:
    return any(one.issuer is not None for one in settings.client_tables.values())


def _needs_start(settings: Config, what: Iterable[str]) -> ServerError:
    message = (
        f"{settings.source}: only a new start of the server changes {', '.join(what)}: start the "
        "server anew, or take the change back; nothing was loaded"
    )
    return ServerError(message, code="server.reload")
