"""Reads ``[issuers]``: whose tokens count, and where the issuers' keys are.

This module opens no file and asks no server: ``domain/issuer_keys.py`` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError
from agentguard.identity.jwa import ALGORITHMS
from agentguard.identity.jwt import ABSENT, JwtRule
from agentguard.identity.login import LONGEST
from agentguard.identity.principal import is_principal
from agentguard.issuers.address import address_of

LEEWAY: Final = 30
"""The default of ``leeway``, in seconds."""

MAX_LEEWAY: Final = 300

TYPES: Final = ("JWT", "at+jwt", ABSENT)
"""The default of ``types``: Keycloak says JWT, RFC 9068 says at+jwt, and others say nothing."""

SPIFFE_TYPES: Final = ("JWT", "JOSE", ABSENT)
"""The default of ``types`` for JWT-SVIDs (SPIFFE JWT-SVID, 2.3)."""

_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID_JAG: Final = "oauth-id-jag+jwt"


@dataclass(frozen=True, slots=True)
class UsersConfig:
    """``[issuers.NAME.users]``: how tokens of the issuer name principals who lend to agents.

    ``claim`` names the principal, after ``prefix``. ``kind`` is the kind of token that counts, and
    ``audience`` for whom such tokens are. ``roles`` leads to the list of the principal's roles, as
    in ``("realm_access", "roles")``; it is empty where ``[principals]`` has the roles. ``longest``
    is how many seconds a delegation lasts at the most, None for as long as the token.
    ``logout_audience`` is for whom the log-out tokens of users are. ``id_jag`` is whether the token
    service takes ID-JAGs of the issuer.
    """

    claim: str
    prefix: str
    kind: Literal["access", "ID"]
    audience: frozenset[str]
    roles: tuple[str, ...]
    longest: int | None
    logout_audience: frozenset[str]
    id_jag: bool = False


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    """``[issuers.NAME]``: what a token has to be, and exactly one place of the issuer's keys.

    ``ca`` has the certificates that are trusted for ``jwks_url``, None for the system's.
    """

    rule: JwtRule
    jwks_file: Path | None
    jwks_url: str | None
    ca: Path | None = None
    users: UsersConfig | None = None
    """``[issuers.NAME.users]``; None where the issuer knows no users."""

    services: Mapping[str, str] = field(default_factory=dict)
    """The services whom the issuer's tokens name: the principal of each subject."""


