"""The public keys of an outside issuer: a JSON Web Key Set (RFC 7517, 5), parsed strictly.

A SPIFFE bundle is such a set, too. What a key of another kind, curve or use is for, nobody needs to
know here: such a key is skipped. A set with a private or secret key is refused as a whole, since
whoever can read the set can then sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from agentguard.errors import DecodeError, KeyMaterialError
from agentguard.identity.jwa import Algorithm, Key
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_decode
from agentguard.signing.keys import PublicKey

MAX_KEYS: Final = 64
"""The most keys of a set."""

MAX_TRIES: Final = 8
"""The most keys that are tried for a token whose header names no key."""

MIN_RSA: Final = 2048
"""Bits of the shortest RSA key that counts (RFC 7518, 3.3)."""

MAX_RSA: Final = 8192
"""Bits of the longest RSA key that counts: a longer one costs too much time."""

_MAX_EXPONENT: Final = 2**32
_MAX_KID: Final = 256
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = MappingProxyType(
    {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
)

Jwk = Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key of an issuer. ``kid`` and ``alg`` are None where the set does not say them."""

    key: Key
    kty: str
    crv: str | None
    kid: str | None
    alg: str | None

    def fits(self, name: str, algorithm: Algorithm) -> bool:
        """Whether the key is for this algorithm, which has this name in a token's header."""
        is_kind = (self.kty, self.crv) == (algorithm.kty, algorithm.crv)
        return is_kind and self.alg in (None, name)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of an issuer that can verify tokens."""

    keys: tuple[IssuerKey, ...]

    def candidates(self, kid: str | None, name: str, algorithm: Algorithm) -> list[IssuerKey]:
        """Return the keys that may have signed a token: those with its ``kid``.

        A token without a ``kid`` may be signed by any key of the right kind; ``MAX_TRIES`` of them
        are returned at most. ``name`` is the token's ``alg``.
        """
        right = [one for one in self.keys if one.fits(name, algorithm)]
        named = right if kid is None else [one for one in right if one.kid == kid]
        return named[:MAX_TRIES]


def parse_jwks(data: bytes) -> KeySet:
    """Parse a JSON Web Key Set, and return the keys that are for signatures.

    Skipped are keys of another ``use``, ``kty`` or ``crv``, keys whose ``key_ops`` lack ``verify``,
    and RSA keys shorter than ``MIN_RSA`` or longer than ``MAX_RSA``. Raises ``DecodeError``:
    ``jwks.private`` for a set with a private or secret key; ``jwks.malformed`` for another form,
    or more than ``MAX_KEYS`` keys; ``json.*``; ``base64.malformed``. RFC 7517, 4 and 5.
    """
    return _key_set(canonical.loads_object(data), "sig", default="sig")


def parse_spiffe_bundle(data: bytes, trust_domain: str) -> KeySet:
    """Parse the keys of a trust domain for JWT-SVIDs, in either of two forms.

    A SPIFFE bundle is a key set, and says the use of each key (SPIFFE Trust Domain and Bundle,
    4.2.2). spiffe-helper writes an object with a key set in base64 for each trust domain, as the
    Workload API has them; such a set has keys for JWT-SVIDs alone, which need not say their use.
    Skips keys, and raises, as ``parse_jwks`` does.
    """
    document = canonical.loads_object(data)
    if "keys" in document:
        return _key_set(document, "jwt-svid", default=None)
    if trust_domain not in document:
        raise _malformed(f"expected keys, or a key set of the trust domain {trust_domain}")
    encoded = canonical.b64_decode(document[trust_domain])
    return _key_set(canonical.loads_object(encoded), "jwt-svid", default="jwt-svid")


def _key_set(document: Jwk, use: str, *, default: str | None) -> KeySet:
    """Return the keys for ``use``; ``default`` is the use of a key that does not say its use."""
    keys = document.get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise _malformed(f"keys: expected a list of at most {MAX_KEYS} keys")
    found = []
    for jwk in keys:
        if not isinstance(jwk, dict):
            raise _malformed("keys: expected objects")
        if _PRIVATE & jwk.keys():
            message = (
                "the key set holds a private or secret key: treat that key as stolen, and publish "
                "public keys alone"
            )
            raise DecodeError(message, code="jwks.private")
        parsed = _key(jwk) if jwk.get("use", default) == use else None
        if parsed is not None:
            found.append(parsed)
    return KeySet(tuple(found))


def _key(jwk: Jwk) -> IssuerKey | None:
    """Return a key, None for one that is skipped."""
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list):
        raise _malformed("key_ops: expected a list")
    kty, crv = _text(jwk, "kty"), _text(jwk, "crv")
    read = _READERS.get((kty, crv) if kty != "RSA" else (kty, None))
    key = None if read is None or "verify" not in operations else read(jwk)
    if key is None:
        return None
    kid, alg = _text(jwk, "kid"), _text(jwk, "alg")
    return IssuerKey(key, kty or "", None if kty == "RSA" else crv, kid, alg)


def _rsa(jwk: Jwk) -> Key | None:
    n, e = (int.from_bytes(_bytes(jwk, name), "big") for name in ("n", "e"))
    if not (MIN_RSA <= n.bit_length() <= MAX_RSA and e < _MAX_EXPONENT):
        return None
    return _made(lambda: rsa.RSAPublicNumbers(e, n).public_key())


def _curve(jwk: Jwk) -> Key | None:
    curve = _CURVES[str(jwk["crv"])]
    size = (curve.key_size + 7) // 8
    x, y = (_bytes(jwk, name) for name in ("x", "y"))
    if (len(x), len(y)) != (size, size):
        raise _malformed("x, y: expected coordinates in the length of the curve")
    point = b"\x04" + x + y
    return _made(lambda: ec.EllipticCurvePublicKey.from_encoded_point(curve, point))


def _edwards(jwk: Jwk) -> Key | None:
    raw = _bytes(jwk, "x")
    return _made(lambda: PublicKey(raw))


_READERS: Final[Mapping[tuple[str | None, str | None], Callable[[Jwk], Key | None]]] = {
    ("RSA", None): _rsa,
    ("OKP", "Ed25519"): _edwards,
    **{("EC", name): _curve for name in _CURVES},
}


def _made(make: Callable[[], Key]) -> Key:
    try:
        return make()
    except (ValueError, KeyMaterialError) as error:
        raise _malformed("a key is no valid public key") from error


def _text(jwk: Jwk, name: str) -> str | None:
    value = jwk.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_KID:
        raise _malformed(f"{name}: expected a text of 1 to {_MAX_KID} characters")
    return value


def _bytes(jwk: Jwk, name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or not value:
        raise _malformed(f"{name}: expected base64url")
    return b64url_decode(value)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a key set: {problem}", code="jwks.malformed")
