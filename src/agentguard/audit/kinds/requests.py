"""Requests for approvals, and the ends of those whose call nobody has made again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from agentguard.approvals.answer import MAX_SKEW, Approval, read_answer
from agentguard.approvals.request import ApprovalRequest, read_requirement, requirements_digest
from agentguard.approvals.roster import Answer, Roster
from agentguard.approvals.status import RequestEnd
from agentguard.audit.entry import Content, Entry, Here, Record, mismatch, present
from agentguard.audit.summary import Summary, trace_id
from agentguard.call.decision import Requirement
from agentguard.errors import DecodeError
from agentguard.signing.declared import ABSENT, Absent, Declared
from agentguard.signing.dsse import Envelope

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State


class RequestDigests(NamedTuple):
    """The id and digests of a request, from the request's entry or from an answer."""

    request_id: str
    call_sha256: str
    requirement_sha256: str
    displayed_sha256: str

    @classmethod
    def of_answer(cls, answer: Approval) -> RequestDigests:
        """Return the request to which an answer is."""
        return cls(
            answer.request_id,
            answer.subject_sha256,
            answer.requirement_sha256,
            answer.displayed_sha256,
        )


class ToolName(Declared):
    """The tool of a request, and the digest of its description."""

    name: str
    digest: str


class OfRequest(Entry):
    """A request for an approval, without the arguments of the call.

    ``call_digest`` names the call, and ``displayed_sha256`` is the digest of what people see.
    ``expires_at`` is in seconds since the epoch.
    """

    request_id: str
    call_digest: str
    agent: str
    principal: str
    tool: ToolName
    task_id: str | None
    requirement_sha256: str
    displayed_sha256: str
    expires_at: int
    traceparent: str | Absent = ABSENT

    @staticmethod
    def of(request: ApprovalRequest) -> dict[str, Any]:
        """Return the members that name a request."""
        return {
            "request_id": request.request_id,
            "call_digest": request.call_digest,
            "agent": request.agent,
            "principal": request.principal,
            "tool": ToolName(name=request.tool, digest=request.tool_digest),
            "task_id": request.task_id,
            "requirement_sha256": request.requirement_sha256,
            "displayed_sha256": request.displayed_sha256,
            "expires_at": request.expires_at,
            "traceparent": ABSENT if request.traceparent is None else request.traceparent,
        }

    @property
    def digests(self) -> RequestDigests:
        """The id and the digests of the request."""
        return RequestDigests(
            self.request_id, self.call_digest, self.requirement_sha256, self.displayed_sha256
        )

    @property
    def asked(self) -> tuple[object, ...]:
        """What the two entries of one request say alike."""
        who = self.agent, self.principal, self.tool, self.task_id, self.traceparent
        return self.digests, self.expires_at, who

    @property
    def summary(self) -> Summary:
        """The columns: who asks, for whom, with which tool."""
        return Summary(
            self.kind,
            self.at,
            agent=self.agent,
            principal=self.principal,
            tool=self.tool.name,
            task_id=self.task_id,
            trace_id=trace_id(present(self.traceparent)),
        )


class RequestEntry(OfRequest, kw_only=True):
    """An agent asks people for an approval; nobody sees a request that the log does not have.

    ``chain_sha256`` names the delegation under which the agent asks, None for its own authority.
    """

    kind: ClassVar[str] = "request"
    call_site: str
    resource: str | None
    requirements: list[Any]
    chain_sha256: str | None

    @classmethod
    def new(cls, request: ApprovalRequest, chain_sha256: str | None, *, at: str) -> Record:
        """Return the entry."""
        return cls(
            at=at,
            call_site=request.call_site,
            resource=request.resource,
            requirements=[one.as_json() for one in request.requirements],
            chain_sha256=chain_sha256,
            **cls.of(request),
        ).record()

    @property
    def required(self) -> tuple[Requirement, ...]:
        """What the policy requires; raises ``DecodeError``."""
        return requirements_of(self.requirements)

    @property
    def summary(self) -> Summary:
        """The columns of a decision that waits for people."""
        return super().summary._replace(decision="approval")

    @property
    def words(self) -> str | None:
        """Why people are asked."""
        return "; ".join(one.reason for one in self.required) or None

    def read(self) -> None:
        """Require that the requirements have their digest."""
        if requirements_digest(self.required) != self.requirement_sha256:
            raise DecodeError("the requirements do not have their digest", code="entry.malformed")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the delegation is the same principal's, and lasts as long as the request."""
        del here
        if self.chain_sha256 is not None:
            chain = log.chain(self.chain_sha256)
            if self.principal != chain.principal:
                raise mismatch("a request is for another principal than its chain of delegation")
            if self.expires_at > chain.leaf.expires_at:
                raise mismatch("a request ends after its chain of delegation")
        log.requests[self.request_id] = self
        log.asked_calls.add(self.call_digest)
        return Content(self.summary)

    def change(self, state: State) -> None:
        """People may be shown the request."""
        state.ask(self.request_id, self.displayed_sha256, self.expires_at)


