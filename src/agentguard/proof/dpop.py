"""DPoP proofs (RFC 9449): the holder of a key proves that a request is its own.

A DPoP proof is bound to the method and to the URI, and neither to the query nor to the body.
``bound_request.py`` adds a claim that binds these, and an authorised call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.errors import ProofError
from agentguard.proof.target import Target
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, b64url_decode, b64url_encode, is_integer
from agentguard.signing.keys import PublicKey, Signer

HEADER: Final = "DPoP"
"""The header of a request that carries a proof (RFC 9449, 4.1)."""

TYPE: Final = "dpop+jwt"
"""The ``typ`` of a DPoP proof (RFC 9449, 4.2)."""

WINDOW: Final = 30
"""How far the ``iat`` of a proof may be from the receiver's time, in seconds."""

MAX_PROOF: Final = 8 * 1024
"""The longest proof, in characters: room for a path of about 2,500, or for a query of 5,000."""

_PARTS: Final = 3
_HEADER: Final = frozenset({"typ", "alg", "jwk"})
_CLAIMS: Final = frozenset({"jti", "htm", "htu", "iat"})
_EDDSA: Final = ("EdDSA", "Ed25519")
_KEY: Final = frozenset({"kty", "crv", "x"})
_OPTIONAL: Final = frozenset({"alg", "use", "kid"})
_NONE: Final[Mapping[str, JSON]] = MappingProxyType({})


class DpopProof(NamedTuple):
    """A verified proof. ``thumbprint`` is the key's (RFC 7638); times are seconds of the epoch.

    A receiver accepts the proof before ``expires_at``. ``claims`` are all claims, also those that
    RFC 9449 does not know.
    """

    jti: str
    thumbprint: str
    expires_at: int
    claims: Mapping[str, JSON]


def token_hash(token: str) -> str:
    """Return the base64url SHA-256 of a token: the form of ``ath`` (RFC 9449, 4.2)."""
    return b64url_encode(hashlib.sha256(token.encode()).digest())


def sign(
    signer: Signer,
    method: str,
    url: str,
    *,
    access_token: str | None,
    at: int,
    jti: str,
    more: Mapping[str, JSON] = _NONE,
) -> str:
    """Return a proof for one request, a compact JWS; ``at`` is in seconds since the epoch.

    ``url`` is without query and fragment. ``access_token`` is what the header ``Authorization``
    has, None without one. ``more`` has further claims. RFC 9449, 4.2.
    """
    header: dict[str, JSON] = {"typ": TYPE, "alg": "EdDSA", "jwk": {**signer.public_key.jwk()}}
    claims: dict[str, JSON] = {**more, "jti": jti, "htm": method, "htu": url, "iat": at}
    if access_token is not None:
        claims["ath"] = token_hash(access_token)
    signing_input = ".".join(b64url_encode(canonical.dumps(part)) for part in (header, claims))
    return f"{signing_input}.{b64url_encode(signer.sign(signing_input.encode('ascii')))}"


def proof_end(issued_at: JSON, at: int) -> int:
    """Return until when a proof counts that says ``issued_at``; times are seconds of the epoch.

    Raises ``ProofError``: ``proof.malformed``, ``proof.expired`` for a time outside of ``WINDOW``.
    """
    if not is_integer(issued_at):
        raise _malformed("its iat is no whole number of seconds")
    if not at - WINDOW < issued_at < at + WINDOW:
        message = f"the proof is from another time: {WINDOW} s away, or more"
        raise ProofError(message, code="proof.expired")
    return issued_at + WINDOW


def verify(
    token: str, method: str, target: Target, *, access_token: str | None, at: int
) -> DpopProof:
    """Verify a proof for a request with ``access_token``, as of ``at`` (seconds of the epoch).

    The caller compares ``thumbprint`` with the ``cnf.jkt`` of the access token. ``access_token`` is
    None for a request without one, as at a token endpoint: the proof then has no ``ath``. Raises
    ``ProofError``: ``proof.malformed``, ``proof.audience``, ``proof.request`` for another method,
    ``proof.expired`` for an ``iat`` outside of ``WINDOW``, ``proof.token`` for another access
    token. Raises also ``DecodeError``, ``KeyMaterialError`` and ``VerificationError``.
    RFC 9449, 4.3.
    """
    header, payload, signing_input, signature = _parts(token)
    key = _key(header)
    key.verify(signature, signing_input)
    claims = canonical.loads_object(payload)
    jti, uri = claims.get("jti"), claims.get("htu")
    required = _CLAIMS if access_token is None else _CLAIMS | {"ath"}
    if not claims.keys() >= required or not jws.is_jti(jti):
        raise _malformed(f"its claims are not {', '.join(sorted(required))}")
    expires_at = proof_end(claims["iat"], at)
    if claims["htm"] != method:
        raise ProofError("the proof is for another method", code="proof.request")
    if not isinstance(uri, str) or "?" in uri or Target.parse(uri).uri != target.uri:
        raise ProofError("the proof is for another URI", code="proof.audience")
    expected = {} if access_token is None else {"ath": token_hash(access_token)}
    if {name: claims[name] for name in claims.keys() & {"ath"}} != expected:
        raise ProofError("the proof is for another access token", code="proof.token")
    return DpopProof(jti, key.thumbprint, expires_at, claims)


def _parts(token: str) -> tuple[Mapping[str, JSON], bytes, bytes, bytes]:
    """Decode a compact JWS strictly: here alone the header may have the key (RFC 9449, 4.2)."""
    parts = token.split(".", _PARTS) if len(token) <= MAX_PROOF else []
    if len(parts) != _PARTS:
        raise _malformed("a compact JWS has three parts")
    header = canonical.loads_object(b64url_decode(parts[0]))
    if header.keys() != _HEADER or header["typ"] != TYPE:
        raise _malformed("its header is not typ, alg and jwk")
    signing_input = f"{parts[0]}.{parts[1]}".encode("ascii")
    return header, b64url_decode(parts[1]), signing_input, b64url_decode(parts[2])


def _key(header: Mapping[str, JSON]) -> PublicKey:
    """Return the header's key: Ed25519, as the key of each access token is."""
    algorithm, jwk = header["alg"], header["jwk"]
    if not isinstance(jwk, dict) or jwk.get("alg", algorithm) != algorithm:
        raise _malformed("its jwk is no key for its alg")
    if algorithm not in _EDDSA or jwk.keys() - _OPTIONAL != _KEY:
        raise _malformed("its alg is neither EdDSA nor Ed25519, with a public key to match")
    return PublicKey.from_jwk(jwk)


def _malformed(problem: str) -> ProofError:
    return ProofError(f"not a DPoP proof: {problem}", code="proof.malformed")
