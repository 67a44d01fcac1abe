"""Steps 5 and 6 of a guarded call: the policy's decision, and the answers of the approvers.

A call that needs an approval leaves a request and waits (``ApprovalPending``). Once enough answers
are there, the policy is evaluated again, with the answers in its input: the policy may still
deny, or require more. The answers must also meet the requirements that the approvers were shown,
whatever the policy requires by now (policy-document.md). The commit of the call uses the answers
up (``audit/state.py``).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.quorum import counted, missing_approvals, requesters_of, unmeetable
from agentguard.approvals.request import ApprovalPending, ApprovalRequest
from agentguard.approvals.roster import Answer
from agentguard.approvals.store import StoredRequest
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.invocation import call_digest
from agentguard.call.journal import JournalEntry
from agentguard.errors import AgentguardError, ApprovalError
from agentguard.flow.effects import Ask, Do, Effect, Evaluate, Tell
from agentguard.flow.ports import tell
from agentguard.flow.prepare import PreparedCall, interrupted
from agentguard.identity.trust import seconds
from agentguard.policy import document as policy
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, Fragment


class Ruling(NamedTuple):
    """The decision on a call, and what the decision rests on.

    ``document`` is the policy's input, None where the policy was not evaluated; ``evaluation`` is
    what the engine reports of the evaluation. ``answers`` are the approvers' answers on which the
    decision rests, a rejection among them. ``interrupt`` is the exception that cut the evaluation
    short. Where the decision is not ``enforced`` (mode ``observe``), the call runs whatever it is.
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
        """Return the ruling with the refusal ``decision``.

        The policy's redactions stay, and so do the answers on which the ruling rests.
        """
        refusal = replace(decision, redactions=self.decision.redactions)
        return self._replace(decision=refusal, enforced=True)


def rule(
    prepared: PreparedCall,
    nested_calls: NestedCalls,
    journal_entry: JournalEntry | None,
    *,
    asks_people: bool = True,
) -> Generator[Effect, Any, Ruling]:
    """Steps 5 and 6; raises ``ApprovalPending`` for a call that waits for a person.

    Without ``asks_people``, the ruling of such a call is the policy's, and nobody is asked.
    A call with a ``journal_entry`` does not run again, so nobody is asked to approve it once more.
    If the call ran while the policy was only observed, nobody approved it, and it is refused.
    """
    ruling = yield from ask_policy(prepared)
    is_evaluated = ruling.document is not None and ruling.interrupt is None
    if prepared.ports.mode == "observe" and is_evaluated:
        return ruling._replace(enforced=False)
    stored = prepared.stored_request
    if ruling.decision.outcome == "deny" or (stored is None and ruling.decision.allowed):
        return ruling
    if not asks_people:
        return ruling
    if journal_entry is not None:
        return _replayed(ruling, journal_entry)
    try:
        if stored is None:
            pending = yield from _request_approval(prepared, ruling.decision)
        else:
            result = yield from _judge_answers(prepared, stored, ruling)
            if isinstance(result, Ruling):
                return result
            pending = result
    except Exception as error:  # noqa: BLE001  the store is a port: any failure of it denies
        what = "approvals can't be read or written"
        return ruling.refused(Decision.of_exception(error, "storage.failed", what))
    prepared.listener.waits(pending.request)
    nested_calls.asks(prepared.predicate["call_site"], pending.request)
    raise pending


def _replayed(ruling: Ruling, journal_entry: JournalEntry) -> Ruling:
    """Allow a call that needs an approval, and ran before, if the approval was there then."""
    refusal = journal_entry.unapproved()
    if refusal is not None:
        return ruling.refused(refusal)
    allowed = replace(Decision.allow(), redactions=ruling.decision.redactions)
    return ruling._replace(decision=allowed)


# --- 5: the policy ------------------------------------------------------------------------------


def ask_policy(
    prepared: PreparedCall, approval: Fragment | None = None
) -> Generator[Effect, Any, Ruling]:
    """Step 5: evaluate the policy and tell the listener; ``approval`` is that member of the input.

    Every failure, and an earlier refusal, is a denial.
    """
    arguments = prepared.refusal or prepared.arguments
    document: bytes | None = None
    try:
        if isinstance(arguments, Decision):
            ruling = Ruling(arguments, interrupt=prepared.interrupt)
        else:
            document = policy.document(
                prepared.actor.description,
                prepared.invocation.tool,
                arguments,
                resource=prepared.predicate["resource"],
                task_id=prepared.predicate["task_id"],
                facts=prepared.facts,
                places=prepared.places,
                delegation=prepared.authority.description,
                approval=approval,
            )
            answer = yield Evaluate(prepared.ports.engine, document)
            evaluation = policy.evaluation_of(answer)
            ruling = Ruling(policy.decide(answer), document, evaluation=evaluation)
    except Exception as error:  # noqa: BLE001  an engine that breaks its contract denies as well
        failed = Decision.of_exception(error, "policy.error", "the policy engine failed")
        ruling = Ruling(failed, document)
    except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
        ruling = Ruling(interrupted(error), document, interrupt=error)
    policy_sha256 = prepared.ports.engine.policy_sha256 if document is not None else None
    prepared.listener.decided(ruling.decision, policy_sha256)
    return ruling


