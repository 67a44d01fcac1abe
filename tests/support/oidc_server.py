"""The small identity provider of ``tools/oidc``, and how a person logs in there with a browser."""

from __future__ import annotations

import re
import secrets
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
from keycloak import challenge_of

CLIENT: Final = "chat"
_BACK: Final = "http://127.0.0.1:9/back"


class OidcServer:
    """A server at ``url``; ``issuer`` is the ``iss`` of its tokens, which ends in a slash."""

    URL: Final = "AGENTGUARD_OIDC_URL"

    def __init__(self, url: str) -> None:
        self.url = url
        self.issuer = f"{url}/"
        self.jwks_url = f"{url}/keys"

    def log_in(self, user: str = "test-user@127.0.0.1") -> dict[str, Any]:
        """Have a user log in as with a browser; return the tokens (OpenID Connect Core, 3.1)."""
        verifier = secrets.token_urlsafe(48)
        asked = {
            "client_id": CLIENT,
            "response_type": "code",
            "scope": "openid profile",
            "redirect_uri": _BACK,
            "state": secrets.token_hex(8),
            "nonce": secrets.token_hex(8),
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        with httpx.Client(base_url=self.url, trust_env=False, timeout=30) as browser:
            page = browser.get("/auth", params=asked, follow_redirects=True).raise_for_status()
            (request,) = re.findall(r'name="id" value="([^"]+)"', page.text)
            filled = {"username": user, "password": "verysecure", "id": request}
            answer = browser.post("/login/username", data=filled)
            answer = browser.get(answer.headers["location"])
            came_back = parse_qs(urlsplit(answer.headers["location"]).query)
            assert came_back["state"] == [asked["state"]]
            form = {
                "grant_type": "authorization_code",
                "client_id": CLIENT,
                "code": came_back["code"][0],
                "redirect_uri": _BACK,
                "code_verifier": verifier,
            }
            return dict(browser.post("/oauth/token", data=form).raise_for_status().json())
