"""Reads ``[mcp.NAME.serve]`` and ``[mcp.NAME.oauth]``: a gateway that clients reach over HTTP.

``agentguard mcp serve`` reads these tables (docs/how-to/mcp-serve.md). No guard does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from agentguard.domain.config.server import read_port
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError
from agentguard.proof.target import Target, parse_audience

LISTEN: Final = "127.0.0.1:8788"
"""The default of ``listen``."""

SESSIONS: Final = 64
"""The default of ``sessions``."""

IDLE: Final = 600.0
"""The default of ``idle``, in seconds."""

_UNIX: Final = "unix:"
MAX_SESSIONS: Final = 10_000

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\[\]:-]+")


@dataclass(frozen=True, slots=True)
class McpServeConfig:
    """``[mcp.NAME.serve]``: where a gateway listens, and how clients reach it.

    The gateway listens at the unix socket ``socket``, or at ``host`` and ``port``: with TLS where a
    ``certificate`` and its ``key`` are named, and otherwise on loopback alone. ``url`` is the
    address of the endpoint as clients know it, None for the one at which the gateway listens.
    ``origins`` are those of pages in browsers that may ask. ``sessions`` is the most sessions at
    once, and ``idle`` the number of seconds after which a silent one ends.
    """

    host: str = "127.0.0.1"
    port: int = 8788
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    origins: tuple[str, ...] = ()
    sessions: int = SESSIONS
    idle: float = IDLE
    socket: Path | None = None


@dataclass(frozen=True, slots=True)
class McpOAuthConfig:
    """``[mcp.NAME.oauth]``: that each request needs an access token of a user.

    ``issuers`` are names in ``[issuers]``. ``scopes`` are those that a client asks for at first.
    ``scope_claim`` is the claim with the scopes of the token, which limit what the user delegates;
    None with ``ignore_scope``.
    """

    issuers: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    scope_claim: str | None = "scope"


def read_mcp_serve(table: Table, resolve: Callable[[str], Path]) -> McpServeConfig:
    """Read ``[mcp.NAME.serve]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    listen = table.text("listen", LISTEN)
    path = parse_socket(listen)
    host, port = _listen(table, LISTEN if path is not None else listen)
    certificate, key = table.file("certificate", resolve), table.file("key", resolve)
    if (certificate is None) is not (key is None):
        raise table.mistake("key", "the private key of the certificate, beside the certificate")
    origins = table.texts("origins", ())
    if not all(_ORIGIN.fullmatch(one) for one in origins):
        expected = "a list of origins in lower case, as in 'https://app.example'"
        raise table.mistake("origins", expected)
    sessions = table.count("sessions", SESSIONS)
    if sessions > MAX_SESSIONS:
        raise table.mistake("sessions", f"at most {MAX_SESSIONS}")
    config = McpServeConfig(
        host,
        port,
        _url(table),
        certificate,
        key,
        origins,
        sessions,
        table.seconds("idle", IDLE),
        resolve(path) if path is not None else None,
    )
    table.reject_unknown()
    return config


def read_mcp_oauth(table: Table) -> McpOAuthConfig:
    """Read ``[mcp.NAME.oauth]``; raises ``ConfigError``."""
    issuers = table.texts("issuers", ())
    if not issuers:
        raise table.mistake("issuers", "the names of one or more tables [issuers.NAME]")
    scopes = tuple(sorted(table.scope("scopes", ())))
    claim = table.optional("scope_claim")
    if table.boolean("ignore_scope", default=False):
        if claim is not None:
            raise table.mistake("scope_claim", "no scope_claim beside ignore_scope = true")
    elif claim is None:
        claim = "scope"
    config = McpOAuthConfig(issuers, scopes, claim)
    table.reject_unknown()
    return config


def parse_listen(text: str) -> tuple[str, int] | None:
    """Return the address and the port of ``HOST:PORT``, None for another text.

    The address is a literal one. Port 0 has the system choose a port.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
    except ValueError:
        return None
    number = read_port(port)
    return None if number is None else (host, number)


def parse_socket(text: str) -> str | None:
    """Return the path of ``unix:PATH``, None for another text."""
    return text.removeprefix(_UNIX) if text.startswith(_UNIX) and text != _UNIX else None


def _listen(table: Table, listen: str) -> tuple[str, int]:
    parsed = parse_listen(listen)
    if parsed is None:
        raise table.mistake("listen", f"an address and a port, as in '{LISTEN}', or 'unix:PATH'")
    return parsed


def _url(table: Table) -> str | None:
    url = table.optional("url")
    if url is None:
        return None
    try:
        target: Target | None = parse_audience(url)
    except ConfigError:
        target = None
    if target is None or target.uri != url or url.endswith("/"):
        expected = (
            "the URL of the endpoint in lower case without a query and a slash at the end, as in "
            "'https://mcp.acme.example/mcp'; http is for this machine"
        )
        raise table.mistake("url", expected)
    return url
