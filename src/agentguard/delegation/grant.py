"""A hop grant (``typ: ag-hop+jwt``): one delegator's signature under what one delegatee may do.

Here a hop is made, read and verified by itself; what must hold between a hop and the one before it
stands in ``chain.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agentguard.errors import DecodeError, DelegationError, VerificationError
from agentguard.identity import credential
from agentguard.identity import principal as principals
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "ag-hop+jwt"
"""The ``typ`` of a hop grant."""

MAX_DEPTH: Final = 16
"""The most hops that a chain may have."""

MAX_CALLS: Final = 2**53 - 1
_LATEST: Final = 253_402_300_799  # the end of the year 9999

# RFC 6749, 3.3: printable ASCII without the space, which separates, '"' and '\'
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}\Z")
# of the trust domain, an agent's instance or an audience; a principal's is stricter
_NAME: Final = re.compile(r"[\x21-\x7e]{1,1024}\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_THUMBPRINT: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_CLAIMS: Final = frozenset(
    {
        *("iss", "sub", "client_id", "cnf", "scope", "aud", "iat", "exp", "jti", "txn"),
        *("depth", "max_depth", "max_calls", "par", "assurance", "asserted_by"),
    }
)

Assurance = Literal["application"]
"""How the principal was authenticated: ``application``, the embedding program vouches for it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One hop, as it was issued here or has verified.

    ``delegator`` lets ``delegatee``, which holds the key with the thumbprint ``key_id``, act for
    ``principal`` with ``scope`` (sorted; empty grants nothing) towards ``audience`` (sorted). Times
    are seconds since the epoch. ``max_calls`` None is no limit of its own; ``parent`` is the
    SHA-256 (hex) of the parent hop's signing input, None in the first hop, which alone has an
    ``assurance``. ``asserted`` says that the delegatee has no key of its own here: the issuer's
    signs for it.
    """

    delegator: str
    principal: str
    delegatee: str
    key_id: str
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    issued_at: int
    expires_at: int
    jti: str
    task_id: str | None
    depth: int
    max_depth: int
    max_calls: int | None
    parent: str | None
    assurance: Assurance | None
    asserted: bool

    def claims(self) -> dict[str, JSON]:
        """Return the claims of the token."""
        return {
            "iss": self.delegator,
            "sub": self.principal,
            "client_id": self.delegatee,
            "cnf": {"jkt": self.key_id},
            "scope": " ".join(self.scope),
            "aud": list(self.audience),
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.jti,
            "txn": self.task_id,
            "depth": self.depth,
            "max_depth": self.max_depth,
            "max_calls": self.max_calls,
            "par": self.parent,
            "assurance": self.assurance,
            "asserted_by": "issuer" if self.asserted else None,
        }


@dataclass(frozen=True, slots=True)
class Hop:
    """A grant in its signed form: the compact JWS, and the part of it that is signed."""

    grant: Grant
    token: str
    signing_input: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the signing input: what the next hop names as its parent."""
        return hashlib.sha256(self.signing_input).hexdigest()


def scopes(asked: object) -> tuple[str, ...]:
    """Return scopes in the order in which a grant has them.

    Raises ``DelegationError`` (``scope.malformed``) for what is no scope-token (RFC 6749, 3.3).
    """
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        given = f"the text {asked!r}" if isinstance(asked, str) else repr(asked)
        message = f"a scope is a list such as ['repo:read'], not {given}"
        raise DelegationError(message, code="scope.malformed")
    found: set[str] = set()
    for one in asked:
        if not isinstance(one, str) or not _SCOPE.match(one):
            message = (
                f"{one!r} is no scope: use printable ASCII without spaces, quotation marks and "
                "backslashes, as in 'repo:read'"
            )
            raise DelegationError(message, code="scope.malformed")
        found.add(one)
    return tuple(sorted(found))


def principal(name: object, what: str = "principal") -> str:
    """Return the name of a user or service; raises ``DelegationError`` (``principal.malformed``).

    It may not look like an agent's: an agent's name is believed from its credential alone.
    """
    return principals.require(name, what, DelegationError)


def require_terms(
    *,
    now: int,
    expires_in: object,
    task_id: object,
    max_depth: object,
    max_calls: object,
    audience: Iterable[object],
) -> None:
    """Refuse what a first hop can't say, by the name under which it was given.

    ``_check`` would refuse it as well, in the words of a verifier. Raises ``DelegationError``
    (``hop.malformed``, ``delegation.depth``).
    """
    said, code = None, "hop.malformed"
    if not is_integer(expires_in) or not 1 <= expires_in <= _LATEST - now:
        said = f"expires_in is {expires_in!r}: give a timedelta or whole seconds, from one second"
        said += " on, that end before the year 10000"
    elif not (task_id is None or isinstance(task_id, str)):
        said = f"task_id is {task_id!r}: give a text, or None for no task"
    elif not is_integer(max_depth) or not 1 <= max_depth <= MAX_DEPTH:
        said, code = f"max_depth is {max_depth!r}: give 1 to {MAX_DEPTH} hops", "delegation.depth"
    elif max_calls is not None and not (is_integer(max_calls) and 1 <= max_calls <= MAX_CALLS):
        said = f"max_calls is {max_calls!r}: give a whole number from 1 on, or None for no limit"
    else:
        for name in audience:
            if not isinstance(name, str) or not _NAME.match(name):
                said = f"audience has {name!r}: give names in printable ASCII without spaces"
    if said is not None:
        raise DelegationError(said, code=code)


