"""Values of a guarded call as JSON, in both directions: decisions, tools, agents, errors.

Each ``read_`` function raises ``DecodeError`` (``frame.malformed``) for JSON that is no such value,
since the other end may send anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

import orjson

from agentguard import errors
from agentguard.approvals.answer import Approval
from agentguard.approvals.request import read_requirement
from agentguard.approvals.status import PastRequest, RequestEndedError, RequestStatus
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import LogPlace
from agentguard.call import vocabulary
from agentguard.call.decision import Decision
from agentguard.call.invocation import CallSite
from agentguard.call.releases import RequestProof
from agentguard.call.tool import FactsFunction, ToolSpec
from agentguard.domain.config.agents import AgentConfig
from agentguard.errors import AgentguardError, DecodeError
from agentguard.signing import declared
from agentguard.signing.canonical import b64_decode, b64_encode

T = TypeVar("T")

_OUTCOMES: Final = frozenset({"allow", "deny", "approval"})
_ERRORS: Final[Mapping[str, type[AgentguardError]]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentguardError)
}


def reads(what: str, read: Callable[[], T]) -> T:
    """Return what ``read`` returns; any exception of Python means that the value is malformed."""
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, AgentguardError) as error:
        raise DecodeError(f"not a well-formed {what}", code="frame.malformed") from error


def text(value: object) -> str:
    """Return a text; raises ``DecodeError``."""
    if isinstance(value, str):
        return value
    raise DecodeError("expected a text", code="frame.malformed")


def text_or_none(value: object) -> str | None:
    """Return a text or None; raises ``DecodeError``."""
    return None if value is None else text(value)


def texts(value: object) -> tuple[str, ...]:
    """Return a tuple of the texts in a list; raises ``DecodeError``."""
    if isinstance(value, list):
        return tuple(map(text, value))
    raise DecodeError("expected a list of texts", code="frame.malformed")


def encoded(value: Mapping[str, Any]) -> bytes:
    """Return JSON with sorted keys, for a comparison; raises ``DecodeError`` for what is none."""
    return reads("value", lambda: orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def decision(value: Decision) -> dict[str, Any]:
    """Return a decision as JSON."""
    return {
        "outcome": value.outcome,
        "code": value.code,
        "reasons": value.reasons,
        "requirements": [one.as_json() for one in value.requirements],
        "redactions": value.redactions,
    }


def read_decision(value: Any) -> Decision:
    """Read a decision."""

    def read() -> Decision:
        outcome = value["outcome"]
        if outcome not in _OUTCOMES:
            raise ValueError(outcome)
        return Decision(
            outcome,
            text(value["code"]),
            texts(value["reasons"]),
            tuple(map(read_requirement, value["requirements"])),
            tuple(map(texts, value["redactions"])),
        )

    return reads("decision", read)


def tool(spec: ToolSpec) -> dict[str, Any]:
    """Return a tool's specification as JSON; of the look-up of facts, whether there is one."""
    return {
        "name": spec.name,
        "description": spec.description,
        "schema": dict(spec.schema),
        "origin": spec.origin,
        "requires": spec.requires,
        "resource": spec.resource,
        "attributes": dict(spec.attributes),
        "has_facts": spec.facts is not None,
        "gives": spec.gives or (),
        "pinned_origin": spec.pinned_origin,
        "pinned_schema": spec.pinned_schema,
        "unlisted": spec.unlisted,
    }


def read_tool(value: Any, facts: FactsFunction) -> ToolSpec:
    """Read a tool's specification; ``facts`` is its look-up, if it has one."""

    def read() -> ToolSpec:
        attributes, schema = value["attributes"], value["schema"]
        if not isinstance(attributes, dict) or not isinstance(schema, dict):
            raise TypeError(schema)
        return ToolSpec(
            name=text(value["name"]),
            description=text(value["description"]),
            schema=schema,
            origin=text(value["origin"]),
            requires=texts(value["requires"]),
            resource=text_or_none(value["resource"]),
            attributes={name: text(argument) for name, argument in attributes.items()},
            facts=facts if value["has_facts"] else None,
            gives=texts(value["gives"]),
            pinned_origin=text_or_none(value["pinned_origin"]),
            pinned_schema=text_or_none(value["pinned_schema"]),
            unlisted=text_or_none(value["unlisted"]),
        )

    return reads("tool", read)


def read_caller(value: Any) -> dict[str, Any]:
    """Read the member ``caller`` of a policy's input, with all its members and no others."""

    def read() -> dict[str, Any]:
        members = vocabulary.members_of(("caller",)) or ()
        if value.keys() != {member.name for member in members}:
            raise ValueError(value)
        for member in members:
            given = value[member.name]
            if not (given is None and member.nullable):
                (texts if member.kind == "texts" else text)(given)
        return dict(value)

    return reads("caller", read)


