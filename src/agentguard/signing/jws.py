"""Compact JWS (RFC 7515) with Ed25519 alone (RFC 8037, RFC 9864): sign, parse, verify.

A token is a protected header, a payload and a signature here. ``identity/`` and ``delegation/``
define the claims of each kind of token, and check them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, TypeGuard

from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_decode, b64url_encode
from agentguard.signing.keys import ALGORITHMS, PublicKey, Signer

MAX_TOKEN: Final = canonical.MAX_BYTES
"""The longest token that is parsed or signed, in characters."""

_LONGEST_KEPT: Final = 8 * 1024
"""The longest token whose parts are kept for the next look, in characters."""

_LONGEST_HEADER: Final = 512
"""The longest header of such a token: a decoded one takes up to thirty times its text's memory."""

_PARTS: Final = 3
_JTI: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")
_NO_HEADER: Final[Mapping[str, JSON]] = MappingProxyType({})
# Extensions that change what is signed or how (crit, b64, zip, enc), and members by which a token
# itself would name the key for its verification (jku, jwk, x5u, x5c).
_REFUSED: Final = frozenset({"crit", "b64", "zip", "enc", "jku", "jwk", "x5u", "x5c"})


@dataclass(frozen=True, slots=True)
class Jws:
    """The decoded parts of a compact JWS; only ``verify`` checks the signature."""

    header: Mapping[str, JSON]
    payload: bytes
    signing_input: bytes
    signature: bytes

    def claims(self) -> dict[str, JSON]:
        """Decode the payload as a JSON object (RFC 7519, 4); raises ``DecodeError``."""
        return canonical.loads_object(self.payload)


def sign(
    payload: Mapping[str, JSON] | bytes,
    signer: Signer,
    *,
    typ: str | None,
    header: Mapping[str, JSON] = _NO_HEADER,
) -> str:
    """Return a compact JWS over ``payload``; a mapping is signed in its RFC 8785 form.

    ``header`` has further members of the protected header. Raises ``EncodeError``:
    ``json.unencodable``, ``jws.header`` for a member that ``verify`` refuses or ``sign`` sets
    itself, ``jws.size`` for a token longer than ``MAX_TOKEN``. RFC 7515, 5.1.
    """
    data = payload if isinstance(payload, bytes) else canonical.dumps(dict(payload))
    signing_input = f"{_header(typ, header)}.{b64url_encode(data)}"
    token = f"{signing_input}.{b64url_encode(signer.sign(signing_input.encode('ascii')))}"
    if len(token) > MAX_TOKEN:
        raise EncodeError(f"a token of more than {MAX_TOKEN} characters", code="jws.size")
    return token


def parse(token: object) -> Jws:
    """Decode the parts of a compact JWS, strictly, without verifying the signature.

    Raises ``DecodeError`` (``jws.malformed``, ``base64.malformed``, ``json.*``) for a value that is
    no compact JWS, and ``VerificationError`` (``jws.header``) for a header with an extension that
    agentguard does not support. RFC 7515, 3.1 and 5.2.
    """
    if not isinstance(token, str):
        raise DecodeError("a compact JWS is text", code="jws.malformed")
    if len(token) > MAX_TOKEN:
        raise DecodeError(f"a token of more than {MAX_TOKEN} characters", code="jws.malformed")
    return _kept_parts(token) if _is_kept(token) else _parts(token)


def _is_kept(token: str) -> bool:
    """Whether what was found of a token is kept for the next look.

    A subclass of ``str`` could say that it equals another token.
    """
    is_short = type(token) is str and len(token) <= _LONGEST_KEPT
    return is_short and "." in token[: _LONGEST_HEADER + 1]


def _parts(token: str) -> Jws:
    parts = token.split(".", _PARTS)
    if len(parts) != _PARTS:
        raise DecodeError("a compact JWS has three parts", code="jws.malformed")
    header = canonical.loads_object(b64url_decode(parts[0]))
    refused = _REFUSED & header.keys()
    if refused:
        raise VerificationError(
            f"the token's header has {', '.join(sorted(refused))}, which is never followed",
            code="jws.header",
        )
    return Jws(
        header=MappingProxyType(header),
        payload=b64url_decode(parts[1]),
        signing_input=f"{parts[0]}.{parts[1]}".encode("ascii"),
        signature=b64url_decode(parts[2]),
    )