# --- 6: people ----------------------------------------------------------------------------------


def _request_approval(
    prepared: PreparedCall, decision: Decision
) -> Generator[Effect, Any, ApprovalPending]:
    """Log and store a request, and call ``on_request``, whose failure refuses nothing."""
    ports = prepared.ports
    if not ports.roster.can_answer or prepared.request_key is None:
        reasons = (*decision.reasons, _NOBODY)
        raise ApprovalError("; ".join(reasons), code="approval.unavailable")
    unmet = unmeetable(
        decision.requirements,
        ports.roster,
        requesters=_requesters(prepared),
        asks_application=ports.asks_application,
    )
    nobody = next(unmet, None)
    if nobody is not None:
        raise ApprovalError(nobody, code="approval.unavailable")
    traceparent = yield Ask(prepared.listener)
    request = _request(prepared, decision, traceparent)
    record = RequestEntry.new(request, prepared.authority.chain_sha256, at=prepared.at)
    yield Tell(ports.end_expired)
    waiting, place = yield Do(ports.approvals.ask, prepared.request_key, request, record)
    if place is not None:
        prepared.listener.requested(request, place, ports.log.head)
        if ports.on_request is not None:
            yield Tell(tell, "on_request", ports.on_request, request)
    return ApprovalPending(waiting, "nobody has answered yet")


def _request(
    prepared: PreparedCall, decision: Decision, traceparent: str | None
) -> ApprovalRequest:
    actor, ports = prepared.actor, prepared.ports
    arguments, predicate = prepared.arguments, prepared.predicate
    assert isinstance(arguments, Arguments)  # noqa: S101  the policy has decided on them
    tool = prepared.invocation.tool
    now, delegation_end = _now(prepared), prepared.authority.ends_at
    ends = [now + requirement.ttl for requirement in decision.requirements]
    if delegation_end is not None:  # the call can't run afterwards
        ends.append(delegation_end)
    return ApprovalRequest(
        request_id=predicate["invocation_id"],
        trust_domain=ports.trust_domain,
        call_site=predicate["call_site"],
        agent=actor.uri,
        agent_name=actor.name,
        principal=prepared.authority.principal,
        actors=tuple(prepared.authority.actors),
        requesters=tuple(sorted(_requesters(prepared))),
        tool=tool.name,
        description=tool.description,
        tool_digest=tool.digest,
        resource=predicate["resource"],
        task_id=predicate["task_id"],
        thread=prepared.invocation.site.thread,
        arguments=arguments.encoded,
        unbound=tuple(arguments.unbound),
        salt=prepared.salt,
        requirements=decision.requirements,
        policy_sha256=ports.engine.policy_sha256,
        traceparent=traceparent,
        requested_at=now,
        expires_at=min(ends),
    )


def _requesters(prepared: PreparedCall) -> frozenset[str]:
    """Return who may not approve the call: its principal, and the agent's owner."""
    return requesters_of(prepared.authority.principal, prepared.actor.owner)


def _judge_answers(
    prepared: PreparedCall, stored: StoredRequest, ruling: Ruling
) -> Generator[Effect, Any, Ruling | ApprovalPending]:
    """Return the ruling on a call with a request, or what the request still waits for."""
    request = stored.request
    if stored.altered:
        is_over = _now(prepared) >= request.expires_at
        return ruling.refused(_EXPIRED if is_over else _ALTERED)
    answers = _verified_answers(prepared, stored)
    prepared.listener.answered(request, [answer.approval for answer in answers])
    refusal = _refusal(prepared, request)  # rests on no answer: the call may differ from theirs
    rejections = tuple(answer for answer in answers if answer.approval.verdict == "reject")
    if refusal is None and rejections:
        ruling, refusal = ruling._replace(answers=rejections), _rejected(rejections[0])
    if refusal is None and stored.is_over:  # people do not see it, so the call would wait in vain
        refusal = _OVER
    if refusal is not None:
        if refusal is _EXPIRED:
            yield Tell(prepared.ports.end_expired)
        return ruling.refused(refusal)
    requesters = _requesters(prepared)
    answers = counted(request.requirements, answers, requesters)  # the policy hears of no others
    lacking = missing_approvals(request.requirements, answers, requesters=requesters)
    if lacking is not None or not answers:  # no input.approval without an answer that was verified
        return ApprovalPending(request, lacking or "nobody has answered yet")
    ruling = yield from ask_policy(prepared, _approval(answers))
    ruling = ruling._replace(answers=answers)  # the policy's input has them, so the log has, too
    if ruling.decision.outcome == "deny":
        return ruling
    lacking = missing_approvals(ruling.decision.requirements, answers, requesters=requesters)
    if lacking is not None:
        return ruling.refused(Decision.refusal(lacking, code="approval.insufficient"))
    allowed = replace(
        Decision.allow(),
        requirements=request.requirements,
        redactions=ruling.decision.redactions,
    )
    return ruling._replace(decision=allowed)


