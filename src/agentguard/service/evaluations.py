"""``POST /access/v1/evaluation``: what the policy decides about a call (AuthZEN, 1.0).

The subject is an agent instance, the action a tool of ``[tools]``, and the context has the
arguments. Nobody makes the call. The answer has the issuer's signed statement, which the log has,
too (``flow/authorize.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple, Never
from urllib.parse import unquote

from agentguard import paths
from agentguard.approvals.nested import NestedCalls
from agentguard.call.arguments import Arguments
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import CallSite, Invocation, timestamp
from agentguard.call.options import CallOptions
from agentguard.call.tool import ToolSpec, escape
from agentguard.delegation.claim import Claim
from agentguard.domain.config.agents import AgentConfig
from agentguard.errors import AgentguardError, ArgumentsError, DelegationError
from agentguard.flow.authority import Actor, Authority
from agentguard.flow.authorize import authorize
from agentguard.flow.drive_async import arun
from agentguard.flow.prepare import CallInput
from agentguard.guard.descriptions import agent_description, delegation_description
from agentguard.identity.trust import seconds
from agentguard.service.answers import (
    Answer,
    RefusedError,
    invalid_request,
    public,
    success,
    unavailable,
)
from agentguard.service.callers import agent_of
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Request, read_json
from agentguard.service.subjects import Caller, Subject, caller_of, subject_of
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_encode
from agentguard.telemetry import Telemetry

MOST: Final = 16
"""The most evaluations of one request: each is an entry of the log."""

_MEMBERS: Final = ("subject", "action", "resource", "context")
_STOPS: Final[Mapping[str, bool | None]] = {
    "execute_all": None,
    "deny_on_first_deny": False,
    "permit_on_first_permit": True,
}
"""The decision after which no further one is made, by the name of the semantics."""

_LONGEST: Final = 2048
"""The most characters of a type or an id."""


class _Asked(NamedTuple):
    """A call that is evaluated."""

    subject: Subject
    agent: AgentConfig
    tool: ToolSpec
    arguments: Mapping[str, JSON]


def configuration(parts: ServiceParts, _request: Request) -> Answer:
    """Return the metadata of the service as a policy decision point (AuthZEN, metadata)."""
    return public(
        {
            "policy_decision_point": parts.config.issuer,
            "access_evaluation_endpoint": parts.url("/access/v1/evaluation"),
            "access_evaluations_endpoint": parts.url("/access/v1/evaluations"),
        }
    )


def evaluate(parts: ServiceParts, request: Request) -> Answer:
    """Return the decision about one call (AuthZEN, Access Evaluation API).

    Raises ``RefusedError``: ``invalid_request``, ``access_denied``, ``temporarily_unavailable``
    where a part failed and nobody knows what the policy says, and as ``caller_of`` does.
    """
    body = read_json(request)
    return success(_evaluated(parts, caller_of(parts, request), body))


def evaluate_many(parts: ServiceParts, request: Request) -> Answer:
    """Return the decisions about several calls (AuthZEN, Access Evaluations API).

    An evaluation that is refused has the ``decision`` false, and an ``error`` in its context.
    Without ``evaluations``, the request is one of ``evaluate``. Raises as ``evaluate`` does.
    """
    body = read_json(request)
    items, options = body.get("evaluations", []), body.get("options", {})
    if not isinstance(items, list) or not isinstance(options, dict) or len(items) > MOST:
        raise invalid_request(f"evaluations is a list of {MOST} at most, and options an object")
    semantic = options.get("evaluations_semantic", "execute_all")
    if not isinstance(semantic, str) or semantic not in _STOPS:
        raise invalid_request(f"evaluations_semantic is one of {', '.join(_STOPS)}")
    caller = caller_of(parts, request)
    if not items:
        return success(_evaluated(parts, caller, body))
    defaults: dict[str, JSON] = {name: body[name] for name in _MEMBERS if name in body}
    answers: list[JSON] = []
    for item in items:
        answer = _item(parts, caller, defaults, item)
        answers.append(answer)
        if answer["decision"] is _STOPS[semantic]:
            break
    return success({"evaluations": answers})


def _item(
    parts: ServiceParts, caller: Caller, defaults: Mapping[str, JSON], item: JSON
) -> dict[str, JSON]:
    try:
        if not isinstance(item, dict):
            raise invalid_request("each of evaluations is an object")
        return _evaluated(parts, caller, {**defaults, **item})
    except RefusedError as refused:
        error: dict[str, JSON] = {
            "status": refused.status,
            "error": refused.error,
            "message": str(refused),
        }
        return {"decision": False, "context": {"error": error}}


def _evaluated(parts: ServiceParts, caller: Caller, body: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the answer to one request; raises ``RefusedError``."""
    asked = _read(parts, caller, body)
    got = _decide(parts, asked)
    decision = got.decision
    if got.entry is None or got.statement is None or decision.is_failure:
        LOGGER.warning("an evaluation failed: %s [%s]", decision.reason, decision.code)
        raise unavailable(f"the call can't be decided now [{decision.code}]")
    context: dict[str, JSON] = {
        "outcome": decision.outcome,
        "code": decision.code,
        "reasons": list(decision.reasons),
        "requirements": [one.as_json() for one in decision.requirements],
        "entry": got.entry,
        "statement": canonical.loads(got.statement),
        "salt": b64url_encode(got.salt),
    }
    return {"decision": decision.allowed, "context": context}


# --- the request ----------------------------------------------------------------------------------


