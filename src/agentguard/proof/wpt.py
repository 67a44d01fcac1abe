"""Workload Proof Tokens (``typ: wpt+jwt``): an agent instance proves that a request is its own.

The form is that of draft-ietf-wimse-wpt-01, in the header ``Workload-Proof-Token``, with the hash
of the access token in ``ath``. Version 02 of the draft moves the proof into ``Authorization``,
where the access token is here (docs/adr/0037-a-request-proves-its-caller.md). The claim of
``bound_request.py`` is required beside the draft's claims.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentguard.errors import ProofError
from agentguard.proof.bound_request import CLAIM, BoundRequest
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, b64url_encode, is_integer, is_sha256
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "wpt+jwt"
"""The ``typ`` of a Workload Proof Token."""

LIFETIME: Final = 30
"""The lifetime of a proof that agentguard signs, in seconds."""

MAX_LIFETIME: Final = 60
"""How far in the future the end of an accepted proof may be, in seconds.

The difference to ``LIFETIME`` is what the clocks of both sides may differ by.
"""

MAX_PROOF: Final = 8 * 1024
"""The longest proof, in characters: room for a path of about 2,500, or for a query of 5,000."""

_CLAIMS: Final = frozenset({"aud", "exp", "jti", "wth", "ath"})
_HEADER: Final = frozenset({"alg", "typ"})


class VerifiedProof(NamedTuple):
    """A verified proof of any form. ``expires_at`` is in seconds since the epoch.

    ``invocation_sha256`` (hex) is the digest of the authorised call, None with a DPoP proof, which
    names no call.
    """

    jti: str
    expires_at: int
    invocation_sha256: str | None


def token_hash(token: str) -> str:
    """Return the base64url SHA-256 of a token: the form of ``wth`` and ``ath``."""
    return b64url_encode(hashlib.sha256(token.encode()).digest())


def mint(
    request: BoundRequest,
    signer: Signer,
    *,
    credential: str,
    access_token: str,
    invocation_sha256: str,
    now: int,
    jti: str,
) -> str:
    """Sign a proof that ``request`` belongs to the call with ``invocation_sha256`` (hex).

    ``credential`` is the Workload Identity Token of the signer's key. ``now`` is in seconds since
    the epoch; the proof ends ``LIFETIME`` seconds later. Raises ``ProofError``
    (``proof.malformed``) for a URL that is too long for a proof.
    """
    claims: dict[str, JSON] = {
        "aud": request.target.uri,
        "exp": now + LIFETIME,
        "jti": jti,
        "wth": token_hash(credential),
        "ath": token_hash(access_token),
        CLAIM: request.claim(invocation_sha256),
    }
    token = jws.sign(claims, signer, typ=TYPE)
    if len(token) > MAX_PROOF:
        message = f"the URL is too long: its proof has more than {MAX_PROOF} characters"
        raise ProofError(message, code="proof.malformed")
    return token


def verify(
    token: str, request: BoundRequest, *, credential: str, access_token: str, at: int
) -> VerifiedProof:
    """Verify a proof for ``request`` as of ``at`` (seconds since the epoch).

    ``credential`` is a verified Workload Identity Token, and ``access_token`` the token that the
    request carries. Raises as ``verify_possession`` does, and ``ProofError`` (``proof.request``)
    for a proof of another request.
    """
    claims = verify_possession(
        token, credential=credential, access_token=access_token, target=request.target.uri, at=at
    )
    bound: Any = claims.get(CLAIM)
    if claims.keys() != _CLAIMS | {CLAIM} or not isinstance(bound, dict):
        raise _malformed("its claims are not those of a proof that is bound to a request")
    invocation: Any = bound.get("invocation_sha256")
    if not is_sha256(invocation):
        raise _malformed("it names no digest of a call")
    if bound != request.claim(invocation):
        message = "the proof is for another method, path, query or body"
        raise ProofError(message, code="proof.request")
    return VerifiedProof(claims["jti"], claims["exp"], invocation)


def verify_possession(
    token: str, *, credential: str, access_token: str, target: str, at: int, typ: str = TYPE
) -> Mapping[str, Any]:
    """Verify what the draft alone requires of a proof; return the claims.

    ``target`` is the request's URI without query and fragment; ``call_proof.py`` has another
    ``target`` and another ``typ``, and otherwise the same claims. Raises ``ProofError``:
    ``proof.malformed``, ``proof.audience``, ``proof.expired``, ``proof.lifetime``, ``proof.token``
    for the hash of another token. Raises also as ``jws.verify`` does. Section 2 of the draft.
    """
    confirmed: Any = jws.parse(credential).claims().get("cnf")
    key: Any = confirmed.get("jwk") if isinstance(confirmed, dict) else None
    if not isinstance(key, dict):
        raise _malformed("its credential names no key")
    verified = jws.verify(token, PublicKey.from_jwk(key), typ=typ)
    if verified.header.keys() != _HEADER or verified.header["alg"] != key.get("alg"):
        raise _malformed("its header is not alg and typ, with the alg of the credential's key")
    claims = verified.claims()
    if not claims.keys() >= _CLAIMS or not jws.is_jti(claims["jti"]):
        raise _malformed("its claims are not those of a proof")
    _check_time(claims["exp"], at)
    if claims["aud"] != target:
        raise ProofError("the proof is for another receiver", code="proof.audience")
    hashes = claims["wth"], claims["ath"]
    if hashes != (token_hash(credential), token_hash(access_token)):
        message = "the proof is for another credential, or for another access token"
        raise ProofError(message, code="proof.token")
    return claims


def _check_time(expires_at: JSON, at: int) -> None:
    if not is_integer(expires_at):
        raise _malformed("its exp is no whole number of seconds")
    if at >= expires_at:
        raise ProofError("the proof has expired", code="proof.expired")
    if expires_at > at + MAX_LIFETIME:
        message = f"the proof ends in more than {MAX_LIFETIME} s"
        raise ProofError(message, code="proof.lifetime")


def _malformed(problem: str) -> ProofError:
    return ProofError(f"not a proof of a request: {problem}", code="proof.malformed")
