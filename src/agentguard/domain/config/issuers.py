"""``[issuers]``: whose tokens count, and where the issuers' keys are.

This module opens no file and asks no server: ``domain/issuer_keys.py`` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from agentguard.errors import ConfigError
from agentguard.identity.jwa import ALGORITHMS
from agentguard.identity.jwt import ABSENT, JwtRule
from agentguard.identity.login import LONGEST
from agentguard.identity.principal import is_principal
from agentguard.issuers.address import address_of
from agentguard.tables import MistakeError, Table, below, kinds, setting

MAX_LEEWAY: Final = 300

SPIFFE_TYPES: Final = frozenset({"JWT", "JOSE", ABSENT})
"""The default of ``types`` for JWT-SVIDs (SPIFFE JWT-SVID, 2.3)."""

TYPES: Final = frozenset({"JWT", "at+jwt", ABSENT})
"""The default of ``types``: Keycloak says JWT, RFC 9068 says at+jwt, and others say nothing."""

_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID_JAG: Final = "oauth-id-jag+jwt"
_AUDIENCE: Final = kinds.names("a list of audiences, one of which has to be in a token's aud").to(
    frozenset
)


@dataclass(frozen=True, slots=True)
class UsersConfig:
    """How tokens of the issuer name users, who lend to agents.

    A program passes such a token: ``guard.delegate(subject_token=...)``. Without the table, the
    issuer knows no users (docs/how-to/users.md).

    ::

        [issuers.cluster.users]
        claim = "preferred_username"
        prefix = "user:"
        token = "access"
        audience = ["agentguard"]
        roles = "realm_access.roles"
        longest = 3600
        logout_audience = ["support-app"]
        id_jag = true
    """

    claim: str = setting(kinds.text)
    """The claim that names the user."""

    prefix: str = setting(
        kinds.text.where(
            lambda prefix: is_principal(f"{prefix}x"),
            "the beginning of a principal's name, as in 'user:'",
        ),
        default="user:",
    )
    """What stands before that name in the name of the principal; each issuer with users has another
    one."""

    token: Literal["access", "ID"] = setting(kinds.choice("access", "ID"), default="access")
    """The kind of token that counts: ``access`` or ``ID``."""

    audience: frozenset[str] = setting(_AUDIENCE, default=frozenset[str]())
    """The audiences of users' tokens; at least one has to be in a token's ``aud``. Without the key,
    they are those of the issuer."""

    roles: tuple[str, ...] = setting(
        kinds.text.to(
            lambda text: tuple(text.split(".")) if all(text.split(".")) else None,
            "names of claims with a dot between them, as in 'realm_access.roles'",
        ),
        default=(),
    )
    """Where a token has the list of the user's roles, with a dot between the names of nested
    claims. Without the key, ``[principals]`` has the roles."""

    longest: int | None = setting(
        kinds.number.where(
            lambda seconds: 1 <= seconds <= LONGEST,
            f"a whole number of seconds from 1 to {LONGEST}",
        ),
        default=None,
    )
    """How many seconds a delegation may last, at most 604800 (7 days); without the key, as long as
    the token."""

    logout_audience: frozenset[str] = setting(_AUDIENCE, default=frozenset[str]())
    """The audiences of log-out tokens, which is the id of the program in which the users log in;
    without the key, those of ``audience``."""

    id_jag: bool = setting(kinds.boolean, default=False)
    """Whether the token service takes ID-JAGs (docs/how-to/id-jag.md) of the issuer as grants;
    needs the table ``[service]``."""

    @property
    def takes_access(self) -> bool:
        """Whether access tokens count, and not ID tokens."""
        return self.token == "access"  # noqa: S105  a kind, no token


def _services(given: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the principal of each subject, None where a name or a subject is none."""
    services = {subject: name for name, subject in given.items()}
    is_good = all(is_principal(name) and name.startswith("service:") for name in given)
    is_clear = "" not in services and len(services) == len(given)
    return MappingProxyType(services) if is_good and is_clear else None


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    """An issuer of the organisation whose tokens count.

    They count for clients with ``issuer`` in ``[clients.NAME]``
    (docs/how-to/workload-tokens.md).

    ::

        [issuers.cluster]
        issuer = "https://kubernetes.default.svc.cluster.local"
        # spiffe = "acme.example"
        jwks_file = "cluster.json"
        # jwks_url = "https://sso.acme.example/realms/acme/protocol/openid-connect/certs"
        # ca = "sso-ca.pem"
        audience = ["agentguard"]
        algorithms = ["RS256"]
        types = ["JWT"]
        subject_claim = "sub"
        leeway = 30
        services = { "service:billing" = "system:serviceaccount:prod:billing" }
    """

    name: str
    audience: frozenset[str] = setting(_AUDIENCE)
    """The audiences of which one has to be in a token's ``aud``."""

    algorithms: frozenset[str] = setting(
        kinds.texts.where(
            lambda names: bool(names) and ALGORITHMS.keys() >= set(names),
            f"a list of some of {', '.join(ALGORITHMS)}",
        ).to(frozenset),
    )
    """The algorithms with which the issuer signs: some of RS256, RS384, RS512, PS256, PS384, PS512,
    ES256, ES384, ES512, EdDSA, Ed25519."""

    issuer: str | None = setting(kinds.text, default=None)
    """The exact ``iss`` of the issuer's tokens: each letter and slash counts; or ``spiffe``."""

    spiffe: str | None = setting(
        kinds.text.where(
            lambda domain: _DOMAIN.fullmatch(domain) is not None,
            "a trust domain without spiffe://, as in 'acme.example'",
        ),
        default=None,
    )
    """The trust domain of JWT-SVIDs, which need no ``iss``; of a SPIFFE bundle, keys with ``use:
    jwt-svid`` count."""

    jwks_file: Path | None = setting(kinds.file, default=None)
    """A file with the issuer's public keys (a JWKS, a SPIFFE bundle, or what spiffe-helper writes),
    which is read for each connection; or ``jwks_url``."""

    jwks_url: str | None = setting(kinds.text, default=None)
    """The URL of these keys; ``http`` only on this machine; the extra ``tokens``."""

    ca: Path | None = setting(kinds.file, default=None)
    """For an https ``jwks_url``: the certificates by which the server there is known; by default
    the system's."""

    types: frozenset[str] | None = setting(
        kinds.texts.where(
            lambda names: all(one.lower().removeprefix("application/") != _ID_JAG for one in names),
            f"no {_ID_JAG}: id_jag = true in the table users lets such tokens count as grants",
        ).to(frozenset),
        default=None,
    )
    """The accepted values of a token's ``typ``; ``""`` is a token without one. Without the key,
    ``["JWT", "at+jwt", ""]``, and for ``spiffe`` ``["JWT", "JOSE", ""]``."""

    subject_claim: str = setting(kinds.text, default="sub")
    """The claim that names the subject; for Keycloak's client credentials ``azp``."""

    leeway: int = setting(
        kinds.number.where(lambda number: number <= MAX_LEEWAY, f"at most {MAX_LEEWAY} seconds"),
        default=30,
    )
    """How many seconds the clocks of issuer and server may differ, at most 300."""

    services: Mapping[str, str] = setting(
        kinds.mapping.to(
            _services, "names of services, as in 'service:ci', each with another subject"
        ),
        default=MappingProxyType[str, str]({}),
    )
    """The services whom the issuer's tokens name, each with its subject:
    ``guard.delegate(via_token=...)``."""

    users: UsersConfig | None = setting(below(lambda: UsersConfig), default=None)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ConfigError("the name of an issuer is a text of one line")
        if (self.issuer is None) is (self.spiffe is None):
            expected = "one of issuer (the exact iss of its tokens) and spiffe = 'TRUST.DOMAIN'"
            raise MistakeError("issuer", expected)
        if self.spiffe is not None and self.subject_claim != "sub":
            raise MistakeError("subject_claim", "the name of a claim; of a JWT-SVID, it is sub")
        if self.spiffe is not None and self.users is not None:
            raise MistakeError("users", "no users: a JWT-SVID is a workload's")
        if (self.jwks_file is None) is (self.jwks_url is None):
            expected = "one of jwks_file and jwks_url, where the issuer's public keys are"
            raise MistakeError("jwks_file", expected)
        if self.jwks_url is not None:
            address_of(self.jwks_url, "jwks_url")
        if self.ca is not None and not (self.jwks_url or "").startswith("https:"):
            raise MistakeError("ca", "no ca: it is for a jwks_url that begins with https")

    @property
    def rule(self) -> JwtRule:
        """What a token of the issuer has to be."""
        types = TYPES if self.spiffe is None else SPIFFE_TYPES
        return JwtRule(
            self.name,
            self.issuer,
            self.spiffe,
            self.audience,
            self.algorithms,
            types if self.types is None else self.types,
            self.subject_claim,
            self.leeway,
        )


