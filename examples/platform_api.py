"""An agent's program that gets its identity and its tokens over HTTP, from ``agentguard serve``.

Run it with ``python examples/platform_api.py``. A stand-in for the company's identity provider
signs two tokens: one of the program (a workload token), and one of alice. The program registers a
key of its own as an instance of the agent ``support``, exchanges alice's token for an access token
of this instance, and asks what the policy decides about two calls (AuthZEN). Everything happens in
a temporary folder, which is removed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentguard import verify_evaluation
from agentguard.delegation import access_token
from agentguard.errors import ServerError
from agentguard.identity.trust import TrustDocument
from agentguard.service.client import TokenService

PROVIDER = "https://login.acme.example"
TICKETS = "https://tickets.acme.example"

SETTINGS = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"
keys.passphrase_file = "passphrase"

[policy]
path = "authz.rego"

[agents.support]
authority = "delegated"
max_scope = ["tickets:read", "tickets:write"]

[server]
url = "unix:guard.sock"

[tools]
unlisted = "deny"                  # a tool without a table is denied

[tools.read_ticket]                          # what an evaluation knows of a tool
requires = ["tickets:read"]
resource = "ticket:{ticket}"

[tools.close_ticket]
requires = ["tickets:write"]
resource = "ticket:{ticket}"

[service]                                    # the token service, at URL
issuer = "URL"
listen = "ADDRESS"
audiences = ["https://tickets.acme.example"]

[issuers.acme]                               # whose workload tokens count
issuer = "https://login.acme.example"
jwks_file = "provider.json"
audience = ["agentguard"]
algorithms = ["EdDSA"]

[issuers.acme.users]                         # and whose users may lend to agents
claim = "preferred_username"
audience = ["support-app"]

[clients.support-web]                        # the program, by its workload token
issuer = "acme"
subject = "support-web"
agents = ["support"]
"""

POLICY = """
package agent.authz

default allow := false

allow if "tickets:read" in input.delegation.scope
"""


class Provider:
    """A stand-in for the company's identity provider: it signs any token."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def keys(self) -> str:
        """Return the provider's public keys, as a key set."""
        public = {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": encoded(self._key.public_key().public_bytes_raw()),
        }
        return json.dumps({"keys": [{**public, "kid": "one", "alg": "EdDSA", "use": "sig"}]})

    def token(self, **claims: object) -> str:
        """Return a token that counts for five minutes."""
        now = int(time.time())
        whole = {"iss": PROVIDER, "iat": now, "exp": now + 300, **claims}
        header = {"typ": "JWT", "alg": "EdDSA", "kid": "one"}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, whole))
        return f"{signed}.{encoded(self._key.sign(signed.encode()))}"


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).decode().rstrip("=")


def main(folder: Path) -> None:
    """Start the service, and make the calls of an agent's program."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    url, provider = f"http://{address}", Provider()
    settings = SETTINGS.replace("URL", url).replace("ADDRESS", address)
    for name, text in {
        "agentguard.toml": settings,
        "authz.rego": POLICY,
        "provider.json": provider.keys(),
    }.items():
        (folder / name).write_text(text, "utf-8")
    agentguard = [sys.executable, "-m", "agentguard.cli"]
    subprocess.run([*agentguard, "init"], cwd=folder, check=True, capture_output=True)  # noqa: S603
    server = subprocess.Popen([*agentguard, "serve"], cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        if server.stdout is None or not server.stdout.readline().startswith("serving"):
            sys.exit("the server has ended")
        call(url, provider, TrustDocument.loads((folder / "state/trust.json").read_bytes()))
    finally:
        server.terminate()
        server.communicate()


def call(url: str, provider: Provider, trust: TrustDocument) -> None:
    """Get an identity, a token and two decisions, and look at them as others do."""
    metadata = httpx.get(f"{url}/.well-known/oauth-authorization-server").json()
    print("grant types:", *metadata["grant_types_supported"])
    workload = provider.token(sub="support-web", aud="agentguard")
    said = {"sub": "4711", "preferred_username": "alice", "scope": "openid"}
    alice = provider.token(aud="support-app", **said)
    with TokenService(url) as service:
        identity = service.register("support", workload_token=workload)
        print("registered:", identity.uri.rpartition("/")[0])
        got = service.exchange(identity, alice, scope=["tickets:read"], audience=[TICKETS])
        print("exchanged for the scope:", *got.scope)
        read, close = (
            service.authorize(
                identity,
                tool,
                {"ticket": "42"},
                resource="ticket:42",
                access_token=got.issued.token,
            )
            for tool in ("read_ticket", "close_ticket")
        )
        print("read_ticket of ticket:42:", read.decision.outcome)
        print("close_ticket of ticket:42:", close.decision.outcome, close.code)
        try:
            service.exchange(identity, alice, scope=["admin"])
        except ServerError as error:
            print("refused:", error)

    # Whoever gets the decision verifies the issuer's signature. The decision lets no tool run.
    decided = verify_evaluation(close.statement or b"", trust).evaluated
    print("decided:", decided.tool.name, decided.decision, "for", decided.principal)

    # The ticket system verifies the token offline, and asks the service about revocations.
    verified = access_token.verify(
        *got.issued, trust, at=int(time.time()), audience=TICKETS, issuer=url
    )
    print("verified:", " acts for ".join([verified.chain.actors[-1], verified.chain.principal]))
    with TokenService(url) as service:
        active = service.introspect(got.issued.token, workload_token=workload)
    print("active:", active is not None)
    # With each request, the program proves that it has the key of the token (RFC 9449).
    headers = {
        "Authorization": f"DPoP {got.issued.token}",
        "DPoP": identity.proof("GET", f"{TICKETS}/42", access_token=got.issued.token),
    }
    print("a request has the headers:", *headers)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