class RequestEndEntry(OfRequest, kw_only=True):
    """A request has ended, whose call nobody has made again.

    ``approvals`` are the valid answers by then, of people in the roster with ``roster_sha256``.
    """

    kind: ClassVar[str] = "request_end"
    end: RequestEnd
    roster_sha256: str | None
    approvals: list[Any]

    @classmethod
    def new(
        cls,
        request: ApprovalRequest,
        end: RequestEnd,
        answers: Sequence[Envelope],
        roster_sha256: str,
        *,
        at: str,
    ) -> Record:
        """Return the entry."""
        return cls(
            at=at,
            end=end,
            roster_sha256=roster_sha256 if answers else None,
            approvals=[answer.as_json() for answer in answers],
            **cls.of(request),
        ).record()

    @cached_property
    def answers(self) -> tuple[Approval, ...]:
        """The answers, unverified; raises ``DecodeError``."""
        return answers_in(self.approvals)

    @property
    def words(self) -> str:
        """How the request has ended, and who had answered."""
        what = {"expired": "has expired", "withdrawn": "was withdrawn"}[self.end]
        said = words_of(self.answers)
        return f"the request {self.request_id} {what}{f'; it was {said}' if said else ''}"

    def read(self) -> None:
        """Read the answers."""
        _ = self.answers

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the time, and the answers until then."""
        if self.end == "expired" and here.at < self.expires_at:
            raise mismatch("a request has expired before its end")
        if self.end == "withdrawn" and here.at >= self.expires_at:
            raise mismatch("a request was withdrawn after its end")
        roster = log.roster(self.roster_sha256)
        if (roster is None) == bool(self.approvals):
            raise mismatch("the end of a request names a roster for its answers, and else none")
        answers = identified(self.approvals, roster)
        if any(answer.approval.not_before - MAX_SKEW > here.at for answer in answers):
            raise mismatch("an answer is newer than the end of its request")
        if answered_requests(answers) - {self.digests}:
            raise mismatch("an answer is to another request than the one that ended")
        log.end_request(self, here)
        return Content(self.summary)

    def change(self, state: State) -> None:
        """People are not shown the request any more, and no call uses it."""
        state.close(self.request_id, self.end)


def requirements_of(listed: Iterable[Any]) -> tuple[Requirement, ...]:
    """Return the requirements in an entry; raises ``DecodeError``."""
    return tuple([read_requirement(one) for one in listed])


def answers_in(listed: Iterable[Any]) -> tuple[Approval, ...]:
    """Return the answers in an entry, unverified; raises ``DecodeError``."""
    return tuple([read_answer(Envelope.parse(one)) for one in listed])


def words_of(answers: Iterable[Approval]) -> str | None:
    """Name who has answered, each once; None for nobody."""
    verdicts = (
        f"{'approved' if a.verdict == 'approve' else 'rejected'} by {a.approver}" for a in answers
    )
    return ", ".join(dict.fromkeys(verdicts)) or None


def identified(listed: Iterable[Any], roster: Roster | None) -> tuple[Answer, ...]:
    """Return the answers in an entry, verified as those of people in the roster, each once.

    Raises ``DecodeError`` or ``VerificationError``.
    """
    if roster is None:
        return ()
    answers = tuple([roster.identify(Envelope.parse(one)) for one in listed])
    if len({answer.approval.approval_id for answer in answers}) != len(answers):
        raise mismatch("an answer stands twice")
    return answers


def answered_requests(answers: Iterable[Answer]) -> frozenset[RequestDigests]:
    """Return the requests that the answers name: one request, where all answers are valid."""
    return frozenset(RequestDigests.of_answer(answer.approval) for answer in answers)
