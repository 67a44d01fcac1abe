"""The requests to a token service and its answers, as values; ``client.py`` sends and receives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from agentguard.approvals.request import read_requirement
from agentguard.call.decision import Decision
from agentguard.call.evaluation import Evaluation
from agentguard.delegation.access_token import IssuedToken
from agentguard.delegation.grant import parse_scopes
from agentguard.errors import ConfigError, DecodeError, ServerError
from agentguard.proof import dpop
from agentguard.proof.target import Target, parse_audience
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
"""The grant type of a token exchange (RFC 8693, 2.1)."""

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""The grant type of an assertion: here, of an ID-JAG (RFC 7523, 2.1)."""

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  a type's name
"""The type of an OAuth access token (RFC 8693, 3)."""

CHAIN: Final = "urn:agentguard:chain"
"""The member of an answer with the chain of the token, and the parameter of ``/introspect``."""

MAX_ANSWER: Final = 256 * 1024
"""The longest answer that is read, in bytes."""

_MAX_ERROR: Final = 300
_UNAVAILABLE: Final = 503
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_FORM: Final = "application/x-www-form-urlencoded"
_PLAIN: Final = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance of an agent whose key is in this process, with its credential.

    ``expires_at`` is the end of the credential, in seconds since the epoch: register the same key
    again before.
    """

    agent: str
    uri: str
    credential: str = field(repr=False)
    expires_at: int
    signer: Ed25519Signer = field(repr=False)

    def proof(self, method: str, url: str, *, access_token: str | None = None) -> str:
        """Return a DPoP proof for one request: the value of the header ``DPoP``.

        A query of ``url`` is left out (RFC 9449, 4.2). Raises ``ProofError`` (``proof.malformed``)
        for a URL that a proof can't name.
        """
        return _proof(self.signer, method, Target.parse(url).uri, access_token)


@dataclass(frozen=True, slots=True)
class ExchangedToken:
    """An access token of an instance, with the chain that verifies the token.

    ``issued`` has the token and the chain, ``scope`` what the token allows. ``expires_in`` is in
    seconds from the answer on.
    """

    issued: IssuedToken = field(repr=False)
    scope: tuple[str, ...]
    expires_in: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: a ``POST`` to a URL."""

    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def parse_url(url: str) -> str:
    """Return the scheme, the host and the port of a service.

    Raises ``ConfigError`` for a URL with more than these, and for one that protects no request.
    """
    base = parse_audience(url, "a token service")
    if base.path != "/":
        message = (
            f"{url!r} is no URL of a token service: leave {base.path!r} out, since [service] issuer"
            " is a scheme and a host alone"
        )
        raise ConfigError(message)
    return base.origin


def registration(url: str, agent: str, workload_token: str, signer: Ed25519Signer) -> Sent:
    """Return the request for a credential of a key."""
    target = f"{url}/identities"
    headers = {
        **_PLAIN,
        "Authorization": f"Bearer {workload_token}",
        "Content-Type": "application/json",
        dpop.HEADER: _proof(signer, "POST", target, workload_token),
    }
    body = canonical.dumps({"agent": agent, "jwk": {**signer.public_key.jwk()}})
    return Sent(target, headers, body)


