"""``authorize``: the policy's decision about one call, signed and recorded, without the call.

The steps are 1, 2, 3 and 5 of a guarded call (architecture.md), and the entry of the evaluation in
the log. Nothing is used up: no approval, no counted call, no entry of the journal. Nobody is asked
for an approval, and answers that are there do not count. The agent instance signs nothing, so that
nobody can present an evaluation as an authorised call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from agentguard.audit.entry import LogPlace, Record
from agentguard.audit.kinds.evaluation import Basis, EvaluationEntry
from agentguard.call.decision import Decision
from agentguard.call.evaluation import Evaluation
from agentguard.errors import EncodeError
from agentguard.flow.decide import Ruling, ask_policy
from agentguard.flow.effects import Do, Effect
from agentguard.flow.prepare import CallInput, PreparedCall, prepare
from agentguard.signing.keys import Signer


def authorize(
    call: CallInput, issuer: Callable[[], Signer], asked_by: str | None = None
) -> Generator[Effect, Any, Evaluation]:
    """Return the decision that the policy gives about a call, once the log has the decision.

    ``issuer`` returns the issuer's signer. ``asked_by`` is the client that asks for the agent, None
    for the agent's own process. In the mode ``observe``, the decision is the policy's answer all
    the same. An evaluation that can't be signed or recorded is a refusal.
    """
    prepared = yield from prepare(call, seeks_approval=False)
    ruling = yield from ask_policy(prepared)
    if ruling.interrupt is not None:
        raise ruling.interrupt
    ruling = ruling._replace(decision=ruling.decision.shortened())
    try:
        signer: Signer = yield Do(issuer)
        record, statement, decision = _entry(prepared, ruling, signer, asked_by)
    except Exception as error:  # noqa: BLE001  a signer may be a service: any failure of it denies
        return _unrecorded(error, "signature.failed", "the evaluation can't be signed")
    try:
        place: LogPlace = yield Do(prepared.ports.log.append, record)
    except Exception as error:  # noqa: BLE001  the log is a port: any failure of it denies
        return _unrecorded(error, "storage.failed", "the log can't be written")
    return Evaluation(decision, str(place.index), statement, prepared.salt)


def _entry(
    prepared: PreparedCall, ruling: Ruling, issuer: Signer, asked_by: str | None
) -> tuple[Record, bytes, Decision]:
    """Return the entry, the signed statement, and the decision that they state."""
    is_evaluated, ports = ruling.document is not None, prepared.ports
    basis = Basis(
        ports.config_sha256,
        ports.engine.policy_sha256 if is_evaluated else None,
        ports.engine_name if is_evaluated else None,
        ports.mode,
        asked_by,
    )

    def build(decision: Decision) -> tuple[Record, bytes, Decision]:
        record, statement = EvaluationEntry.new(
            issuer,
            prepared.predicate,
            decision,
            basis,
            name=prepared.actor.name,
            actors=tuple(prepared.authority.actors),
            at=prepared.at,
        )
        return record, statement, decision

    try:
        return build(ruling.decision)
    except EncodeError as error:  # the policy asks for more than an entry can hold
        return build(Decision.refusal(str(error), code="policy.malformed"))


def _unrecorded(error: Exception, code: str, what: str) -> Evaluation:
    return Evaluation(Decision.of_exception(error, code, what))
