"""Tells the configuration of a guard server's client from that of the server.

Both have ``[server]``, and a client's may still have the policy and the state of the time before
the server. A command that read this state would show an old or an empty log as the server's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agentguard.domain import keystore
from agentguard.domain.config import Config
from agentguard.domain.config.server import Host, ServerConfig
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity.trust import TrustDocument
from agentguard.wire.peer import ROOT

_TIMEOUT: Final = 2.0
"""Seconds that a server has to say whose log it has."""


def is_client(settings: Config) -> bool:
    """Whether a configuration is that of a client: another state than its own is served.

    A configuration that only a server can have (``[clients]``, ``[server.tls]``) is none. Where
    the tables do not say, the socket does: whose folder has it, and which log has the server.
    """
    server = settings.server
    if server is None:
        return False
    if isinstance(server.address, Host):
        return True
    if settings.clients is not None or server.tls is not None or server.health is not None:
        return False
    if not os.path.lexists(settings.state):
        return settings.policy is None
    return _is_of_another(server.address, settings.state) or _has_another_log(server, settings)


def refuse(settings: Config, *, hint: str = "") -> None:
    """Raise ``ConfigError`` (``server.remote``) in the configuration of a client.

    ``hint`` is added to the message where the configuration has a state of its own.
    """
    if settings.server is None or not is_client(settings):
        return
    has_state = os.path.lexists(settings.state)
    message = (
        f"{settings.source} makes this program a client of the guard server at "
        f"{name(settings.server)}, which has the log, the approvals and the keys: run the command "
        f"where the server runs, as the server's user and in the server's folder"
        f"{hint if has_state else ''}"
    )
    raise ConfigError(message, code="server.remote")


def name(server: ServerConfig) -> str:
    """Return the address of a server, for people."""
    address = server.address
    return f"{address.name}:{address.port}" if isinstance(address, Host) else str(address)


def _is_of_another(socket: Path, state: Path) -> bool:
    """Whether the socket's folder belongs to another user than the state; root serves anybody's."""
    try:
        return socket.parent.stat().st_uid not in (ROOT, state.stat().st_uid)
    except OSError:
        return False


def _has_another_log(server: ServerConfig, settings: Config) -> bool:
    """Whether a server answers whose log is not that of the configuration's state."""
    # few configurations leave it to the server's log
    from agentguard.client import dial  # noqa: PLC0415
    from agentguard.client.link import Link  # noqa: PLC0415

    try:
        own = keystore.load_trust(settings.state)
        link = Link(dial.at(server.address), timeout=min(server.timeout, _TIMEOUT))
        try:
            served = TrustDocument.loads(link.connect().trust)
        finally:
            link.close()
    except AgentguardError:
        return False
    return served.log != own.log
