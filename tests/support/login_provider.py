"""An identity provider without a server: its key set in a file, and the tokens that it signs."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from token_issuer import TokenIssuer

ISSUER = "https://login.acme.example/realms/acme"
AUDIENCE = "agentguard"
LOGGED_IN = 1_799_999_000
ID_JAG = "oauth-id-jag+jwt"


def acme(
    audience: str = AUDIENCE, *, issuer: str = ISSUER, keys: str = 'jwks_file = "jwks.json"'
) -> str:
    """Return ``[issuers.acme]`` in TOML, up to the claim that names its users.

    More keys of the users may follow. ``keys`` says where the keys of the provider are.
    """
    return f"""
[issuers.acme]
issuer = "{issuer}"
{keys}
audience = ["{audience}"]
algorithms = ["RS256"]

[issuers.acme.users]
claim = "preferred_username"
"""


class Provider:
    """Signs tokens with RS256, as most providers do. ``path`` has its public keys."""

    def __init__(self, folder: Path, name: str = "login") -> None:
        self._issuer = TokenIssuer(name, alg="RS256", issuer=ISSUER)
        self.path = folder / "jwks.json"
        self.path.write_bytes(self._issuer.jwks())

    def token(self, *, header: str = "JWT", without: str = "", **claims: Any) -> str:
        """Return an access token of alice, as Keycloak says it; a claim may be changed."""
        now = int(time.time())
        whole = {
            "sub": "f3b1c2d4-0000-4000-8000-000000000001",
            "aud": AUDIENCE,
            "exp": now + 300,
            "iat": now,
            "nbf": None,
            "jti": "onrtac:7f2d1e44",
            "sid": "b1946ac9",
            "auth_time": LOGGED_IN,
            "acr": "1",
            "typ": "Bearer",
            "azp": "chat",
            "scope": "openid profile",
            "preferred_username": "alice",
            "realm_access": {"roles": ["reader", "offline_access"]},
            **claims,
        }
        whole |= {without: None} if without else {}
        return self._issuer.token({"typ": header}, **whole)

    def signed(self, header: bytes, payload: bytes) -> str:
        """Return a token with any bytes as its header and its claims."""
        return self._issuer.signed(header, payload)

    def id_token(self, **claims: Any) -> str:
        """Return an ID token of alice, for the program in which she logged in."""
        said = {"aud": "chat", "typ": "ID", "nonce": "n", "at_hash": "h", **claims}
        return self.token(without="scope", **said)

    def id_jag(self, *, aud: Any, client_id: str, header: str = ID_JAG, **claims: Any) -> str:
        """Return an ID-JAG of alice; a claim may be changed or (None) left out.

        Each has a ``sub`` of its own: an ID-JAG without ``sid`` ends with every log-out of its
        ``sub``, also one of another test. draft-ietf-oauth-identity-assertion-authz-grant-04, 3.
        """
        now = int(time.time())
        whole = {
            "sub": secrets.token_hex(8),
            "aud": aud,
            "client_id": client_id,
            "exp": now + 300,
            "iat": now,
            "nbf": None,
            "jti": secrets.token_hex(8),
            "scope": "read pay other",
            "auth_time": LOGGED_IN,
            "preferred_username": "alice",
            **claims,
        }
        return self._issuer.token({"typ": header}, **whole)

    def logout_token(self, *, header: str = "logout+jwt", **claims: Any) -> str:
        """Return a log-out token, as a provider sends it; a claim may be changed or left out.

        OpenID Connect Back-Channel Logout 1.0, 2.4.
        """
        now = int(time.time())
        whole = {
            "sub": "f3b1c2d4-0000-4000-8000-000000000001",
            "aud": AUDIENCE,
            "exp": now + 120,
            "iat": now,
            "nbf": None,
            "jti": secrets.token_hex(8),
            "sid": "b1946ac9",
            "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
            **claims,
        }
        return self._issuer.token({"typ": header}, **whole)

    def table(self, **more: Any) -> dict[str, Any]:
        """Return ``[issuers.acme]``; ``more`` is for its users."""
        return {
            "issuer": ISSUER,
            "jwks_file": str(self.path),
            "audience": [AUDIENCE],
            "algorithms": ["RS256"],
            "users": {"claim": "preferred_username", **more},
        }
