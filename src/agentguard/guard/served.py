"""Makes the parts of a guard whose steps run in a guard server: over which connection, and how."""

from __future__ import annotations

from pathlib import Path

from agentguard.client import dial
from agentguard.client.link import Link
from agentguard.client.parts import ClientParts
from agentguard.domain.config.server import TLS, ServerConfig, socket_of
from agentguard.errors import ConfigError
from agentguard.flow.ports import OnRequest
from agentguard.telemetry.settings import Settings

_USUAL = ServerConfig(Path())
"""The time limits of a client without a configuration."""


def configured(
    server: ServerConfig, settings: Settings, on_request: OnRequest | None
) -> ClientParts:
    """Return the parts for a configuration with ``[server]``.

    In a program of ``agentguard run``, the server is the one for which the program was started.
    Raises ``ConfigError`` (``server.inherited``) and ``ServerError``.
    """
    inherited = dial.inherited()
    if inherited is not None:
        return _over(inherited, server, settings, on_request)
    return _at_address(server, settings, on_request)


def connected(url: str | None, on_request: OnRequest | None) -> ClientParts:
    """Return the parts for the server at ``url``; None stands for the inherited connection.

    Raises ``ConfigError`` (``config.invalid``, ``server.inherited``) and ``ServerError``.
    """
    if url is None:
        return _over(dial.require_inherited(), _USUAL, Settings(), on_request)
    if url.startswith(TLS):
        message = (
            f"{url} needs a certificate with its key, or a token: name them in [server] of a "
            "configuration, and open the guard with Guard.open()"
        )
        raise ConfigError(message)
    named = ServerConfig(socket_of(url, Path.cwd().joinpath, "url"))
    return _at_address(named, Settings(), on_request)


def _at_address(
    server: ServerConfig, settings: Settings, on_request: OnRequest | None
) -> ClientParts:
    link = Link(dial.at(server.address), timeout=server.timeout, patience=server.patience)
    return ClientParts(link, settings, on_request)


def _over(
    inherited: dial.Inherited,
    server: ServerConfig,
    settings: Settings,
    on_request: OnRequest | None,
) -> ClientParts:
    """Return parts without patience: a server that is started anew knows nothing of the channel."""
    return ClientParts(Link(inherited, timeout=server.timeout), settings, on_request)
