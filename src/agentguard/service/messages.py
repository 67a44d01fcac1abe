"""What is asked of a token service, and how its answers are read; ``client.py`` asks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, Literal, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from agentguard.approvals.request import read_requirement
from agentguard.call.decision import Decision, Outcome
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
_CREDENTIAL: Final = "Workload-Identity-Token"
_FORM: Final = "application/x-www-form-urlencoded"

T = TypeVar("T")

_Visible = Annotated[str, Meta(pattern=r"\A[\x21-\x7e]+\Z")]
"""A text that goes into a header and onto a terminal as it is (RFC 6749, A.12)."""


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
class Question(Generic[T]):
    """A ``POST`` to a URL, and what reads the answer's status and body (raises ``ServerError``)."""

    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    read: Callable[[int, bytes], T]


class _Registered(msgspec.Struct):
    credential: _Visible
    uri: _Visible
    expires_at: int


class _Issued(msgspec.Struct):
    access_token: _Visible
    token_type: Literal["DPoP"]
    scope: Annotated[str, Meta(pattern=r"\A[\x21-\x7e]+( [\x21-\x7e]+)*\Z")]
    expires_in: int
    chain: dict[str, Any] = msgspec.field(name=CHAIN)


class _Decided(msgspec.Struct):
    outcome: Outcome
    code: str
    reasons: tuple[str, ...]
    requirements: list[Any]
    entry: str
    statement: dict[str, Any]
    salt: str


class _Evaluated(msgspec.Struct):
    decision: bool
    context: _Decided


class _Introspected(msgspec.Struct):
    active: bool


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


def registration(
    url: str, agent: str, workload_token: str, signer: Ed25519Signer | None
) -> Question[Identity]:
    """Return the question for a credential of a key, which is new without a ``signer``."""
    key = Ed25519Signer.from_seed(os.urandom(32)) if signer is None else signer
    target = f"{url}/identities"
    headers = {
        **_bearing(workload_token, "application/json"),
        dpop.HEADER: _proof(key, "POST", target, workload_token),
    }

    def read(status: int, body: bytes) -> Identity:
        said = _as(_Registered, _answer(status, body, 201))
        return Identity(agent, said.uri, said.credential, said.expires_at, key)

    asked = canonical.dumps({"agent": agent, "jwk": {**key.public_key.jwk()}})
    return Question(target, headers, asked, read)


def exchange(
    url: str,
    identity: Identity,
    subject_token: str,
    subject_token_type: str,
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Question[ExchangedToken]:
    """Return the question for an access token, with a user's token."""
    form = [
        ("grant_type", GRANT),
        ("subject_token", subject_token),
        ("subject_token_type", subject_token_type),
    ]
    return _for_token(url, identity, form, scope, audience)


def redemption(
    url: str,
    identity: Identity,
    assertion: str,
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Question[ExchangedToken]:
    """Return the question for an access token, with an ID-JAG of a user."""
    form = [("grant_type", JWT_BEARER), ("assertion", assertion)]
    return _for_token(url, identity, form, scope, audience)


def _for_token(
    url: str,
    identity: Identity,
    form: list[tuple[str, str]],
    scope: Iterable[str] | None,
    audience: Iterable[str] | None,
) -> Question[ExchangedToken]:
    if audience is not None:
        # a form has no empty list: the service refuses an empty name
        form += [("audience", name) for name in list(audience) or [""]]
    if scope is not None:
        form.append(("scope", " ".join(parse_scopes(scope))))

    def read(status: int, body: bytes) -> ExchangedToken:
        said = _as(_Issued, _answer(status, body, 200))
        issued = IssuedToken(said.access_token, canonical.dumps(said.chain))
        return ExchangedToken(issued, tuple(said.scope.split(" ")), said.expires_in)

    target = f"{url}/token"
    return Question(target, _showing(identity, target, _FORM, None), _encoded(form), read)


def authorization(
    url: str,
    identity: Identity,
    tool: str,
    arguments: Mapping[str, JSON],
    resource: str,
    access_token: str | None,
) -> Question[Evaluation]:
    """Return the question for an evaluation; raises ``ConfigError`` for a malformed resource."""
    kind, colon, identifier = resource.partition(":")
    if not (kind and colon and identifier):
        raise ConfigError(f"resource: expected TYPE:ID, got {resource!r}")
    target = f"{url}/access/v1/evaluation"
    asked = {
        "subject": {"type": "agent", "id": identity.uri},
        "action": {"name": tool},
        "resource": {"type": kind, "id": identifier},
        "context": {"arguments": {**arguments}},
    }
    headers = {
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        dpop.HEADER: _proof(identity.signer, "POST", target, access_token),
    }
    if access_token is None:
        headers[_CREDENTIAL] = identity.credential
    else:
        headers["Authorization"] = f"DPoP {access_token}"
    return Question(target, headers, canonical.dumps(asked), _read_evaluation)


def _read_evaluation(status: int, body: bytes) -> Evaluation:
    """Return the evaluation in an answer, unverified."""
    said = _as(_Evaluated, _answer(status, body, 200))
    context = said.context
    try:
        needed = tuple(map(read_requirement, context.requirements))
        salt = canonical.b64url_decode(context.salt)
    except DecodeError as error:
        raise _malformed() from error
    if said.decision is not (context.outcome == "allow"):
        raise _malformed()
    decision = Decision(context.outcome, context.code, context.reasons, needed)
    return Evaluation(decision, context.entry, canonical.dumps(context.statement), salt)


def revocation(url: str, identity: Identity, issued: IssuedToken) -> Question[None]:
    """Return the request that gives an access token up; its proof names the token."""
    form = [("token", issued.token), (CHAIN, issued.chain.decode("utf-8"))]
    target = f"{url}/revoke"

    def read(status: int, body: bytes) -> None:
        _answer(status, body, 200)

    return Question(target, _showing(identity, target, _FORM, issued.token), _encoded(form), read)


def introspection(
    url: str, token: str, workload_token: str, chain: bytes | None
) -> Question[dict[str, JSON] | None]:
    """Return the question what a token says, None for one that does not count now."""
    form = [("token", token)]
    if chain is not None:
        form.append((CHAIN, chain.decode("utf-8")))

    def read(status: int, body: bytes) -> dict[str, JSON] | None:
        answer = _answer(status, body, 200)
        return answer if _as(_Introspected, answer).active else None

    return Question(f"{url}/introspect", _bearing(workload_token, _FORM), _encoded(form), read)


def _bearing(workload_token: str, media_type: str) -> dict[str, str]:
    return {
        "Accept-Encoding": "identity",
        "Authorization": f"Bearer {workload_token}",
        "Content-Type": media_type,
    }


def _showing(
    identity: Identity, target: str, media_type: str, access_token: str | None
) -> dict[str, str]:
    """Return the headers with a credential and a proof, which names an ``access_token``."""
    return {
        "Accept-Encoding": "identity",
        _CREDENTIAL: identity.credential,
        "Content-Type": media_type,
        dpop.HEADER: _proof(identity.signer, "POST", target, access_token),
    }


def _encoded(form: list[tuple[str, str]]) -> bytes:
    return urlencode(form).encode("ascii")


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


def _as(declared: type[T], answer: dict[str, JSON]) -> T:
    """Return an answer as it is declared; further members are left to later versions."""
    try:
        return msgspec.convert(answer, declared)
    except msgspec.ValidationError as error:
        raise _malformed() from error


def _malformed() -> ServerError:
    return ServerError("what answers is no token service", code="service.malformed")
