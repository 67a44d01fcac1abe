"""A real Keycloak: what its administrator does there, and how a person logs in with a browser.

Tests share a server. So each takes a realm whose name is its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx

AUDIENCE: Final = "agentguard"
_BACK: Final = "http://127.0.0.1:9/back"
_PASSWORD: Final = "of alice, and of no use elsewhere"


class Keycloak:
    """A server at ``url``, with the password of its administrator."""

    URL: Final = "AGENTGUARD_KEYCLOAK_URL"
    TOKEN_FILE: Final = "AGENTGUARD_KEYCLOAK_TOKEN_FILE"

    def __init__(self, url: str, password: str) -> None:
        self.url = url
        self._password = password

    @classmethod
    def named(cls, variables: Mapping[str, str]) -> Keycloak:
        """The server that ``scripts/services env`` names."""
        return cls(variables[cls.URL], Path(variables[cls.TOKEN_FILE]).read_text("ascii").strip())

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Have the administrator ask for something; return the answer, None without a body."""
        answer = httpx.post(
            f"{self.url}/realms/master/protocol/openid-connect/token",
            data={
                "client_id": "admin-cli",
                "grant_type": "password",
                "username": "admin",
                "password": self._password,
            },
        )
        token = answer.raise_for_status().json()["access_token"]
        answer = httpx.request(
            method,
            f"{self.url}/admin/realms{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def realm(self) -> Realm:
        """Make a realm: alice, who is a reader, a program for people, and a worker."""
        name, secret = f"t{secrets.token_hex(4)}", secrets.token_hex(16)
        to_us = {
            "name": "to agentguard",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {"included.custom.audience": AUDIENCE, "access.token.claim": "true"},
        }
        chat = {
            "clientId": "chat",
            "publicClient": True,
            "redirectUris": [_BACK],
            "attributes": {"pkce.code.challenge.method": "S256"},
            "protocolMappers": [to_us],
        }
        worker = {
            "clientId": "worker",
            "secret": secret,
            "serviceAccountsEnabled": True,
            "standardFlowEnabled": False,
            "protocolMappers": [to_us],
        }
        alice = {
            "username": "alice",
            "enabled": True,
            "email": "alice@acme.example",
            "emailVerified": True,
            "firstName": "Alice",
            "lastName": "Example",
            "credentials": [{"type": "password", "value": _PASSWORD}],
            "realmRoles": ["reader"],
        }
        self.ask(
            "POST",
            "",
            {
                "realm": name,
                "enabled": True,
                "roles": {"realm": [{"name": "reader"}]},
                "clients": [chat, worker],
                "users": [alice],
            },
        )
        return Realm(self, name, secret)


class Realm:
    """A realm of a test; ``issuer`` is the ``iss`` of its tokens."""

    def __init__(self, keycloak: Keycloak, name: str, secret: str) -> None:
        self.keycloak = keycloak
        self.name = name
        self.secret = secret
        self.issuer = f"{keycloak.url}/realms/{name}"
        self._endpoint = f"{self.issuer}/protocol/openid-connect"
        self.jwks_url = f"{self._endpoint}/certs"
        self.token_url = f"{self._endpoint}/token"

    def log_in(self) -> dict[str, Any]:
        """Have alice log in as with a browser; return the tokens (OpenID Connect Core, 3.1)."""
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        asked = {
            "client_id": "chat",
            "response_type": "code",
            "scope": "openid",
            "redirect_uri": _BACK,
            "state": secrets.token_hex(8),
            "nonce": secrets.token_hex(8),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        page = httpx.get(f"{self._endpoint}/auth", params=asked, timeout=30).raise_for_status()
        # The cookies are for https alone, and httpx would keep them to itself on http.
        cookies = [value.partition(";")[0] for value in page.headers.get_list("set-cookie")]
        (form,) = re.findall(r'<form[^>]*action="([^"]+)"', page.text)
        answer = httpx.post(
            unescape(form),
            data={"username": "alice", "password": _PASSWORD},
            headers={"Cookie": "; ".join(cookies)},
            timeout=30,
        )
        assert answer.status_code == httpx.codes.FOUND, answer.text
        came_back = parse_qs(urlsplit(answer.headers["location"]).query)
        assert came_back["state"] == [asked["state"]]
        return self._tokens(
            grant_type="authorization_code",
            client_id="chat",
            code=came_back["code"][0],
            redirect_uri=_BACK,
            code_verifier=verifier,
        )

    def _tokens(self, **form: str) -> dict[str, Any]:
        """Ask for tokens (RFC 6749, 4.1.3)."""
        answer = httpx.post(self.token_url, data=form, timeout=30)
        assert answer.status_code == httpx.codes.OK, answer.text
        return dict(answer.json())
