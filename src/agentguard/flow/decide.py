"""Steps 5 and 6 of the line: what the policy says of a call, and what people say of it.

A call that needs an approval leaves a request and waits (``ApprovalPending``). Once enough answers
are there, the policy is asked again, with them in its input: it may still deny, or ask for more.
What was shown to the approvers has to be met as well, whatever the policy asks for by now
(docs/policies.md).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from agentguard.approvals import roster
from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalPending, ApprovalRequest
from agentguard.approvals.roster import Answer, missing_approvals
from agentguard.approvals.store import StoredRequest
from agentguard.audit import entry
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.invocation import call_digest
from agentguard.call.journal import Page
from agentguard.errors import AgentguardError, ApprovalError
from agentguard.flow.effects import Actor, Append, Ask, Effect, Evaluate, Line
from agentguard.flow.prepare import PreparedCall, interrupted
from agentguard.identity.trust import seconds
from agentguard.policy import document as policy
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, Fragment


class Ruling(NamedTuple):
    """The answer to a call. ``document`` is the policy's input, None where it was not asked.

    ``answers`` are those of the approvers on which it rests, a rejection among them; ``interrupt``
    is what cut the policy's evaluation short, ``evaluation`` what the engine says of it. An answer
    of the policy's that is not ``enforced`` is only observed: the call runs whatever it is.
    """

    decision: Decision
    document: bytes | None = None
    answers: tuple[Answer, ...] = ()
    interrupt: BaseException | None = None
    evaluation: Mapping[str, JSON] | None = None
    enforced: bool = True

    @property
    def runs(self) -> bool:
        """Whether the call may run."""
        return self.decision.allowed or not self.enforced

    def refused(self, decision: Decision) -> Ruling:
        """The same call, refused for a reason that no policy gives; what it redacts stays."""
        refusal = replace(decision, redactions=self.decision.redactions)
        return self._replace(decision=refusal, enforced=True)


def rule(
    actor: Actor,
    line: Line,
    prepared: PreparedCall,
    inside: NestedCalls,
    made_before: Page | None = None,
) -> Generator[Effect, Any, Ruling]:
    """Steps 5 and 6; raises ``ApprovalPending`` for a call that waits for a person.

    One that was ``made_before`` does not run again, so nobody is asked to approve it once more; if
    it ran while the policy was only observed, nobody ever was, and it is refused.
    """
    ruled = yield from _judge(actor, line, prepared)
    if line.mode == "observe" and ruled.document is not None and ruled.interrupt is None:
        return ruled._replace(enforced=False)
    asked = prepared.asked
    if ruled.decision.outcome == "deny" or (asked is None and ruled.decision.allowed):
        return ruled
    if made_before is not None:
        return _made(ruled, made_before)
    try:
        if asked is None:
            pending = yield from _ask(actor, line, prepared, ruled.decision)
        else:
            decided = yield from _answered(actor, line, prepared, asked, ruled)
            if isinstance(decided, Ruling):
                return decided
            pending = decided
    except AgentguardError as error:
        return _refused(ruled, Decision.refused(str(error), code=error.code))
    except Exception as error:  # noqa: BLE001  where requests lie is a port: any failure denies
        failed = Decision.failed("storage.failed", "approvals can't be read or written", error)
        return _refused(ruled, failed)
    prepared.watch.waits(pending.request)
    inside.asks(prepared.predicate["call_site"], pending.request)
    raise pending


def _made(ruled: Ruling, page: Page) -> Ruling:
    """Let a call have its result again that needs an approval, if it ran as one that had it."""
    unapproved = page.unapproved()
    if unapproved is not None:
        return _refused(ruled, unapproved)
    allowed = replace(Decision.allow(), redactions=ruled.decision.redactions)
    return ruled._replace(decision=allowed)


def _refused(ruled: Ruling, decision: Decision, answers: tuple[Answer, ...] = ()) -> Ruling:
    refusal = replace(decision, redactions=ruled.decision.redactions)
    return Ruling(refusal, ruled.document, answers, evaluation=ruled.evaluation)


# --- 5: the policy ------------------------------------------------------------------------------


def _judge(
    actor: Actor, line: Line, prepared: PreparedCall, approval: Fragment | None = None
) -> Generator[Effect, Any, Ruling]:
    """Ask the policy, with what was ``approval`` of its input where people have approved."""
    ruled = yield from _asked(actor, prepared, approval)
    asked = ruled.document is not None
    prepared.watch.decided(ruled.decision, line.engine.policy_sha256 if asked else None)
    return ruled


def _asked(
    actor: Actor, prepared: PreparedCall, approval: Fragment | None
) -> Generator[Effect, Any, Ruling]:
    arguments = prepared.refusal or prepared.arguments
    if isinstance(arguments, Decision):
        return Ruling(arguments, interrupt=prepared.interrupt)
    try:
        document = policy.document(
            actor.description,
            prepared.invocation.tool,
            arguments,
            resource=prepared.predicate["resource"],
            task_id=prepared.predicate["task_id"],
            facts=prepared.facts,
            delegation=prepared.authority.description,
            approval=approval,
        )
    except AgentguardError as error:
        return Ruling(Decision.refused(str(error), code=error.code))
    try:
        answer = yield Evaluate(document)
        evaluation = policy.evaluation_of(answer)
        return Ruling(policy.decide(answer), document, evaluation=evaluation)
    except AgentguardError as error:
        return Ruling(Decision.refused(str(error), code=error.code), document)
    except Exception as error:  # noqa: BLE001  an engine that breaks its contract denies as well
        failed = Decision.failed("policy.error", "the policy engine failed", error)
        return Ruling(failed, document)
    except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
        return Ruling(interrupted(error), document, interrupt=error)


# --- 6: people ----------------------------------------------------------------------------------


def _ask(
    actor: Actor, line: Line, prepared: PreparedCall, decision: Decision
) -> Generator[Effect, Any, ApprovalPending]:
    """Put a request on record, and where approvers find it."""
    if not line.roster.can_answer or prepared.asked_under is None:
        reasons = (*decision.reasons, "no approvers are configured: see [approvers]")
        raise ApprovalError("; ".join(reasons), code="approval.unavailable")
    request = _request(actor, line, prepared, decision)
    receipt = yield Append(entry.request(request, at=prepared.at))
    prepared.watch.requested(request, receipt, line.log.head)
    standing = yield Ask(prepared.asked_under, request)
    return ApprovalPending(standing, "nobody has answered yet")


def _request(
    actor: Actor, line: Line, prepared: PreparedCall, decision: Decision
) -> ApprovalRequest:
    arguments, predicate = prepared.arguments, prepared.predicate
    assert isinstance(arguments, Arguments)  # noqa: S101  the policy was asked about them
    tool = prepared.invocation.tool
    now = _now(prepared)
    return ApprovalRequest(
        request_id=predicate["invocation_id"],
        trust_domain=line.trust_domain,
        call_site=predicate["call_site"],
        agent=actor.uri,
        agent_name=actor.name,
        principal=prepared.authority.principal,
        actors=tuple(prepared.authority.actors),
        requesters=tuple(sorted(_requesters(actor, prepared))),
        tool=tool.name,
        description=tool.description,
        tool_digest=tool.digest,
        resource=predicate["resource"],
        task_id=predicate["task_id"],
        arguments=arguments.encoded,
        unbound=tuple(arguments.unbound),
        salt=prepared.salt,
        requirements=decision.requirements,
        policy_sha256=line.engine.policy_sha256,
        traceparent=prepared.watch.asks(),
        requested_at=now,
        expires_at=now + min(needed.ttl for needed in decision.requirements),
    )


def _requesters(actor: Actor, prepared: PreparedCall) -> frozenset[str]:
    """Who may not approve the call: for whom it is made, and whose agent makes it."""
    return roster.requesters(prepared.authority.principal, actor.owner)


def _answered(
    actor: Actor, line: Line, prepared: PreparedCall, asked: StoredRequest, ruled: Ruling
) -> Generator[Effect, Any, Ruling | ApprovalPending]:
    if asked.altered:
        is_over = _now(prepared) >= asked.request.expires_at
        return _refused(ruled, _EXPIRED if is_over else _ALTERED)
    answers = tuple(_verified(line, asked, _now(prepared)))
    prepared.watch.answered(asked.request, [answer.approval for answer in answers])
    refusal = _refusal(actor, line, prepared, asked.request, answers)
    if refusal is not None:
        return _refused(ruled, refusal, _rejections(answers))
    requesters = _requesters(actor, prepared)
    lacking = missing_approvals(asked.request.requirements, answers, requesters=requesters)
    if lacking is not None or not answers:  # no input.approval without an answer that was verified
        return ApprovalPending(asked.request, lacking or "nobody has answered yet")
    again = yield from _judge(actor, line, prepared, _approval(answers))
    if again.decision.outcome == "deny":
        return again
    lacking = missing_approvals(again.decision.requirements, answers, requesters=requesters)
    if lacking is not None:
        refusal = Decision.refused(lacking, code="approval.insufficient")
        return _refused(again, refusal, answers)
    allowed = replace(
        Decision.allow(),
        requirements=asked.request.requirements,
        redactions=again.decision.redactions,
    )
    return Ruling(allowed, again.document, answers, evaluation=again.evaluation)


_EXPIRED: Final = Decision.refused(
    "the time in which the call could be approved and run is over: make the call again to ask anew",
    code="approval.expired",
)
_ALTERED: Final = Decision.refused(
    "the request for an approval of this call was changed where it lies, and is not the one in the "
    "log: make the call again to ask anew",
    code="approval.altered",
)


def _refusal(
    actor: Actor,
    line: Line,
    prepared: PreparedCall,
    request: ApprovalRequest,
    answers: Sequence[Answer],
) -> Decision | None:
    """Refuse a call that no answer can let run any more."""
    if request.trust_domain != line.trust_domain:
        reason = f"the approval was asked for in another trust domain, {request.trust_domain}"
        return Decision.refused(reason, code="approval.mismatch")
    other = _difference(actor, prepared, request)
    if other is not None:
        return other
    if _now(prepared) >= request.expires_at:
        return _EXPIRED
    for answer in _rejections(answers):
        note = f": {answer.approval.note}" if answer.approval.note else ""
        reason = f"{answer.approval.approver} has rejected this call{note}"
        return Decision.refused(reason, code="approval.rejected")
    return None


def _now(prepared: PreparedCall) -> int:
    return seconds(datetime.fromisoformat(prepared.at))


def _rejections(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    return tuple(answer for answer in answers if answer.approval.verdict == "reject")


def _difference(actor: Actor, prepared: PreparedCall, request: ApprovalRequest) -> Decision | None:
    """Refuse another call than the one that was shown, and say in what it differs."""
    predicate, authority = prepared.predicate, prepared.authority
    arguments, tool = prepared.arguments, prepared.invocation.tool
    unbound = tuple(arguments.unbound) if isinstance(arguments, Arguments) else ()
    shown = (request.tool, request.description, request.unbound)
    if call_digest(actor.name, predicate, authority.actors) == request.call_digest:
        if shown == (tool.name, tool.description, unbound):
            return None
        reason = "the request names or describes the tool otherwise than it is: it was changed"
        return Decision.refused(reason, code="approval.mismatch")
    if (authority.principal, tuple(authority.actors)) != (request.principal, request.actors):
        reason = "the approval was asked for another principal, or for other agents in the chain"
        return Decision.refused(reason, code="delegation.mismatch")
    if predicate["tool"]["digest"] != request.tool_digest:
        what = "the tool's name, description or schema has"
    else:
        what = "the arguments, the resource or the task have"
    reason = f"{what} changed since the approval was asked for: make the call as a new one"
    return Decision.refused(reason, code="approval.mismatch")


def _verified(line: Line, asked: StoredRequest, now: int) -> Sequence[Answer]:
    """Return the answers that are good, in their order; one that is not counts for nothing."""
    good: dict[str, Answer] = {}
    for sealed in asked.answers:
        try:
            answer = line.roster.verify(sealed, asked.request, at=now)
        except AgentguardError:
            continue
        good.setdefault(answer.approval.approval_id, answer)
    return tuple(
        sorted(good.values(), key=lambda one: (one.approval.not_before, one.approval.approver))
    )


def _approval(answers: Sequence[Answer]) -> Fragment:
    """The ``approval`` of the policy's input (docs/policies.md, Input)."""
    named = [answer.approver for answer in answers if answer.approver is not None]
    return Fragment(
        canonical.dumps(
            {
                "approvers": sorted({approver.name for approver in named}),
                "principals": sorted({answer.approval.approver for answer in answers}),
                "roles": sorted({role for approver in named for role in approver.roles}),
            }
        )
    )