def exchange(
    url: str,
    identity: Identity,
    subject_token: str,
    subject_token_type: str,
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Sent:
    """Return the request for an access token, with a user's token."""
    form = [
        ("grant_type", GRANT),
        ("subject_token", subject_token),
        ("subject_token_type", subject_token_type),
    ]
    return _token_request(url, identity, form, scope, audience)


def redemption(
    url: str,
    identity: Identity,
    assertion: str,
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Sent:
    """Return the request for an access token, with an ID-JAG of a user."""
    form = [("grant_type", JWT_BEARER), ("assertion", assertion)]
    return _token_request(url, identity, form, scope, audience)


def _token_request(
    url: str,
    identity: Identity,
    form: list[tuple[str, str]],
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Sent:
    if audience is not None:
        names = list(audience)
        form += [("audience", name) for name in names]
        if not names:  # a form has no empty list: the service refuses an empty name
            form.append(("audience", ""))
    if scope is not None:
        form.append(("scope", " ".join(parse_scopes(scope))))
    return _form_request(f"{url}/token", identity, form, None)


def _form_request(
    target: str, identity: Identity, form: list[tuple[str, str]], access_token: str | None
) -> Sent:
    """Return a request with a form, a credential and a proof, which names an ``access_token``."""
    headers = {
        **_PLAIN,
        "Workload-Identity-Token": identity.credential,
        "Content-Type": _FORM,
        dpop.HEADER: _proof(identity.signer, "POST", target, access_token),
    }
    return Sent(target, headers, urlencode(form).encode("ascii"))


def authorization(
    url: str,
    identity: Identity,
    tool: str,
    arguments: Mapping[str, JSON],
    resource: str,
    access_token: str | None,
) -> Sent:
    """Return the request for an evaluation; raises ``ConfigError`` for a malformed resource."""
    kind, colon, identifier = resource.partition(":")
    if not (kind and colon and identifier):
        raise ConfigError(f"resource: expected TYPE:ID, got {resource!r}")
    target = f"{url}/access/v1/evaluation"
    body = {
        "subject": {"type": "agent", "id": identity.uri},
        "action": {"name": tool},
        "resource": {"type": kind, "id": identifier},
        "context": {"arguments": {**arguments}},
    }
    shown = (
        {"Workload-Identity-Token": identity.credential}
        if access_token is None
        else {"Authorization": f"DPoP {access_token}"}
    )
    headers = {
        **_PLAIN,
        **shown,
        "Content-Type": "application/json",
        dpop.HEADER: _proof(identity.signer, "POST", target, access_token),
    }
    return Sent(target, headers, canonical.dumps(body))


def read_evaluation(status: int, body: bytes) -> Evaluation:
    """Return the evaluation in an answer, unverified; raises ``ServerError``."""
    answer = _answer(status, body, 200)
    match answer.get("context"):
        case {
            "outcome": "allow" | "deny" | "approval" as outcome,
            "code": str(code),
            "reasons": [*reasons],
            "requirements": [*requirements],
            "entry": str(entry),
            "statement": {**statement},
            "salt": str(salt),
        } if answer.get("decision") is (outcome == "allow"):
            try:
                needed = tuple(map(read_requirement, requirements))
                decision = Decision(outcome, code, tuple(map(str, reasons)), needed)
                sealed = canonical.dumps(statement)
                return Evaluation(decision, entry, sealed, canonical.b64url_decode(salt))
            except DecodeError as error:
                raise _malformed() from error
    raise _malformed()


def revocation(url: str, identity: Identity, issued: IssuedToken) -> Sent:
    """Return the request that gives an access token up; its proof names the token."""
    form = [("token", issued.token), (CHAIN, issued.chain.decode("utf-8"))]
    return _form_request(f"{url}/revoke", identity, form, issued.token)


def read_revocation(status: int, body: bytes) -> None:
    """Read the answer to the request that gives a token up; raises ``ServerError``."""
    _answer(status, body, 200)


def introspection(url: str, token: str, workload_token: str, chain: bytes | None) -> Sent:
    """Return the question whether a token counts now."""
    form = [("token", token)]
    if chain is not None:
        form.append((CHAIN, chain.decode("utf-8")))
    headers = {**_PLAIN, "Authorization": f"Bearer {workload_token}", "Content-Type": _FORM}
    return Sent(f"{url}/introspect", headers, urlencode(form).encode("ascii"))


def read_introspection(status: int, body: bytes) -> dict[str, JSON] | None:
    """Return what a token says, None for one that does not count; raises ``ServerError``."""
    answer = _answer(status, body, 200)
    match answer.get("active"):
        case True:
            return answer
        case False:
            return None
    raise _malformed()


def read_identity(status: int, body: bytes, agent: str, signer: Ed25519Signer) -> Identity:
    """Return the identity in an answer; raises ``ServerError``."""
    match _answer(status, body, 201):
        case {"credential": str(credential), "uri": str(uri), "expires_at": int(expires_at)} if (
            _is_visible(credential, uri)
        ):
            return Identity(agent, uri, credential, expires_at, signer)
    raise _malformed()


def read_token(status: int, body: bytes) -> ExchangedToken:
    """Return the token in an answer, unverified; raises ``ServerError``."""
    answer = _answer(status, body, 200)
    chain = answer.get(CHAIN)
    match answer:
        case {"access_token": str(token), "scope": str(scope), "expires_in": int(expires_in)} if (
            isinstance(chain, dict)
            and answer.get("token_type") == "DPoP"
            and _is_visible(token, *scope.split(" "))
        ):
            issued = IssuedToken(token, canonical.dumps(chain))
            return ExchangedToken(issued, tuple(scope.split(" ")), expires_in)
    raise _malformed()


def unreachable(error: Exception) -> ServerError:
    """Return the error for a service that does not answer."""
    message = f"the token service can't be reached ({type(error).__name__}): try again later"
    return ServerError(message, code="service.unreachable")


def _answer(status: int, body: bytes, expected: int) -> dict[str, JSON]:
    """Return the object in an answer; raises ``ServerError`` for a refusal (RFC 6749, 5.2)."""
    try:
        answer = canonical.loads_object(body)
    except DecodeError as error:
        if status == _UNAVAILABLE:  # a proxy or a busy server answers with words of its own
            message = "the token service can't answer now: try again later"
            raise ServerError(message, code="service.unreachable") from error
        raise _malformed() from error
    if status == expected:
        return answer
    said = f"{answer.get('error')}: {answer.get('error_description', '')}"
    message = f"the token service refuses the request: {said}"[:_MAX_ERROR]
    code = "service.unreachable" if status == _UNAVAILABLE else "service.refused"
    raise ServerError(message, code=code)


def _proof(signer: Ed25519Signer, method: str, url: str, access_token: str | None) -> str:
    at, jti = int(time.time()), os.urandom(16).hex()
    return dpop.sign(signer, method, url, access_token=access_token, at=at, jti=jti)


def _is_visible(*texts: str) -> bool:
    """Whether each text goes into a header and onto a terminal as it is (RFC 6749, A.12)."""
    return all(_VISIBLE.fullmatch(text) for text in texts)


def _malformed() -> ServerError:
    return ServerError("what answers is no token service", code="service.malformed")
