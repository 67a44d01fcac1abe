"""A real Keycloak: what its administrator does there, and how a person logs in with a browser.

Tests share a server. So each takes a realm whose name is its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from token_issuer import b64, private_key

from agentguard.signing.canonical import b64url_decode

AUDIENCE: Final = "agentguard"
KEY_PROVIDER: Final = "org.keycloak.keys.KeyProvider"
_BACK: Final = "http://127.0.0.1:9/back"
_PASSWORD: Final = "of alice, and of no use elsewhere"


def _key_provider(kind: str, key: RSAPrivateKey, priority: int) -> dict[str, Any]:
    """Return the component with which a realm has a key of the test."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    config = {"privateKey": [private], "priority": [str(priority)]}
    return {"name": f"{kind} {priority}", "providerId": kind, "config": config}


def _key_providers(signing: RSAPrivateKey) -> list[dict[str, Any]]:
    """Return the keys of a new realm: one that signs, one for encryption, and its secrets."""
    encrypting = private_key("RS256", "of Keycloak, for encryption")
    return [
        _key_provider("rsa", signing, 100),
        _key_provider("rsa-enc", encrypting, 100),
        {"name": "hmac", "providerId": "hmac-generated", "config": {"algorithm": ["HS512"]}},
        {"name": "aes", "providerId": "aes-generated"},
    ]


def challenge_of(verifier: str) -> str:
    """Return the challenge of PKCE (RFC 7636, 4.2)."""
    return b64(hashlib.sha256(verifier.encode()).digest())


