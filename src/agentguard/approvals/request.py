"""Approvals: what a person is asked about one exact call, and what a person has answered.

``ApprovalRequest`` is what is shown, exported and approved; ``Approval`` is one answer, a signed
statement about it (docs/records.md). Who may answer, and when that is enough, stands in
``roster.py``; when the line asks, in ``flow/decide.py``; where requests wait, in ``storage/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple

from agentguard.call.decision import Requirement
from agentguard.call.invocation import call_digest, commitment
from agentguard.errors import (
    AgentguardError,
    ApprovalError,
    DecodeError,
    EncodeError,
    VerificationError,
)
from agentguard.identity.principal import is_principal, require_principal
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, Fragment, b64_decode, b64_encode, is_integer
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Signer

REQUEST_TYPE: Final = "urn:agentguard:approval-request:v1"
MAX_BYTES: Final = 1 << 20
"""Bytes of a request, which holds the arguments whole."""

MAX_SKEW: Final = 60
"""Seconds by which the clock of who answers may be ahead."""

MAX_NOTE: Final = 1024
"""Characters of what an approver says beside the verdict."""

Verdict = Literal["approve", "reject"]
Method = Literal["ed25519", "application"]

_REQUEST: Final = frozenset(
    {
        "type",
        "request_id",
        "trust_domain",
        "call_digest",
        "call_site",
        "agent",
        "principal",
        "actors",
        "requesters",
        "tool",
        "resource",
        "task_id",
        "args",
        "unbound",
        "salt",
        "requirements",
        "policy_sha256",
        "traceparent",
        "requested_at",
        "expires_at",
    }
)
_APPROVAL: Final = frozenset(
    {
        "approval_id",
        "request_id",
        "requirement_sha256",
        "displayed_sha256",
        "verdict",
        "approver",
        "method",
        "not_before",
        "expires_at",
        "note",
    }
)


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a person is asked to approve: one exact call, with all that its digest is made of.

    ``arguments`` are the canonical bytes of the bound arguments and ``salt`` that of their
    commitment; digests are SHA-256 in hex, times seconds since the epoch. ``requesters`` are the
    principals who may not approve it, unless a requirement has ``allow_self``: for whom the call
    is made, and the agent's owner. ``traceparent`` (W3C) is the span that asks: the call goes on in
    its trace. Raises ``EncodeError`` (``approval.malformed``) where it asks for nothing.
    """

    request_id: str
    trust_domain: str
    call_site: str
    agent: str
    agent_name: str
    principal: str
    actors: tuple[str, ...]
    requesters: tuple[str, ...]
    tool: str
    description: str
    tool_digest: str
    resource: str | None
    task_id: str | None
    arguments: bytes
    unbound: tuple[str, ...]
    salt: bytes
    requirements: tuple[Requirement, ...]
    policy_sha256: str | None
    traceparent: str | None
    requested_at: int
    expires_at: int

    def __post_init__(self) -> None:
        if not self.requirements:
            message = "a request asks for one approval at least"
            raise EncodeError(message, code="approval.malformed")

    @property
    def call_digest(self) -> str:
        """What an approval binds to (records.md, "One call's bytes")."""
        predicate = {
            "principal": self.principal,
            "tool": {"digest": self.tool_digest},
            "arguments": commitment(self.salt, self.arguments),
            "resource": self.resource,
            "task_id": self.task_id,
            "call_site": self.call_site,
        }
        return call_digest(self.agent_name, predicate, self.actors)

    def lies_at(self, key: str) -> bool:
        """Whether the line looks for this request under ``key``."""
        named = place(
            agent=self.agent_name,
            principal=self.principal,
            actors=self.actors,
            tool_digest=self.tool_digest,
            arguments=self.arguments,
            resource=self.resource,
            task_id=self.task_id,
        )
        return key in (self.call_site, named)

    @property
    def requirement_sha256(self) -> str:
        """The digest of what has to be met."""
        return requirement_digest(self.requirements)

    @property
    def displayed_sha256(self) -> str:
        """The digest of the request as it is exported and shown."""
        return canonical.sha256_hex(self.dumps())

    @property
    def reason(self) -> str:
        """Why a person is asked, as one line."""
        return "; ".join(requirement.reason for requirement in self.requirements)

    def dumps(self) -> bytes:
        """Write the request, in canonical form; raises ``EncodeError`` (``approval.too_large``)."""
        document: dict[str, object] = {
            "type": REQUEST_TYPE,
            "request_id": self.request_id,
            "trust_domain": self.trust_domain,
            "call_digest": self.call_digest,
            "call_site": self.call_site,
            "agent": {"id": self.agent, "name": self.agent_name},
            "principal": self.principal,
            "actors": self.actors,
            "requesters": self.requesters,
            "tool": {
                "name": self.tool,
                "description": self.description,
                "digest": self.tool_digest,
            },
            "resource": self.resource,
            "task_id": self.task_id,
            "args": Fragment(self.arguments),
            "unbound": self.unbound,
            "salt": b64_encode(self.salt),
            "requirements": [needed.as_json() for needed in self.requirements],
            "policy_sha256": self.policy_sha256,
            "traceparent": self.traceparent,
            "requested_at": self.requested_at,
            "expires_at": self.expires_at,
        }
        written = canonical.dumps_record(document)
        if len(written) > MAX_BYTES:
            message = f"a request of {len(written)} bytes is too long to be shown to a person"
            raise EncodeError(message, code="approval.too_large")
        return written

    @classmethod
    def loads(cls, data: bytes) -> ApprovalRequest:
        """Read a request whose digest is that of the call that it shows.

        Raises ``DecodeError`` (``json.*``, ``approval.malformed``) or ``VerificationError``
        (``approval.mismatch``) where it shows another call than the one that would be approved.
        """
        document: Any = canonical.loads(data, limit=MAX_BYTES)
        try:
            request = _request(document)
            same = request.dumps() == data
        except (LookupError, TypeError, ValueError, AttributeError, AgentguardError) as error:
            raise _malformed("request for an approval") from error
        if document["call_digest"] != request.call_digest:
            message = "the request shows another call than the one whose digest it has"
            raise VerificationError(message, code="approval.mismatch")
        if not same:
            raise _malformed("request for an approval")
        return request


