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
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from agentguard import envelope, policy
from agentguard.arguments import Arguments, encode_result
from agentguard.audit import entry
from agentguard.audit.entry import Attachment, Receipt, Record, Ruling, Status
from agentguard.canonical import Fragment, b64_encode, sha256_hex
from agentguard.decision import Decision, Denied
from agentguard.envelope import Envelope
from agentguard.errors import AgentguardError, ArgumentsError, EncodeError
from agentguard.identity.credential import Credential
from agentguard.invocation import Invocation, commitment, statement, timestamp
from agentguard.keys import Signer
from agentguard.ports import AuditLog, Clock, Engine, Entropy, Facts

_LOGGER = logging.getLogger("agentguard")

SALT_SIZE: Final = 32
"""Bytes of salt for a call's commitments."""

ID_SIZE: Final = 16
"""Bytes of an invocation's id."""

MAX_TASK_ID: Final = 1024
"""Bytes of a task's id."""

MAX_REASONS: Final = 16
MAX_REASON: Final = 1024
"""How many reasons of a refusal are kept, and how many characters of each."""

MAX_CLOCK_LAG: Final = timedelta(seconds=60)
"""How far the wall clock may stand behind the newest durable entry."""


class LookUp(NamedTuple):
    """Effect: call ``facts`` with ``values`` and send back what it returns."""

    facts: Facts
    values: Mapping[str, Any]


class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    document: bytes


class Append(NamedTuple):
    """Effect: make ``record`` durable and send back its receipt."""

    record: Record


class Run(NamedTuple):
    """Effect: run the tool and send back its result."""


class Enqueue(NamedTuple):
    """Effect: hand ``record`` to the log, to be durable soon. It does not block."""

    record: Record


Effect = LookUp | Evaluate | Append | Run | Enqueue


@dataclass(frozen=True, slots=True)
class Actor:
    """The agent instance on whose behalf the line runs.

    ``credential`` returns the credential in force at a time (seconds since the epoch), renewed if
    need be; ``scope`` is what the agent may do on its own authority, None meaning everything.
    """

    name: str
    authority: Literal["own", "delegated"]
    scope: frozenset[str] | None
    signer: Signer
    credential: Callable[[int], Credential]
    description: Fragment
    """The canonical ``{id, name, type, instance}`` of the policy's input."""

    uri: str
    principal: str
    """For whom it acts: ``agent:<name>`` on its own authority."""


