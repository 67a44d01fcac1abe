"""``[server.oauth]``: the token endpoint, and who this process is there.

``client_credentials.py`` gets the tokens, with an optional extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentguard.issuers.address import address_of
from agentguard.tables import kinds, setting


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Where a client on another machine gets the token that says who the client is.

    It is the client credentials grant of OAuth; the extra ``tokens``
    (docs/how-to/workload-tokens.md).

    ::

        [server]
        url = "tls://guard.acme.example:7443"

        [server.oauth]
        token_url = "https://sso.acme.example/realms/acme/protocol/openid-connect/token"
        client_id = "billing"
        client_secret_file = "/run/secrets/client-secret"
        scope = "agentguard"
        ca = "sso-ca.pem"
    """

    token_url: str = setting(kinds.text)
    """The token endpoint; ``http`` only on this machine."""

    client_id: str = setting(
        kinds.text.where(str.isascii, "the identifier of this client at the provider")
    )
    """The identifier of this client at the provider."""

    client_secret_file: Path = setting(kinds.file)
    """A file with the secret of this client, which others can't read."""

    scope: str | None = setting(kinds.text, default=None)
    """The scopes that are asked for, with spaces between them; by default those of the
    provider."""

    ca: Path | None = setting(kinds.file, default=None)
    """The certificates by which the endpoint is known; by default the system's."""

    def __post_init__(self) -> None:
        address_of(self.token_url, "token_url")
