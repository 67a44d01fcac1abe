"""The straight line of one guarded call, written once, as a generator of effects.

The numbers in the comments are the steps of docs/architecture.md. The generator does no I/O: what
may block or run somebody else's code (facts, the engine, the log, the tool) it yields as an effect,
and the drivers of ``drive.py`` and ``drive_async.py`` carry it out and send the result back or
throw the exception in. Everything else is functions on values.

Fail closed: whatever goes wrong before the tool runs ends as a refusal with a reason code, which
is signed and appended like any other as long as the log can be written.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.roster import Answer
from agentguard.audit import entry, summary
from agentguard.audit.entry import Attachment, LoggedRuling, Receipt, Record, Role, Status
from agentguard.call import redaction
from agentguard.call.arguments import Arguments, encode_result
from agentguard.call.decision import Decision, Denied
from agentguard.call.invocation import Invocation, commitment, statement, timestamp
from agentguard.call.journal import ResultCodec
from agentguard.call.redaction import Redaction
from agentguard.errors import AgentguardError, EncodeError
from agentguard.flow import replay
from agentguard.flow.decide import Ruling, rule
from agentguard.flow.effects import (
    Actor,
    Append,
    Confirm,
    Consume,
    DelegationSource,
    Effect,
    Enqueue,
    Line,
    NotRun,
    Recorded,
    Run,
    Spend,
    Watch,
    Withdraw,
)
from agentguard.flow.prepare import PreparedCall, effective_time, prepare
from agentguard.flow.replay import JournalSlot
from agentguard.signing import dsse
from agentguard.signing.canonical import sha256_hex
from agentguard.signing.dsse import Envelope

_LOGGER = logging.getLogger("agentguard")

_ENDED: Final = frozenset(
    {"approval.altered", "approval.rejected", "approval.expired", "approval.consumed"}
)
"""After these refusals nobody needs the request any more; the others leave it as it is."""


def evaluate(
    actor: Actor,
    line: Line,
    invocation: Invocation,
    watch: Watch,
    lent: DelegationSource | None,
    codec: ResultCodec | None,
    inside: NestedCalls,
) -> Generator[Effect, Any, Decision]:
    """Steps 1, 2, 3, 5 and 6: what the answer would be; it is not signed, counted or recorded.

    A credential that is due is renewed in step 2, and that is on record; so is a chain of
    delegation that was not handed on to the agent before, and the request of a call that waits for
    a person, for which it raises ``ApprovalPending``.
    """
    prepared = yield from prepare(actor, line, invocation, lent, watch)
    prepared, kept = yield from replay.look(actor, line, prepared, codec)
    page = kept.page if kept is not None else None
    ruled = yield from rule(actor, line, prepared, inside, page)
    if ruled.interrupt is not None:
        raise ruled.interrupt
    return ruled.decision if ruled.enforced else Decision.observed(ruled.decision)


def guarded_call(  # noqa: PLR0913  what an adapter says of a call
    actor: Actor,
    line: Line,
    invocation: Invocation,
    watch: Watch,
    lent: DelegationSource | None = None,
    outcome_unknown: tuple[type[BaseException], ...] = (),
    codec: ResultCodec | None = None,
    suspends: tuple[type[BaseException], ...] = (),
    *,
    hands_on: tuple[type[BaseException], ...] = (),
    reentrant: bool = False,
    inside: NestedCalls,
) -> Generator[Effect, Any, Any]:
    """Steps 1 to 9: run the call if it may run; raises ``Denied`` if not, or ``ApprovalPending``.

    ``lent`` is the delegation in force; None for none. With a ``codec`` a call whose site is stable
    runs at most once, however often it is made: its result is handed out again. That is so once it
    is complete: a hand-over (``inside.hands_over``, or a ``reentrant`` call) is made again while a
    call inside waits.

    An exception of the tool is recorded and raised as it is; one of ``outcome_unknown``,
    ``hands_on`` (a framework's way to go on elsewhere) or ``suspends``, or that is no
    ``Exception``, is recorded as ``unknown``. After one of ``suspends`` (a framework's way to
    pause) the call goes on when it is made again. A ``reentrant`` one (what it does are guarded
    calls itself) may be made again until it is done. ``watch`` is told of all of it but the end.
    """
    account, again = yield from _authorized(  # 1 to 7
        actor, line, invocation, watch, lent, codec, inside, reentrant=reentrant
    )
    kept, prepared = account.kept, account.prepared
    invocation_id = prepared.predicate["invocation_id"]
    if kept is not None and kept.page is not None:
        yield from account.close("not_run", None, replay_of=kept.page.invocation_id)
        inside.ends()
        return again
    refusal = yield from _confirm(account)
    refusal = refusal or (yield from replay.begin(kept, invocation_id))
    if refusal is not None:
        refusal = yield from _given_up(prepared, account.taken, refusal)
        yield from account.close("not_run", None)
        raise Denied(refusal)
    started = account.now()
    inside.runs(kept=kept is not None)
    try:
        result = yield Run(invocation_id, prepared.authority, inside)  # 8
    except NotRun as not_run:
        refusal = yield from _given_up(prepared, account.taken, not_run.refusal)
        yield from account.close("not_run", None)
        yield from replay.forget(kept)
        inside.ends()
        raise Denied(refusal) from None
    except suspends as error:
        watch.suspended()
        yield from account.close("unknown", started, error=error, suspended=True)
        yield from replay.forget(kept)  # it goes on when it is made again
        raise
    except Exception as error:
        unknown = isinstance(error, (TimeoutError, *outcome_unknown, *hands_on))
        if isinstance(error, hands_on):
            watch.handed_on()
        yield from account.close("unknown" if unknown else "error", started, error=error)
        yield from replay.cut_short(kept, invocation_id) if unknown else replay.forget(kept)
        failed = reentrant or inside.hands_over  # its work is not done
        if isinstance(error, hands_on) or not (unknown or failed):
            inside.ends()
        raise
    except BaseException as error:
        yield from account.close("unknown", started, error=error)
        yield from replay.cut_short(kept, invocation_id)
        raise
    repeated = replay.goes_on(kept, inside)
    yield from account.close("ok", started, result=result, suspended=repeated)  # 9
    inside.ends()
    redacted = any(pointer[0] == "result" for pointer in account.redactions)
    yield from replay.finish(
        kept, invocation_id, result, inside, redacted=redacted, enforced=account.enforced
    )
    return result


def _authorized(
    actor: Actor,
    line: Line,
    invocation: Invocation,
    watch: Watch,
    lent: DelegationSource | None,
    codec: ResultCodec | None,
    inside: NestedCalls,
    *,
    reentrant: bool,
) -> Generator[Effect, Any, tuple[_Account, Any]]:
    """Steps 1 to 7; with the account of an authorised call its result, if it was made before."""
    prepared = yield from prepare(actor, line, invocation, lent, watch)  # 1, 2, 3
    inside.begins(prepared.predicate["call_site"])
    prepared, kept = yield from replay.look(actor, line, prepared, codec, reentrant=reentrant)
    sealed, unsigned = _sign(actor, prepared)  # 4
    page = kept.page if kept is not None else None
    ruled = yield from rule(actor, line, prepared, inside, page)  # 5, 6
    ruled, again = ruled._replace(decision=ruled.decision.cut()), None
    if unsigned is not None:
        ruled = ruled.refused(unsigned)
    taken = _Taken()
    if ruled.runs and kept is not None and page is not None:
        refusal, again = replay.replay(page, kept.codec)
        ruled = ruled if refusal is None else ruled.refused(refusal)
    else:
        ruled = yield from _take(prepared, ruled, taken)
    redactions = _redactions(line, prepared, ruled.decision)
    account = _Account(actor, line, prepared, sealed, redactions, kept, taken)
    account.enforced = ruled.enforced
    record, ruled = yield from _authorization(account, ruled)
    account.receipt = yield from _append(record, account, runs=ruled.runs)  # 7
    invocation_id, digest = prepared.predicate["invocation_id"], sha256_hex(sealed.payload)
    recorded = Recorded(invocation_id, digest, record.attachments, ruled.enforced)
    watch.recorded(ruled.decision, recorded, account.receipt, line.log.head)
    if ruled.runs or ruled.decision.code in _ENDED:
        yield from _withdraw(prepared, taken)
    if not ruled.runs:
        if ruled.interrupt is None and ruled.decision.is_final:
            inside.ends()
        raise ruled.interrupt or Denied(ruled.decision)
    return account, again


# --- 4, 7: sign, count, append ------------------------------------------------------------------


def _sign(actor: Actor, prepared: PreparedCall) -> tuple[Envelope, Decision | None]:
    """Seal the statement; where the signer fails, the refusal is recorded unsigned."""
    payload = statement(actor.name, prepared.predicate, prepared.authority.actors)
    try:
        return dsse.seal(payload, actor.signer), None
    except Exception as error:  # noqa: BLE001  a signer may be a service: any failure of it denies
        failed = Decision.failed("signature.failed", "the call can't be signed", error)
        return dsse.unsigned(payload), failed


@dataclass(slots=True)
class _Taken:
    """Whether a call's approvals may be used up, and its request was removed (None: not yet)."""

    approvals: bool = False
    withdrawn: bool | None = None


def _take(prepared: PreparedCall, ruled: Ruling, taken: _Taken) -> Generator[Effect, Any, Ruling]:
    """Take what the call uses up: one of the calls of its chain, and its approvals.

    That is durable before the authorization is: dying in between costs an approval, and no call
    runs on one that was used.
    """
    limits, answers = prepared.authority.limits, ruled.answers
    asked = prepared.asked
    if not ruled.runs or not (limits or answers):
        return ruled
    try:
        if limits and not (yield Consume(limits)):
            most = min(most for _jti, most in limits)
            reason = f"the delegation allows {most} calls, and all of them are made"
            return ruled.refused(Decision.refused(reason, code="calls.exceeded"))
        taken.approvals = bool(answers)
        if not answers or (asked and (yield Spend(asked.request, _ids(answers)))):
            return ruled
        taken.approvals = False
        reason = "the approval was used already: one approval lets one call run once"
        refused = Decision.refused(reason, code="approval.consumed")
    except Exception as error:  # noqa: BLE001  what can't be counted is not allowed
        refused = yield from _given_up(prepared, taken, _uncounted(error))
    return ruled.refused(refused)


_TAKEN: Final = {
    "calls.exceeded": "another call has used the last call of the delegation",
    "approval.consumed": "another call has used the same approval",
}


def _confirm(account: _Account) -> Generator[Effect, Any, Decision | None]:
    """Look into the log, which has the call by now, for another one that took the same.

    What ``_take`` has left in the state somebody may have removed before the other one looked.
    """
    limits, asked = account.prepared.authority.limits, account.prepared.asked
    request = asked.request if asked is not None and account.taken.approvals else None
    if not limits and request is None:
        return None
    try:
        code: str | None = yield Confirm(limits, request)
        return Decision.refused(_TAKEN[code], code=code) if code is not None else None
    except Exception as error:  # noqa: BLE001  what can't be counted is not allowed
        return _uncounted(error)


def _uncounted(error: Exception) -> Decision:
    """Refuse a call of which nobody knows whether it may be made."""
    if isinstance(error, AgentguardError):
        return Decision.refused(str(error), code=error.code)
    return Decision.failed("storage.failed", "the calls can't be counted", error)


def _given_up(
    prepared: PreparedCall, taken: _Taken, refused: Decision
) -> Generator[Effect, Any, Decision]:
    """Refuse a call that may have used its approvals up: made again, it finds no request of them.

    One that is in doubt is refused until somebody has seen what became of it.
    """
    if not taken.approvals:
        return refused
    yield from _withdraw(prepared, taken)
    said = "the approvals of this call may be used up"
    if refused.code != "journal.in_doubt":
        once = "" if taken.withdrawn else "is refused once more, and after that "
        said = f"{said}: the call, made again, {once}asks anew"
    return replace(refused, reasons=(*refused.reasons, said))


def _ids(answers: Sequence[Answer]) -> Sequence[str]:
    return [answer.approval.approval_id for answer in answers]


def _authorization(
    account: _Account, ruled: Ruling
) -> Generator[Effect, Any, tuple[Record, Ruling]]:
    """Return the entry with the answer, and the answer as it is written."""
    line, prepared, document = account.line, account.prepared, ruled.document
    committed = commitment(prepared.salt, document) if document is not None else None
    asked = document is not None
    ruling = LoggedRuling(
        ruled.decision,
        committed,
        line.engine_name if asked else None,
        line.engine.policy_sha256 if asked else None,
        line.config_sha256,
        line.roster.sha256 if ruled.answers else None,
        tuple(answer.envelope for answer in ruled.answers),
        ruled.evaluation,
        line.mode,
        ruled.enforced,
    )
    beside = tuple(_attachments(account, document, committed))
    kept = account.kept
    written = partial(
        entry.authorization,
        account.sealed,
        prepared.predicate,
        at=prepared.at,
        attachments=beside,
        journal=kept.in_the_log if kept is not None else None,
        replay_of=kept.page.invocation_id if kept is not None and kept.page is not None else None,
    )
    try:
        return written(ruling), ruled
    except EncodeError as error:  # the policy asks for more than an entry can hold
        refused = Decision.refused(str(error), code="policy.malformed")
        refused = yield from _given_up(prepared, account.taken, refused)
        ruled = ruled._replace(decision=refused)
        return written(ruling._replace(decision=refused)), ruled


def _attachments(
    account: _Account, document: bytes | None, committed: str | None
) -> Iterator[Attachment]:
    """Yield what is kept beside the entry: the arguments, and the policy's input."""
    prepared, redactions = account.prepared, account.redactions
    bound, named = prepared.arguments, prepared.predicate["arguments"]
    if isinstance(bound, Arguments) and named is not None:
        copy = redaction.redact("args", bound.encoded, redactions) if redactions else None
        yield _attachment("arguments", named, prepared.salt, bound.encoded, copy)
    if document is not None and committed is not None:
        copy = redaction.redact_input(document, redactions) if redactions else None
        yield _attachment("input", committed, prepared.salt, document, copy)


def _append(record: Record, account: _Account, *, runs: bool) -> Generator[Effect, Any, Receipt]:
    """Have the answer durable; without that, the call is refused."""
    try:
        receipt: Receipt = yield Append(record)
    except AgentguardError as error:
        if runs and error.code == "storage.unknown":
            yield from account.close("not_run", None, error=error)
        refused = Decision.refused(str(error), code=error.code)
        raise Denied((yield from _given_up(account.prepared, account.taken, refused))) from error
    except Exception as error:
        failed = Decision.failed("storage.failed", "the log can't be written", error)
        raise Denied((yield from _given_up(account.prepared, account.taken, failed))) from error
    except BaseException as error:
        # interrupted while the entry may already be durable: say that the tool did not run
        if runs:
            yield from account.close("not_run", None, error=error)
        raise
    return receipt


def _withdraw(prepared: PreparedCall, taken: _Taken) -> Generator[Effect, Any, None]:
    """Remove the request of a call that is decided for good, with the arguments in it."""
    if prepared.asked is None or prepared.asked_under is None or taken.withdrawn is not None:
        return
    taken.withdrawn = False
    try:
        yield Withdraw(prepared.asked_under)
        taken.withdrawn = True
    except Exception:
        # it can't be used once more: its approvals are used up, or it has expired
        _LOGGER.exception("a request for an approval could not be removed")


def _redactions(line: Line, prepared: PreparedCall, decision: Decision) -> tuple[Redaction, ...]:
    tool = prepared.invocation.tool
    asked = line.redactions_of(tool.name) + decision.redactions
    return redaction.with_attributes(asked, tool.attributes) if asked else ()


def _attachment(
    role: Role, committed: str, salt: bytes, data: bytes, copy: bytes | None
) -> Attachment:
    """Return what is kept: the data, or a copy of it under a salt and commitment of its own."""
    if copy is None:
        return Attachment(role, committed, salt, data)
    salt = redaction.salt_of(salt)
    return Attachment(role, commitment(salt, copy), salt, copy)


# --- 9: the outcome -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Account:
    """Writes what became of an authorised call, signed by the agent instance.

    ``receipt`` is the place of its authorization, once that is known to be durable. The policy's
    answer to a call that is not ``enforced`` is only observed.
    """

    actor: Actor
    line: Line
    prepared: PreparedCall
    sealed: Envelope
    redactions: tuple[Redaction, ...]
    kept: JournalSlot | None
    taken: _Taken
    receipt: Receipt | None = None
    enforced: bool = True

    def now(self) -> str:
        now, _refusal = effective_time(self.line)
        return timestamp(now)

    def close(
        self,
        status: Status,
        started: str | None,
        *,
        result: object = None,
        error: BaseException | None = None,
        replay_of: str | None = None,
        suspended: bool = False,
    ) -> Generator[Effect, Any, None]:
        try:
            record = self._record(status, started, result, error, replay_of, suspended=suspended)
            # where a run may go on elsewhere, what became of the call is known there
            yield Enqueue(record) if self.kept is None else Append(record)
            error_type = _type_name(error) if error is not None else None
            self.prepared.watch.outcome(status, error_type, record.attachments, replay_of)
        except Exception:
            self.prepared.watch.outcome("in_doubt")
            # the tool has run, and its caller gets the result; the log shows the call in doubt
            _LOGGER.exception("an outcome could not be recorded: its call stays in doubt")

    def _record(
        self,
        status: Status,
        started: str | None,
        result: object,
        error: BaseException | None,
        replay_of: str | None,
        *,
        suspended: bool,
    ) -> Record:
        encoded = encode_result(result) if status == "ok" else None
        salt = self.prepared.salt
        committed = commitment(salt, encoded) if encoded is not None else None
        ended = self.now()
        invocation_id = self.prepared.predicate["invocation_id"]
        payload = entry.outcome_statement(
            sha256_hex(self.sealed.payload),
            authorization=self.receipt or invocation_id,
            status=status,
            result=committed,
            result_type=_type_name(result) if status == "ok" else None,
            error_type=_type_name(error) if error is not None else None,
            started_at=started,
            ended_at=ended,
            replay_of=replay_of,
            suspended=suspended,
        )
        attachments: tuple[Attachment, ...] = ()
        if encoded is not None and committed is not None:
            asked = self.redactions
            copy = redaction.redact("result", encoded, asked) if asked else None
            attachments = (_attachment("result", committed, salt, encoded, copy),)
        outcome = dsse.seal(payload, self.actor.signer)
        about = summary.of_outcome(invocation_id, self.actor.uri, at=ended, status=status)
        return entry.outcome(outcome, about, committed, attachments=attachments)


def _type_name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
