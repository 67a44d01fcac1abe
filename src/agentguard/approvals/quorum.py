"""The rules of an approval: which answers count for a requirement, and how many are enough.

A guarded call, the inbox and the verifier of the log apply the same rules. ``roster.py`` verifies
an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from agentguard.approvals.roster import Answer
from agentguard.call.decision import Requirement


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
            and reason_not_counted(requirement, answer, requesters) is None
        }
        if len(people) < requirement.quorum:
            approvers = "".join(f" {words}" for words in _approvers_in_words(requirement))
            progress = f"{len(people)} of {requirement.quorum} approvals"
            return f"{requirement.reason}: {progress}{approvers}"
    return None


def requesters_of(principal: str, owner: str | None) -> frozenset[str]:
    """Return who may not approve a call: the principal of the call, and the agent's owner."""
    return frozenset({principal} if owner is None else {principal, owner})


def reason_not_counted(
    requirement: Requirement, answer: Answer, requesters: AbstractSet[str]
) -> str | None:
    """Return in words why an answer does not count for a requirement; None where it counts."""
    principal, approver = answer.approval.approver, answer.approver
    if principal in requesters and not requirement.allow_self:
        return f"{principal} asks for this call, or owns the agent: somebody else must approve"
    if approver is None and requirement.approvers:
        return "where a policy names approvers, an answer has to be signed"
    if approver is None and requirement.quorum > 1 and not requirement.roles:
        return "where a policy asks for several people and no role, an answer has to be signed"
    if (
        approver is not None
        and requirement.approvers
        and approver.name not in requirement.approvers
    ):
        return f"{approver.name} is none of {', '.join(requirement.approvers)}"
    if requirement.roles and not set(requirement.roles) & set(answer.roles):
        name = principal if approver is None else approver.name
        return f"{name} has none of the roles {', '.join(requirement.roles)}"
    return None


def _approvers_in_words(requirement: Requirement) -> Iterable[str]:
    if requirement.approvers:
        yield f"by {' or '.join(requirement.approvers)}"
    if requirement.roles:
        yield f"in the role {' or '.join(requirement.roles)}"
