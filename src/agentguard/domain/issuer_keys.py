"""Makes the issuers that a configuration names, with the sources of their keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agentguard.domain.config import Config, rights
from agentguard.domain.config.issuers import IssuerConfig
from agentguard.domain.key_sources import KeySources
from agentguard.errors import ConfigError, ServerError
from agentguard.identity.jwks import KeySet
from agentguard.identity.jwt import JwtRule
from agentguard.issuers.keys import FetchedKeys, FileKeys, KeySource, parse_keys
from agentguard.issuers.trusted import Issuers, TrustedIssuer

if TYPE_CHECKING:
    from agentguard.http.endpoint import Endpoint


def open_issuers(settings: Config, sources: KeySources) -> Issuers:
    """Return the issuers of ``[issuers]``; no file is read, and no server asked, before a token.

    Raises ``ConfigError``: ``config.extra_missing``, and for a ``ca`` that can't be used.
    """
    return Issuers(
        [TrustedIssuer(issuer.rule, sources.of(name)) for name, issuer in settings.issuers.items()]
    )


def open_source(issuer: IssuerConfig, where: str) -> KeySource:
    """Return the source of an issuer's keys; ``where`` names the configuration.

    Raises ``ConfigError`` as ``open_issuers`` does.
    """
    name = issuer.rule.name
    if issuer.jwks_file is not None:
        return FileKeys(issuer.rule, issuer.jwks_file, rights.read)
    try:
        from agentguard.issuers.http import endpoint_of  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        what = "the jwks_url of an issuer"
        raise ConfigError.without_extra("tokens", what=what, brings="httpcore") from error
    assert issuer.jwks_url is not None  # noqa: S101  one place of the keys is there
    try:
        endpoint = endpoint_of(issuer.jwks_url, "jwks_url", issuer.ca)
    except ConfigError as error:
        raise ConfigError(f"{where}: issuers.{name}.{error}") from error
    return FetchedKeys(name, partial(_fetched, issuer.rule, endpoint))


def _fetched(rule: JwtRule, endpoint: Endpoint) -> KeySet:
    body = endpoint.ask("GET")
    if isinstance(body, str):
        message = f"the server at jwks_url of the issuer {rule.name} {body}"
        raise ServerError(message, code="issuer.unreachable")
    return parse_keys(rule, body.reveal())
