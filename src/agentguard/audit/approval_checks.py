"""Checks of the approvals in the log: the answers in the entry of a call, requests, rosters.

The answers are checked against the roster that the issuer signed into the log before the call,
against the call, and against the requirements. ``flow/decide.py`` decides at run time whether
answers are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, get_args

from agentguard.approvals.answer import MAX_SKEW, Approval, read_answer
from agentguard.approvals.quorum import missing_approvals, requesters_of
from agentguard.approvals.request import read_requirement, requirements_digest
from agentguard.approvals.roster import Answer, Roster
from agentguard.approvals.status import RequestEnd
from agentguard.audit import statements, summary
from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry
from agentguard.audit.summary import Summary
from agentguard.call.decision import Requirement
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey

_ABOUT: Final = ("agent", "principal", "tool", "task_id", "traceparent")
_ENDS: Final[Mapping[str, RequestEnd]] = {end: end for end in get_args(RequestEnd)}


class SignedRoster(NamedTuple):
    """A roster in the log, and the issuer's key that has signed the roster."""

    issuer: PublicKey
    roster: Roster


def check_roster(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> SignedRoster:
    """Return the roster in an entry, with its signer; raises as ``check_revocation`` does."""
    key, predicate = statements.check_issued(entry, trust, at, signatures=signatures)
    members = dict(predicate)
    if members.pop("trust_domain", None) != trust.trust_domain:
        raise _mismatch("the roster is another trust domain's")
    roster = Roster.from_json(members)
    if roster_digest(entry) != roster.sha256:
        raise _mismatch("the roster does not have its digest")
    return SignedRoster(key, roster)


def roster_digest(entry: Entry) -> str:
    """Return the digest in a roster's entry, unverified; raises ``DecodeError``."""
    _key_id, statement = statements.read_statement(entry)
    return statement.subject_sha256


def check_approvals(
    call: Authorization, entry: Entry, roster: Roster | None, issued: Credential, at: int
) -> tuple[Answer, ...]:
    """Return the answers on which a call rests, after a check that they are valid and enough.

    ``roster`` is the roster that the call names, None without one. ``issued`` is the credential of
    the instance, and ``at`` the time when the call was logged. Raises ``DecodeError`` or
    ``VerificationError``.
    """
    requirements, envelopes = read_requirements(entry), _envelopes(entry)
    if roster is None:
        if envelopes or (requirements and call.enforced):
            raise _mismatch("a call with answers or requirements, and no roster for them")
        return ()
    if not envelopes:
        raise _mismatch("a call that names a roster, and rests on no answer")
    digest = requirements_digest(requirements)
    answers = tuple(roster.identify(envelope) for envelope in envelopes)
    for answer in answers:
        _check_answer(call, answer.approval, digest, at)
    if len(answered_requests(answers)) > 1:
        raise _mismatch("the answers are to more than one request")
    if len({answer.approval.approval_id for answer in answers}) != len(answers):
        raise _mismatch("an answer stands twice")
    if call.allowed:
        requesters = requesters_of(call.principal, issued.profile.owner)
        lacking = missing_approvals(requirements, answers, requesters=requesters)
        if lacking is not None or not requirements:
            raise _mismatch(f"the answers are not enough: {lacking or 'nothing was asked for'}")
    return answers


def _check_answer(
    call: Authorization, approval: Approval, requirement_sha256: str, at: int
) -> None:
    if approval.subject_sha256 != call.call_sha256:
        raise _mismatch("an answer is to another call")
    approval.check_time(at)
    if call.allowed and approval.verdict != "approve":
        raise _mismatch("a call that was allowed, and a rejection")
    if call.allowed and approval.requirement_sha256 != requirement_sha256:
        raise _mismatch("an answer is to other requirements")
    if call.code == "approval.rejected" and approval.verdict != "reject":
        raise _mismatch("a call that was rejected, and an answer that is no rejection")


class RequestDigests(NamedTuple):
    """The id and digests of a request, from the request's entry or from an answer."""

    request_id: str
    call_sha256: str
    requirement_sha256: str
    displayed_sha256: str


class LoggedRequest(NamedTuple):
    """A request in the log, or the end of one: its digests, and its expiry (epoch seconds).

    ``about_sha256`` is the digest of who asks for what, as an entry says it for a search.
    """

    digests: RequestDigests
    expires_at: int
    about_sha256: str


class LoggedEnd(NamedTuple):
    """The end of a request in the log, whose call nobody has made again."""

    request: LoggedRequest
    end: RequestEnd


def read_request(entry: Entry) -> LoggedRequest:
    """Read a request's entry and check the requirements' digest; raises ``DecodeError``."""
    request = _read_request(entry)
    if requirements_digest(read_requirements(entry)) != request.digests.requirement_sha256:
        raise DecodeError("the requirements do not have their digest", code="entry.malformed")
    return request


def _read_request(entry: Entry) -> LoggedRequest:
    members = entry.members
    expires_at = members["expires_at"]
    if not is_integer(expires_at):
        raise DecodeError("expires_at is a whole number", code="entry.malformed")
    digests = RequestDigests(
        str(members["request_id"]),
        str(members["call_digest"]),
        str(members["requirement_sha256"]),
        str(members["displayed_sha256"]),
    )
    about = {name: members.get(name) for name in _ABOUT}
    return LoggedRequest(digests, expires_at, canonical.digest(about))


def check_request(entry: Entry, chain: Chain | None) -> LoggedRequest:
    """Return the request in an entry, asked for under ``chain``; None for no delegation.

    Raises ``DecodeError``, and ``VerificationError`` for a request that is for somebody else than
    the chain is, or outlives it.
    """
    request = read_request(entry)
    if chain is not None:
        if entry.members["principal"] != chain.principal:
            raise _mismatch("a request is for another principal than its chain of delegation")
        if request.expires_at > chain.leaf.expires_at:
            raise _mismatch("a request ends after its chain of delegation")
    return request


def read_request_end(entry: Entry) -> LoggedEnd:
    """Read the entry of a request's end, unverified; raises ``DecodeError``."""
    end = _ENDS.get(str(entry.members["end"]))
    if end is None:
        raise DecodeError("a request ends as expired or withdrawn", code="entry.malformed")
    return LoggedEnd(_read_request(entry), end)


def check_request_end(entry: Entry, roster: Roster | None, at: int) -> LoggedEnd:
    """Return the end of a request, after a check of its time, and of the answers until then.

    ``roster`` is the roster that the entry names, and ``at`` the time when the end was logged.
    Raises ``DecodeError`` or ``VerificationError``.
    """
    ended, envelopes = read_request_end(entry), _envelopes(entry)
    if ended.end == "expired" and at < ended.request.expires_at:
        raise _mismatch("a request has expired before its end")
    if ended.end == "withdrawn" and at >= ended.request.expires_at:
        raise _mismatch("a request was withdrawn after its end")
    if (roster is None) == bool(envelopes):
        raise _mismatch("the end of a request names a roster for its answers, and else none")
    answers = [roster.identify(envelope) for envelope in envelopes if roster is not None]
    if any(answer.approval.not_before - MAX_SKEW > at for answer in answers):
        raise _mismatch("an answer is newer than the end of its request")
    if answered_requests(answers) - {ended.request.digests}:
        raise _mismatch("an answer is to another request than the one that ended")
    if len({answer.approval.approval_id for answer in answers}) != len(answers):
        raise _mismatch("an answer stands twice")
    return ended


def answered_requests(answers: Sequence[Answer]) -> frozenset[RequestDigests]:
    """Return the requests that the answers name: one request, where all answers are valid."""
    stated = [answer.approval for answer in answers]
    return frozenset(
        RequestDigests(a.request_id, a.subject_sha256, a.requirement_sha256, a.displayed_sha256)
        for a in stated
    )


def summary_of_request(entry: Entry) -> Summary:
    """Return the summary of the entry of a request or of its end; raises ``DecodeError``."""
    match {"traceparent": None, **entry.members}:
        case {
            "agent": str(agent),
            "principal": str(principal),
            "tool": {"name": str(tool)},
            "task_id": str() | None as task_id,
            "traceparent": str() | None as traceparent,
        }:
            return summary.of_request(
                "request_end" if entry.kind == "request_end" else "request",
                at=entry.at,
                agent=agent,
                principal=principal,
                tool=tool,
                task_id=task_id,
                traceparent=traceparent,
            )
    raise DecodeError("a request names agent, principal, tool and task", code="entry.malformed")


def roster_digest_of_answers(entry: Entry) -> str | None:
    """Return the digest of the roster that a call, or a request's end, names for its answers.

    Raises ``DecodeError``.
    """
    digest = entry.members["roster_sha256"]
    if digest is None or isinstance(digest, str):
        return digest
    raise DecodeError("roster_sha256 is a digest or null", code="entry.malformed")


def read_answers(entry: Entry) -> list[Approval]:
    """Return the answers in the entry of a call, or of a request's end, unverified.

    Raises ``DecodeError``.
    """
    return [read_answer(envelope) for envelope in _envelopes(entry)]


def read_requirements(entry: Entry) -> tuple[Requirement, ...]:
    """Return the requirements in a call's or a request's entry; raises ``DecodeError``."""
    listed = entry.members["requirements"]
    if not isinstance(listed, list):
        raise DecodeError("requirements is a list", code="entry.malformed")
    return tuple([read_requirement(one) for one in listed])


def _envelopes(entry: Entry) -> tuple[Envelope, ...]:
    listed: JSON = entry.members["approvals"]
    if not isinstance(listed, list):
        raise DecodeError("approvals is a list of envelopes", code="entry.malformed")
    return tuple([Envelope.parse(one) for one in listed])


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="statement.mismatch")
