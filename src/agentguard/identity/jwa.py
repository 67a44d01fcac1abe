"""The algorithms with which outside issuers sign their tokens: verification, and no signing.

The keys are RSA, elliptic curves and Ed25519 (RFC 7518, 3; RFC 8037; RFC 9864). A shared secret
(HMAC) and ``none`` have no row here, so no configuration can allow them. ``signing/jws.py`` has the
tokens that agentguard itself signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from agentguard.errors import VerificationError
from agentguard.signing.keys import PublicKey

Key: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | PublicKey
"""A public key of an issuer."""


class Algorithm(NamedTuple):
    """A value of ``alg``, and the kind of key that goes with the value.

    ``crv`` is the curve, None for RSA. ``digest`` is None for Ed25519, which hashes by itself.
    ``is_pss`` tells RSASSA-PSS (RFC 7518, 3.5) from RSASSA-PKCS1-v1_5 (RFC 7518, 3.3).
    """

    kty: str
    crv: str | None
    digest: hashes.HashAlgorithm | None
    is_pss: bool = False


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {
        "RS256": Algorithm("RSA", None, _SHA256),
        "RS384": Algorithm("RSA", None, _SHA384),
        "RS512": Algorithm("RSA", None, _SHA512),
        "PS256": Algorithm("RSA", None, _SHA256, is_pss=True),
        "PS384": Algorithm("RSA", None, _SHA384, is_pss=True),
        "PS512": Algorithm("RSA", None, _SHA512, is_pss=True),
        "ES256": Algorithm("EC", "P-256", _SHA256),
        "ES384": Algorithm("EC", "P-384", _SHA384),
        "ES512": Algorithm("EC", "P-521", _SHA512),
        "EdDSA": Algorithm("OKP", "Ed25519", None),
        "Ed25519": Algorithm("OKP", "Ed25519", None),
    }
)
"""The algorithms that a configuration may allow, by their name in a token's header."""


def verify(algorithm: Algorithm, key: Key, signature: bytes, data: bytes) -> None:
    """Verify a signature over ``data``.

    The caller has chosen a key of the algorithm's kind. Raises ``VerificationError``
    (``jwt.signature``). RFC 7518, 3.3 to 3.5; RFC 8037, 3.1.
    """
    try:
        if isinstance(key, PublicKey):
            key.verify(signature, data)
        elif isinstance(key, rsa.RSAPublicKey):
            _verify_rsa(algorithm, key, signature, data)
        else:
            _verify_curve(algorithm, key, signature, data)
    except (InvalidSignature, VerificationError):
        message = "the token's signature is not one of the issuer's key"
        raise VerificationError(message, code="jwt.signature") from None


def _verify_rsa(algorithm: Algorithm, key: rsa.RSAPublicKey, signature: bytes, data: bytes) -> None:
    digest = algorithm.digest
    assert digest is not None  # noqa: S101  each RSA row of the table has one
    if len(signature) != _bytes_of(key.key_size):
        raise InvalidSignature
    if algorithm.is_pss:
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        key.verify(signature, data, pss, digest)
    else:
        key.verify(signature, data, padding.PKCS1v15(), digest)


def _verify_curve(
    algorithm: Algorithm, key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes
) -> None:
    """Verify R and S, which stand one after the other in the length of the curve."""
    digest, size = algorithm.digest, _bytes_of(key.curve.key_size)
    assert digest is not None  # noqa: S101  each EC row of the table has one
    if len(signature) != 2 * size:
        raise InvalidSignature
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(digest))


def _bytes_of(bits: int) -> int:
    return (bits + 7) // 8
