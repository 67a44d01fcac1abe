"""A hop grant (``typ: ag-hop+jwt``): one delegator's signature under what one delegatee may do.

A hop is encoded, signed, decoded and verified here, by itself. The rules between a hop and the hop
before stand in ``attenuation.py``; ``chain_issuance.py`` makes hops, ``verification.py`` verifies
whole chains.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from agentguard.delegation.verified_tokens import SubjectToken, ViaToken
from agentguard.errors import DecodeError, DelegationError, VerificationError
from agentguard.identity.credential import agent_name
from agentguard.identity.principal import is_agent_name, is_principal
from agentguard.identity.trust import LATEST
from agentguard.signing import canonical, declared, jws
from agentguard.signing.canonical import JSON, is_integer, is_sha256
from agentguard.signing.declared import ABSENT, Absent, Declared
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "ag-hop+jwt"
"""The ``typ`` of a hop grant."""

MAX_DEPTH: Final = 16
"""The most hops that a chain may have."""

MAX_CALLS: Final = 2**53 - 1
"""The largest ``max_calls`` of a hop."""

_LONGEST_KEPT: Final = 1024
"""The longest claims of which the grant is kept for the next look, in bytes."""

# RFC 6749, 3.3: printable ASCII without '"', '\' and the space, which separates scope-tokens
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}\Z")
# the name of a trust domain, an agent instance or an audience; a principal's name is stricter
_NAME: Final = re.compile(r"[\x21-\x7e]{1,1024}\Z")
_THUMBPRINT: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
Assurance = Literal["application", "oidc"]
"""Who authenticated the principal.

``application`` is the program that agentguard is part of. ``oidc`` is an outside issuer, of which
agentguard has verified a token.
"""


class _Confirmation(Declared, frozen=True):
    jkt: str


class Claims(Declared, frozen=True):
    """The claims of a hop's JWT (records.md, Delegation)."""

    iss: str
    sub: str
    client_id: str
    cnf: _Confirmation
    scope: str
    aud: tuple[str, ...]
    iat: int
    exp: int
    jti: str
    txn: str | None
    depth: int
    max_depth: int
    max_calls: int | None
    par: str | None
    assurance: Assurance | None
    asserted_by: Literal["issuer"] | None
    subject_token: SubjectToken | Absent = ABSENT
    via_token: ViaToken | Absent = ABSENT


@dataclass(frozen=True, slots=True)
class Grant:
    """The content of one hop, issued here or verified.

    ``delegator`` lets ``delegatee``, which has the key with the thumbprint ``key_id``, act for
    ``principal`` with ``scope`` (sorted; empty grants nothing) towards ``audience`` (sorted). Times
    are seconds since the epoch. ``max_calls`` None sets no limit. ``parent`` is the SHA-256 (hex)
    of the parent hop's signing input, None in the first hop. Only the first hop has an
    ``assurance``, and, for ``oidc`` alone, a ``subject_token``. The first hop has a ``via_token``
    where its delegatee is a service that came with a token. ``is_asserted`` is true for a delegatee
    without a key: ``key_id`` is an issuer key then, and the issuer signs the next hop.
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
    is_asserted: bool
    subject_token: SubjectToken | None = None
    via_token: ViaToken | None = None

    def claims(self) -> dict[str, JSON]:
        """Return the claims of the hop's JWT (records.md, Delegation)."""
        return Claims(
            iss=self.delegator,
            sub=self.principal,
            client_id=self.delegatee,
            cnf=_Confirmation(jkt=self.key_id),
            scope=" ".join(self.scope),
            aud=self.audience,
            iat=self.issued_at,
            exp=self.expires_at,
            jti=self.jti,
            txn=self.task_id,
            depth=self.depth,
            max_depth=self.max_depth,
            max_calls=self.max_calls,
            par=self.parent,
            assurance=self.assurance,
            asserted_by="issuer" if self.is_asserted else None,
            subject_token=self.subject_token or ABSENT,
            via_token=self.via_token or ABSENT,
        ).as_json()


@dataclass(frozen=True, slots=True)
class Hop:
    """A grant in its signed form: the compact JWS ``token``, and the JWS signing input."""

    grant: Grant
    token: str
    signing_input: bytes

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the signing input, which the next hop names as its ``parent``."""
        return hashlib.sha256(self.signing_input).hexdigest()


def parse_scopes(scope: object) -> tuple[str, ...]:
    """Return the scope-tokens of an iterable, sorted and each once, as a grant has them.

    Raises ``DelegationError`` (``scope.malformed``) for what is no scope-token (RFC 6749, 3.3).
    """
    if isinstance(scope, str) or not isinstance(scope, Iterable):
        value = f"the text {scope!r}" if isinstance(scope, str) else repr(scope)
        message = f"a scope is a list such as ['repo:read'], not {value}"
        raise DelegationError(message, code="scope.malformed")
    tokens: set[str] = set()
    for token in scope:
        if not isinstance(token, str) or not _SCOPE.match(token):
            message = (
                f"{token!r} is no scope: use printable ASCII without spaces, quotation marks and "
                "backslashes, as in 'repo:read'"
            )
            raise DelegationError(message, code="scope.malformed")
        tokens.add(token)
    return tuple(sorted(tokens))


def is_audience(name: object) -> bool:
    """Whether a value can stand in a hop's audience."""
    return isinstance(name, str) and _NAME.match(name) is not None