def read_issuers(root: Table, resolve: Callable[[str], Path]) -> Mapping[str, IssuerConfig]:
    """Read ``[issuers]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    issuers: dict[str, IssuerConfig] = {}
    for name, table in root.tables("issuers"):
        if not name or not name.isprintable():
            raise ConfigError(f"{table.name('')}: the name of an issuer is a text of one line")
        issuer = _issuer(name, table, resolve)
        for other in issuers.values():
            rules = other.rule, issuer.rule
            if len({(one.issuer, one.trust_domain) for one in rules}) == 1:
                message = f"{table.name('')}: the issuer {other.rule.name} is the same"
                raise ConfigError(message)
            prefixes = [one.users.prefix for one in (other, issuer) if one.users is not None]
            if len(prefixes) > len(set(prefixes)):
                message = (
                    f"{table.name('users')}.prefix: the users of the issuer {other.rule.name} have "
                    "the same prefix, so that an alice of either would be the same principal: give "
                    "each issuer's users a prefix of its own, as in 'user:partner/'"
                )
                raise ConfigError(message)
        issuers[name] = issuer
    return issuers


def _issuer(name: str, table: Table, resolve: Callable[[str], Path]) -> IssuerConfig:
    issuer, domain = table.optional("issuer"), table.optional("spiffe")
    if (issuer is None) is (domain is None):
        expected = "one of issuer (the exact iss of its tokens) and spiffe = 'TRUST.DOMAIN'"
        raise table.mistake("issuer", expected)
    if domain is not None and not _DOMAIN.fullmatch(domain):
        raise table.mistake("spiffe", "a trust domain without spiffe://, as in 'acme.example'")
    subject = table.text("subject_claim", "sub")
    if domain is not None and subject != "sub":
        raise table.mistake("subject_claim", "the name of a claim; of a JWT-SVID, it is sub")
    rule = JwtRule(
        name,
        issuer,
        domain,
        frozenset(_audience(table)),
        frozenset(_algorithms(table)),
        _types(table, TYPES if domain is None else SPIFFE_TYPES),
        subject,
        _leeway(table),
    )
    config = _with_keys(rule, table, resolve)
    if "users" in table.names():
        if domain is not None:
            raise table.mistake("users", "no users: a JWT-SVID is a workload's")
        config = replace(config, users=_users(table.table("users"), rule.audience))
    config = replace(config, services=_services(table))
    table.reject_unknown()
    return config


def _services(table: Table) -> Mapping[str, str]:
    given = table.mapping("services")
    if given is None:
        return MappingProxyType({})
    services = {subject: name for name, subject in given.items()}
    is_good = all(is_principal(name) and name.startswith("service:") for name in given)
    if not is_good or "" in services or len(services) < len(given):
        expected = "names of services, as in 'service:ci', each with another subject"
        raise table.mistake("services", expected)
    return MappingProxyType(services)


def _users(table: Table, audience: frozenset[str]) -> UsersConfig:
    claim, prefix = table.text("claim"), table.text("prefix", "user:")
    if not is_principal(f"{prefix}x"):
        raise table.mistake("prefix", "the beginning of a principal's name, as in 'user:'")
    longest = table.number("longest")
    if longest is not None and not 1 <= longest <= LONGEST:
        raise table.mistake("longest", f"a whole number of seconds from 1 to {LONGEST}")
    roles = table.optional("roles")
    own = table.texts("audience", tuple(audience))
    config = UsersConfig(
        claim,
        prefix,
        table.choice("token", ("access", "ID"), "access"),
        frozenset(own),
        () if roles is None else tuple(roles.split(".")),
        longest,
        frozenset(table.texts("logout_audience", own)),
        table.boolean("id_jag", default=False),
    )
    audiences = config.audience, config.logout_audience
    if "" in config.roles or any(not one or "" in one for one in audiences):
        message = f"{table.name('')}: audiences and the parts of roles are not empty"
        raise ConfigError(message)
    table.reject_unknown()
    return config


def _audience(table: Table) -> tuple[str, ...]:
    audience = table.texts("audience", ())
    if not audience or "" in audience:
        expected = "a list of audiences, one of which has to be in a token's aud"
        raise table.mistake("audience", expected)
    return audience


def _algorithms(table: Table) -> tuple[str, ...]:
    algorithms = table.texts("algorithms", ())
    if not algorithms or not ALGORITHMS.keys() >= set(algorithms):
        raise table.mistake("algorithms", f"a list of some of {', '.join(ALGORITHMS)}")
    return algorithms


def _types(table: Table, default: tuple[str, ...]) -> frozenset[str]:
    types = frozenset(table.texts("types", default))
    if any(one.lower().removeprefix("application/") == _ID_JAG for one in types):
        expected = (
            f"no {_ID_JAG}: id_jag = true in the table users lets such tokens count as grants"
        )
        raise table.mistake("types", expected)
    return types


def _leeway(table: Table) -> int:
    leeway = table.number("leeway")
    if leeway is not None and leeway > MAX_LEEWAY:
        raise table.mistake("leeway", f"at most {MAX_LEEWAY} seconds")
    return LEEWAY if leeway is None else leeway


def _with_keys(rule: JwtRule, table: Table, resolve: Callable[[str], Path]) -> IssuerConfig:
    file, ca = table.file("jwks_file", resolve), table.file("ca", resolve)
    url = table.optional("jwks_url")
    if (file is None) is (url is None):
        expected = "one of jwks_file and jwks_url, where the issuer's public keys are"
        raise table.mistake("jwks_file", expected)
    if url is not None:
        address_of(url, table.name("jwks_url"))
    if ca is not None and (url is None or not url.startswith("https:")):
        raise table.mistake("ca", "no ca: it is for a jwks_url that begins with https")
    return IssuerConfig(rule, file, url, ca)