def place(
    *,
    agent: str,
    principal: str,
    actors: Sequence[str],
    tool_digest: str,
    arguments: bytes,
    resource: str | None,
    task_id: str | None,
) -> str:
    """Name where the request of a call lies that no framework names: by all that the call is."""
    named = {
        "agent": agent,
        "principal": principal,
        "actors": actors,
        "tool": tool_digest,
        "arguments": canonical.sha256_hex(arguments),
        "resource": resource,
        "task_id": task_id,
    }
    return canonical.sha256_hex(canonical.dumps_record(named))


class Limits(NamedTuple):
    """How many requests may wait at once, of one agent and for one principal."""

    per_agent: int = 100
    per_principal: int = 100

    def check(self, waiting: Sequence[ApprovalRequest], request: ApprovalRequest) -> None:
        """Raise ``ApprovalError`` (``approval.limit``) if ``request`` would be one too many."""
        agents = Counter(one.agent_name for one in waiting)
        principals = Counter(one.principal for one in waiting)
        for whose, many, most in (
            (f"agent {request.agent_name}", agents[request.agent_name], self.per_agent),
            (request.principal, principals[request.principal], self.per_principal),
        ):
            if many >= most:
                message = (
                    f"{many} requests of {whose} wait for an approval already: have them answered "
                    "(agentguard approvals list), or see [approvals] in the configuration"
                )
                raise ApprovalError(message, code="approval.limit")