def _read(parts: ServiceParts, caller: Caller, body: Mapping[str, JSON]) -> _Asked:
    """Read a request; members that nobody knows here are ignored. Raises ``RefusedError``."""
    match body:
        case {
            "action": {"name": str(name)},
            "resource": {"type": str(kind), "id": str(identifier)},
            "subject": subject,
        } if all(0 < len(text) <= _LONGEST for text in (name, kind, identifier)):
            pass
        case _:
            message = (
                "the body is an object with subject, action (name) and resource (type, id), of "
                f"1 to {_LONGEST} characters each"
            )
            raise invalid_request(message)
    context = body.get("context", {})
    arguments = context.get("arguments", {}) if isinstance(context, dict) else None
    if not isinstance(arguments, dict):
        raise invalid_request("context is an object, and its arguments are an object")
    asking = subject_of(parts, caller, subject)
    unknown = invalid_request("the agent of the subject is none of [agents] any more")
    config = agent_of(parts, asking.name, unknown)
    tool = _tool(parts, name)
    return _Asked(asking, config, _with_resource(tool, kind, identifier, arguments), arguments)


def _tool(parts: ServiceParts, name: str) -> ToolSpec:
    try:
        tool = parts.guard.tools.described(name)
    except AgentguardError as error:
        LOGGER.warning("the token service can't describe a tool: %s (%s)", error, error.code)
        raise unavailable("the tool can't be described now: the service's log says why") from error
    if tool is None:
        message = "the action is no tool of this service: the tool needs a table [tools.NAME]"
        raise invalid_request(message)
    return tool


def _with_resource(
    tool: ToolSpec, kind: str, identifier: str, arguments: Mapping[str, JSON]
) -> ToolSpec:
    """Return the tool with a resource that agrees with the request's; raises ``RefusedError``.

    Of a tool with a template, the arguments name the resource, as in a call. Another tool has the
    resource of the request.
    """
    if tool.resource is None:
        return tool.overridden(resource=f"{escape(kind)}:{escape(identifier)}")
    try:
        derived = tool.resource_of(arguments)
    except ArgumentsError:  # the decision says what is wrong with the arguments
        return tool
    its_kind, _colon, rest = (derived or "").partition(":")
    if its_kind != kind or identifier not in (rest, unquote(rest)):
        raise invalid_request(
            "resource is another than that of the arguments: see resource in [tools]"
        )
    return tool


# --- the decision ---------------------------------------------------------------------------------


class _Lent(NamedTuple):
    """The authority that a verified access token gives (``flow.authority.DelegationSource``)."""

    parts: ServiceParts
    asked: _Asked

    def authority(self, _now: datetime) -> Authority | None:
        """Return None: the roles of the principal may have to be looked up."""

    def derive(self, now: datetime) -> Authority:
        """Return the authority.

        Raises ``DelegationError`` (``delegation.expired``) for a token that has ended meanwhile,
        and ``AgentguardError`` where the roles can't be had.
        """
        subject, limit = self.asked.subject, self.asked.agent.scope
        assert subject.token is not None  # noqa: S101  _decide has looked
        if seconds(now) >= subject.token.expires_at:
            raise DelegationError("the access token has expired", code="delegation.expired")
        chain = subject.token.chain
        scope = frozenset(chain.leaf.scope)
        return Authority(
            principal=chain.principal,
            scope=scope if limit is None else scope & limit,
            names=_names(subject) | chain.names | {subject.token.jti},
            actors=chain.actors,
            chain_sha256=chain.sha256,
            token_jti=subject.token.jti,
            task_id=chain.root.task_id,
            description=delegation_description(chain, self.parts.guard.delegations.roles_of(chain)),
        )

    def claim(self, _now: datetime) -> Claim | None:
        """Return whose token it is, also where it has ended meanwhile."""
        token = self.asked.subject.token
        return None if token is None else Claim(token.chain.principal, token.chain)


def _names(subject: Subject) -> frozenset[str]:
    return frozenset({subject.uri, f"agent:{subject.name}", subject.thumbprint})


def _decide(parts: ServiceParts, asked: _Asked) -> Evaluation:
    """Have the policy decide, as in a call of the instance; the log has the chain before."""
    subject, ports = asked.subject, parts.ports
    chain = None if subject.token is None else subject.token.chain
    if chain is not None:
        parts.chains.record(ports.log, chain, timestamp(parts.now()))
    actor = _actor(parts, asked)
    invocation = Invocation.bind(
        asked.tool, lambda: Arguments.of(asked.arguments), CallSite("authorize")
    )
    telemetry = Telemetry(parts.guard.telemetry, parts.settings.trust_domain)
    listener = telemetry.evaluation(actor, invocation)
    call = CallInput(
        actor,
        ports,
        invocation,
        listener,
        None if chain is None else _Lent(parts, asked),
        CallOptions(),
        NestedCalls(None),
    )
    steps = authorize(call, lambda: actor.signer, subject.client)
    with paths.starting_at(None):  # the files of the agent's machine are not here
        return asyncio.run(arun(steps, _no_tool, listener, parts.guard.executors))


def _actor(parts: ServiceParts, asked: _Asked) -> Actor:
    """Describe the instance, whose own key is elsewhere; the issuer signs the evaluation."""
    subject, config = asked.subject, asked.agent
    own = Authority(f"agent:{subject.name}", config.scope, _names(subject))
    return Actor(
        name=subject.name,
        own=own if config.authority == "own" else None,
        signer=parts.guard.runtime.renewed_domain().issuer,
        has_credential=lambda _now: True,
        renew=lambda _now: None,
        description=agent_description(subject.uri, config, subject.thumbprint, None),
        uri=subject.uri,
        type=config.type,
        owner=config.owner,
    )


def _no_tool() -> Never:
    raise AssertionError("an evaluation runs no tool")
