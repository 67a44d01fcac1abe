"""An outside issuer of tokens, with keys that are made at run time; PyJWT signs its tokens.

``HttpIssuer`` is the same issuer behind a real HTTP server: its key set, and a token endpoint for
the client credentials grant.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import get_default_algorithms

from agentguard.identity.jwt import ABSENT, JwtRule

NOW = 1_800_000_000.0
ISSUER = "https://issuer.example"
AUDIENCE = "agentguard"
SUBJECT = "system:serviceaccount:prod:billing"

_CURVES: dict[str, Any] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


@cache
def private_key(alg: str, name: str, bits: int = 2048) -> Any:
    """Return the key of this name, which is made once in a process."""
    if alg in _CURVES:
        return ec.generate_private_key(_CURVES[alg]())
    if alg in ("EdDSA", "Ed25519"):
        return Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, bits)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(alg: str, key: Any, /, **members: Any) -> dict[str, Any]:
    """Return a public key as JSON; a member that is None is left out."""
    known = get_default_algorithms()["EdDSA" if alg == "Ed25519" else alg]
    jwk = known.to_jwk(key.public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {name: value for name, value in {**jwk, **members}.items() if value is not None}


class TokenIssuer:
    """An issuer with one key, or several after ``rotate``."""

    def __init__(
        self,
        name: str = "issuer",
        *,
        alg: str = "ES256",
        issuer: str | None = ISSUER,
        use: str | None = "sig",
        says_alg: bool = True,
    ) -> None:
        self.name = name
        self.alg = alg
        self.issuer = issuer
        self.use = use
        self.says_alg = says_alg
        self.kid = "first"
        self.keys: list[dict[str, Any]] = []
        self.rotate("first")

    @property
    def key(self) -> Any:
        """The newest private key."""
        return private_key(self.alg, f"{self.name} {self.kid}")

    def rotate(self, kid: str) -> None:
        """Sign with another key from now on, and publish both."""
        self.kid = kid
        alg = self.alg if self.says_alg else None
        self.keys.append(public_jwk(self.alg, self.key, kid=kid, use=self.use, alg=alg))

    def jwks(self) -> bytes:
        """Return the key set."""
        return json.dumps({"keys": self.keys}).encode()

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Return the claims of a token that counts at ``NOW``; a claim that is None is left out."""
        usual = {
            "iss": self.issuer,
            "sub": SUBJECT,
            "aud": AUDIENCE,
            "iat": int(NOW) - 10,
            "nbf": int(NOW) - 10,
            "exp": int(NOW) + 600,
            "jti": "token-1",
        }
        return {name: value for name, value in {**usual, **claims}.items() if value is not None}

    def token(self, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token; a member of ``header`` that is None is left out."""
        members = {"typ": "JWT", "kid": self.kid, **(header or {})}
        alg = "EdDSA" if self.alg == "Ed25519" else self.alg
        return jwt.encode(
            self.claims(**claims), self.key, alg, {k: v for k, v in members.items() if v != ""}
        )

    def signed(self, header: bytes, payload: bytes) -> str:
        """Return a token with any bytes as its header and payload, signed with the right key."""
        signing_input = f"{b64(header)}.{b64(payload)}"
        known = "EdDSA" if self.alg == "Ed25519" else self.alg
        signature = get_default_algorithms()[known].sign(signing_input.encode(), self.key)
        return f"{signing_input}.{b64(signature)}"

    def rule(self, **members: Any) -> JwtRule:
        """Return the rule for this issuer's tokens."""
        usual: dict[str, Any] = {
            "name": self.name,
            "issuer": self.issuer,
            "trust_domain": None,
            "audience": frozenset({AUDIENCE}),
            "algorithms": frozenset({self.alg}),
            "types": frozenset({"JWT", "at+jwt", ABSENT}),
        }
        return JwtRule(**{**usual, **members})


def fresh(seconds: float = 600) -> dict[str, Any]:
    """Return the times of a token that counts now, for so many seconds."""
    now = time.time()
    return {"iat": int(now) - 10, "nbf": int(now) - 10, "exp": now + seconds}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hangs up."""


class HttpIssuer:
    """Serves the key set of an issuer at ``/jwks``, and tokens at ``/token``.

    ``clients`` are identifiers and secrets. ``seconds`` is how long a token counts.
    ``answers`` maps a path to the status, the headers and the body of an answer in the place of the
    right one.
    """

    def __init__(self, issuer: TokenIssuer) -> None:
        self.issuer = issuer
        self.clients = {"billing": "s3cret/+ with space"}
        self.seconds = 600.0
        self.requests: list[str] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._say(self, *outer.answers.get(self.path, (200, {}, outer.issuer.jwks())))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                found = outer.answers.get(self.path) or outer._token(self, form)
                outer._say(self, *found)

            def log_message(self, *_arguments: object) -> None:
                return

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _token(
        self, request: BaseHTTPRequestHandler, form: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        kind, _, pair = request.headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(pair).decode().partition(":")
        right = {one: _form(value) for one, value in self.clients.items()}
        if kind != "Basic" or right.get(client) != secret:
            return 401, {}, b'{"error": "invalid_client"}'
        if form.get("grant_type") != ["client_credentials"]:
            return 400, {}, b'{"error": "unsupported_grant_type"}'
        token = self.issuer.token(sub="a-uuid", azp=client, **fresh(self.seconds))
        body = {"access_token": token, "token_type": "Bearer", "expires_in": self.seconds}
        return 200, {}, json.dumps(body).encode()

    def _say(
        self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        self.requests.append(request.path)
        request.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**usual, **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _form(text: str) -> str:
    """Return a text as in a form (RFC 6749, 2.3.1)."""
    return text.replace("/", "%2F").replace("+", "%2B").replace(" ", "+")