class Keycloak:
    """A server at ``url``, with the password of its administrator."""

    URL: Final = "AGENTGUARD_KEYCLOAK_URL"
    TOKEN_FILE: Final = "AGENTGUARD_KEYCLOAK_TOKEN_FILE"

    def __init__(self, url: str, password: str) -> None:
        self.url = url
        self._password = password
        self._token, self._renews_at = "", float("-inf")

    @classmethod
    def named(cls, variables: Mapping[str, str]) -> Keycloak:
        """The server that ``scripts/services env`` names."""
        return cls(variables[cls.URL], Path(variables[cls.TOKEN_FILE]).read_text("ascii").strip())

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Have the administrator ask for something; return the answer, None without a body."""
        if time.monotonic() > self._renews_at:
            self._token, self._renews_at = self._admin_token(), time.monotonic() + 30
        answer = httpx.request(
            method,
            f"{self.url}/admin/realms{path}",
            json=body,
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=30,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _admin_token(self) -> str:
        """Log in as the administrator; the token counts for a minute."""
        answer = httpx.post(
            f"{self.url}/realms/master/protocol/openid-connect/token",
            data={
                "client_id": "admin-cli",
                "grant_type": "password",
                "username": "admin",
                "password": self._password,
            },
            timeout=30,
        )
        return str(answer.raise_for_status().json()["access_token"])

    def realm(self, logout_url: str = "") -> Realm:
        """Make a realm: alice and bob, who are readers, a program for people, and a worker.

        The realm signs with a key of the test, which is made in no time: Keycloak takes seconds.
        Keycloak tells ``logout_url`` of each log-out.
        """
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
            "attributes": {
                "pkce.code.challenge.method": "S256",
                "backchannel.logout.url": logout_url,
                "backchannel.logout.session.required": "true",
            },
            "protocolMappers": [to_us],
        }
        worker = {
            "clientId": "worker",
            "secret": secret,
            "serviceAccountsEnabled": True,
            "standardFlowEnabled": False,
            "protocolMappers": [to_us],
        }
        people = [
            {
                "username": name,
                "enabled": True,
                "email": f"{name}@acme.example",
                "emailVerified": True,
                "firstName": name.title(),
                "lastName": "Example",
                "credentials": [{"type": "password", "value": _PASSWORD}],
                "realmRoles": ["reader"],
            }
            for name in ("alice", "bob")
        ]
        self.ask(
            "POST",
            "",
            {
                "realm": name,
                "enabled": True,
                "components": {KEY_PROVIDER: _key_providers(private_key("RS256", name))},
                "roles": {"realm": [{"name": "reader"}]},
                "clients": [chat, worker],
                "users": people,
            },
        )
        return Realm(self, name, secret)


class Realm:
    """A realm of a test; ``issuer`` is the ``iss`` of its tokens, and ``key`` signs them."""

    def __init__(self, keycloak: Keycloak, name: str, secret: str) -> None:
        self.keycloak = keycloak
        self.name = name
        self.secret = secret
        self.key: RSAPrivateKey = private_key("RS256", name)
        self.issuer = f"{keycloak.url}/realms/{name}"
        self._endpoint = f"{self.issuer}/protocol/openid-connect"
        self.jwks_url = f"{self._endpoint}/certs"
        self.token_url = f"{self._endpoint}/token"
        self.userinfo_url = f"{self._endpoint}/userinfo"

    def publish(self, key: RSAPrivateKey, priority: int) -> str:
        """Have the realm sign with a key of the test from now on; return the name of the key.

        The key with the highest ``priority`` signs, and others are published as well.
        """
        provider = {
            **_key_provider("rsa", key, priority),
            "providerType": KEY_PROVIDER,
            "parentId": self.keycloak.ask("GET", f"/{self.name}")["id"],
        }
        self.keycloak.ask("POST", f"/{self.name}/components", provider)
        return str(provider["name"])

    def withdraw(self, name: str) -> None:
        """Have the realm publish a key no more."""
        found = self.keycloak.ask("GET", f"/{self.name}/components?name={quote(name)}")
        self.keycloak.ask("DELETE", f"/{self.name}/components/{found[0]['id']}")

    def offer(self, scope: str, audience: str) -> None:
        """Let the program for people ask for a scope, with which a token is for an audience, too.

        The scope takes the place of ``resource`` (RFC 8707, 2) in the request for a token.
        """
        mapper = {
            "name": "to the resource",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {"included.custom.audience": audience, "access.token.claim": "true"},
        }
        offered = {
            "name": scope,
            "protocol": "openid-connect",
            "attributes": {"include.in.token.scope": "true"},
            "protocolMappers": [mapper],
        }
        ask, place = self.keycloak.ask, f"/{self.name}"
        ask("POST", f"{place}/client-scopes", offered)
        (made,) = (one for one in ask("GET", f"{place}/client-scopes") if one["name"] == scope)
        (chat,) = ask("GET", f"{place}/clients?clientId=chat")
        ask("PUT", f"{place}/clients/{chat['id']}/optional-client-scopes/{made['id']}")

    def log_in(
        self, dpop: str | None = None, *, user: str = "alice", scope: str = "openid"
    ) -> dict[str, Any]:
        """Have a user log in as with a browser; return the tokens (OpenID Connect Core, 3.1).

        With a DPoP proof for ``token_url``, the access token is bound to the key of the proof.
        ``scope`` has the scopes for which the program asks.
        """
        verifier = secrets.token_urlsafe(48)
        asked = {
            "client_id": "chat",
            "response_type": "code",
            "scope": scope,
            "redirect_uri": _BACK,
            "state": secrets.token_hex(8),
            "nonce": secrets.token_hex(8),
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        page = httpx.get(f"{self._endpoint}/auth", params=asked, timeout=30).raise_for_status()
        # The cookies are for https alone, and httpx would keep them to itself on http.
        cookies = [value.partition(";")[0] for value in page.headers.get_list("set-cookie")]
        (form,) = re.findall(r'<form[^>]*action="([^"]+)"', page.text)
        answer = httpx.post(
            unescape(form),
            data={"username": user, "password": _PASSWORD},
            headers={"Cookie": "; ".join(cookies)},
            timeout=30,
        )
        assert answer.status_code == httpx.codes.FOUND, answer.text
        came_back = parse_qs(urlsplit(answer.headers["location"]).query)
        assert came_back["state"] == [asked["state"]]
        return self._tokens(
            dpop,
            grant_type="authorization_code",
            client_id="chat",
            code=came_back["code"][0],
            redirect_uri=_BACK,
            code_verifier=verifier,
        )

    def log_out(self, tokens: dict[str, Any]) -> None:
        """Have the user of these tokens log out, as the program does for the user."""
        form = {"client_id": "chat", "refresh_token": tokens["refresh_token"]}
        answer = httpx.post(f"{self._endpoint}/logout", data=form, timeout=30)
        assert answer.status_code == httpx.codes.NO_CONTENT, answer.text

    def _tokens(self, dpop: str | None, **form: str) -> dict[str, Any]:
        """Ask for tokens (RFC 6749, 4.1.3; RFC 9449, 5)."""
        headers = {} if dpop is None else {"DPoP": dpop}
        answer = httpx.post(self.token_url, data=form, headers=headers, timeout=30)
        assert answer.status_code == httpx.codes.OK, answer.text
        return dict(answer.json())


class Forge:
    """What somebody could sign who has the private key of the realm.

    ``tokens`` are those of alice's log-in; ``scope`` is as for ``Realm.log_in``.
    """

    def __init__(self, realm: Realm, *, scope: str = "openid") -> None:
        self.realm = realm
        self.key = realm.key
        self.tokens = realm.log_in(scope=scope)
        header, payload = self.tokens["access_token"].split(".")[:2]
        self.header: dict[str, Any] = json.loads(b64url_decode(header))
        self.claims: dict[str, Any] = json.loads(b64url_decode(payload))

    def signed(self, header: bytes, payload: bytes) -> str:
        """Return a token of these bytes."""
        body = f"{b64(header)}.{b64(payload)}"
        return f"{body}.{b64(self.key.sign(body.encode(), padding.PKCS1v15(), SHA256()))}"

    def token(self, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return Keycloak's token with other claims; a claim that is None is left out."""
        said = {k: v for k, v in {**self.claims, **changes}.items() if v is not None}
        members = {k: v for k, v in {**self.header, **(header or {})}.items() if v is not None}
        return self.signed(json.dumps(members).encode(), json.dumps(said).encode())
