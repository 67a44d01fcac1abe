"""DPoP proofs of an instance's own key, for requests to a token service and with its tokens.

``proof/dpop.py`` verifies such proofs. The functions here work on values.
"""

from __future__ import annotations

from typing import Final

from agentguard.proof import dpop
from agentguard.proof.wpt import token_hash
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_encode
from agentguard.signing.keys import Ed25519Signer

HEADER: Final = "DPoP"
"""The header of a request that carries a proof (RFC 9449, 4.1)."""


def sign(
    signer: Ed25519Signer, method: str, url: str, *, access_token: str | None, at: int, jti: str
) -> str:
    """Return a proof for one request, a compact JWS; ``at`` is in seconds since the epoch.

    ``url`` is without query and fragment. ``access_token`` is what the header ``Authorization``
    has, None without one. RFC 9449, 4.2.
    """
    header: dict[str, JSON] = {
        "typ": dpop.TYPE,
        "alg": "EdDSA",
        "jwk": {**signer.public_key.jwk()},
    }
    claims: dict[str, JSON] = {"jti": jti, "htm": method, "htu": url, "iat": at}
    if access_token is not None:
        claims["ath"] = token_hash(access_token)
    signing_input = ".".join(b64url_encode(canonical.dumps(part)) for part in (header, claims))
    return f"{signing_input}.{b64url_encode(signer.sign(signing_input.encode('ascii')))}"
