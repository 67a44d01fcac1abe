"""What the answers of people in an authorization entry must hold, and the roster's entry.

The roster is the one that the issuer has signed into the log before the call; the answers are held
against it, against the call, and against what had to be met. When the line believes an answer
stands in ``flow/decide.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agentguard.approvals import roster
from agentguard.approvals.answer import Approval, read_answer
from agentguard.approvals.request import read_requirement, requirements_digest
from agentguard.approvals.roster import Answer, Roster, missing_approvals
from agentguard.audit import statements, summary
from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry
from agentguard.audit.summary import Summary
from agentguard.call.decision import Requirement
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey


class StatedRoster(NamedTuple):
    """A roster of the log, and the issuer's key that has signed it."""

    issuer: PublicKey
    people: Roster


def check_roster(
    parsed: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> StatedRoster:
    """Return the roster of an entry, and who has signed it; raises as ``check_revocation`` does."""
    key, said = statements.check_issued(parsed, trust, at, signatures=signatures)
    members = dict(said)
    if members.pop("trust_domain", None) != trust.trust_domain:
        raise _mismatch("the roster is another trust domain's")
    people = Roster.from_json(members)
    if roster_digest(parsed) != people.sha256:
        raise _mismatch("the roster does not have its digest")
    return StatedRoster(key, people)


def roster_digest(parsed: Entry) -> str:
    """Return the digest that a roster's entry names, unverified; raises ``DecodeError``."""
    _key_id, said = statements.read_sealed(parsed)
    return said.subject_sha256


def check_approvals(
    call: Authorization, parsed: Entry, people: Roster | None, issued: Credential, at: int
) -> tuple[Answer, ...]:
    """Return the answers on which a call rests, each verified, and all together enough.

    ``people`` is the roster that the call names, None where it names none; ``issued`` the
    credential of the instance, and ``at`` when the call was logged. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    requirements, envelopes = requirements_of(parsed), _envelopes(parsed)
    if people is None:
        if envelopes or (requirements and call.enforced):
            raise _mismatch("a call with answers or requirements, and no roster for them")
        return ()
    if not envelopes:
        raise _mismatch("a call that names a roster, and rests on no answer")
    digest = requirements_digest(requirements)
    answers = tuple(people.identify(sealed) for sealed in envelopes)
    for answer in answers:
        _check_answer(call, answer.approval, digest, at)
    if len(answered(answers)) > 1:
        raise _mismatch("the answers are to more than one request")
    if len({answer.approval.approval_id for answer in answers}) != len(answers):
        raise _mismatch("an answer stands twice")
    if call.allowed:
        requesters = roster.requesters(call.principal, issued.profile.owner)
        lacking = missing_approvals(requirements, answers, requesters=requesters)
        if lacking is not None or not requirements:
            raise _mismatch(f"the answers are not enough: {lacking or 'nothing was asked for'}")
    return answers


def _check_answer(call: Authorization, said: Approval, requirement_sha256: str, at: int) -> None:
    if said.subject_sha256 != call.call_sha256:
        raise _mismatch("an answer is to another call")
    said.check_time(at)
    if call.allowed and said.verdict != "approve":
        raise _mismatch("a call that was allowed, and a rejection")
    if call.allowed and said.requirement_sha256 != requirement_sha256:
        raise _mismatch("an answer is to other requirements")
    if call.code == "approval.rejected" and said.verdict != "reject":
        raise _mismatch("a call that was rejected, and an answer that is no rejection")


class Requested(NamedTuple):
    """What was asked of people, by a request's entry, or what an answer says that it was."""

    request_id: str
    call_sha256: str
    requirement_sha256: str
    displayed_sha256: str


def read_request(parsed: Entry) -> Requested:
    """Read a request's entry, whose requirements have their digest; raises ``DecodeError``."""
    members = parsed.members
    asked = Requested(
        str(members["request_id"]),
        str(members["call_digest"]),
        str(members["requirement_sha256"]),
        str(members["displayed_sha256"]),
    )
    if requirements_digest(requirements_of(parsed)) != asked.requirement_sha256:
        raise DecodeError("the requirements do not have their digest", code="entry.malformed")
    return asked


def answered(answers: Sequence[Answer]) -> frozenset[Requested]:
    """Return what was asked, by the answers: one request, where they hold."""
    said = [answer.approval for answer in answers]
    return frozenset(
        Requested(a.request_id, a.subject_sha256, a.requirement_sha256, a.displayed_sha256)
        for a in said
    )


def summary_of_request(parsed: Entry) -> Summary:
    """Summarise a request entry from its members; raises ``DecodeError``."""
    match {"traceparent": None, **parsed.members}:
        case {
            "agent": str(agent),
            "principal": str(principal),
            "tool": {"name": str(tool)},
            "task_id": str() | None as task_id,
            "traceparent": str() | None as traceparent,
        }:
            return summary.of_request(
                at=parsed.at,
                agent=agent,
                principal=principal,
                tool=tool,
                task_id=task_id,
                traceparent=traceparent,
            )
    raise DecodeError("a request names agent, principal, tool and task", code="entry.malformed")


def roster_named(parsed: Entry) -> str | None:
    """Return the digest of the roster that a call names; raises ``DecodeError``."""
    named = parsed.members["roster_sha256"]
    if named is None or isinstance(named, str):
        return named
    raise DecodeError("roster_sha256 is a digest or null", code="entry.malformed")


def said_of(parsed: Entry) -> list[Approval]:
    """Return what the answers in a call's entry say, unverified; raises ``DecodeError``."""
    return [read_answer(sealed) for sealed in _envelopes(parsed)]


def requirements_of(parsed: Entry) -> tuple[Requirement, ...]:
    """Return what had to be met, by a call's or a request's entry; raises ``DecodeError``."""
    listed = parsed.members["requirements"]
    if not isinstance(listed, list):
        raise DecodeError("requirements is a list", code="entry.malformed")
    return tuple([read_requirement(one) for one in listed])


def _envelopes(parsed: Entry) -> tuple[Envelope, ...]:
    listed: JSON = parsed.members["approvals"]
    if not isinstance(listed, list):
        raise DecodeError("approvals is a list of envelopes", code="entry.malformed")
    return tuple([Envelope.parse(one) for one in listed])


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="statement.mismatch")