@dataclass(frozen=True, slots=True)
class Line:
    """The parts that the line runs on, the same for every call of a guard."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    clock: Clock
    entropy: Entropy
    traceparent: Callable[[], str | None]
    config_sha256: str


class _Prepared(NamedTuple):
    """A call after steps 1 to 3: what will be signed, and whether it is refused already."""

    invocation: Invocation
    predicate: Mapping[str, Any]
    at: str
    salt: bytes
    arguments: Arguments | None
    facts: Mapping[str, Any]
    refusal: Decision | None


def evaluate(actor: Actor, line: Line, invocation: Invocation) -> Generator[Effect, Any, Decision]:
    """Steps 1, 2, 3 and 5: what the answer would be. It signs, counts and records nothing."""
    prepared = yield from _prepare(actor, line, invocation)
    decision, _document = yield from _judge(actor, prepared)
    return decision


def guarded_call(
    actor: Actor,
    line: Line,
    invocation: Invocation,
    outcome_unknown: tuple[type[BaseException], ...] = (),
) -> Generator[Effect, Any, Any]:
    """Steps 1 to 9: run the call if it may run; raises ``Denied`` if not.

    An exception of the tool is recorded and raised as it is; one of ``outcome_unknown`` (a
    framework's way to pause), or that is no ``Exception``, is recorded as ``unknown``.
    """
    prepared = yield from _prepare(actor, line, invocation)  # 1, 2, 3
    sealed, unsigned = _sign(actor, prepared)  # 4
    decision, document = yield from _judge(actor, prepared)  # 5
    decision = _written(_approve(unsigned or decision))  # 6
    receipt, decision = yield from _authorize(
        actor, line, prepared, sealed, decision, document
    )  # 7
    if not decision.allowed:
        raise Denied(decision)
    account = _Account(actor, line, prepared.salt, sealed, receipt)
    unknown: tuple[type[BaseException], ...] = (TimeoutError, *outcome_unknown)
    started = account.now()
    try:
        result = yield Run()  # 8
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


# --- 1, 2, 3: bind, authority, facts ------------------------------------------------------------


def _prepare(actor: Actor, line: Line, invocation: Invocation) -> Generator[Effect, Any, _Prepared]:
    now, refusal = _effective_time(line)
    salt, invocation_id, refusal = _entropy(line, refusal)
    bound, resource, refusal = _bind(invocation, refusal)  # 1
    site, task_id, refusal = _site(actor, invocation, refusal)
    refusal = _authority(actor, invocation.tool.requires, now, refusal)  # 2
    facts: Mapping[str, Any] = {}
    look_up = invocation.tool.facts
    if refusal is None and bound is not None and look_up is not None:  # 3
        facts, refusal = yield from _look_up(look_up, bound)
    head = line.log.head
    at = timestamp(now)
    predicate = {
        "invocation_id": invocation_id,
        "agent": actor.uri,
        "principal": actor.principal,
        "chain_sha256": None,  # an agent on its own authority has neither chain nor token
        "token_jti": None,
        "tool": {"name": invocation.tool.name, "digest": invocation.tool.digest},
        "resource": resource,
        "arguments": commitment(salt, bound.encoded) if bound is not None and salt else None,
        "unbound": bound.unbound if bound is not None else (),
        "task_id": task_id,
        "call_site": site,
        "traceparent": line.traceparent(),
        "issued_at": at,
        "log": {"origin": head.origin, "size": head.size, "root": b64_encode(head.root)},
    }
    return _Prepared(invocation, predicate, at, salt, bound, facts, refusal)


def _bind(
    invocation: Invocation, refusal: Decision | None
) -> tuple[Arguments | None, str | None, Decision | None]:
    arguments = invocation.arguments
    if isinstance(arguments, ArgumentsError):
        return None, None, refusal or Decision.deny(str(arguments), code=arguments.code)
    try:
        return arguments, invocation.tool.resource_of(arguments.values), refusal
    except ArgumentsError as error:
        return arguments, None, refusal or Decision.deny(str(error), code=error.code)


def _effective_time(line: Line) -> tuple[datetime, Decision | None]:
    """The later of the wall clock and the log's newest entry: time never goes back."""
    last = line.log.last_at
    try:
        now = line.clock()
        lag = last - now
    except Exception as error:  # noqa: BLE001  the clock is a port: any failure of it denies
        return last, _failed("clock.failed", "the clock can't be read", error)
    if lag > MAX_CLOCK_LAG:
        reason = f"the clock stands {lag.total_seconds():.0f} s behind the newest entry of the log"
        return last, Decision.deny(reason, code="clock.skew")
    return max(now, last), None


def _entropy(line: Line, refusal: Decision | None) -> tuple[bytes, str | None, Decision | None]:
    try:
        drawn = bytes(line.entropy(SALT_SIZE + ID_SIZE))
    except Exception as error:  # noqa: BLE001  entropy is a port: any failure of it denies
        failed = _failed("entropy.failed", "no random bytes can be had", error)
        return b"", None, refusal or failed
    if len(drawn) != SALT_SIZE + ID_SIZE:
        failed = Decision.deny("too few random bytes can be had", code="entropy.failed")
        return b"", None, refusal or failed
    return drawn[:SALT_SIZE], drawn[SALT_SIZE:].hex(), refusal


def _authority(
    actor: Actor, requires: tuple[str, ...], now: datetime, refusal: Decision | None
) -> Decision | None:
    """See to the credential, of a refused call too (its refusal is signed), then to the scope."""
    try:
        actor.credential(int(now.timestamp()))
    except AgentguardError as error:
        return refusal or Decision.deny(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  an issuer may be a service: any failure of it denies
        return refusal or _failed("credential.failed", "no credential can be had", error)
    if refusal is not None:
        return refusal
    if actor.authority != "own":
        reason = (
            f"agent {actor.name} acts only under a delegation, and none is in force; for an agent "
            'that acts by itself, say authority = "own" in its configuration'
        )
        return Decision.deny(reason, code="delegation.missing")
    missing = [] if actor.scope is None else [s for s in requires if s not in actor.scope]
    if missing:
        reason = f"agent {actor.name} lacks the scope {' '.join(missing)}"
        return Decision.deny(reason, code="scope.exceeded")
    return None


def _site(
    actor: Actor, invocation: Invocation, refusal: Decision | None
) -> tuple[str | None, str | None, Decision | None]:
    """The call site's digest and the task's id; text that can't be signed refuses the call."""
    task_id = invocation.task_id
    try:
        if task_id is not None and len(task_id.encode()) > MAX_TASK_ID:
            reason = f"the task's id takes more than {MAX_TASK_ID} bytes"
            return None, None, refusal or Decision.deny(reason, code="site.unencodable")
        return invocation.site.digest(actor.name), task_id, refusal
    except (AgentguardError, UnicodeError):
        reason = "a name of the call's thread, turn or task holds text that can't be written down"
        return None, None, refusal or Decision.deny(reason, code="site.unencodable")


def _look_up(
    facts: Facts, arguments: Arguments
) -> Generator[Effect, Any, tuple[Mapping[str, Any], Decision | None]]:
    try:
        found = yield LookUp(facts, arguments.values)
        if isinstance(found, Mapping):
            return dict(found), None
    except Exception as error:  # noqa: BLE001  the application's look-up may raise anything: it denies
        return {}, _failed("facts.failed", "the look-up of facts failed", error)
    reason = f"the look-up of facts returned a {type(found).__name__}, not a mapping"
    return {}, Decision.deny(reason, code="facts.invalid")


# --- 4, 5, 6, 7: sign, decide, approve, append --------------------------------------------------


def _sign(actor: Actor, prepared: _Prepared) -> tuple[Envelope, Decision | None]:
    """Seal the statement; where the signer fails, the refusal is recorded unsigned."""
    payload = statement(actor.name, prepared.predicate)
    try:
        return envelope.seal(payload, actor.signer), None
    except Exception as error:  # noqa: BLE001  a signer may be a service: any failure of it denies
        failed = _failed("signature.failed", "the call can't be signed", error)
        return envelope.unsigned(payload), failed


def _judge(
    actor: Actor, prepared: _Prepared
) -> Generator[Effect, Any, tuple[Decision, bytes | None]]:
    """Return the decision, and the policy's input where the policy was asked."""
    if prepared.refusal is not None or prepared.arguments is None:
        return prepared.refusal or _unbound(), None
    try:
        document = policy.document(
            actor.description,
            prepared.invocation.tool,
            prepared.arguments,
            resource=prepared.predicate["resource"],
            task_id=prepared.predicate["task_id"],
            facts=prepared.facts,
        )
    except AgentguardError as error:
        return Decision.deny(str(error), code=error.code), None
    try:
        answer = yield Evaluate(document)
        return policy.decide(answer), document
    except AgentguardError as error:
        return Decision.deny(str(error), code=error.code), document
    except Exception as error:  # noqa: BLE001  an engine that breaks its contract denies as well
        return _failed("policy.error", "the policy engine failed", error), document


def _unbound() -> Decision:
    return Decision.deny("the arguments are not bound", code="arguments.invalid")


def _approve(decision: Decision) -> Decision:
    """Refuse what needs an approval: no approval mechanism is set up."""
    if decision.outcome != "approval":
        return decision
    reasons = (*decision.reasons, "no approval mechanism is set up")
    return Decision("deny", "approval.unavailable", reasons, decision.requirements)


def _written(decision: Decision) -> Decision:
    """Cut the reasons to what an entry and a model can take: arguments may be quoted in them."""
    if not decision.reasons:
        return decision
    reasons = [
        reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
        for reason in decision.reasons[:MAX_REASONS]
    ]
    return replace(decision, reasons=tuple(reasons))


def _authorize(
    actor: Actor,
    line: Line,
    prepared: _Prepared,
    sealed: Envelope,
    decision: Decision,
    document: bytes | None,
) -> Generator[Effect, Any, tuple[Receipt, Decision]]:
    """Append the answer, and return its place and what was written."""
    salt = prepared.salt
    attachments: list[Attachment] = []
    bound, named = prepared.arguments, prepared.predicate["arguments"]
    if bound is not None and named is not None:
        attachments.append(Attachment("arguments", named, salt, bound.encoded))
    committed = commitment(salt, document) if document is not None else None
    if document is not None and committed is not None:
        attachments.append(Attachment("input", committed, salt, document))
    asked = document is not None
    engine, digest = line.engine_name, line.engine.policy_sha256
    ruling = Ruling(
        decision,
        committed,
        engine if asked else None,
        digest if asked else None,
        line.config_sha256,
    )
    try:
        record = entry.authorization(sealed, ruling, at=prepared.at, attachments=tuple(attachments))
    except EncodeError as error:  # the policy asks for more than an entry can hold
        decision = Decision.deny(str(error), code="policy.malformed")
        ruling = ruling._replace(decision=decision)
        record = entry.authorization(sealed, ruling, at=prepared.at, attachments=tuple(attachments))
    try:
        receipt: Receipt = yield Append(record)
    except AgentguardError as error:
        refused = Decision.deny(str(error), code=error.code)
        raise Denied(refused) from error
    except Exception as error:
        raise Denied(_failed("storage.failed", "the log can't be written", error)) from error
    except BaseException as error:
        # interrupted while the entry may already be durable: say that the tool did not run
        if decision.allowed:
            account = _Account(actor, line, salt, sealed, None)
            yield from account.close("not_run", None, error=error)
        raise
    return receipt, decision


def _failed(code: str, what: str, error: Exception) -> Decision:
    """A refusal that names the kind of failure and keeps its text, which may hold secrets, out."""
    return Decision.deny(f"{what} ({type(error).__name__})", code=code)


# --- 9: the outcome -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Account:
    """Writes what became of an authorised call, signed by the agent instance."""

    actor: Actor
    line: Line
    salt: bytes
    sealed: Envelope
    receipt: Receipt | None

    def now(self) -> str:
        now, _refusal = _effective_time(self.line)
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
        committed = commitment(self.salt, encoded) if encoded is not None else None
        ended = self.now()
        payload = entry.outcome_statement(
            sha256_hex(self.sealed.payload),
            authorization=self.receipt,
            status=status,
            result=committed,
            result_type=_type_name(result) if status == "ok" else None,
            error_type=_type_name(error) if error is not None else None,
            started_at=started,
            ended_at=ended,
        )
        attachments: tuple[Attachment, ...] = ()
        if encoded is not None and committed is not None:
            attachments = (Attachment("result", committed, self.salt, encoded),)
        outcome = envelope.seal(payload, self.actor.signer)
        return entry.outcome(outcome, at=ended, attachments=attachments)


def _type_name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
