"""``UserTokens``: which principal a token of an outside issuer is of, and for how long it may lend.

``[issuers.NAME.users]`` says that the issuer knows users: which claim names the principal, which
kind of token counts, and which claim has roles. ``issuers/`` verifies the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from agentguard.delegation import verified_tokens
from agentguard.delegation.verified_tokens import SubjectToken
from agentguard.domain.config import Config
from agentguard.domain.config.agents import PrincipalConfig
from agentguard.domain.config.issuers import IssuerConfig, UsersConfig
from agentguard.domain.key_sources import KeySources
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt, login
from agentguard.identity.jwt import VerifiedJwt
from agentguard.identity.login import LogIn
from agentguard.identity.principal import is_principal, shown
from agentguard.issuers.keys import KeySource
from agentguard.issuers.trusted import Issuers, TrustedIssuer
from agentguard.signing import declared
from agentguard.signing.canonical import JSON

_OF_ID_TOKENS = ("nonce", "at_hash", "c_hash")
_OF_ACCESS_TOKENS = ("scope", "scp", "cid")
_KINDS = (
    ("typ", {"access": "Bearer", "ID": "ID"}),
    ("token_use", {"access": "access", "ID": "id"}),
)
_CLIENT_CLAIMS = ("azp", "client_id", "cid", "appid")


@dataclass(frozen=True, slots=True)
class User:
    """A principal who came with a verified token.

    ``ends_at`` is the latest end of what the principal may lend, in seconds since the epoch.
    ``rights`` are the roles that the token gives, with their scopes; None where the issuer's
    configuration names no claim for roles, so that ``[principals]`` decides. ``login`` is the
    log-in at the provider, by the times of the token. ``limit`` is the largest scope that the token
    lets the principal lend, None where the token says nothing of scopes.
    """

    principal: str
    token: SubjectToken
    ends_at: int
    rights: PrincipalConfig | None
    login: LogIn
    limit: frozenset[str] | None = None


class UserTokens:
    """Verifies tokens of the issuers that know users."""

    def __init__(self, settings: Config, sources: KeySources) -> None:
        self._application = f"spiffe://{settings.trust_domain}"
        self._roles = settings.role_scopes
        self._programs = {
            (client.issuer, client.subject)
            for client in settings.client_tables.values()
            if client.issuer is not None
            # another claim names the program through which a user comes, too
            and settings.issuers[client.issuer].rule.subject_claim == "sub"
        }
        self._users = {
            name: issuer.users
            for name, issuer in settings.issuers.items()
            if issuer.users is not None
        }
        self._issuers = Issuers(
            [
                _for_users(issuer, issuer.users, sources.of(name))
                for name, issuer in settings.issuers.items()
                if issuer.users is not None
            ]
        )

    def verify(self, token: str, *, now: int, actors: frozenset[str] = frozenset()) -> User:
        """Verify a token; ``now`` is in seconds since the epoch.

        ``actors`` are the names of who is to act, besides the application (the trust domain's URI).
        Raises as ``Issuers.verify`` does; also ``VerificationError``: ``jwt.type`` for a token of
        another kind, ``jwt.actor`` for a token that lets another party act, ``jwt.subject`` for a
        token that is a program's, that names no principal, or that names a principal of another
        issuer, and ``jwt.lifetime`` for a token without ``iat``.
        """
        verified = self._issuers.verify(token)
        _require_kind(verified, self._users[verified.issuer])
        _require_actor(verified.claims, actors | {self._application})
        return self.user_of(token, verified, now=now)

    def user_of(self, token: str, verified: VerifiedJwt, *, now: int) -> User:
        """Return the user of a verified token, whose kind the caller has looked at.

        ``now`` is in seconds since the epoch. Raises as ``verify`` does, but for ``jwt.type`` and
        ``jwt.actor``.
        """
        users = self._users[verified.issuer]
        if (verified.issuer, verified.subject) in self._programs or _is_program(verified.claims):
            message = "the token is a program's own: pass the token with which a user has come"
            raise VerificationError(message, code="jwt.subject")
        principal = _principal(verified.claims, users)
        self._require_own(principal, users)
        rights = self._rights(verified.claims, users)
        known = _known(token, verified, rights)
        issued_at = _issued_at(verified.claims)
        longest = issued_at + login.LONGEST
        ends_at = int(verified.expires_at) if users.longest is None else now + users.longest
        if min(ends_at, longest) <= now:
            raise VerificationError("the token has expired", code="jwt.expired")
        if users.longest is None:
            ends_at = min(ends_at, longest)
        at = issued_at if known.auth_time is None else min(known.auth_time, issued_at)
        log_in = LogIn(known.iss, known.sub, known.sid, at, "provider")
        return User(principal, known, ends_at, rights, log_in)

    def _require_own(self, principal: str, users: UsersConfig) -> None:
        """Raise ``VerificationError`` for a name that only another issuer may give.

        Of two prefixes with which a name begins, the longer one has the name.
        """
        for name, other in self._users.items():
            if len(other.prefix) > len(users.prefix) and principal.startswith(other.prefix):
                message = (
                    f"the token's {users.claim} makes {principal}, a name for users of the issuer "
                    f"{name} alone (prefix {other.prefix!r})"
                )
                raise VerificationError(message, code="jwt.subject")

    def _rights(self, claims: Mapping[str, JSON], users: UsersConfig) -> PrincipalConfig | None:
        """Return what the roles of the token allow, as far as ``[roles]`` has them."""
        if not users.roles:
            return None
        *outer, last = users.roles
        inner: JSON | Mapping[str, JSON] = claims
        for name in outer:
            inner = inner.get(name, {}) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or isinstance(inner.get(last), str):
            message = f"the token's {'.'.join(users.roles)} is no list of roles"
            raise DecodeError(message, code="jwt.malformed")
        roles = sorted(self._roles.keys() & {*jwt.read_strings(inner, last)})
        scope = frozenset[str]().union(*(self._roles[role] for role in roles))
        return PrincipalConfig(tuple(roles), scope)


def _for_users(issuer: IssuerConfig, users: UsersConfig, source: KeySource) -> TrustedIssuer:
    # subject_claim is for programs; the first hop names the sub of a user's token
    rule = replace(issuer.rule, audience=users.audience, subject_claim="sub")
    return TrustedIssuer(rule, source)


def _require_kind(verified: VerifiedJwt, users: UsersConfig) -> None:
    """Tell the kinds of tokens apart, which providers sign with the same keys.

    An access token has to say that it is one, because an ID token may say nothing. A token with
    ``events`` tells of a log-out, say. OpenID Connect Core, 2; RFC 9068, 2.2; RFC 8417, 2.2; OpenID
    Connect Back-Channel Logout, 2.4. The claim ``typ`` is Keycloak's, ``token_use`` Amazon
    Cognito's. The ID tokens of zitadel/oidc have ``client_id``, as access tokens have.
    """
    claims = verified.claims
    typ = str(verified.header.get("typ", "")).lower().removeprefix("application/")
    says_id = any(name in claims for name in _OF_ID_TOKENS)
    is_access = (
        typ == "at+jwt"
        or claims.get("typ") == "Bearer"
        or any(name in claims for name in _OF_ACCESS_TOKENS)
        or ("client_id" in claims and not says_id)
    )
    wrong = (
        is_access is not users.takes_access
        or any(claims.get(name, says[users.token]) != says[users.token] for name, says in _KINDS)
        or (users.takes_access and says_id)
        or "events" in claims
    )
    if wrong:
        message = f"the token is no {users.token} token: pass the provider's {users.token} token"
        raise VerificationError(message, code="jwt.type")


def _require_actor(claims: Mapping[str, JSON], actors: frozenset[str]) -> None:
    """Raise ``VerificationError`` (``jwt.actor``) unless one of ``actors`` may act with a token.

    ``act`` names a party that acts for the user already, and no hop would name this party (RFC
    8693, 4.1). ``may_act`` names the one party that may act (4.4): here, by ``sub`` alone, because
    the names of ``actors`` are unique without an ``iss``.
    """
    if "act" in claims:
        message = "another party acts with the token already (act): pass the user's own token"
        raise VerificationError(message, code="jwt.actor")
    if "may_act" in claims and claims["may_act"] not in [{"sub": name} for name in actors]:
        names = ", ".join(sorted(actors))
        message = (
            f"the token lets another party act (may_act): the sub of may_act is none of {names}"
        )
        raise VerificationError(message, code="jwt.actor")


def _is_program(claims: Mapping[str, JSON]) -> bool:
    """Whether a token says that a program got the token in its own name.

    The subject is the client (RFC 9068, 2.2 and 5). Keycloak has a user ``service-account-CLIENT``
    for each such client, Auth0 the subject ``CLIENT@clients`` and ``gty``, and Microsoft Entra ID
    ``idtyp``.
    """
    clients = {jwt.read_string(claims, name) for name in _CLIENT_CLAIMS} - {None}
    subject, user = claims.get("sub"), claims.get("preferred_username")
    return (
        subject in {*clients, *(f"{client}@clients" for client in clients)}
        or user in {f"service-account-{client}".lower() for client in clients}
        or claims.get("idtyp") == "app"
        or "client-credentials" in jwt.read_strings(claims, "gty")
    )


def _principal(claims: Mapping[str, JSON], users: UsersConfig) -> str:
    value = claims.get(users.claim)
    principal = f"{users.prefix}{value}" if isinstance(value, str) and value else ""
    if not is_principal(principal):
        message = (
            f"the token's {users.claim} is {shown(value)}, which is no name of a principal after "
            f"{users.prefix!r}: correct claim or prefix of the issuer's users"
        )
        raise VerificationError(message, code="jwt.subject")
    if users.claim == "email" and claims.get("email_verified", True) is not True:
        message = "the provider has not verified the token's email: anybody could have written it"
        raise VerificationError(message, code="jwt.subject")
    return principal


def _known(token: str, verified: VerifiedJwt, rights: PrincipalConfig | None) -> SubjectToken:
    """Return what the first hop says of the token; raises ``DecodeError`` (``jwt.malformed``)."""
    claims = verified.claims
    has_time = "auth_time" in claims
    members = {
        "iss": claims.get("iss"),
        "sub": claims.get("sub"),
        "sha256": sha256(token.encode("ascii")).hexdigest(),
        "jti": jwt.read_string(claims, "jti"),
        "sid": jwt.read_string(claims, "sid"),
        "auth_time": int(jwt.read_time(claims, "auth_time")) if has_time else None,
        "acr": jwt.read_string(claims, "acr"),
        "roles": [] if rights is None else rights.roles,
    }
    return declared.read(SubjectToken, members, verified_tokens.SHOWN, code="jwt.malformed")


def _issued_at(claims: Mapping[str, JSON]) -> int:
    """Return ``iat``, which tells whether a log-out came after the token."""
    if "iat" not in claims:
        message = "the token has no iat: have the issuer set one"
        raise VerificationError(message, code="jwt.lifetime")
    return int(jwt.read_time(claims, "iat"))
