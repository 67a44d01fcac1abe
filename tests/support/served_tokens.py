"""A guard server whose clients on other machines show tokens, of three kinds of issuers.

``cluster`` is like a Kubernetes cluster (RS256, a list of audiences, nested claims, a file with its
keys), ``spire`` signs JWT-SVIDs (ES256, a SPIFFE bundle without ``alg``), and ``provider`` is an
OAuth provider over HTTP.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from certificates import Authority
from ports import free_port
from token_issuer import SUBJECT, HttpIssuer, TokenIssuer, fresh

from agentguard import Guard
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream

CLUSTER, PROVIDER = "https://kubernetes.default.svc.cluster.local", "https://sso.example/realms/a"
WORKLOAD = "spiffe://acme.example/ns/prod/sa/web"
WEB = "spiffe://acme.example/web-1"

TABLES = """
[server.tls]
listen = "127.0.0.1:{port}"
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"

[issuers.cluster]
issuer = "{cluster}"
jwks_file = "cluster.json"
audience = ["agentguard"]
algorithms = ["RS256"]
leeway = 0

[issuers.spire]
spiffe = "acme.example"
jwks_file = "bundle.json"
audience = ["spiffe://acme.example/guard"]
algorithms = ["ES256"]
leeway = 0

[issuers.sso]
issuer = "{provider}"
jwks_url = "{url}/jwks"
audience = ["agentguard"]
algorithms = ["ES256"]
subject_claim = "azp"
leeway = 0

[clients.billing]
issuer = "cluster"
subject = "{subject}"
agents = ["clerk"]
vouches_for = ["user:*"]

[clients.svid]
issuer = "spire"
subject = "{workload}"
agents = ["helper"]
vouches_for = ["user:*"]

[clients.oauth]
issuer = "sso"
subject = "billing"
agents = ["clerk"]

[clients.batch]
issuer = "sso"
subject = "batch"
agents = ["clerk"]
claims = {{ gty = "m2m" }}

[clients.web]
spiffe = "{web}"
agents = ["clerk"]
"""


class Tokens:
    """A server that takes tokens and certificates, and what its clients' configurations need."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.folder: Path = place.folder
        self.authority = Authority(self.folder, "acme")
        certificate, key = self.authority.issue("server")
        self.cluster = TokenIssuer("cluster", alg="RS256", issuer=CLUSTER)
        self.spire = TokenIssuer("spire", issuer=None, use="jwt-svid", says_alg=False)
        self.http = HttpIssuer(TokenIssuer("sso", issuer=PROVIDER))
        self.publish()
        self.port = free_port()
        tables = TABLES.format(
            port=self.port,
            certificate=certificate,
            key=key,
            ca=self.authority.file,
            cluster=CLUSTER,
            provider=PROVIDER,
            url=self.http.url,
            subject=SUBJECT,
            workload=WORKLOAD,
            web=WEB,
        )
        with (self.folder / "agentguard.toml").open("a", encoding="utf-8") as file:
            file.write(tables)
        place.start()

    def publish(self) -> None:
        """Write the files with the keys of the issuers."""
        (self.folder / "cluster.json").write_bytes(self.cluster.jwks())
        (self.folder / "bundle.json").write_bytes(self.spire.jwks())

    # --- tokens ---------------------------------------------------------------------------------

    def account(self, seconds: float = 600, **claims: Any) -> str:
        """Return a token of a service account, as Kubernetes makes them."""
        return self.cluster.token(
            **{
                **fresh(seconds),
                "aud": ["agentguard", CLUSTER],
                "kubernetes.io": {
                    "namespace": "prod",
                    "pod": {"name": "billing-1", "uid": "8cf0"},
                    "serviceaccount": {"name": "billing", "uid": "7f1e"},
                },
                **claims,
            }
        )

    def svid(self, seconds: float = 600, **claims: Any) -> str:
        """Return a JWT-SVID."""
        usual = {"sub": WORKLOAD, "aud": ["spiffe://acme.example/guard"], "nbf": None, "jti": None}
        return self.spire.token(**{**fresh(seconds), **usual, **claims})

    # --- clients --------------------------------------------------------------------------------

    def open(self, name: str, proof: str) -> Guard:
        """Open the guard of a program; ``proof`` says in its configuration who the program is."""
        folder = self.folder / f"program-{name}"
        folder.mkdir(exist_ok=True)
        toml = folder / "agentguard.toml"
        toml.write_text(
            f'[server]\nurl = "tls://127.0.0.1:{self.port}"\nca = "{self.authority.file}"\n'
            f"patience = 0.2\n{proof}\n"
        )
        guard = Guard.open(toml)
        self.place.guards.append(guard)
        return guard

    def with_token(self, token: str, name: str = "token") -> Guard:
        """Open the guard of a program whose token is in a file, which ``write`` replaces."""
        self.write(token, name)
        return self.open(name, f'token_file = "{self.folder / name}"')

    def write(self, token: str, name: str = "token") -> None:
        new = self.folder / f"{name}.new"
        new.write_text(token)
        new.replace(self.folder / name)

    def with_oauth(self, secret: str | None = None) -> Guard:
        path = self.folder / "client-secret"
        path.write_text(secret or self.http.clients["billing"])
        path.chmod(0o600)
        table = f'client_id = "billing"\nclient_secret_file = "{path}"'
        return self.open("oauth", f'[server.oauth]\ntoken_url = "{self.http.url}/token"\n{table}')

    def socket(self, files: tuple[Path, Path] | None = None) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        if files is not None:
            context.load_cert_chain(*files)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def greet(
        self, token: Any, session: str | None = None, files: tuple[Path, Path] | None = None
    ) -> dict[str, Any]:
        """Return the server's answer to a greeting with any token."""
        with self.socket(files) as connected:
            stream = Stream(connected)
            stream.read()
            hello = {"op": "hello", "protocol": 1, "session": session}
            stream.write(Frame(hello if token is None else {**hello, "token": token}))
            return dict(stream.read().header)

    def close(self) -> None:
        self.http.close()


def handle_of(guard: Guard) -> str:
    """Return the handle of a program's session."""
    (handle,) = guard._parts._link._sessions.values()  # type: ignore[attr-defined]
    return str(handle)
