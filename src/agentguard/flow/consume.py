"""What a call uses up: one of the calls that a delegation allows, and the approvals of the call.

Both are used up, durably, before the authorization is in the log: a crash in between costs an
approval, and no call runs on a used one. Once the authorization is in the log, ``confirm`` looks
there for another call that has used the same. What an approval is, and who may give one, is in
``decide.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Final

from agentguard.approvals.request import ApprovalRequest
from agentguard.call.decision import Decision
from agentguard.flow.attempt import Attempt
from agentguard.flow.decide import Ruling
from agentguard.flow.effects import Do, Effect
from agentguard.flow.ports import Ports

_LOGGER = logging.getLogger("agentguard")

_OVERTAKEN: Final = {
    "calls.exceeded": "another call has used the last call of the delegation",
    "approval.consumed": "another call has used the same approval",
}

_UNCOUNTED: Final = "the calls can't be counted"
"""The reason where nobody knows whether another call has used the same."""


def consume(attempt: Attempt, ruling: Ruling) -> Generator[Effect, Any, Ruling]:
    """Count the call under the limits of its chain, and use its approvals up.

    Returns ``ruling``, refused where nothing is left, or where nothing can be counted.
    """
    prepared, answers = attempt.prepared, ruling.answers
    ports, limits, stored = prepared.ports, prepared.authority.limits, prepared.stored_request
    if not ruling.runs or not (limits or answers):
        return ruling
    try:
        if limits and not (yield Do(ports.revocations.consume, limits)):
            most = min(most for _jti, most in limits)
            reason = f"the delegation allows {most} calls, and all of them are made"
            return ruling.refused(Decision.refusal(reason, code="calls.exceeded"))
        if not answers:
            return ruling
        attempt.spends_approvals = True
        approval_ids = [answer.approval.approval_id for answer in answers]
        if stored and (yield Do(ports.approvals.spend, stored.request, approval_ids)):
            return ruling
        attempt.spends_approvals = False
        reason = (
            "the approval was used already, or its request was withdrawn: one approval lets one "
            "call run once"
        )
        refusal = Decision.refusal(reason, code="approval.consumed")
    except Exception as error:  # noqa: BLE001  a call that can't be counted is refused
        failed = Decision.of_exception(error, "storage.failed", _UNCOUNTED)
        refusal = yield from give_up(attempt, failed)
    return ruling.refused(refusal)


def confirm(attempt: Attempt) -> Generator[Effect, Any, Decision | None]:
    """Look into the log, which has the call by now, for another call that used the same.

    Somebody may have removed what ``consume`` left in the state before the other call looked.
    """
    prepared = attempt.prepared
    limits, stored = prepared.authority.limits, prepared.stored_request
    request = stored.request if stored is not None and attempt.spends_approvals else None
    if not limits and request is None:
        return None
    try:
        code: str | None = yield Do(_excess, prepared.ports, limits, request)
        return Decision.refusal(_OVERTAKEN[code], code=code) if code is not None else None
    except Exception as error:  # noqa: BLE001  a call that can't be counted is refused
        return Decision.of_exception(error, "storage.failed", _UNCOUNTED)


def _excess(
    ports: Ports, limits: Sequence[tuple[str, int]], request: ApprovalRequest | None
) -> str | None:
    """Return the reason code where the log has a call too many, None where it has not."""
    if limits and not ports.revocations.is_within(limits):
        return "calls.exceeded"
    if request is not None and not ports.approvals.is_alone(request):
        return "approval.consumed"
    return None


def give_up(attempt: Attempt, refusal: Decision) -> Generator[Effect, Any, Decision]:
    """Return ``refusal`` for a call whose approvals may be used up; their request is removed.

    The reasons say what happens when the call is made again. A call in doubt is refused until
    somebody has found out whether it ran, so nothing more is said of one.
    """
    if not attempt.spends_approvals:
        return refusal
    yield from remove_request(attempt)
    reason = "the approvals of this call may be used up"
    if refusal.code != "journal.in_doubt":
        once = "" if attempt.is_request_removed else "is refused once more, and after that "
        reason = f"{reason}: the call, made again, {once}asks anew"
    return replace(refusal, reasons=(*refusal.reasons, reason))


def remove_request(attempt: Attempt) -> Generator[Effect, Any, None]:
    """Remove the request of a call that is decided for good, with the arguments in it."""
    prepared = attempt.prepared
    if (
        prepared.stored_request is None
        or prepared.request_key is None
        or attempt.is_request_removed is not None
    ):
        return
    attempt.is_request_removed = False
    try:
        yield Do(prepared.ports.approvals.remove, prepared.request_key)
        attempt.is_request_removed = True
    except Exception:
        # nobody can use the request once more: its approvals are used up, or it has expired
        _LOGGER.exception("a request for an approval could not be removed")
