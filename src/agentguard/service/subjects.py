"""Who asks for an evaluation, and about which agent instance.

An instance asks for itself, with its access token or its credential and a proof of its key. A
client of ``[clients]`` asks for an instance whose access token or credential it has been shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agentguard.delegation.access_token import AccessToken
from agentguard.domain.config.clients import ClientConfig
from agentguard.errors import AgentguardError
from agentguard.identity import credential
from agentguard.identity.trust import seconds
from agentguard.service.answers import RefusedError, invalid_request
from agentguard.service.callers import (
    client_of,
    instance_of,
    read_proof,
    require_active,
    use_proof,
)
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import Request
from agentguard.service.tokens import read_token
from agentguard.signing.canonical import JSON

TYPE: Final = "agent"
"""The ``type`` of a subject."""

_DPOP: Final = 'DPoP error="invalid_token", algs="EdDSA Ed25519"'


@dataclass(frozen=True, slots=True)
class Subject:
    """An agent instance whose call is evaluated.

    With a ``token``, the instance acts for the token's principal, else on its own authority.
    ``client`` is the name of the client that asks for the instance, None where the instance asks.
    """

    uri: str
    name: str
    token: AccessToken | None = field(default=None, repr=False)
    client: str | None = None

    @property
    def thumbprint(self) -> str:
        """The RFC 7638 thumbprint of the instance's key."""
        return self.uri.rpartition("/")[2]


Caller = Subject | ClientConfig
"""Who sends a request: an instance, or a client of ``[clients]``."""


def caller_of(parts: ServiceParts, request: Request) -> Caller:
    """Return who sends a request, and use the proof of an instance up.

    An instance sends ``Authorization: DPoP TOKEN`` and a proof for this token (RFC 9449, 7.1), or
    its credential as ``instance_of`` says. A client sends ``Authorization: Bearer TOKEN``. Raises
    ``RefusedError``: ``invalid_token``, ``invalid_dpop_proof``, and as ``instance_of`` and
    ``client_of`` do.
    """
    scheme, _space, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "dpop":
        return _holder_of(parts, request, text)
    if not scheme and "workload-identity-token" in request.headers:
        shown = instance_of(parts, request)
        use_proof(parts, shown.proof, at=shown.present.at)
        return Subject(shown.credential.uri, shown.credential.profile.name)
    return client_of(parts, request)[0]


def _holder_of(parts: ServiceParts, request: Request, text: str) -> Subject:
    """Return the instance that has the access token and the key of the token."""
    token = read_token(parts, text)
    if token is None:
        raise _no_token("the access token is none of this service that counts now")
    subject = _of_token(token, None)
    at = seconds(parts.now())
    proof = read_proof(parts, request, access_token=text, at=at)
    if proof.thumbprint != subject.thumbprint:
        raise _no_token("the DPoP proof is of another key than the access token's")
    require_active(parts, subject.uri, subject.name, subject.thumbprint)
    use_proof(parts, proof, at=at)
    return subject


def subject_of(parts: ServiceParts, caller: Caller, value: JSON) -> Subject:
    """Return the instance that the member ``subject`` of a request names.

    An instance names itself. A client shows the instance's ``access_token`` or ``credential`` in
    the subject's ``properties``. Raises ``RefusedError``: ``invalid_request``, and
    ``access_denied`` for another instance than the caller, or an agent that the client may not be.
    """
    members = value if isinstance(value, dict) else {}
    uri = members.get("id")
    if members.get("type") != TYPE or not isinstance(uri, str):
        message = f"subject has the type {TYPE}, and the URI of an instance as its id"
        raise invalid_request(message)
    if isinstance(caller, Subject):
        if caller.uri != uri:
            raise RefusedError(403, "access_denied", "an instance asks for itself alone")
        return caller
    properties = members.get("properties")
    shown = _shown(parts, properties if isinstance(properties, dict) else {}, caller.name)
    if not caller.may_be(shown.name):
        message = "the client may not ask for this agent: see agents in [clients]"
        raise RefusedError(403, "access_denied", message)
    if shown.uri != uri:
        raise invalid_request("the subject's id is another instance than that of its properties")
    return shown


def _shown(parts: ServiceParts, properties: Mapping[str, JSON], client: str) -> Subject:
    """Return the instance that a client has been shown; raises ``RefusedError``."""
    match properties.get("access_token"), properties.get("credential"):
        case str(text), None:
            token = read_token(parts, text)
            if token is None:
                raise invalid_request("the subject's access_token does not count here now")
            return _of_token(token, client)
        case None, str(text):
            try:
                shown = credential.verify_shown(text, parts.trust, at=seconds(parts.now()))
            except AgentguardError as error:
                message = f"the subject's credential does not count [{error.code}]"
                raise invalid_request(message) from error
            return Subject(shown.uri, shown.profile.name, client=client)
    message = "the subject's properties have access_token or credential, a text, and not both"
    raise invalid_request(message)


def _of_token(token: AccessToken, client: str | None) -> Subject:
    uri = token.chain.leaf.delegatee
    name = credential.agent_name(uri)
    assert name is not None  # noqa: S101  the chain was verified, and ends with an instance
    return Subject(uri, name, token, client)


def _no_token(description: str) -> RefusedError:
    return RefusedError(401, "invalid_token", description, challenge=_DPOP)
