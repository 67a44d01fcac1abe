"""Which access tokens a gateway over HTTP takes: ``[mcp.NAME.oauth]``, with ``[issuers]``."""

from __future__ import annotations

from typing import Any

from agentguard.cli.mcp.gateway import Server, delegated_scope
from agentguard.domain.config import Config
from agentguard.domain.config.issuers import IssuerConfig
from agentguard.domain.config.mcp import McpConfig
from agentguard.errors import ConfigError


def oauth_of(package: Any, config: Config, server: Server, agent: str) -> Any:
    """Return the tokens that count for a gateway, None for requests without tokens.

    Raises ``ConfigError`` for an issuer that ``[issuers]`` does not name, or whose tokens can't be
    access tokens of users for this gateway.
    """
    oauth, table = server.table.oauth, server.table
    if oauth is None:
        return None
    issuers = {}
    for url, issuer in require_tokens(config, server.name, table).items():
        users = issuer.users
        has_roles = config.principals is not None or (users is not None and bool(users.roles))
        issuers[url] = delegated_scope(config, agent, table.scope, has_roles=has_roles)
    return package.OAuth(issuers, oauth.scopes, oauth.counted_claim)


def require_tokens(config: Config, name: str, table: McpConfig) -> dict[str, IssuerConfig]:
    """Return the issuers whose tokens count for a gateway by their URLs, none without ``oauth``.

    Raises ``ConfigError`` as ``oauth_of`` does.
    """
    if table.oauth is None:
        return {}
    where = f"{config.source}: mcp.{name}.oauth"
    if table.audience is not None:
        raise ConfigError(f"{where}: a call is proved (audience) or comes with a token, not both")
    if table.serve.url is None:
        message = (
            f"{where}: name the url of the gateway in [mcp.{name}.serve], since each token "
            "has to be for this url"
        )
        raise ConfigError(message)
    issuers = {}
    for one in table.oauth.issuers:
        issuer = config.issuers.get(one)
        if issuer is None:
            raise ConfigError(f"{where}.issuers: there is no [issuers.{one}]")
        issuers[_url(issuer, one, table.serve.url, where)] = issuer
    return issuers


def _url(issuer: IssuerConfig, name: str, resource: str, where: str) -> str:
    """Return the URL of an issuer whose access tokens of users are for a resource."""
    users = issuer.users
    if users is None or not users.takes_access or issuer.rule.issuer is None:
        message = (
            f"{where}.issuers: [issuers.{name}.users] has to say how access tokens name users "
            "(token = 'access')"
        )
        raise ConfigError(message)
    if resource not in users.audience:
        message = (
            f"{where}.issuers: no token of {name} can be for the gateway: add {resource!r} to "
            f"audience of [issuers.{name}.users]"
        )
        raise ConfigError(message)
    return issuer.rule.issuer
