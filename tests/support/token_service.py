"""A trust domain whose ``agentguard serve`` has a token service, and what its callers send."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
import jwt
from login_provider import Provider, acme
from ports import free_port
from preloaded import Preloaded
from served_place import Place, founded_place

from agentguard.proof.dpop import token_hash
from agentguard.signing.canonical import b64url_encode, dumps
from agentguard.signing.keys import Ed25519Signer

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TYPES = "urn:ietf:params:oauth:token-type:"
CHAIN = "urn:agentguard:chain"
PAYMENTS = "https://payments.example"
CLERK = "spiffe://acme.example/agent/clerk"
WORKLOAD = "workloads"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

CONFIG = f"""
[service]
issuer = "URL"
listen = "LISTEN"
audiences = ["{PAYMENTS}"]

{acme(audience=WORKLOAD)}audience = ["agentguard"]
id_jag = true

[tools.slow]
resource = "note:{{text}}"

[tools.add]
requires = ["read"]

[tools.pay]

[tools.drop]

[clients.web]
issuer = "acme"
subject = "web-1"
agents = ["clerk"]

[clients.program]
uid = {os.getuid()}
agents = ["clerk"]

[clients.batch]
issuer = "acme"
subject = "batch-1"
agents = ["helper"]
"""


@dataclass
class Key:
    """A key of a caller, and the proofs that the key signs."""

    signer: Ed25519Signer = field(default_factory=lambda: Ed25519Signer.from_seed(os.urandom(32)))
    proofs: int = 0

    @property
    def jwk(self) -> dict[str, str]:
        return self.signer.public_key.jwk()

    def proof(self, url: str, token: str | None = None, **changes: Any) -> str:
        """Return a DPoP proof, of which a claim may be changed or (None) removed."""
        self.proofs += 1
        header = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": self.jwk}
        claims = {
            "jti": b64url_encode(f"{time.time_ns()}-{self.proofs}".encode()),
            "htm": "POST",
            "htu": url,
            "iat": int(time.time()),
            **({} if token is None else {"ath": token_hash(token)}),
            **changes,
        }
        sent = {name: value for name, value in claims.items() if value is not None}
        signed = ".".join(b64url_encode(dumps(part)) for part in (header, sent))
        return f"{signed}.{b64url_encode(self.signer.sign(signed.encode()))}"


@dataclass
class Service:
    """The running service. ``http`` has its URL as the base of each request."""

    place: Place
    provider: Provider
    url: str
    http: httpx.Client

    def workload(self, subject: str = "web-1", **claims: Any) -> str:
        """Return a workload token of a client."""
        return self.provider.token(aud=WORKLOAD, sub=subject, **claims)

    def register(
        self, key: Key, agent: str = "clerk", *, token: str | None = None, **given: Any
    ) -> httpx.Response:
        """Ask for a credential; ``given`` changes headers."""
        bearer = self.workload() if token is None else token
        headers = {
            "Authorization": f"Bearer {bearer}",
            "DPoP": key.proof(f"{self.url}/identities", bearer),
            **given,
        }
        body = {"agent": agent, "jwk": key.jwk}
        return self.http.post("/identities", json=body, headers=headers)

    def credential(self, key: Key, agent: str = "clerk", subject: str = "web-1") -> str:
        """Return a credential of a key."""
        answer = self.register(key, agent, token=self.workload(subject))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["credential"])

    def exchange(
        self, key: Key, credential: str, headers: dict[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        """Ask for an access token; a parameter may be changed or (None) left out."""
        form = {
            "grant_type": GRANT,
            "subject_token": None,
            "subject_token_type": f"{TYPES}access_token",
            "scope": "read",
            **changes,
        }
        if "subject_token" not in changes:
            form["subject_token"] = self.provider.token()
        given = {
            "Workload-Identity-Token": credential,
            "DPoP": key.proof(f"{self.url}/token"),
            **FORM,
            **(headers or {}),
        }
        sent = urlencode({name: value for name, value in form.items() if value is not None}, True)
        return self.http.post("/token", content=sent, headers=given)

    def id_jag(self, **claims: Any) -> str:
        """Return an ID-JAG of alice for the agent clerk; a claim may be changed or left out."""
        return self.provider.id_jag(**{"aud": self.url, "client_id": CLERK, **claims})

    def redeem(
        self, key: Key, credential: str, headers: dict[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        """Ask for an access token with an ID-JAG; a parameter may be changed or left out."""
        only = {"grant_type": JWT_BEARER, "subject_token": None, "subject_token_type": None}
        if "assertion" not in changes:
            only["assertion"] = self.id_jag()
        return self.exchange(key, credential, headers, **{**only, **changes})

    def revoke(
        self,
        key: Key,
        credential: str,
        token: str,
        headers: dict[str, str] | None = None,
        **given: str,
    ) -> httpx.Response:
        """Have an instance give a token up; ``given`` are further parameters."""
        sent = {
            "Workload-Identity-Token": credential,
            "DPoP": key.proof(f"{self.url}/revoke", token),
            **(headers or {}),
        }
        return self.http.post("/revoke", data={"token": token, **given}, headers=sent)

    def log_out(self, token: str | None = None, **claims: Any) -> httpx.Response:
        """Say that a user has logged out, with a log-out token or with one of these claims."""
        sent = self.provider.logout_token(**claims) if token is None else token
        return self.http.post("/backchannel-logout", data={"logout_token": sent})

    def evaluate(
        self,
        key: Key | None,
        uri: str,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        path: str = "/access/v1/evaluation",
        **changes: Any,
    ) -> httpx.Response:
        """Ask what the policy decides, as an instance with its key; None sends ``headers`` alone.

        Without a ``token``, ``headers`` have the credential. A member of the body may be changed or
        (None) left out.
        """
        body = {
            "subject": {"type": "agent", "id": uri},
            "action": {"name": "slow"},
            "resource": {"type": "note", "id": "x"},
            "context": {"arguments": {"text": "x"}},
            **changes,
        }
        shown = {} if token is None else {"Authorization": f"DPoP {token}"}
        proof = {} if key is None else {"DPoP": key.proof(f"{self.url}{path}", token)}
        sent = {name: value for name, value in body.items() if value is not None}
        return self.http.post(path, json=sent, headers={**shown, **proof, **(headers or {})})

    def introspect(self, token: str, **given: str) -> dict[str, Any]:
        """Ask whether a token counts, as a client."""
        headers = {"Authorization": f"Bearer {self.workload()}"}
        answer = self.http.post("/introspect", data={"token": token, **given}, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@contextmanager
def served(
    programs: Preloaded, more: str = "", url: str | None = None, audience: str = PAYMENTS
) -> Iterator[Service]:
    """Start a service; ``more`` is added to its configuration.

    ``url`` is that of a proxy in front, None for the service's own. ``audience`` is the one
    receiver of tokens.
    """
    listen = f"127.0.0.1:{free_port()}"
    url = url or f"http://{listen}"
    config = CONFIG.replace("URL", url).replace("LISTEN", listen).replace(PAYMENTS, audience)
    with founded_place(programs, config + more) as place, httpx.Client(base_url=url) as http:
        service = Service(place, Provider(place.folder), url, http)
        place.start()
        yield service


def claims(token: str) -> dict[str, Any]:
    """Return what a token says, unverified."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the code of a refusal, which has the form of RFC 6749, 5.2."""
    body = json.loads(answer.text)
    assert body.keys() == {"error", "error_description"}
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, body["error"]
