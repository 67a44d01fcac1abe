"""Clients that say who they are with a token of an issuer, in the greeting of each connection.

``[clients]`` names an issuer and a subject for each such client. A token is in no message and in no
log.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentguard.domain.config.clients import ClientConfig
from agentguard.domain.workloads import foreign_marks
from agentguard.errors import AgentguardError, ServerError
from agentguard.identity.jwt import VerifiedJwt
from agentguard.issuers.trusted import Issuers


class TokenClients:
    """The clients with an ``issuer`` in the configuration, and the issuers' keys."""

    def __init__(self, issuers: Issuers, clients: Iterable[ClientConfig]) -> None:
        self._issuers = issuers
        self._clients = {
            (client.issuer, client.subject): client
            for client in clients
            if client.issuer is not None
        }

    def client_of(self, token: object) -> tuple[ClientConfig, float]:
        """Return the client that a token names, and when the token ends (Unix time).

        Raises ``ServerError``: ``server.token`` for a token that does not count, or None;
        ``server.stranger`` for a subject that is no client's; ``issuer.unreachable`` and
        ``issuer.keys``. The cause of an error, which may name files of the server, is not for the
        client.
        """
        if token is None:
            message = (
                "a client without a certificate has to show a token: name token_file or a table "
                "oauth in [server] of the client's configuration"
            )
            raise ServerError(message, code="server.token")
        try:
            verified = self._issuers.verify(token)
        except ServerError as error:
            message = "the guard server can't get the keys of the token's issuer: its log says why"
            raise ServerError(message, code=error.code) from error
        except AgentguardError as error:
            message = f"the guard server refuses the client's token: {error} [{error.code}]"
            raise ServerError(message, code="server.token") from error
        client = self._clients.get((verified.issuer, verified.subject))
        if client is None:
            message = (
                f"the subject {verified.subject!a} of the issuer {verified.issuer} is no client of "
                "this guard server: see issuer and subject in [clients]"
            )
            raise ServerError(message, code="server.stranger")
        _require_program(client, verified)
        return client, verified.expires_at


def _require_program(client: ClientConfig, verified: VerifiedJwt) -> None:
    """Raise ``ServerError`` (``server.token``) for a token that is not the client's own."""
    marks = foreign_marks(verified)
    if marks:
        message = (
            f"the token tells of a person or of another party ({', '.join(marks)}), and a client "
            "shows a token of its own"
        )
        raise ServerError(message, code="server.token")
    for name, value in client.claims:
        if verified.claims.get(name) != value:
            message = f"the token's {name} is not as claims of the client in [clients] says"
            raise ServerError(message, code="server.token")


def with_cause(error: ServerError) -> str:
    """Return the message of a refusal for the server's log, with what the client is not told."""
    is_told = not isinstance(error.__cause__, ServerError)
    return str(error) if is_told else f"{error} ({error.__cause__})"
