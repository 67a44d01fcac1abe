"""Reads ``[mcp]``: the MCP servers behind gateways, and for whom each gateway calls.

``agentguard mcp`` reads these tables (docs/how-to/mcp-gateway.md). No guard does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentguard import base_url
from agentguard.delegation.grant import is_audience
from agentguard.domain.config.mcp_serve import (
    McpOAuthConfig,
    McpServeConfig,
    read_mcp_oauth,
    read_mcp_serve,
)
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError

TIMEOUT: Final = 300.0
"""Seconds that a server has for an answer, by default."""

MOST_CALLS: Final = 100_000
"""The largest limit of calls: a gateway keeps a number for each call of the last minute."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class McpConfig:
    """``[mcp.NAME]``: one server behind a gateway; each value has a default.

    ``command`` starts the server, empty where the command line names a command; ``url`` is the
    address of a server over HTTP in its place, and ``bearer`` the secret that is the token for it.
    ``agent`` makes the calls, for ``principal`` or on its own authority. ``scope`` is what the
    principal delegates, None for all that the principal's roles allow. ``prefix`` stands before
    the name of each of the server's tools in the policy and the log. ``tools`` are patterns of the
    tools that a client sees, None for all; with ``filter_list``, the policy decides which of these
    a client sees. ``rounds`` are patterns of the tools whose calls may go on in further rounds.
    ``env`` names the variables that the server gets, and
    ``secrets`` has the variables that hold a secret, each with the secret's name. ``pins`` is the
    file of the pinned tools, None for the default. ``audience`` is the name of the
    gateway in proofs of calls, None for callers without proofs; ``proofs`` is the file of the used
    proofs, and ``trust`` has the trust documents of the callers, None for the own domain.
    ``calls_per_minute`` and ``calls_at_once`` limit the calls, None for no limit. ``timeout``,
    ``recheck`` and ``wait`` are in seconds. With ``elicit``, the user of a client hears of a call
    that waits for an approval. ``serve`` says where clients reach the gateway over HTTP, and
    ``oauth`` that each request needs a token, None for requests without tokens.
    """

    command: tuple[str, ...] = ()
    url: str | None = None
    bearer: str | None = None
    agent: str | None = None
    principal: str | None = None
    scope: frozenset[str] | None = None
    prefix: str = ""
    tools: tuple[str, ...] | None = None
    filter_list: bool = False
    rounds: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    pins: Path | None = None
    audience: str | None = None
    proofs: Path | None = None
    trust: tuple[Path, ...] | None = None
    calls_per_minute: int | None = None
    calls_at_once: int | None = None
    timeout: float = TIMEOUT
    recheck: int = 0
    wait: int = 0
    elicit: bool = False
    serve: McpServeConfig = field(default_factory=McpServeConfig)
    oauth: McpOAuthConfig | None = None


def require_server_name(name: str) -> str:
    """Return ``name`` if it can name an MCP server; raises ``ConfigError``.

    The name stands in the origin of the server's tools (``mcp:NAME``) and in the name of a file.
    """
    if not _NAME.match(name):
        message = (
            f"{name!r} can't name an MCP server: expected letters, digits, '_', '-' and '.', at "
            "most 64, beginning with a letter or a digit"
        )
        raise ConfigError(message)
    return name


def read_mcp(root: Table, resolve: Callable[[str], Path]) -> Mapping[str, McpConfig]:
    """Read ``[mcp]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    servers: dict[str, McpConfig] = {}
    for name, table in root.tables("mcp"):
        try:
            servers[require_server_name(name)] = _server(table, resolve)
        except ConfigError as error:
            if not _NAME.match(name):
                raise ConfigError(f"{root.name('mcp')}: {error}") from error
            raise
    return servers


def require_url(url: str) -> str:
    """Return ``url`` if it can be the address of an MCP server; raises ``ConfigError``.

    The address is https, or http on this machine: a token goes there.
    """
    parts = base_url.parse(url)
    if parts is None or (parts.scheme == "http" and not base_url.is_loopback(parts)):
        message = (
            f"{url!r} is no address of an MCP server: expected an https URL without user, query "
            "and fragment, or an http URL on this machine"
        )
        raise ConfigError(message)
    return url


def _limit(table: Table, key: str) -> int | None:
    number = table.number(key)
    if number is not None and not 1 <= number <= MOST_CALLS:
        raise table.mistake(key, f"a whole number from 1 to {MOST_CALLS}")
    return number


def _url(table: Table) -> str | None:
    url = table.optional("url")
    if url is None:
        return None
    if "command" in table.names():
        raise table.mistake("url", "either a command or a url")
    try:
        return require_url(url)
    except ConfigError as error:
        raise ConfigError(f"{table.name('url')}: {error}") from error


def _prefix(table: Table) -> str:
    prefix = table.text("prefix", "", may_be_empty=True)
    if prefix.startswith("mcp:"):
        expected = "a text that does not begin with mcp:, as the names of methods do"
        raise table.mistake("prefix", expected)
    return prefix


def _server(table: Table, resolve: Callable[[str], Path]) -> McpConfig:
    principal, audience = table.optional("principal"), table.optional("audience")
    proofs = table.file("proofs", resolve)
    if (audience is None) is not (proofs is None):
        expected = "an audience and the file of its used proofs, or neither"
        raise table.mistake("audience" if proofs is None else "proofs", expected)
    if audience is not None and not is_audience(audience):
        raise table.mistake("audience", "printable ASCII without spaces, as in 'mcp:git'")
    trust, secrets = table.texts("trust", None), table.mapping("secrets")
    if trust == ():
        raise table.mistake("trust", "the trust documents of the callers, or no such key")
    server = McpConfig(
        command=table.texts("command", ()),
        url=_url(table),
        bearer=table.optional("bearer"),
        agent=table.optional("agent"),
        principal=None if principal is None else table.principal("principal", principal),
        scope=table.scope("scope", None),
        prefix=_prefix(table),
        tools=table.texts("tools", None),
        filter_list=table.boolean("filter_list", default=False),
        rounds=table.texts("rounds", ()),
        env=table.texts("env", ()),
        secrets={} if secrets is None else secrets,
        pins=table.file("pins", resolve),
        audience=audience,
        proofs=proofs,
        trust=None if trust is None else tuple(map(resolve, trust)),
        calls_per_minute=_limit(table, "calls_per_minute"),
        calls_at_once=_limit(table, "calls_at_once"),
        timeout=table.seconds("timeout", TIMEOUT),
        recheck=table.number("recheck") or 0,
        wait=table.number("wait") or 0,
        elicit=table.boolean("elicit", default=False),
        serve=read_mcp_serve(table.table("serve"), resolve),
        oauth=read_mcp_oauth(table.table("oauth")) if "oauth" in table.names() else None,
    )
    if server.elicit and not server.wait:
        raise table.mistake("elicit", "a wait, about which the user hears: wait = 120")
    table.reject_unknown()
    return server
