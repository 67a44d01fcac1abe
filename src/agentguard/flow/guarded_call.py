"""The steps of one guarded call, as one generator that both drivers run.

The numbers in the comments are the steps of architecture.md. The generator yields what may wait for
long or run somebody else's code (facts, the engine, the log, the tool) as an effect. The drivers
(``drive.py``: synchronous, ``drive_async.py``: asynchronous) carry the effect out, and send the
result back or throw the exception in. The details of each step are in ``prepare.py``,
``decide.py`` and ``attempt.py``. ``Ports`` holds the engine, the log and whatever else the steps
use.

The modules of the flow import nothing that does I/O. Five calls on the values that they are given
are no effects, because each usually takes microseconds and happens in every call: the clock, the
random bytes, the signature, the check of revocations (``AuditLog.refusal``) and the check for a
request (``Approvals.has``). On a state directory the first check reads the head of the log, and
verifies it where another process has written it; the second reads where requests have changed.

Fail closed: whatever goes wrong before the tool runs ends as a refusal with a reason code, which
is signed and appended like any other as long as the log can be written.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, Final

from agentguard.audit.entry import LogPlace, Record
from agentguard.call.decision import Decision, Denied
from agentguard.call.invocation import statement
from agentguard.errors import (
    AgentguardError,
    ApprovalError,
    CallError,
    DelegationError,
    EncodeError,
)
from agentguard.flow import endings, log_entries
from agentguard.flow.attempt import Attempt
from agentguard.flow.decide import Ruling, rule
from agentguard.flow.effects import Do, Effect, NotRun, Run
from agentguard.flow.listener import LoggedInvocation
from agentguard.flow.prepare import CallInput, prepare
from agentguard.signing import dsse
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.dsse import Envelope

_OVERTAKEN: Final = (ApprovalError, CallError, DelegationError)
"""The errors of a commit before which another call or a revocation was committed."""


def evaluate(call: CallInput) -> Generator[Effect, Any, Decision]:
    """Return the decision that the call would get; the call is not signed, logged or counted.

    The function takes the steps 1, 2, 3, 5 and, of step 6, the approval, which is not used up. They
    have three side effects: a credential that is due is renewed, a hop to the agent is signed and
    recorded, and a call that needs an approval leaves a request, for which the function raises
    ``ApprovalPending``, unless the call's options say that nobody is asked (``asks_people``).
    """
    asks_people = call.options.asks_people
    prepared = yield from prepare(call, seeks_approval=asks_people)
    attempt = Attempt(prepared, call.nested_calls, call.options, around=call.around)
    yield from attempt.look_up()
    ruling = yield from rule(
        attempt.prepared, call.nested_calls, attempt.journal_entry, asks_people=asks_people
    )
    if ruling.interrupt is not None:
        raise ruling.interrupt
    return ruling.decision if ruling.enforced else Decision.observation(ruling.decision)


def guarded_call(call: CallInput) -> Generator[Effect, Any, Any]:
    """Steps 1 to 9: run the call if it may run; raises ``Denied`` if not, or ``ApprovalPending``.

    A call that hands work over to an agent (``nested_calls.hands_over``, or ``options.reentrant``)
    is not final while a call inside waits for an approval: the framework may make the outer call
    again. An exception of the tool is recorded, and raised again.
    """
    prepared = yield from prepare(call)  # 1, 2, 3
    attempt = Attempt(prepared, call.nested_calls, call.options, around=call.around)
    yield from _authorize(attempt)  # 4 to 7
    if attempt.journal_entry is not None:
        yield from attempt.close(endings.REPLAYED)
        return attempt.stored_result
    releases = attempt.start()
    try:
        result = yield Run(
            attempt.invocation_id, prepared.authority, call.nested_calls, releases
        )  # 8
    except NotRun as not_run:
        yield from attempt.close(endings.NOT_RUN)
        raise Denied(attempt.without_approvals(not_run.refusal)) from None
    except BaseException as error:
        yield from attempt.close(attempt.ending_of(error), error=error)  # 9
        raise
    yield from attempt.close(attempt.ending_of_return(result), result=result)  # 9
    return result


def _authorize(attempt: Attempt) -> Generator[Effect, Any, None]:
    """Steps 4 to 7: return once the authorization is in the log; raises as ``guarded_call``."""
    nested_calls, listener = attempt.nested_calls, attempt.prepared.listener
    nested_calls.begins(attempt.prepared.predicate["call_site"])
    yield from attempt.look_up()
    envelope, unsigned = _sign(attempt)  # 4
    ruling = yield from rule(attempt.prepared, nested_calls, attempt.journal_entry)  # 5, 6
    ruling = ruling._replace(decision=ruling.decision.shortened())
    if unsigned is not None:
        ruling = ruling.refused(unsigned)
    if ruling.runs and attempt.journal_entry is not None:
        refusal = attempt.load_result()
        ruling = ruling if refusal is None else ruling.refused(refusal)
    attempt.redactions = log_entries.redactions_of(attempt.prepared, ruling.decision)
    record, ruling = _authorization(attempt, envelope, ruling)
    try:
        place = yield from _append(record, attempt, ruling)  # 7
    except _OVERTAKEN as error:  # another call or a revocation was first
        ruling = ruling.refused(Decision.of_error(error))
        record, ruling = _authorization(attempt, envelope, ruling)
        place = yield from _append(record, attempt, ruling)
    attempt.place, attempt.is_enforced = place, ruling.enforced
    attempt.spends_approvals = ruling.runs and bool(ruling.answers)
    invocation = LoggedInvocation(
        attempt.invocation_id, attempt.invocation_sha256, record.attachments, ruling.enforced
    )
    listener.recorded(ruling.decision, invocation, place, attempt.prepared.ports.log.head)
    if not ruling.runs:
        is_final = ruling.interrupt is None and ruling.decision.is_final
        yield from attempt.close(endings.REFUSED if is_final else endings.POSTPONED)
        raise ruling.interrupt or Denied(ruling.decision)


def _sign(attempt: Attempt) -> tuple[Envelope, Decision | None]:
    """Sign the statement, together with the instance's outcomes that wait for a signature.

    Where the signer fails, the refusal is returned, and the statement is logged unsigned.
    """
    actor, log = attempt.prepared.actor, attempt.prepared.ports.log
    authority = attempt.prepared.authority
    payload = statement(actor.name, attempt.prepared.predicate, authority.actors)
    attempt.invocation_sha256 = sha256_hex(payload)
    try:
        waiting = log.unsigned(actor.signer)
        if not waiting:
            return dsse.seal(payload, actor.signer), None
        subjects = [*(outcome.sha256 for outcome in waiting), attempt.invocation_sha256]
        joint = dsse.sign_jointly(subjects, actor.signer)
        log.give_signature(waiting, joint)
    except Exception as error:  # noqa: BLE001  a signer may be a service: any failure of it denies
        failed = Decision.failure("signature.failed", "the call can't be signed", error)
        return dsse.unsigned(payload), failed
    return Envelope(dsse.PAYLOAD_TYPE, payload, joint=joint), None


def _authorization(attempt: Attempt, envelope: Envelope, ruling: Ruling) -> tuple[Record, Ruling]:
    """Return the authorization entry, and the ruling: a refusal if no entry can hold the first."""
    stored = attempt.journal_entry
    runs_once = stored is None and not attempt.options.reentrant
    names = {
        "journal_name": attempt.journal_name if runs_once else None,
        "replay_of": stored.invocation_id if stored is not None else None,
    }
    prepared, redactions = attempt.prepared, attempt.redactions
    try:
        return log_entries.authorization(prepared, envelope, ruling, redactions, **names), ruling
    except EncodeError as error:  # policy or approvers say more than an entry can hold
        refusal = Decision.refusal(str(error), code="policy.malformed")
        ruling = ruling._replace(decision=refusal, answers=(), evaluation=None)
        return log_entries.authorization(prepared, envelope, ruling, redactions, **names), ruling


def _append(record: Record, attempt: Attempt, ruling: Ruling) -> Generator[Effect, Any, LogPlace]:
    """Make the authorization durable; refuse a call whose authorization can't be made durable.

    Raises ``DelegationError`` where the delegation has no call left, or somebody may act no more,
    ``ApprovalError`` where the request for the approval does not wait any more, and ``CallError``
    where another attempt of the call was first.
    """
    prepared = attempt.prepared
    names = prepared.authority.names if ruling.runs else None
    try:
        place: LogPlace = yield Do(
            partial(
                prepared.ports.log.append, record, names=names, within=attempt.removal_after(ruling)
            )
        )
    except _OVERTAKEN:
        raise
    except Exception as error:
        is_unknown = isinstance(error, AgentguardError) and error.code == "storage.unknown"
        attempt.spends_approvals = is_unknown and bool(ruling.answers)
        if ruling.runs and is_unknown:
            yield from attempt.close(endings.UNRECORDED, error=error)
        refusal = Decision.of_exception(error, "storage.failed", "the log can't be written")
        raise Denied(attempt.without_approvals(refusal)) from error
    except BaseException as error:
        # interrupted while the entry may already be durable: say that the tool did not run
        if ruling.runs:
            yield from attempt.close(endings.UNRECORDED, error=error)
        raise
    return place