def is_call_count(value: object) -> bool:
    """Whether a value can be a hop's ``max_calls``."""
    return is_integer(value) and 1 <= value <= MAX_CALLS


def is_agent(delegatee: str) -> bool:
    """Whether a delegatee is an agent instance, by the form of its URI."""
    return agent_name(delegatee) is not None


def sign(grant: Grant, signer: Signer) -> Hop:
    """Sign a grant with the delegator's key."""
    token = jws.sign(grant.claims(), signer, typ=TYPE, header={"kid": signer.key_id})
    return Hop(grant, token, token.rpartition(".")[0].encode("ascii"))


def key_id(token: str) -> str:
    """Return the key id that a hop names, unverified: it only selects among trusted keys.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    kid = jws.parse(token).header.get("kid")
    if not isinstance(kid, str):
        raise _malformed("its header names no kid")
    return kid


def verify(token: str, key: PublicKey) -> Hop:
    """Verify a hop's signature under ``key``, decode its claims, and return it.

    Raises ``DecodeError`` (``hop.malformed``, ``jws.malformed``, ``json.*``) and
    ``VerificationError`` (``jws.*``, ``signature.invalid``).
    """
    verified = jws.verify(token, key, typ=TYPE)
    if verified.header.get("kid") != key.thumbprint:
        raise VerificationError("the hop names another key than signed it", code="hop.key")
    return Hop(_read(verified.payload), token, verified.signing_input)


def read(token: str) -> Grant:
    """Decode a hop's claims without verifying the signature, for display.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    return _read(jws.parse(token).payload)


def _read(payload: bytes) -> Grant:
    is_short = len(payload) <= _LONGEST_KEPT
    return _kept_grant(payload) if is_short else _parse(canonical.loads_object(payload))


@lru_cache(maxsize=1024)
def _kept_grant(payload: bytes) -> Grant:
    """Decode claims; kept, since each hop is read when it is signed, and in each verification."""
    return _parse(canonical.loads_object(payload))


def _parse(claims: Mapping[str, JSON]) -> Grant:
    said = declared.read(Claims, claims, "a hop grant", code="hop.malformed")
    grant = Grant(
        delegator=said.iss,
        principal=said.sub,
        delegatee=said.client_id,
        key_id=said.cnf.jkt,
        scope=_parse_scope(said.scope),
        audience=_parse_audience(said.aud),
        issued_at=said.iat,
        expires_at=said.exp,
        jti=said.jti,
        task_id=said.txn,
        depth=said.depth,
        max_depth=said.max_depth,
        max_calls=said.max_calls,
        parent=said.par,
        assurance=said.assurance,
        is_asserted=said.asserted_by is not None,
        subject_token=said.subject_token or None,
        via_token=said.via_token or None,
    )
    _check(grant)
    return grant


def _check(grant: Grant) -> None:
    """Raise for a value that ``chain_issuance.py`` never signs, whoever has signed it."""
    if not is_principal(grant.principal):
        raise _malformed("its sub is no name of a principal, as in user:alice")
    if not _is_party(grant.delegator) or not _is_party(grant.delegatee):
        raise _malformed("its iss or client_id is no principal, agent or trust domain")
    if grant.via_token is not None and not (
        grant.assurance is not None and grant.is_asserted and is_principal(grant.delegatee)
    ):
        raise _malformed("its via_token says no token of a service that came first")
    if (grant.assurance == "oidc") is (grant.subject_token is None):
        raise _malformed("its subject_token does not say which token of the principal was verified")
    if not jws.is_jti(grant.jti) or not _THUMBPRINT.match(grant.key_id):
        raise _malformed("its jti or cnf.jkt has not the form of one")
    if grant.parent is not None and not is_sha256(grant.parent):
        raise _malformed("its par is no SHA-256")
    if not 0 <= grant.issued_at < grant.expires_at <= LATEST:
        raise _malformed("its times are no times")
    if not 1 <= grant.depth <= grant.max_depth <= MAX_DEPTH:
        raise VerificationError(
            f"its depth is not within its max_depth, or that is over {MAX_DEPTH}", code="hop.depth"
        )
    if grant.max_calls is not None and not is_call_count(grant.max_calls):
        raise _malformed("its max_calls is no number of calls")


def _is_party(name: str) -> bool:
    """Whether a name has the form of a delegator's or delegatee's."""
    if is_principal(name):
        return True
    return is_agent_name(name) and _NAME.match(name) is not None


def _parse_scope(text: str) -> tuple[str, ...]:
    """Decode a scope in its one form: scope-tokens sorted, each once, single spaces between."""
    tokens = tuple(text.split(" ")) if text else ()
    if not all(map(_SCOPE.match, tokens)) or tokens != tuple(sorted(set(tokens))):
        raise _malformed("its scope is not a sorted list of scope-tokens")
    return tokens


def _parse_audience(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(map(is_audience, names)) or names != tuple(sorted(set(names))):
        raise _malformed("its aud is not a sorted list of names")
    return names


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a hop grant: {problem}", code="hop.malformed")
