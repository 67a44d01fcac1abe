"""A request for an approval: one exact call that people are asked about, written and read.

``ApprovalRequest`` is shown, exported and approved; ``ApprovalPending`` tells the caller that the
call waits for answers. The answers are in ``answer.py``, the approvers in ``roster.py``, and the
protocol of the place where requests wait in ``store.py``. ``flow/decide.py`` creates requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from agentguard.call.decision import Requirement
from agentguard.call.invocation import call_digest, commitment
from agentguard.errors import (
    AgentguardError,
    DecodeError,
    EncodeError,
    PolicyError,
    VerificationError,
)
from agentguard.signing import canonical, declared
from agentguard.signing.canonical import JSON, Fragment, b64_decode, b64_encode
from agentguard.signing.declared import Id

REQUEST_TYPE: Final = "urn:agentguard:approval-request:v1"
MAX_REQUEST_BYTES: Final = 1 << 20
"""The longest request, with all arguments, in bytes."""

_WHAT: Final = "a well-formed request for an approval"


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """One exact call that people are asked to approve, with all parts of the call's digest.

    - ``request_id`` identifies the request: 32 hex digits.
    - ``tool``, ``args`` (the arguments as JSON values), ``resource`` and ``task_id`` say what is to
      run; ``reason`` says why the policy asks.
    - ``principal`` is who the call is for, ``agent_name`` the agent that makes the call, and
      ``actors`` the agents of the chain of delegation.
    - ``requirements`` say who may answer: names, roles, quorum. ``requesters`` are the principals
      who may not approve, unless a requirement has ``allow_self``: the principal of the call, and
      the agent's owner.
    - ``thread`` names the run in which the call waits, as the framework does: LangGraph's
      ``thread_id``, or the name of a crew's run. None where no run could be resumed.
    - ``requested_at`` and ``expires_at`` are seconds since the epoch.
    - ``traceparent`` (W3C) names the span that asks; the approved call continues the span's trace.

    ``arguments`` are the canonical bytes of the bound arguments, and ``salt`` is the salt of their
    commitment. Digests are SHA-256 in hex. Raises ``EncodeError`` (``approval.malformed``) without
    requirements.
    """

    request_id: Id
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
    thread: str | None
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

    if not TYPE_CHECKING:  # a type checker reports a misspelt name

        def __getattr__(self, name: str) -> object:
            """Name the attribute that is meant."""
            advice = ": read request_id" if name == "id" else ""
            raise AttributeError(f"an ApprovalRequest has no attribute {name!r}{advice}")

    @property
    def args(self) -> dict[str, JSON]:
        """The arguments as JSON values, by the name of the parameter; a new copy each time."""
        return canonical.loads_object(self.arguments)

    @property
    def call_digest(self) -> str:
        """The digest of the call, to which an approval binds (records.md, "One call's bytes")."""
        predicate = {
            "principal": self.principal,
            "tool": {"digest": self.tool_digest},
            "arguments": commitment(self.salt, self.arguments),
            "resource": self.resource,
            "task_id": self.task_id,
            "call_site": self.call_site,
        }
        return call_digest(self.agent_name, predicate, self.actors)

    def has_key(self, key: str) -> bool:
        """Return whether a guarded call looks for this request under ``key``."""
        derived = request_key(
            agent=self.agent_name,
            principal=self.principal,
            actors=self.actors,
            tool_digest=self.tool_digest,
            arguments=self.arguments,
            resource=self.resource,
            task_id=self.task_id,
        )
        return key in (self.call_site, derived)

    @property
    def requirement_sha256(self) -> str:
        """The digest of the requirements."""
        return requirements_digest(self.requirements)

    @property
    def displayed_sha256(self) -> str:
        """The digest of the request in the form that is exported and shown."""
        return canonical.sha256_hex(self.dumps())

    @property
    def reason(self) -> str:
        """The reasons of all requirements, as one line."""
        return "; ".join(requirement.reason for requirement in self.requirements)

    def dumps(self) -> bytes:
        """Return the request as canonical JSON; raises ``EncodeError`` (``approval.too_large``)."""
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
            "thread": self.thread,
            "args": Fragment(self.arguments),
            "unbound": self.unbound,
            "salt": b64_encode(self.salt),
            "requirements": [one.as_json() for one in self.requirements],
            "policy_sha256": self.policy_sha256,
            "traceparent": self.traceparent,
            "requested_at": self.requested_at,
            "expires_at": self.expires_at,
        }
        encoded = canonical.dumps_record(document)
        if len(encoded) > MAX_REQUEST_BYTES:
            message = f"a request of {len(encoded)} bytes is too long to be shown to a person"
            raise EncodeError(message, code="approval.too_large")
        return encoded

    @classmethod
    def loads(cls, data: bytes) -> ApprovalRequest:
        """Read what ``dumps`` has written.

        Raises ``DecodeError`` (``json.*``, ``approval.malformed``), or ``VerificationError``
        (``approval.mismatch``) where ``call_digest`` is not the digest of the call in the request.
        """
        document: Any = canonical.loads(data, limit=MAX_REQUEST_BYTES)
        try:
            request = _read_request(document)
            is_mismatch = document["call_digest"] != request.call_digest
            is_canonical = request.dumps() == data
        except (LookupError, TypeError, ValueError, AttributeError, AgentguardError) as error:
            raise DecodeError(f"not {_WHAT}", code="approval.malformed") from error
        if is_mismatch:
            message = "the request shows another call than the one whose digest it has"
            raise VerificationError(message, code="approval.mismatch")
        if not is_canonical:
            raise DecodeError(f"not {_WHAT}", code="approval.malformed")
        return request


def request_key(
    *,
    agent: str,
    principal: str,
    actors: Sequence[str],
    tool_digest: str,
    arguments: bytes,
    resource: str | None,
    task_id: str | None,
) -> str:
    """Return the key of a request whose call has no call site from a framework.

    The key is a SHA-256 (hex) over all parts of the call.
    """
    members = {
        "agent": agent,
        "principal": principal,
        "actors": actors,
        "tool": tool_digest,
        "arguments": canonical.sha256_hex(arguments),
        "resource": resource,
        "task_id": task_id,
    }
    return canonical.sha256_hex(canonical.dumps_record(members))


def _read_request(document: Mapping[str, Any]) -> ApprovalRequest:
    """Read each member; ``ApprovalRequest.loads`` refuses members that are not read here."""
    agent, tool = document["agent"], document["tool"]
    members = {
        **document,
        "agent": agent["id"],
        "agent_name": agent["name"],
        "tool": tool["name"],
        "description": tool["description"],
        "tool_digest": tool["digest"],
        "arguments": canonical.dumps(document["args"]),
        "salt": b64_decode(document["salt"]),
        "requirements": tuple(map(read_requirement, document["requirements"])),
    }
    return declared.read(ApprovalRequest, members, _WHAT, code="approval.malformed")


def read_requirement(value: JSON) -> Requirement:
    """Read the JSON form of a requirement (``Requirement.as_json``); raises ``DecodeError``."""
    what, code = "a well-formed requirement", "approval.malformed"
    try:
        requirement = declared.read(Requirement, value, what, code=code)
    except PolicyError as error:
        raise DecodeError(f"not {what}: {error}", code=code) from error
    # a dataclass may have defaults, and takes members that it does not know
    if requirement.as_json() != value or min(requirement.quorum, requirement.ttl) < 1:
        raise DecodeError(f"not {what}", code=code)
    return requirement


def requirements_digest(requirements: Sequence[Requirement]) -> str:
    """Return the SHA-256 (hex) of requirements, in the order in which people see them."""
    return canonical.digest([requirement.as_json() for requirement in requirements])


class ApprovalPending(AgentguardError):
    """Raised where a call waits for people to approve ``request``; the tool did not run.

    ``ApprovalPending`` is no ``Denied``: once enough people have approved, the same call, made
    again with the same call id, runs. ``missing`` says in words which approvals are missing.
    """

    default_code: ClassVar[str] = "approval.pending"

    def __init__(self, request: ApprovalRequest, missing: str) -> None:
        has_reason = any(missing.startswith(f"{one.reason}: ") for one in request.requirements)
        why = "" if has_reason else f" ({request.reason})"
        super().__init__(
            f"{request.tool} waits for approval{why}: {missing}; "
            f"see agentguard approvals show {request.request_id[:8]}"
        )
        self.request = request
        self.missing = missing

    def __reduce__(self) -> tuple[type[ApprovalPending], tuple[ApprovalRequest, str]]:
        return type(self), (self.request, self.missing)


def names_of(request: ApprovalRequest) -> frozenset[str]:
    """Return the names whose revocation refuses the call of a request."""
    named = (request.agent, f"agent:{request.agent_name}", request.principal, *request.actors)
    return frozenset(named)
