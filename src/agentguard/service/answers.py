"""What the token service answers: JSON, or an error in the form of RFC 6749, 5.2.

An error says what the caller can change, and nothing of the service's files and other callers. The
service's own log has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agentguard.signing import canonical

NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""No cache keeps an answer with a token (RFC 6749, 5.1)."""

_PUBLIC: Final = {"Cache-Control": "public, max-age=60"}

_BEARER: Final = 'Bearer error="invalid_token"'


class Answer(NamedTuple):
    """The status, the body and the headers of an answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class RefusedError(Exception):
    """A request that is refused: a status, a code of the OAuth specifications, and a sentence.

    ``challenge`` is the value of ``WWW-Authenticate``, which an answer with the status 401 has
    (RFC 9110, 15.5.2).
    """

    def __init__(
        self, status: int, error: str, description: str, *, challenge: str | None = None
    ) -> None:
        super().__init__(description)
        self.status = status
        self.error = error
        self.challenge = challenge


def success(value: Mapping[str, object], status: int = 200) -> Answer:
    """Return an answer that no cache keeps."""
    return _json(value, status, NO_STORE)


def public(value: Mapping[str, object]) -> Answer:
    """Return an answer that is the same for everybody, which a cache may keep for a minute."""
    return _json(value, 200, _PUBLIC)


def refusal(refused: RefusedError) -> Answer:
    """Return the answer to a request that is refused."""
    headers = dict(NO_STORE)
    if refused.challenge is not None:
        headers["WWW-Authenticate"] = refused.challenge
    value = {"error": refused.error, "error_description": _printable(str(refused))}
    return _json(value, refused.status, headers)


def invalid_request(description: str, status: int = 400) -> RefusedError:
    """Return the refusal of a request without the right form (RFC 6749, 5.2)."""
    return RefusedError(status, "invalid_request", description)


def invalid_token(description: str) -> RefusedError:
    """Return the refusal of a caller whose bearer token does not count (RFC 6750, 3.1)."""
    return RefusedError(401, "invalid_token", description, challenge=_BEARER)


def invalid_client(description: str) -> RefusedError:
    """Return the refusal of a caller who is no instance of an agent (RFC 6749, 5.2)."""
    return RefusedError(401, "invalid_client", description, challenge='DPoP algs="EdDSA Ed25519"')


def unavailable(description: str) -> RefusedError:
    """Return the refusal of a request that may succeed later."""
    return RefusedError(503, "temporarily_unavailable", description)


def _json(value: Mapping[str, object], status: int, headers: Mapping[str, str]) -> Answer:
    body = canonical.dumps(dict(value))
    return Answer(status, body, {"Content-Type": "application/json", **headers})


def _printable(text: str) -> str:
    """Return a text of the characters that RFC 6749, 5.2, allows in a description."""
    plain = text.replace('"', "'").replace("\\", "/")
    return "".join(each if " " <= each <= "~" else "?" for each in plain)
