"""DPoP proofs (RFC 9449): the holder of a key proves that a request is its own.

A DPoP proof is bound to the method and to the URI, and neither to the query nor to the body.
``bound_request.py`` adds a claim that binds these, and an authorised call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from agentguard.errors import DecodeError, ProofError, VerificationError
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
_SIZE: Final = 32
_HEADER: Final = frozenset({"typ", "alg", "jwk"})
_CLAIMS: Final = frozenset({"jti", "htm", "htu", "iat"})
_EDDSA: Final = ("EdDSA", "Ed25519")
_EC_MEMBERS: Final = frozenset({"kty", "crv", "x", "y"})
_OKP_MEMBERS: Final = frozenset({"kty", "crv", "x"})
_OPTIONAL: Final = frozenset({"alg", "use", "kid"})
_NONE: Final[Mapping[str, JSON]] = MappingProxyType({})

_Verify = Callable[[bytes, bytes], None]
"""Takes a signature and the signed bytes; raises for a signature that does not hold."""


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
    thumbprint, verify_signature = _key(header)
    verify_signature(signature, signing_input)
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
    return DpopProof(jti, thumbprint, expires_at, claims)


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


def _key(header: Mapping[str, JSON]) -> tuple[str, _Verify]:
    """Return the thumbprint of the header's key, and the function that verifies a signature."""
    algorithm, jwk = header["alg"], header["jwk"]
    if not isinstance(jwk, dict) or jwk.get("alg", algorithm) != algorithm:
        raise _malformed("its jwk is no key for its alg")
    members = jwk.keys() - _OPTIONAL
    if algorithm in _EDDSA and members == _OKP_MEMBERS:
        key = PublicKey.from_jwk(jwk)
        return key.thumbprint, key.verify
    if algorithm == "ES256" and members == _EC_MEMBERS:
        return _p256(jwk)
    raise _malformed("its alg is none of EdDSA, Ed25519 and ES256, with a public key to match")


def _p256(jwk: Mapping[str, JSON]) -> tuple[str, _Verify]:
    x, y = b64url_decode(jwk["x"]), b64url_decode(jwk["y"])
    if (jwk["kty"], jwk["crv"]) != ("EC", "P-256") or len(x) != _SIZE or len(y) != _SIZE:
        raise _malformed("its jwk is no key on P-256")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
    try:
        key = numbers.public_key()
    except ValueError as error:
        raise _malformed("its jwk is no point of P-256") from error
    required = {"crv": "P-256", "kty": "EC", "x": b64url_encode(x), "y": b64url_encode(y)}
    thumbprint = b64url_encode(hashlib.sha256(canonical.dumps(required)).digest())

    def verify_signature(signature: bytes, data: bytes) -> None:
        if len(signature) != 2 * _SIZE:
            raise DecodeError("an ES256 signature is 64 bytes", code="proof.malformed")
        r, s = int.from_bytes(signature[:_SIZE]), int.from_bytes(signature[_SIZE:])
        try:
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            message = f"the signature does not hold under the key {thumbprint}"
            raise VerificationError(message, code="signature.invalid") from None

    return thumbprint, verify_signature


def _malformed(problem: str) -> ProofError:
    return ProofError(f"not a DPoP proof: {problem}", code="proof.malformed")