def agent(config: AgentConfig) -> dict[str, Any]:
    """Return an agent's configuration as JSON."""
    scope, delegators = config.max_scope, config.delegators
    return {
        "name": config.name,
        "type": config.type,
        "owner": config.owner,
        "version": config.version,
        "authority": config.authority,
        "max_scope": None if scope is None else sorted(scope),
        "roles": config.roles,
        "role_scope": sorted(config.role_scope),
        "delegators": None if delegators is None else sorted(delegators),
        "conceals_secrets": config.conceals_secrets,
    }


def read_agent(value: Any) -> AgentConfig:
    """Read an agent's configuration."""

    def read() -> AgentConfig:
        scope, delegators = value["max_scope"], value["delegators"]
        return AgentConfig(
            name=text(value["name"]),
            type=text(value["type"]),
            owner=text_or_none(value["owner"]),
            version=text_or_none(value["version"]),
            authority="own" if value["authority"] == "own" else "delegated",
            max_scope=None if scope is None else frozenset(texts(scope)),
            roles=texts(value["roles"]),
            conceals_secrets=value["conceals_secrets"] is not False,
            role_scope=frozenset(texts(value["role_scope"])),
            delegators=None if delegators is None else frozenset(texts(delegators)),
        )

    return reads("agent", read)


def site(value: CallSite) -> list[str | None]:
    """Return a call site as JSON."""
    return list(value)


def read_site(value: Any) -> CallSite:
    """Read a call site."""

    def read() -> CallSite:
        call_id, thread, namespace, turn = value
        return CallSite(text(call_id), *map(text_or_none, (thread, namespace, turn)))

    return reads("call site", read)


def log_place(value: LogPlace) -> list[int]:
    """Return the place of an entry as JSON."""
    return [value.log, value.index]


def head(value: Checkpoint) -> list[str | int]:
    """Return a checkpoint as JSON."""
    return [value.origin, value.size, b64_encode(value.root)]


def read_log_place(value: Any) -> LogPlace:
    """Read the place of an entry."""
    return reads("place in a log", lambda: LogPlace(int(value[0]), int(value[1])))


def read_head(value: Any) -> Checkpoint:
    """Read a checkpoint."""
    return reads("head", lambda: Checkpoint(text(value[0]), int(value[1]), b64_decode(value[2])))


def status(value: RequestStatus) -> dict[str, Any]:
    """Return the status of a request as JSON."""
    return {**asdict(value), "answers": [one.as_json() for one in value.answers]}


def read_status(value: Any) -> RequestStatus:
    """Read the status of a request."""

    def read() -> RequestStatus:
        answers = tuple(map(read_approval, value["answers"]))
        return RequestStatus(**{**value, "answers": answers})

    return reads("status", read)


def past_request(value: PastRequest) -> dict[str, Any]:
    """Return a request that is over as JSON."""
    return {**value._asdict(), "status": status(value.status)}


def read_past_request(value: Any) -> PastRequest:
    """Read a request that is over."""
    return reads(
        "request", lambda: PastRequest(**{**value, "status": read_status(value["status"])})
    )


def read_approval(value: Any) -> Approval:
    """Read an answer of a person."""
    return declared.read(Approval, value, "an answer", code="frame.malformed")


def proof(value: RequestProof) -> dict[str, Any]:
    """Return the proof of a request as JSON, without the chain, which is a blob of the frame."""
    return {
        "credential": value.credential,
        "access_token": value.access_token,
        "proof": value.proof,
        "chain_sha256": value.chain_sha256,
    }


def read_proof(value: Mapping[str, Any], blobs: Sequence[bytes]) -> RequestProof:
    """Read the proof of a request, whose chain is the first blob."""
    return reads(
        "proof",
        lambda: RequestProof(
            text(value["credential"]),
            text(value["access_token"]),
            text(value["proof"]),
            blobs[0],
            text(value["chain_sha256"]),
        ),
    )


def error(value: AgentguardError) -> dict[str, Any]:
    """Return an error as JSON: its class, its code and its message."""
    described = {"type": type(value).__name__, "code": value.code, "message": str(value)}
    if isinstance(value, RequestEndedError):
        return {**described, "status": status(value.status)}
    return described


def read_error(value: Any) -> AgentguardError:
    """Read an error of a class of ``errors.py``; another class becomes ``AgentguardError``."""

    def read() -> AgentguardError:
        if value["type"] == RequestEndedError.__name__:
            return RequestEndedError(read_status(value["status"]))
        kind = _ERRORS.get(text(value["type"]), AgentguardError)
        return kind(text(value["message"]), code=text(value["code"]))

    return reads("error", read)