def is_agent(delegatee: str) -> bool:
    """Whether a delegatee is an agent instance, by the form of its URI."""
    return credential.agent_name(delegatee) is not None


def sign(grant: Grant, signer: Signer) -> Hop:
    """Sign a grant with the delegator's key."""
    token = jws.sign(grant.claims(), signer, typ=TYPE, header={"kid": signer.key_id})
    return Hop(grant, token, token.rpartition(".")[0].encode("ascii"))


def key_id(token: str) -> str:
    """Return the key id that a hop names, unverified: it only chooses among known keys.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    kid = jws.parse(token).header.get("kid")
    if not isinstance(kid, str):
        raise _malformed("its header names no kid")
    return kid


def verify(token: str, key: PublicKey) -> Hop:
    """Return a hop that ``key`` has signed and whose claims are those of a grant.

    Raises ``DecodeError`` (``hop.malformed``, ``jws.malformed``, ``json.*``) and
    ``VerificationError`` (``jws.*``, ``signature.invalid``).
    """
    verified = jws.verify(token, key, typ=TYPE)
    if verified.header.get("kid") != key.thumbprint:
        raise VerificationError("the hop names another key than signed it", code="hop.key")
    return Hop(_parse(verified.claims()), token, verified.signing_input)


def read(token: str) -> Grant:
    """Read a hop's claims without verifying anything, for display.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    return _parse(jws.parse(token).claims())


def _parse(claims: Mapping[str, JSON]) -> Grant:
    match claims:
        case {
            "iss": str(delegator),
            "sub": str(subject),
            "client_id": str(delegatee),
            "cnf": {"jkt": str(thumbprint), **further},
            "scope": str(scope),
            "aud": [*audience],
            "iat": issued_at,
            "exp": expires_at,
            "jti": str(jti),
            "txn": str() | None as task_id,
            "depth": depth,
            "max_depth": max_depth,
            "max_calls": max_calls,
            "par": str() | None as parent,
            "assurance": None | "application" as assurance,
            "asserted_by": None | "issuer" as asserted_by,
        } if (
            claims.keys() == _CLAIMS
            and not further
            and is_integer(issued_at)
            and is_integer(expires_at)
            and is_integer(depth)
            and is_integer(max_depth)
            and (max_calls is None or is_integer(max_calls))
        ):
            grant = Grant(
                delegator=delegator,
                principal=subject,
                delegatee=delegatee,
                key_id=thumbprint,
                scope=_parse_scope(scope),
                audience=_parse_audience(audience),
                issued_at=issued_at,
                expires_at=expires_at,
                jti=jti,
                task_id=task_id,
                depth=depth,
                max_depth=max_depth,
                max_calls=max_calls,
                parent=parent,
                assurance=assurance,
                asserted=asserted_by is not None,
            )
            _check(grant)
            return grant
    raise _malformed("its claims are not those of a hop grant, or not of their types")


def _check(grant: Grant) -> None:
    """Refuse what ``chain.py`` never issues, whoever has signed it."""
    if not principals.is_principal(grant.principal):
        raise _malformed("its sub is no name of a principal, as in user:alice")
    if not _is_party(grant.delegator) or not _is_party(grant.delegatee):
        raise _malformed("its iss or client_id is no principal, agent or trust domain")
    if not jws.is_jti(grant.jti) or not _THUMBPRINT.match(grant.key_id):
        raise _malformed("its jti or cnf.jkt has not the form of one")
    if grant.parent is not None and not _SHA256.match(grant.parent):
        raise _malformed("its par is no SHA-256")
    if not 0 <= grant.issued_at < grant.expires_at <= _LATEST:
        raise _malformed("its times are no times")
    if not 1 <= grant.depth <= grant.max_depth <= MAX_DEPTH:
        raise VerificationError(
            f"its depth is not within its max_depth, or that is over {MAX_DEPTH}", code="hop.depth"
        )
    if grant.max_calls is not None and not 1 <= grant.max_calls <= MAX_CALLS:
        raise _malformed("its max_calls is no number of calls")


def _is_party(name: str) -> bool:
    """Whether a name is that of who hands on or is handed something, by its form."""
    if principals.is_principal(name):
        return True
    return principals.is_agent(name) and _NAME.match(name) is not None


def _parse_scope(text: str) -> tuple[str, ...]:
    """Read the one form that a scope has: sorted, each once, a single space between two."""
    found = tuple(text.split(" ")) if text else ()
    if not all(map(_SCOPE.match, found)) or found != tuple(sorted(set(found))):
        raise _malformed("its scope is not a sorted list of scope-tokens")
    return found


def _parse_audience(items: list[JSON]) -> tuple[str, ...]:
    found = tuple(item for item in items if isinstance(item, str) and _NAME.match(item))
    if len(found) != len(items) or not found or found != tuple(sorted(set(found))):
        raise _malformed("its aud is not a sorted list of names")
    return found


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a hop grant: {problem}", code="hop.malformed")