def known_issuers(outer: Table, issuers: Mapping[str, IssuerConfig]) -> Mapping[str, IssuerConfig]:
    """Return ``[issuers]``, the table ``outer``, where each differs from the others.

    Raises ``ConfigError``.
    """
    for one, other in combinations(issuers.values(), 2):
        if (one.issuer, one.spiffe) == (other.issuer, other.spiffe):
            message = f"{outer.name(other.name)}: the issuer {one.name} is the same"
            raise ConfigError(message)
        if one.users and other.users and one.users.prefix == other.users.prefix:
            message = (
                f"{outer.name(other.name)}.users.prefix: the users of the issuer {one.name} have "
                "the same prefix, so that an alice of either would be the same principal: give "
                "each issuer's users a prefix of its own, as in 'user:partner/'"
            )
            raise ConfigError(message)
    return {name: _with_audiences(outer.table(name), one) for name, one in issuers.items()}


def _with_audiences(table: Table, issuer: IssuerConfig) -> IssuerConfig:
    """Return an issuer whose users have its audience, where their table names none."""
    users = issuer.users
    if users is None:
        return issuer
    named = table.table("users").names()
    audience = users.audience if "audience" in named else issuer.audience
    logout = users.logout_audience if "logout_audience" in named else audience
    return replace(issuer, users=replace(users, audience=audience, logout_audience=logout))
