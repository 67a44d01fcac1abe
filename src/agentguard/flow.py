"""The straight line of one guarded call, written once, as a generator of effects.

The numbers in the comments are the steps of docs/architecture.md. The generator does no I/O: what
may block or run somebody else's code (facts, the engine, the log, the tool) it yields as an effect,
and the drivers of ``drive.py``, sync and async, carry it out and send the result back or throw the
exception in. Everything else is functions on values.

Fail closed: whatever goes wrong before the tool runs ends as a refusal with a reason code, which
is signed and appended like any other as long as the log can be written.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from agentguard import envelope, policy, redaction
from agentguard.arguments import Arguments, encode_result
from agentguard.audit import entry, summary
from agentguard.audit.entry import Attachment, Receipt, Record, Role, Ruling, Status
from agentguard.canonical import sha256_hex
from agentguard.decision import Decision, Denied
from agentguard.effects import (
    Actor,
    Append,
    Consume,
    Effect,
    Enqueue,
    Evaluate,
    Lent,
    Line,
    NotRun,
    Run,
)
from agentguard.envelope import Envelope
from agentguard.errors import AgentguardError, EncodeError
from agentguard.invocation import Invocation, commitment, statement, timestamp
from agentguard.preparation import Prepared, effective_time, interrupted, prepare
from agentguard.redaction import Redaction

_LOGGER = logging.getLogger("agentguard")

MAX_REASONS: Final = 16
MAX_REASON: Final = 1024
"""How many reasons of a refusal are kept, and how many characters of each."""


def evaluate(
    actor: Actor, line: Line, invocation: Invocation, lent: Lent | None = None
) -> Generator[Effect, Any, Decision]:
    """Steps 1, 2, 3 and 5: what the answer would be; the call is not signed, counted or recorded.

    A credential that is due is renewed in step 2, and that is on record; so is a chain of
    delegation that was not handed on to the agent before.
    """
    prepared = yield from prepare(actor, line, invocation, lent)
    decision, _document, interrupt = yield from _judge(actor, prepared)
    if interrupt is not None:
        raise interrupt
    return decision


def guarded_call(
    actor: Actor,
    line: Line,
    invocation: Invocation,
    lent: Lent | None = None,
    outcome_unknown: tuple[type[BaseException], ...] = (),
) -> Generator[Effect, Any, Any]:
    """Steps 1 to 9: run the call if it may run; raises ``Denied`` if not.

    ``lent`` is the delegation in force; None for none.

    An exception of the tool is recorded and raised as it is; one of ``outcome_unknown`` (a
    framework's way to pause), or that is no ``Exception``, is recorded as ``unknown``.
    """
    prepared = yield from prepare(actor, line, invocation, lent)  # 1, 2, 3
    sealed, unsigned = _sign(actor, prepared)  # 4
    decision, document, interrupt = yield from _judge(actor, prepared)  # 5
    if unsigned is not None:
        decision = replace(unsigned, redactions=decision.redactions)
    decision = yield from _count(prepared, _written(_approve(decision)))  # 6
    account = _Account(actor, line, prepared, sealed, _redactions(line, prepared, decision))
    record, decision = _authorization(account, decision, document)
    account.receipt = yield from _append(record, decision, account)  # 7
    if not decision.allowed:
        raise interrupt or Denied(decision)
    unknown: tuple[type[BaseException], ...] = (TimeoutError, *outcome_unknown)
    started = account.now()
    try:
        result = yield Run(prepared.predicate["invocation_id"], prepared.authority)  # 8
    except NotRun as not_run:
        yield from account.close("not_run", None)
        raise Denied(not_run.refusal) from None
    except unknown as error:
        yield from account.close("unknown", started, error=error)
        raise
    except Exception as error:
        yield from account.close("error", started, error=error)
        raise
    except BaseException as error:
        yield from account.close("unknown", started, error=error)
        raise
    yield from account.close("ok", started, result=result)  # 9
    return result


# --- 4, 5, 6, 7: sign, decide, approve, append --------------------------------------------------


def _sign(actor: Actor, prepared: Prepared) -> tuple[Envelope, Decision | None]:
    """Seal the statement; where the signer fails, the refusal is recorded unsigned."""
    payload = statement(actor.name, prepared.predicate, prepared.authority.actors)
    try:
        return envelope.seal(payload, actor.signer), None
    except Exception as error:  # noqa: BLE001  a signer may be a service: any failure of it denies
        failed = Decision.failed("signature.failed", "the call can't be signed", error)
        return envelope.unsigned(payload), failed


def _judge(
    actor: Actor, prepared: Prepared
) -> Generator[Effect, Any, tuple[Decision, bytes | None, BaseException | None]]:
    """Return the decision, the policy's input where it was asked, and what has cut it short."""
    arguments = prepared.refusal or prepared.arguments
    if isinstance(arguments, Decision):
        return arguments, None, prepared.interrupt
    try:
        document = policy.document(
            actor.description,
            prepared.invocation.tool,
            arguments,
            resource=prepared.predicate["resource"],
            task_id=prepared.predicate["task_id"],
            facts=prepared.facts,
            delegation=prepared.authority.description,
        )
    except AgentguardError as error:
        return Decision.refused(str(error), code=error.code), None, None
    try:
        answer = yield Evaluate(document)
        return policy.decide(answer), document, None
    except AgentguardError as error:
        return Decision.refused(str(error), code=error.code), document, None
    except Exception as error:  # noqa: BLE001  an engine that breaks its contract denies as well
        return Decision.failed("policy.error", "the policy engine failed", error), document, None
    except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
        return interrupted(error), document, error


def _approve(decision: Decision) -> Decision:
    """Refuse what needs an approval: no approval mechanism is set up."""
    if decision.outcome != "approval":
        return decision
    reasons = (*decision.reasons, "no approval mechanism is set up")
    return replace(decision, outcome="deny", code="approval.unavailable", reasons=reasons)


def _count(prepared: Prepared, decision: Decision) -> Generator[Effect, Any, Decision]:
    """Take one call from what the chain allows; without one left, the call is refused."""
    limits = prepared.authority.limits
    if not decision.allowed or not limits:
        return decision
    try:
        if (yield Consume(limits)):
            return decision
        most = min(most for _jti, most in limits)
        reason = f"the delegation allows {most} calls, and all of them are made"
        refused = Decision.refused(reason, code="calls.exceeded")
    except AgentguardError as error:
        refused = Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  what can't be counted is not allowed
        refused = Decision.failed("storage.failed", "the calls can't be counted", error)
    return replace(refused, redactions=decision.redactions)


def _written(decision: Decision) -> Decision:
    """Cut the reasons to what an entry and a model can take: arguments may be quoted in them."""
    if not decision.reasons:
        return decision
    reasons = [
        reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
        for reason in decision.reasons[:MAX_REASONS]
    ]
    return replace(decision, reasons=tuple(reasons))


def _authorization(
    account: _Account, decision: Decision, document: bytes | None
) -> tuple[Record, Decision]:
    """Return the entry with the answer, and the answer as it is written.

    ``document`` is the policy's input, None where no policy was asked.
    """
    line, prepared = account.line, account.prepared
    committed = commitment(prepared.salt, document) if document is not None else None
    asked = document is not None
    ruling = Ruling(
        decision,
        committed,
        line.engine_name if asked else None,
        line.engine.policy_sha256 if asked else None,
        line.config_sha256,
    )
    beside = tuple(_attachments(account, document, committed))
    written = partial(
        entry.authorization, account.sealed, prepared.predicate, at=prepared.at, attachments=beside
    )
    try:
        return written(ruling), decision
    except EncodeError as error:  # the policy asks for more than an entry can hold
        refused = Decision.refused(str(error), code="policy.malformed")
        return written(ruling._replace(decision=refused)), refused


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


def _append(
    record: Record, decision: Decision, account: _Account
) -> Generator[Effect, Any, Receipt]:
    """Have the answer durable; without that, the call is refused."""
    try:
        receipt: Receipt = yield Append(record)
    except AgentguardError as error:
        if decision.allowed and error.code == "storage.unknown":
            yield from account.close("not_run", None, error=error)
        raise Denied(Decision.refused(str(error), code=error.code)) from error
    except Exception as error:
        failed = Decision.failed("storage.failed", "the log can't be written", error)
        raise Denied(failed) from error
    except BaseException as error:
        # interrupted while the entry may already be durable: say that the tool did not run
        if decision.allowed:
            yield from account.close("not_run", None, error=error)
        raise
    return receipt


def _redactions(line: Line, prepared: Prepared, decision: Decision) -> tuple[Redaction, ...]:
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

    ``receipt`` is the place of its authorization, once that is known to be durable.
    """

    actor: Actor
    line: Line
    prepared: Prepared
    sealed: Envelope
    redactions: tuple[Redaction, ...]
    receipt: Receipt | None = None

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
    ) -> Generator[Effect, Any, None]:
        try:
            record = self._record(status, started, result, error)
            yield Enqueue(record)
        except Exception:
            # the tool has run, and its caller gets the result; the log shows the call in doubt
            _LOGGER.exception("an outcome could not be recorded: its call stays in doubt")

    def _record(
        self, status: Status, started: str | None, result: object, error: BaseException | None
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
        )
        attachments: tuple[Attachment, ...] = ()
        if encoded is not None and committed is not None:
            asked = self.redactions
            copy = redaction.redact("result", encoded, asked) if asked else None
            attachments = (_attachment("result", committed, salt, encoded, copy),)
        outcome = envelope.seal(payload, self.actor.signer)
        about = summary.of_outcome(invocation_id, self.actor.uri, at=ended, status=status)
        return entry.outcome(outcome, about, committed, attachments=attachments)


def _type_name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
