"""``agentguard mcp serve``: the gateway for clients that speak streamable HTTP."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import (
    AGENT,
    PRINCIPAL,
    SERVER,
    TASK,
    UPSTREAM,
    Server,
    ServerOptions,
)
from agentguard.cli.mcp.tokens import oauth_of
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import PROGRAM, Option, command
from agentguard.domain.config import Config
from agentguard.domain.config.address import Address
from agentguard.domain.config.mcp_serve import LISTEN, parse_listen
from agentguard.errors import ConfigError

_LISTENER = "agentguard_mcp.gateway.http.server"


@command(
    AGENT,
    PRINCIPAL,
    TASK,
    UPSTREAM,
    Option(
        "--listen HOST:PORT",
        f"Where to listen, or unix:PATH; or in [mcp.SERVER.serve], by default {LISTEN}.",
    ),
    *SERVER,
    context_settings=PROGRAM,
)
def serve(
    *,
    listen: str | None,
    agent: str | None,
    principal: str | None,
    task: str | None,
    **given: Unpack[ServerOptions],
) -> None:
    """MCP clients reach the gateway at a URL, which the command prints. Each session of a client
    has a server process or connection of its own. Each call is decided, signed and logged as with
    agentguard mcp run. SIGTERM ends the gateway, once the calls that run have ended, or after ten
    seconds.
    """
    settings = location.load(given["config"])
    package = gateway.package()
    server = gateway.server_of(settings, given["name"], given["command"], given["url"])
    place = _place(server, listen)
    caller = gateway.Caller(agent, principal, task)
    if isinstance(place, Path) and not _is_named(settings, server, caller):
        caller = caller._replace(principal=_own_user())
    gateway.require_caller(server, caller)
    chosen = gateway.settings_of(settings, server, caller, given["env"])
    oauth = oauth_of(package, settings, server, chosen.agent)
    endpoint = _endpoint(package, server, place, oauth)
    _require_known_callers(settings, server, chosen, endpoint)
    pins = gateway.pins_or_warning(settings, server)
    chosen = replace(chosen, pins=pins)
    import_module(_LISTENER).run(
        chosen, endpoint, Path(settings.source), partial(_say, endpoint.socket)
    )


def _say(socket: Path | None, place: Any) -> None:
    screen.line(f"serving at {place.url}" + (f" through {socket}" if socket is not None else ""))


def _place(server: Server, listen: str | None) -> Address | Path:
    """Return the address or the unix socket where the gateway listens; raises ``ConfigError``."""
    if listen is None:
        return server.table.serve.listen
    parsed = parse_listen(listen)
    if parsed is None:
        message = f"--listen {listen}: expected an address and a port, as in {LISTEN}, or unix:PATH"
        raise ConfigError(message)
    return parsed.absolute() if isinstance(parsed, Path) else parsed


def _is_named(config: Config, server: Server, caller: gateway.Caller) -> bool:
    """Return whether the configuration says for whom the agent acts."""
    table, whole = server.table, caller.over(server.table)
    profile = None if whole.agent is None else config.agents.get(whole.agent)
    is_own = profile is not None and profile.authority == "own"
    is_proved = table.audience is not None or table.oauth is not None
    return is_own or is_proved or whole.principal is not None


def _own_user() -> str:
    """Return this process's user as a principal: nobody else can connect to its unix socket."""
    try:
        return f"user:{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError as error:
        message = "this process's user has no name: name a principal with --principal"
        raise ConfigError(message) from error


def _endpoint(package: Any, server: Server, place: Address | Path, oauth: Any) -> Any:
    """Return how clients reach the gateway; raises ``ConfigError``."""
    table = server.table.serve
    host, port = LISTEN if isinstance(place, Path) else place
    is_here = isinstance(place, Path) or place.is_loopback
    if not is_here and table.certificate is None:
        message = (
            f"{host} is no loopback address: name a certificate and a key in "
            f"[mcp.{server.name}.serve], or listen on loopback behind a proxy with TLS"
        )
        raise ConfigError(message)
    if not is_here and table.url is None:
        message = (
            f"{host} is no loopback address: name the url of the gateway as clients know it in "
            f"[mcp.{server.name}.serve]"
        )
        raise ConfigError(message)
    return package.EndpointSettings(
        host=host,
        port=port,
        socket=place if isinstance(place, Path) else None,
        url=table.url,
        certificate=table.certificate,
        key=table.key,
        origins=table.origins,
        sessions=table.sessions,
        idle=table.idle,
        oauth=oauth,
    )


def _require_known_callers(config: Config, server: Server, settings: Any, endpoint: Any) -> None:
    """Refuse to serve whoever reaches the address, unless the configuration says so.

    That is for this machine alone, and for a named principal or an agent with authority of its own.
    Raises ``ConfigError``.
    """
    if settings.proofs is not None or endpoint.oauth is not None:
        return
    where = f"[mcp.{server.name}] of {config.source}"
    is_here = endpoint.socket is not None or Address(endpoint.host, endpoint.port).is_loopback
    if not is_here or (endpoint.url is not None and endpoint.url.startswith("https://")):
        message = (
            "everybody who reaches the address could call tools: ask for tokens of users "
            f"([mcp.{server.name}.oauth]), have callers prove their calls (audience and proofs in "
            f"{where}), or listen on loopback alone, without a public url"
        )
        raise ConfigError(message)
    profile = config.agents.get(settings.agent)
    is_own = profile is not None and profile.authority == "own"
    if settings.principal is None and not is_own and config.server is None:
        message = (
            f"nobody says for whom the agent {settings.agent} acts: name a principal in {where}, "
            "or give the agent authority = 'own', or ask for tokens of users "
            f"([mcp.{server.name}.oauth])"
        )
        raise ConfigError(message)