def _request(document: Mapping[str, Any]) -> ApprovalRequest:
    if document.keys() != _REQUEST or document["type"] != REQUEST_TYPE:
        raise _malformed("request for an approval")
    agent, tool = document["agent"], document["tool"]
    return ApprovalRequest(
        request_id=canonical_id(document["request_id"]),
        trust_domain=_text(document["trust_domain"]),
        call_site=_text(document["call_site"]),
        agent=_text(agent["id"]),
        agent_name=_text(agent["name"]),
        principal=_text(document["principal"]),
        actors=_texts(document["actors"]),
        requesters=_texts(document["requesters"]),
        tool=_text(tool["name"]),
        description=_text(tool["description"]),
        tool_digest=_text(tool["digest"]),
        resource=_text_or_none(document["resource"]),
        task_id=_text_or_none(document["task_id"]),
        arguments=canonical.dumps(document["args"]),
        unbound=_texts(document["unbound"]),
        salt=b64_decode(document["salt"]),
        requirements=tuple([read_requirement(one) for one in document["requirements"]]),
        policy_sha256=_text_or_none(document["policy_sha256"]),
        traceparent=_text_or_none(document["traceparent"]),
        requested_at=_integer(document["requested_at"]),
        expires_at=_integer(document["expires_at"]),
    )


def read_requirement(value: JSON) -> Requirement:
    """Read what ``Requirement.as_json`` has written; raises ``DecodeError``."""
    match value:
        case {
            "reason": str(reason),
            "approvers": [*approvers],
            "roles": [*roles],
            "quorum": quorum,
            "ttl": ttl,
            "allow_self": bool(allow_self),
            **others,
        } if not others and is_integer(quorum) and is_integer(ttl) and quorum > 0 and ttl > 0:
            named = (tuple(map(str, approvers)), tuple(map(str, roles)))
            requirement = Requirement(reason, *named, quorum, ttl, allow_self)
            if requirement.as_json() == value:
                return requirement
    raise _malformed("requirement")


def requirement_digest(requirements: Sequence[Requirement]) -> str:
    """SHA-256 (hex) of what has to be met, in the order in which it was shown."""
    return canonical.digest([needed.as_json() for needed in requirements])


class Approval(NamedTuple):
    """One answer to a request, as its statement says it (docs/records.md).

    ``approver`` is a principal, as in ``user:bob``. ``method`` tells how the answer came:
    ``ed25519`` is signed by the approver, ``application`` is the embedding program's word.
    Times are seconds since the epoch; ``subject_sha256`` is the digest of the call.
    """

    approval_id: str
    request_id: str
    subject_sha256: str
    requirement_sha256: str
    displayed_sha256: str
    verdict: Verdict
    approver: str
    method: Method
    not_before: int
    expires_at: int
    note: str

    def check_answers(self, request: ApprovalRequest) -> None:
        """Raise ``VerificationError`` (``approval.mismatch``) unless it answers this request."""
        expected = (
            request.request_id,
            request.call_digest,
            request.requirement_sha256,
            request.displayed_sha256,
        )
        said = (
            self.request_id,
            self.subject_sha256,
            self.requirement_sha256,
            self.displayed_sha256,
        )
        if said != expected:
            message = "the answer is to another request, or to this one as it was not shown"
            raise VerificationError(message, code="approval.mismatch")

    def check(self, at: int) -> None:
        """Raise ``VerificationError`` (``approval.expired``, ``approval.not_yet_valid``)."""
        if at >= self.expires_at:
            raise VerificationError("the approval has expired", code="approval.expired")
        if at < self.not_before - MAX_SKEW:
            message = "the approval is not valid yet: look at the two machines' clocks"
            raise VerificationError(message, code="approval.not_yet_valid")


