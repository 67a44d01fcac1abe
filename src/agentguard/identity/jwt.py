"""Tokens of outside issuers: a strict verifier of signed JWTs, on values alone.

``verify`` takes the text of a token, the issuer's keys, a rule and the time. The rule says which
issuer, audiences, algorithms and types count. The keys come from the issuer's key set: what a
token's header says of keys (``jwk``, ``jku``, ``x5c``, ``x5u``) is never followed. Whoever calls
gets the keys (``issuers/``) and decides what the subject may do. RFC 7519; RFC 8725; for a SPIFFE
JWT-SVID the specification of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.jwa import ALGORITHMS
from agentguard.identity.jwa import verify as verify_signature
from agentguard.identity.jwks import KeySet
from agentguard.identity.trust import LATEST
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_decode, sha256_hex

MAX_TOKEN: Final = 16 * 1024
"""The longest token, in characters."""

_PARTS: Final = 3
_MAX_TEXT: Final = 1024
# Members that change what is signed, or how. A verifier that does not know them must refuse.
_REFUSED: Final = frozenset({"crit", "b64", "zip", "enc"})
_SPIFFE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._-]+)+")
_DOTS: Final = frozenset({".", ".."})

ABSENT: Final = ""
"""The type of a token whose header has no ``typ``, in ``JwtRule.types``."""


@dataclass(frozen=True, slots=True)
class JwtRule:
    """What a token of an issuer has to be.

    ``name`` is the issuer's name in the configuration. Exactly one of ``issuer`` (the exact
    ``iss``) and ``trust_domain`` (of a SPIFFE JWT-SVID, which needs no ``iss``) is not None. One of
    ``audience`` has to be in the token's ``aud``. ``algorithms`` are names of ``ALGORITHMS``.
    ``types`` are the accepted values of ``typ``, ``ABSENT`` among them. ``subject_claim`` is the
    claim with the subject. ``leeway`` is how many seconds the clocks may differ.
    """

    name: str
    issuer: str | None
    trust_domain: str | None
    audience: frozenset[str]
    algorithms: frozenset[str]
    types: frozenset[str]
    subject_claim: str = "sub"
    leeway: int = 30

    def is_issuer_of(self, claims: Mapping[str, JSON]) -> bool:
        """Whether claims name this issuer; they are compared exactly."""
        if self.issuer is not None:
            return claims.get("iss") == self.issuer
        return _is_member(claims.get("sub"), self.trust_domain)


@dataclass(frozen=True, slots=True)
class Jwt:
    """The decoded parts of a token, of which nothing is verified; ``text`` is the token itself."""

    text: str = field(repr=False)
    header: Mapping[str, JSON] = field(repr=False)
    claims: Mapping[str, JSON] = field(repr=False)
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class VerifiedJwt:
    """What a verified token says.

    ``issuer`` is the issuer's name in the configuration. ``id`` is the token's ``jti``, or
    ``sha256:`` and the digest of the token's text. ``expires_at`` is the token's ``exp`` and the
    leeway, in Unix time: at this time, the token counts no more. ``claims`` are all claims, and
    ``header`` is the whole header.
    """

    issuer: str
    subject: str
    id: str
    expires_at: float
    claims: Mapping[str, JSON] = field(repr=False)
    header: Mapping[str, JSON] = field(repr=False)


def parse(token: object) -> Jwt:
    """Decode the parts of a compact JWS, strictly, and verify nothing.

    Raises ``DecodeError``: ``jwt.malformed`` for another form, or more than ``MAX_TOKEN``
    characters; ``base64.malformed``; ``json.*``. RFC 7515, 3.1 and 5.2; RFC 7519, 7.2.
    """
    if not isinstance(token, str) or not token.isascii():
        raise _malformed("a token is ASCII text")
    if len(token) > MAX_TOKEN:
        raise _malformed(f"it has more than {MAX_TOKEN} characters")
    parts = token.split(".", _PARTS)
    if len(parts) != _PARTS:
        raise _malformed("a compact JWS has three parts")
    header = canonical.loads_object(b64url_decode(parts[0]))
    claims = canonical.loads_object(b64url_decode(parts[1]))
    signing_input = f"{parts[0]}.{parts[1]}".encode("ascii")
    return Jwt(
        str(token),
        MappingProxyType(header),
        MappingProxyType(claims),
        signing_input,
        b64url_decode(parts[2]),
    )


def verify(jwt: Jwt, keys: KeySet, rule: JwtRule, now: float) -> VerifiedJwt:
    """Verify a parsed token of an issuer whose keys these are; ``now`` is Unix time.

    Raises ``DecodeError`` (``jwt.malformed``) for a claim of another type than ``READERS`` has;
    ``VerificationError``:
    ``jwt.header`` for an extension that changes what is signed, ``jwt.algorithm``, ``jwt.type``,
    ``jwt.key`` where the issuer has no such key, ``jwt.signature``, ``jwt.issuer``,
    ``jwt.audience``, ``jwt.lifetime`` without an ``exp``, ``jwt.expired``, ``jwt.not_yet_valid``,
    ``jwt.subject``, and ``jwt.bound`` for a token that counts only with the proof of a key
    (RFC 7800). RFC 7519, 4.1 and 7.2; RFC 8725, 3.
    """
    _verify_signature(jwt, keys, rule)
    claims = jwt.claims
    for name in READERS.keys() & claims.keys():
        READERS[name](claims, name)
    if not rule.is_issuer_of(claims):
        raise VerificationError("the token is another issuer's", code="jwt.issuer")
    if "cnf" in claims:
        message = "the token is bound to a key (cnf), and its bearer has not shown the key"
        raise VerificationError(message, code="jwt.bound")
    _require_audience(claims, rule)
    ends = _require_time(claims, rule.leeway, now)
    token_id = read_string(claims, "jti")
    if token_id is None:
        token_id = f"sha256:{sha256_hex(jwt.text.encode('ascii'))}"
    return VerifiedJwt(rule.name, _subject(claims, rule), token_id, ends, claims, jwt.header)


def _verify_signature(jwt: Jwt, keys: KeySet, rule: JwtRule) -> None:
    refused = _REFUSED & jwt.header.keys()
    if refused:
        names = ", ".join(sorted(refused))
        message = f"the token's header has {names}, which change what is signed"
        raise VerificationError(message, code="jwt.header")
    name = jwt.header.get("alg")
    algorithm = ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None or not isinstance(name, str) or name not in rule.algorithms:
        message = "the token's alg is none of the issuer's algorithms in the configuration"
        raise VerificationError(message, code="jwt.algorithm")
    _require_type(jwt.header, rule)
    kid = read_string(jwt.header, "kid")
    candidates = keys.candidates(kid, name, algorithm)
    if not candidates:
        message = "the issuer has no key with the token's kid for the token's alg"
        raise VerificationError(message, code="jwt.key")
    for number, candidate in enumerate(candidates, start=1):
        try:
            verify_signature(algorithm, candidate.key, jwt.signature, jwt.signing_input)
        except VerificationError:
            if number == len(candidates):
                raise
        else:
            return


def _require_type(header: Mapping[str, JSON], rule: JwtRule) -> None:
    """Compare the media type without its prefix, and without regard to case (RFC 7515, 4.1.9)."""
    typ = header.get("typ", ABSENT)
    if isinstance(typ, str) and ("typ" not in header) == (typ == ABSENT):
        accepted = {_media_type(one) for one in rule.types}
        if typ.isascii() and _media_type(typ) in accepted:
            return
    message = "the token's typ is none of the issuer's types in the configuration"
    raise VerificationError(message, code="jwt.type")


def _media_type(typ: str) -> str:
    return typ.lower().removeprefix("application/")


def _require_audience(claims: Mapping[str, JSON], rule: JwtRule) -> None:
    if not rule.audience.intersection(read_strings(claims, "aud")):
        raise VerificationError("the token is for another audience", code="jwt.audience")


def _require_time(claims: Mapping[str, JSON], leeway: int, now: float) -> float:
    """Return the time from which the token counts no more."""
    if "exp" not in claims:
        message = "the token has no exp: have the issuer set one"
        raise VerificationError(message, code="jwt.lifetime")
    ends = read_time(claims, "exp") + leeway
    if now >= ends:
        raise VerificationError("the token has expired", code="jwt.expired")
    for name in ("nbf", "iat"):
        if name in claims and read_time(claims, name) > now + leeway:
            message = f"the token is not valid yet ({name}): compare the clocks of both machines"
            raise VerificationError(message, code="jwt.not_yet_valid")
    return ends


def read_time(claims: Mapping[str, JSON], name: str) -> float:
    """Return a claim that is a time in seconds, whole or not (RFC 7519, 2: NumericDate).

    Raises ``DecodeError`` (``jwt.malformed``).
    """
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(f"{name}: expected a number of seconds")
    if not 0 <= value <= LATEST:
        raise _malformed(f"{name}: expected a time before the year 10000")
    return value


def _subject(claims: Mapping[str, JSON], rule: JwtRule) -> str:
    subject = read_string(claims, rule.subject_claim)
    if subject is None:
        message = f"the token has no claim {rule.subject_claim}, which names the subject"
        raise VerificationError(message, code="jwt.subject")
    return subject


def _is_member(subject: JSON, trust_domain: str | None) -> bool:
    """Whether a subject is a SPIFFE ID with a path, in this trust domain (SPIFFE-ID, 2)."""
    prefix = f"spiffe://{trust_domain}"
    if not isinstance(subject, str) or not subject.startswith(f"{prefix}/"):
        return False
    path = subject.removeprefix(prefix)
    return _SPIFFE_PATH.fullmatch(path) is not None and not _DOTS.intersection(path.split("/"))


def read_string(claims: Mapping[str, JSON], name: str) -> str | None:
    """Return a text, None without the claim. Raises ``DecodeError`` (``jwt.malformed``)."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise _malformed(f"{name}: expected a text of 1 to {_MAX_TEXT} characters")
    return value


def read_strings(claims: Mapping[str, JSON], name: str) -> list[str]:
    """Return the texts of a claim that is a text or a list of texts, none without the claim.

    Raises ``DecodeError`` (``jwt.malformed``).
    """
    value = claims.get(name, [])
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list):
        raise _malformed(f"{name}: expected a text or a list of texts")
    found = [one for one in given if isinstance(one, str)]
    if len(found) != len(given):
        raise _malformed(f"{name}: expected a text or a list of texts")
    return found


READERS: Final[Mapping[str, Callable[[Mapping[str, JSON], str], object]]] = MappingProxyType(
    {
        **dict.fromkeys(("iss", "sub", "jti", "sid", "acr"), read_string),
        **dict.fromkeys(("azp", "client_id", "cid", "appid", "idtyp"), read_string),
        **dict.fromkeys(("preferred_username", "typ", "token_use"), read_string),
        **dict.fromkeys(("aud", "scope", "scp", "gty"), read_strings),
        **dict.fromkeys(("exp", "iat", "nbf", "auth_time"), read_time),
    }
)
"""What reads each claim that any verifier of tokens asks for; ``verify`` has each one read."""


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a token of an issuer: {problem}", code="jwt.malformed")
