"""The rules of an approval: which answers count for a requirement, and how many are enough.

A guarded call, the inbox and the verifier of the log apply the same rules. ``roster.py`` verifies
an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer, Roster
from agentguard.call.decision import Requirement
from agentguard.errors import ApprovalError

_ANYBODY: Final = ""
"""Stands for everybody whom the application lets answer: nobody knows how many they are."""


class _Voter(NamedTuple):
    """Somebody who answers; ``name`` is None for an answer that is the application's word."""

    principal: str
    name: str | None
    roles: tuple[str, ...]


def _voter(answer: Answer) -> _Voter:
    name = None if answer.approver is None else answer.approver.name
    return _Voter(answer.approval.approver, name, answer.roles)


def missing_approvals(
    requirements: Iterable[Requirement],
    answers: Sequence[Answer],
    *,
    requesters: AbstractSet[str],
) -> str | None:
    """Return in words what the first unmet requirement lacks; None where all are met.

    ``answers`` are verified; rejections do not count. One principal counts once for a requirement,
    however many names and keys the principal has on the roster.
    """
    for requirement in requirements:
        people = {
            answer.approval.approver
            for answer in answers
            if answer.approval.verdict == "approve"
            and _reason_not_counted(requirement, _voter(answer), requesters) is None
        }
        if len(people) < requirement.quorum:
            approvers = "".join(f" {words}" for words in _approvers_in_words(requirement))
            progress = f"{len(people)} of {requirement.quorum} approvals"
            return f"{requirement.reason}: {progress}{approvers}"
    return None


def lacking(request: ApprovalRequest, answers: Sequence[Answer]) -> str | None:
    """Return in words which approvals a request lacks, as ``missing_approvals`` does."""
    requesters = frozenset(request.requesters)
    return missing_approvals(request.requirements, answers, requesters=requesters)


def is_rejected(answers: Iterable[Answer]) -> bool:
    """Return whether somebody has rejected; one rejection is enough."""
    return any(answer.approval.verdict == "reject" for answer in answers)


def counted(
    requirements: Sequence[Requirement],
    answers: Iterable[Answer],
    requesters: AbstractSet[str],
) -> tuple[Answer, ...]:
    """Return the answers that count for one of the requirements at least."""
    return tuple(
        answer
        for answer in answers
        if any(_reason_not_counted(one, _voter(answer), requesters) is None for one in requirements)
    )


def requesters_of(principal: str, owner: str | None) -> frozenset[str]:
    """Return who may not approve a call: the principal of the call, and the agent's owner."""
    return frozenset({principal} if owner is None else {principal, owner})


def _reason_not_counted(
    requirement: Requirement, voter: _Voter, requesters: AbstractSet[str]
) -> str | None:
    """Return in words why a person does not count for a requirement; None where one counts."""
    principal, name, roles = voter
    if principal in requesters and not requirement.allow_self:
        return f"{principal} asks for this call, or owns the agent: somebody else must approve"
    if name is None and requirement.approvers is not None:
        return "where a policy names approvers, an answer has to be signed"
    if name is None and requirement.quorum > 1 and requirement.roles is None:
        return "where a policy asks for several people and no role, an answer has to be signed"
    names = requirement.approvers
    if name is not None and names is not None and name not in names:
        return f"{name} is none of {', '.join(names)}"
    if requirement.roles is not None and not set(requirement.roles) & set(roles):
        return f"{name or principal} has none of the roles {', '.join(requirement.roles)}"
    return None


def unmeetable(
    requirements: Iterable[Requirement],
    roster: Roster,
    *,
    requesters: AbstractSet[str] = frozenset(),
    asks_application: bool,
) -> Iterator[str]:
    """Yield in words why no answers could meet a requirement, for each one that none could.

    ``asks_application`` says that a function of the application names the roles of whoever answers
    through the application ([approvals] roles).
    """
    for requirement in requirements:
        voters = list(_voters(roster, asks_application=asks_application))
        why = {one: _reason_not_counted(requirement, one, requesters) for one in voters}
        people = {voter.principal for voter, reason in why.items() if reason is None}
        if _ANYBODY in people or len(people) >= requirement.quorum:
            continue
        asked = "".join(f" {words}" for words in _approvers_in_words(requirement))
        barred = sorted({one.principal for one in voters} & requesters)
        apart = "" if requirement.allow_self or not barred else f", {' and '.join(barred)} aside"
        who = f"{requirement.quorum} {'person' if requirement.quorum == 1 else 'people'}{asked}"
        yield (
            f"{requirement.reason}: it takes {who}, and {len(people) or 'nobody'} could "
            f"approve{apart}; {_advice([requirement], roster) or _ADD}"
        )


_ADD: Final = "add them to [approvers], or correct the names and numbers in the policy"


def _voters(roster: Roster, *, asks_application: bool) -> Iterator[_Voter]:
    """Yield everybody whose answer could count: with a signature, and by the application's word."""
    for approver in roster.approvers.values():
        if approver.keys:
            yield _Voter(approver.principal, approver.name, approver.roles)
    if roster.application:
        counting = set(roster.application_roles)
        yield _Voter(_ANYBODY, None, roster.application_roles if asks_application else ())
        for principal in {approver.principal for approver in roster.approvers.values()}:
            yield _Voter(principal, None, tuple(roster.roles_of(principal) & counting))


def may_reject(principal: str, request: ApprovalRequest, roster: Roster) -> bool:
    """Return whether somebody may reject a call, whatever the call's requirements are.

    Everybody on the roster may reject. Whoever asks for the call may do so as well, because a
    rejection lets nothing run.
    """
    on_the_roster = any(one.principal == principal for one in roster.approvers.values())
    return on_the_roster or principal in request.requesters


def require_counts(request: ApprovalRequest, answer: Answer, roster: Roster) -> None:
    """Raise ``ApprovalError`` (``approval.refused``) for an answer that counts for no requirement.

    A rejection also counts as ``may_reject`` says.
    """
    requesters, verdict = frozenset(request.requesters), answer.approval.verdict
    if verdict == "reject" and may_reject(answer.approval.approver, request, roster):
        return
    voter = _voter(answer)
    reasons = [_reason_not_counted(one, voter, requesters) for one in request.requirements]
    if all(reason is not None for reason in reasons):
        what = "approval" if verdict == "approve" else "rejection"
        advice = "" if answer.approver is not None else _advice(request.requirements, roster)
        advice = f"; {advice}" if advice else ""
        message = f"this {what} would not count: {reasons[0]}{advice}"
        raise ApprovalError(message, code="approval.refused")


def _advice(requirements: Iterable[Requirement], roster: Roster) -> str:
    """Return how the application's word could count for the roles that are asked for."""
    asked = [role for one in requirements if one.roles is not None for role in one.roles]
    if not roster.application or not asked or {*asked} & {*roster.application_roles}:
        return ""
    return (
        "the application's word counts for none of these roles: list the role in [approvals] "
        "application_roles, or have the answer signed"
    )


def _approvers_in_words(requirement: Requirement) -> Iterable[str]:
    if requirement.approvers is not None:
        yield f"by {' or '.join(requirement.approvers)}"
    if requirement.roles is not None:
        yield f"in the role {' or '.join(requirement.roles)}"