def answer(
    request: ApprovalRequest,
    verdict: Verdict,
    *,
    approver: str,
    approval_id: str,
    at: int,
    note: str = "",
    signer: Signer | None = None,
) -> Envelope:
    """Answer a request as the principal ``approver``; ``approval_id`` is 32 random hex digits.

    Without a ``signer`` it is the application's word for who answered (``method: application``).
    It counts from ``at`` (seconds since the epoch) until the request expires. Raises
    ``ApprovalError`` (``principal.malformed``) for an approver that is no principal, and
    ``EncodeError`` (``approval.malformed``) for a note that is too long.
    """
    require_principal(approver, "person", ApprovalError)
    if len(note) > MAX_NOTE:
        message = f"a note has {MAX_NOTE} characters at most"
        raise EncodeError(message, code="approval.malformed")
    predicate: dict[str, object] = {
        "approval_id": approval_id,
        "request_id": request.request_id,
        "requirement_sha256": request.requirement_sha256,
        "displayed_sha256": request.displayed_sha256,
        "verdict": verdict,
        "approver": approver,
        "method": "ed25519" if signer is not None else "application",
        "not_before": at,
        "expires_at": request.expires_at,
        "note": note,
    }
    payload = dsse.statement("approval", request.call_digest, "call", predicate)
    return dsse.seal(payload, signer) if signer is not None else dsse.unsigned(payload)


def read(sealed: Envelope) -> Approval:
    """Read an answer, unverified; raises ``DecodeError``."""
    statement = dsse.parse_statement(sealed.payload, "approval")
    said = statement.predicate
    if (
        said.keys() == _APPROVAL
        and said["verdict"] in ("approve", "reject")
        and said["method"] in ("ed25519", "application")
    ):
        try:
            return Approval(
                approval_id=canonical_id(said["approval_id"]),
                request_id=canonical_id(said["request_id"]),
                subject_sha256=statement.subject_sha256,
                requirement_sha256=_text(said["requirement_sha256"]),
                displayed_sha256=_text(said["displayed_sha256"]),
                verdict=said["verdict"],  # type: ignore[arg-type]  # looked at above
                approver=_principal(said["approver"]),
                method=said["method"],  # type: ignore[arg-type]
                not_before=_integer(said["not_before"]),
                expires_at=_integer(said["expires_at"]),
                note=_text(said["note"]),
            )
        except ValueError as error:
            raise _malformed("answer to a request for an approval") from error
    raise _malformed("answer to a request for an approval")


def canonical_id(value: object) -> str:
    """Return a random id, 32 lower-case hex digits, that may name a file; raises ``ValueError``."""
    if isinstance(value, str) and len(value) == _ID and set(value) <= _HEX:
        return value
    raise ValueError("an id is 32 lower-case hex digits")


_ID: Final = 32
_HEX: Final = frozenset("0123456789abcdef")


class ApprovalPending(AgentguardError):
    """The call waits for a person; its tool did not run.

    It is no ``Denied``: the same call, made again with the same call id once enough answers are
    there, runs. ``request`` says what is to be approved; ``missing`` what it waits for, in words.
    """

    default_code: ClassVar[str] = "approval.pending"

    def __init__(self, request: ApprovalRequest, missing: str) -> None:
        told = any(missing.startswith(f"{one.reason}: ") for one in request.requirements)
        why = "" if told else f" ({request.reason})"
        super().__init__(
            f"{request.tool} waits for approval{why}: {missing}; "
            f"see agentguard approvals show {request.request_id[:8]}"
        )
        self.request = request
        self.missing = missing

    def __reduce__(self) -> tuple[type[ApprovalPending], tuple[ApprovalRequest, str]]:
        return type(self), (self.request, self.missing)


def _malformed(what: str) -> DecodeError:
    return DecodeError(f"not a well-formed {what}", code="approval.malformed")


def _text(value: JSON) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("expected text")


def _principal(value: JSON) -> str:
    if isinstance(value, str) and is_principal(value):
        return value
    raise ValueError("expected the name of a principal")


def _text_or_none(value: JSON) -> str | None:
    return None if value is None else _text(value)


def _texts(value: JSON) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(map(_text, value))
    raise ValueError("expected a list of texts")


def _integer(value: JSON) -> int:
    if is_integer(value):
        return value
    raise ValueError("expected a whole number")
