"""The two entries that a call leaves in the log: the authorization and the outcome.

What is kept beside an entry (arguments, the policy's input, the result) is redacted here, too. The
functions return records and write nothing; the shape of the entries is in ``audit/entry.py``.
"""

from __future__ import annotations

from agentguard.audit.entry import Attachment, LogPlace, Record, Role, Status
from agentguard.audit.kinds.calls import (
    CallEntry,
    LoggedRuling,
    OutcomeEntry,
    UnsignedOutcome,
    outcome_statement,
)
from agentguard.audit.summary import Summary
from agentguard.call import redaction
from agentguard.call.arguments import Arguments, encode_result
from agentguard.call.decision import Decision
from agentguard.call.invocation import commitment
from agentguard.call.masking import Masks
from agentguard.call.redaction import Redaction
from agentguard.flow.decide import Ruling
from agentguard.flow.prepare import PreparedCall
from agentguard.flow.reported import ReportedError, ReportedResult
from agentguard.signing.dsse import Envelope


def redactions_of(prepared: PreparedCall, decision: Decision) -> tuple[Redaction, ...]:
    """Return what the configuration and the policy redact of a call."""
    tool = prepared.invocation.tool
    redactions = prepared.ports.redactions_of(tool.name) + decision.redactions
    return redaction.with_attributes(redactions, tool.attributes) if redactions else ()


def authorization(
    prepared: PreparedCall,
    envelope: Envelope,
    ruling: Ruling,
    redactions: tuple[Redaction, ...],
    *,
    journal_name: str | None,
    replay_of: str | None,
) -> Record:
    """Return the entry with the ruling on the invocation that ``envelope`` signs.

    Raises ``EncodeError`` for a policy's answer that is larger than an entry may be.
    """
    ports, document = prepared.ports, ruling.document
    is_evaluated = document is not None
    committed = commitment(prepared.salt, document) if document is not None else None
    return CallEntry.new(
        envelope,
        prepared.predicate,
        LoggedRuling(
            ruling.decision,
            committed,
            ports.engine_name if is_evaluated else None,
            ports.engine.policy_sha256 if is_evaluated else None,
            ports.config_sha256,
            ports.roster.sha256 if ruling.answers else None,
            tuple(answer.envelope for answer in ruling.answers),
            ruling.evaluation,
            ports.mode,
            ruling.enforced,
            prepared.actor.client,
        ),
        at=prepared.at,
        attachments=_attachments(prepared, document, committed, redactions),
        journal=journal_name,
        replay_of=replay_of,
    )


def outcome(  # noqa: PLR0913  what the entry says
    prepared: PreparedCall,
    invocation_sha256: str,
    place: LogPlace | None,
    status: Status,
    redactions: tuple[Redaction, ...],
    *,
    result: object,
    error: BaseException | None,
    started_at: str | None,
    ended_at: str,
    replay_of: str | None,
    is_suspended: bool,
    masks: Masks | None,
) -> tuple[UnsignedOutcome, str | None]:
    """Return the outcome, which the agent instance is yet to sign, and the error's type.

    ``invocation_sha256`` names the invocation; ``place`` is the place of the authorization, None
    where nobody knows the place. ``masks`` are of the secrets that the tool got, None for none: the
    log has the salt of the call, so the outcome commits to the masked result. Raises
    ``EncodeError``.
    """
    actor, salt = prepared.actor, prepared.salt
    invocation_id = prepared.predicate["invocation_id"]
    encoded = _encoded(result) if status == "ok" else None
    if encoded is not None and masks is not None:
        encoded = masks.masked(encoded)
    committed = commitment(salt, encoded) if encoded is not None else None
    error_type = _type_name(error) if error is not None else None
    payload = outcome_statement(
        invocation_sha256,
        authorization=place or invocation_id,
        status=status,
        result=committed,
        result_type=_type_name(result) if status == "ok" else None,
        error_type=error_type,
        started_at=started_at,
        ended_at=ended_at,
        replay_of=replay_of,
        suspended=is_suspended,
    )
    attachments: tuple[Attachment, ...] = ()
    if encoded is not None and committed is not None:
        copy = redaction.redact("result", encoded, redactions) if redactions else None
        attachments = (_attachment("result", committed, salt, encoded, copy),)
    columns = Summary(OutcomeEntry.kind, ended_at, invocation_id, actor.uri, status=status)
    unsigned = UnsignedOutcome.of(
        payload, actor.signer, columns, committed, attachments=attachments
    )
    return unsigned, error_type


def _attachments(
    prepared: PreparedCall,
    document: bytes | None,
    committed: str | None,
    redactions: tuple[Redaction, ...],
) -> tuple[Attachment, ...]:
    """Return what is kept beside the authorization: the arguments, and the policy's input."""
    kept: list[Attachment] = []
    arguments, arguments_commitment = prepared.arguments, prepared.predicate["arguments"]
    if isinstance(arguments, Arguments) and arguments_commitment is not None:
        encoded = arguments.encoded
        copy = redaction.redact("args", encoded, redactions) if redactions else None
        kept.append(_attachment("arguments", arguments_commitment, prepared.salt, encoded, copy))
    if document is not None and committed is not None:
        copy = redaction.redact_input(document, redactions) if redactions else None
        kept.append(_attachment("input", committed, prepared.salt, document, copy))
    return tuple(kept)


def _attachment(
    role: Role, committed: str, salt: bytes, data: bytes, copy: bytes | None
) -> Attachment:
    """Return the data, or a redacted copy under a salt and a commitment of the copy's own."""
    if copy is None:
        return Attachment(role, committed, salt, data)
    salt = redaction.salt_of(salt)
    return Attachment(role, commitment(salt, copy), salt, copy)


def _encoded(result: object) -> bytes | None:
    return result.encoded if isinstance(result, ReportedResult) else encode_result(result)


def _type_name(value: object) -> str:
    if isinstance(value, ReportedResult | ReportedError):
        return value.type_name
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