# One chain of delegation is looked at several times, by whoever signs, verifies and hands it on.
_kept_parts: Final = lru_cache(maxsize=1024)(_parts)


class Claimed(NamedTuple):
    """What a token claims of itself, unverified: it only selects among trusted keys and tokens.

    ``issued_at`` is the ``iat`` in seconds since the epoch, None where that is no whole number.
    ``issuer`` and ``subject`` are the ``iss`` and the ``sub``, None where they are no texts.
    """

    issued_at: int | None
    issuer: str | None
    subject: str | None


def claimed(token: str) -> Claimed:
    """Return what a token claims, unverified; raises as ``parse`` and ``Jws.claims`` do."""
    return _kept_claimed(token) if _is_kept(token) else _claimed(token)


def _claimed(token: str) -> Claimed:
    claims = parse(token).claims()
    issued_at, issuer, subject = (claims.get(name) for name in ("iat", "iss", "sub"))
    return Claimed(
        issued_at if canonical.is_integer(issued_at) else None,
        issuer if isinstance(issuer, str) else None,
        subject if isinstance(subject, str) else None,
    )


# The decoded claims as a whole would take many times the memory of the token.
_kept_claimed: Final = lru_cache(maxsize=1024)(_claimed)


def is_jti(value: object) -> TypeGuard[str]:
    """Whether a value has the form of a token's id, ``jti`` (RFC 7519, 4.1.7)."""
    return isinstance(value, str) and _JTI.fullmatch(value) is not None


def verify(token: str, key: PublicKey, *, typ: str | None) -> Jws:
    """Verify a token's type and its signature under ``key``; return the token's parts.

    ``typ`` None means that the header must have none. Raises as ``parse`` does, and
    ``VerificationError``: ``jws.algorithm`` unless ``alg`` is EdDSA or Ed25519, ``jws.type``
    for another type, ``signature.invalid``. RFC 7515, 5.2; RFC 8725, 3.1 and 3.11.
    """
    if _is_kept(token):
        return _kept_verified(token, key, typ)
    return _verified(token, key, typ)


def _verified(token: str, key: PublicKey, typ: str | None) -> Jws:
    jws = parse(token)
    algorithm = jws.header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise VerificationError(
            "the token's alg is neither EdDSA nor Ed25519, which alone are accepted",
            code="jws.algorithm",
        )
    header_typ = jws.header.get("typ")
    has_typ = "typ" in jws.header
    if has_typ != (typ is not None) or _media_type(header_typ) != _media_type(typ):
        raise VerificationError(
            f"expected a token of the type {typ or '(none)'}; its header says otherwise",
            code="jws.type",
        )
    key.verify(jws.signature, jws.signing_input)
    return jws


# Whether a signature holds is a fact about these bytes and this key, which no time changes: whether
# the key and the token count now is for the caller to check. A failure is not kept.
_kept_verified: Final = lru_cache(maxsize=1024)(_verified)


def _header(typ: str | None, further: Mapping[str, JSON]) -> str:
    if not further:
        return _plain_header(typ)
    refused = (_REFUSED | {"alg", "typ"}) & further.keys()
    if refused:
        raise EncodeError(
            f"a token's header can't be given {', '.join(sorted(refused))}", code="jws.header"
        )
    members: dict[str, JSON] = {**further, "alg": "EdDSA"}
    if typ is not None:
        members["typ"] = typ
    return b64url_encode(canonical.dumps(members))


@lru_cache(maxsize=32)
def _plain_header(typ: str | None) -> str:
    members = {"alg": "EdDSA"} if typ is None else {"alg": "EdDSA", "typ": typ}
    return b64url_encode(canonical.dumps(members))


def _media_type(typ: JSON) -> str | None:
    """Return a ``typ`` in the form for comparison (RFC 7515, 4.1.9); None for no media type."""
    if not isinstance(typ, str) or not typ.isascii():
        return None
    return typ.lower().removeprefix("application/")