_NOBODY: Final = (
    "no approvers are configured: see [approvers], or let the application answer with [approvals] "
    "application = true"
)
_EXPIRED: Final = Decision.refusal(
    "the time in which the call could be approved and run is over: make the call again to ask anew",
    code="approval.expired",
)
_OVER: Final = Decision.refusal(
    "the request for an approval of this call does not wait any more: make the call again to ask "
    "anew",
    code="approval.consumed",
)
_ALTERED: Final = Decision.refusal(
    "the request for an approval of this call was changed where it lies, and is not the one in the "
    "log: make the call again to ask anew",
    code="approval.altered",
)


def _refusal(prepared: PreparedCall, request: ApprovalRequest) -> Decision | None:
    """Return why no answer to the request can let the call run any more, None where one can."""
    if request.trust_domain != prepared.ports.trust_domain:
        reason = f"the approval was asked for in another trust domain, {request.trust_domain}"
        return Decision.refusal(reason, code="approval.mismatch")
    mismatch = _mismatch(prepared, request)
    if mismatch is not None:
        return mismatch
    if _now(prepared) >= request.expires_at:
        return _EXPIRED
    return None


def _rejected(answer: Answer) -> Decision:
    """Refuse a call that a person has rejected, with the person's note."""
    note = f": {answer.approval.note}" if answer.approval.note else ""
    reason = f"{answer.approval.approver} has rejected this call{note}"
    return Decision.refusal(reason, code="approval.rejected")


def _now(prepared: PreparedCall) -> int:
    return seconds(datetime.fromisoformat(prepared.at))


def _mismatch(prepared: PreparedCall, request: ApprovalRequest) -> Decision | None:
    """Refuse a call that differs from the one that approvers were shown, and say in what."""
    predicate, authority = prepared.predicate, prepared.authority
    arguments, tool = prepared.arguments, prepared.invocation.tool
    unbound = tuple(arguments.unbound) if isinstance(arguments, Arguments) else ()
    shown = (request.tool, request.description, request.unbound)
    if call_digest(prepared.actor.name, predicate, authority.actors) == request.call_digest:
        if shown == (tool.name, tool.description, unbound):
            return None
        reason = "the request names or describes the tool otherwise than it is: it was changed"
        return Decision.refusal(reason, code="approval.mismatch")
    if (authority.principal, tuple(authority.actors)) != (request.principal, request.actors):
        reason = "the approval was asked for another principal, or for other agents in the chain"
        return Decision.refusal(reason, code="delegation.mismatch")
    if tool.name != request.tool:
        reason = (
            f"people were asked about {request.tool}, and this call is one of {tool.name}: the "
            "tool was renamed or replaced while the call waited; make the call as a new one"
        )
        return Decision.refusal(reason, code="approval.mismatch")
    if predicate["tool"]["digest"] != request.tool_digest:
        what = "the tool's description or schema has"
    else:
        what = "the arguments, the resource or the task have"
    reason = f"{what} changed since the approval was asked for: make the call as a new one"
    return Decision.refusal(reason, code="approval.mismatch")


def _verified_answers(prepared: PreparedCall, stored: StoredRequest) -> tuple[Answer, ...]:
    """Return the answers whose signatures and approvers are good, in the order of their times."""
    now = _now(prepared)
    verified: dict[str, Answer] = {}
    for envelope in stored.answers:
        try:
            answer = prepared.ports.roster.verify(envelope, stored.request, at=now)
        except AgentguardError:
            continue
        verified.setdefault(answer.approval.approval_id, answer)
    return tuple(
        sorted(verified.values(), key=lambda a: (a.approval.not_before, a.approval.approver))
    )


def _approval(answers: Sequence[Answer]) -> Fragment:
    """Return the member ``approval`` of the policy's input (policy-document.md, Input)."""
    approvers = [answer.approver for answer in answers if answer.approver is not None]
    return Fragment(
        canonical.dumps(
            {
                "approvers": sorted({approver.name for approver in approvers}),
                "principals": sorted({answer.approval.approver for answer in answers}),
                "roles": sorted({role for answer in answers for role in answer.roles}),
            }
        )
    )
