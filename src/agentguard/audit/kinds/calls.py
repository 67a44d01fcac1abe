"""The two entries of a call: the decision on it, which precedes the tool's run, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Self, cast

from agentguard.approvals.answer import Approval
from agentguard.approvals.quorum import missing_approvals, requesters_of
from agentguard.approvals.request import requirements_digest
from agentguard.approvals.roster import Answer, Roster
from agentguard.audit import statements
from agentguard.audit.entry import (
    LOG,
    Attachment,
    Commitments,
    Content,
    Entry,
    Here,
    LogPlace,
    Mode,
    Record,
    Status,
    mismatch,
    present,
)
from agentguard.audit.findings import OpenCall
from agentguard.audit.kinds.requests import (
    answered_requests,
    answers_in,
    identified,
    requirements_of,
    words_of,
)
from agentguard.audit.summary import OBSERVED, Summary, trace_id
from agentguard.call.client import Client
from agentguard.call.decision import Decision, Requirement
from agentguard.call.invocation import REFUSED_CHAIN, is_proved
from agentguard.delegation.chain import Chain
from agentguard.errors import ApprovalError, DecodeError, EncodeError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, declared, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.declared import ABSENT, Absent, Declared, Id
from agentguard.signing.dsse import Envelope, JointSignature, Statement
from agentguard.signing.keys import Signer

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State

Copies = dict[str, str]
"""The commitments to redacted copies, by role."""

_MAX_OUTCOME: Final = canonical.MAX_BYTES // 2
"""Bytes of the longest statement of an outcome: an entry holds it in base64, and its signature."""


class EvaluationReport(Declared):
    """The report of a policy server on one evaluation; nobody else vouches for these texts.

    ``decision_id`` is the evaluation's id in the server's own log, ``version`` the version of the
    server, and ``revisions`` the revisions of its bundles by name.
    """

    decision_id: str | None
    version: str | None
    revisions: dict[str, str | None]


class CalledTool(Declared, forbid_unknown_fields=False):
    """The tool of an invocation; ``origin`` says where it comes from, if anybody said so."""

    name: str
    origin: Any = None


class Called(Declared, forbid_unknown_fields=False):
    """The members of an invocation by which calls are searched for and compared.

    ``inside`` is the id of the call whose tool made this call, by the agent's word.
    """

    invocation_id: Id | None
    agent: str
    principal: str
    tool: CalledTool
    task_id: str | None
    traceparent: str | None
    inside: Id | None = None
    chain_sha256: str | None = None


class LoggedRuling(NamedTuple):
    """The content of the entry of a call beside the invocation.

    ``input_commitment`` (hex) and ``engine`` are None where the agent lacked the authority and no
    policy ran. ``policy_sha256`` is None where the engine does not know the policy's digest.
    ``approvals`` are the answers of people on which the decision rests, and ``roster_sha256`` is
    the digest of the roster with these people. ``evaluation`` is what an engine reports about the
    evaluation, None for no report. In the ``mode`` observe, a decision is not ``enforced``: the
    call ran in spite of the decision. ``client`` is who made the call through a guard server.
    """

    decision: Decision
    input_commitment: str | None
    engine: Mapping[str, str] | None
    policy_sha256: str | None
    config_sha256: str
    roster_sha256: str | None = None
    approvals: tuple[Envelope, ...] = ()
    evaluation: Mapping[str, JSON] | None = None
    mode: Mode = "enforce"
    enforced: bool = True
    client: Client | None = None


class CallEntry(Entry):
    """The decision about one call, which precedes the run of the tool.

    ``input`` is the commitment to the policy's input, None where no policy ran. ``engine`` is None
    then, too. ``roster_sha256`` and ``approvals`` are the answers of people on which the decision
    rests. ``copies`` are the commitments to redacted copies, by role. Where the ``decision`` was
    not ``enforced``, the ``mode`` was observe, and the call ran in spite of the decision.
    ``client`` is absent for a call in the process of its guard. ``journal`` is the name of a call
    that runs once, however often an agent makes the call. ``replay_of`` is the invocation that this
    call repeats: the agent gets its result again, or is refused.
    """

    kind: ClassVar[str] = "call"
    invocation: dict[str, Any]
    input: str | None
    decision: Literal["allow", "deny", "approval"]
    code: str
    reasons: tuple[str, ...]
    requirements: list[Any]
    mode: Mode
    enforced: bool
    engine: dict[str, Any] | None
    policy_sha256: str | None
    config_sha256: str
    roster_sha256: str | None
    approvals: list[Any]
    copies: Copies
    client: Client | Absent = ABSENT
    evaluation: EvaluationReport | Absent = ABSENT
    journal: str | Absent = ABSENT
    replay_of: str | Absent = ABSENT

    @classmethod
    def new(
        cls,
        invocation: Envelope,
        predicate: Mapping[str, Any],
        ruling: LoggedRuling,
        *,
        at: str,
        attachments: tuple[Attachment, ...] = (),
        journal: str | None = None,
        replay_of: str | None = None,
    ) -> Record:
        """Return the entry; ``predicate`` belongs to the invocation's statement.

        ``journal`` has 32 hex digits; the entry of a refused call has no such name.
        """
        decision, client, evaluation = ruling.decision, ruling.client, ruling.evaluation
        is_journalled = journal is not None and (decision.allowed or not ruling.enforced)
        entry = cls(
            at=at,
            invocation=invocation.as_json(),
            input=ruling.input_commitment,
            decision=decision.outcome,
            code=decision.code,
            reasons=tuple(decision.reasons),
            requirements=[one.as_json() for one in decision.requirements],
            mode=ruling.mode,
            enforced=ruling.enforced,
            engine=None if ruling.engine is None else {**ruling.engine},
            policy_sha256=ruling.policy_sha256,
            config_sha256=ruling.config_sha256,
            roster_sha256=ruling.roster_sha256,
            approvals=[answer.as_json() for answer in ruling.approvals],
            copies=copies_of(attachments, predicate["arguments"], ruling.input_commitment),
            client=ABSENT if client is None else client,
            evaluation=ABSENT if evaluation is None else cast("Any", {**evaluation}),
            journal=journal if journal is not None and is_journalled else ABSENT,
            replay_of=ABSENT if replay_of is None else replay_of,
        )
        # what ``change`` needs is not read again from the statement
        vars(entry)["chain_sha256"] = predicate.get("chain_sha256")
        about = Summary(
            cls.kind,
            at,
            predicate["invocation_id"],
            predicate["agent"],
            predicate["principal"],
            predicate["tool"]["name"],
            decision.outcome if ruling.enforced else OBSERVED,
            None,
            predicate["task_id"],
            trace_id(predicate["traceparent"]),
        )
        return entry.record(attachments, about=about)

    @cached_property
    def envelope(self) -> Envelope:
        """The invocation that the agent has signed; raises ``DecodeError``."""
        return Envelope.parse(self.invocation, may_be_joint=True)

    @cached_property
    def stated(self) -> Statement:
        """The statement of the invocation, unverified; raises ``DecodeError``."""
        return dsse.parse_statement(self.envelope.payload, "invocation")

    @cached_property
    def invocation_sha256(self) -> str:
        """The digest of the signed invocation, in hex."""
        return canonical.sha256_hex(self.envelope.payload)

    @property
    def call_sha256(self) -> str:
        """The digest of the call, in hex, to which an approval binds."""
        return self.stated.subject_sha256

    @property
    def predicate(self) -> Mapping[str, Any]:
        """The invocation (records.md, "Invocation")."""
        return self.stated.predicate

    @cached_property
    def called(self) -> Called:
        """The call by the agent's word; raises ``DecodeError``."""
        return declared.read(Called, self.predicate, "an invocation", code="entry.malformed")

    @property
    def invocation_id(self) -> str | None:
        """The id of the call; None where the invocation has none."""
        return self.called.invocation_id

    @property
    def inside(self) -> str | None:
        """The id of the call whose tool made this call; None without one."""
        return self.called.inside

    @property
    def agent(self) -> str:
        """The URI of the instance."""
        return self.called.agent

    @property
    def principal(self) -> str:
        """For whom the call is."""
        return self.called.principal

    @property
    def tool(self) -> str:
        """The name of the tool."""
        return self.called.tool.name

    @property
    def origin(self) -> str | None:
        """Where the tool comes from (``module:qualname``, ``mcp:<server>``); None if not said."""
        origin = self.called.tool.origin
        return origin if isinstance(origin, str) else None

    @property
    def resource(self) -> str | None:
        """The resource of the call; None without one."""
        resource = self.predicate.get("resource")
        return resource if isinstance(resource, str) else None

    @cached_property
    def chain_sha256(self) -> str | None:
        """The digest of the chain of delegation; None on the agent's own authority."""
        return self.called.chain_sha256

    @property
    def refused_chain(self) -> JSON:
        """The chain of a delegation that was refused; None for none, or where nothing proves it."""
        return self.predicate.get(REFUSED_CHAIN)

    @property
    def is_proved(self) -> bool:
        """Whether signatures prove for whom the call is; else ``principal`` is only claimed."""
        return is_proved(self.predicate)

    @property
    def allowed(self) -> bool:
        """Whether the call may run."""
        return self.decision == "allow" or not self.enforced

    @property
    def effect(self) -> str:
        """The decision if enforced, else ``summary.OBSERVED``."""
        return self.decision if self.enforced else OBSERVED

    @property
    def is_replay(self) -> bool:
        """Whether the agent gets the result of an earlier call: no delegation counts this one."""
        return self.replay_of is not ABSENT

    @property
    def must_be_signed(self) -> bool:
        """False for a refusal without a signature whose reason is that the signer failed."""
        return bool(self.envelope.key_ids) or self.allowed or self.code != "signature.failed"

    @property
    def commitments(self) -> Commitments:
        """The commitments to the data beside the entry: in the signed statement, or to copies."""
        return {"arguments": self.predicate.get("arguments"), "input": self.input, **self.copies}

    @property
    def required(self) -> tuple[Requirement, ...]:
        """The approvals that the policy required; raises ``DecodeError``."""
        return requirements_of(self.requirements)

    @cached_property
    def answers(self) -> tuple[Approval, ...]:
        """The answers of people, unverified; raises ``DecodeError``."""
        return answers_in(self.approvals)

    @property
    def summary(self) -> Summary:
        """The columns of a call."""
        called = self.called
        return Summary(
            self.kind,
            self.at,
            called.invocation_id,
            called.agent,
            called.principal,
            called.tool.name,
            self.effect,
            None,
            called.task_id,
            trace_id(called.traceparent),
        )

    @property
    def words(self) -> str | None:
        """Why it was decided so, or who has answered."""
        return "; ".join(self.reasons) or words_of(self.answers)

    def read(self) -> None:
        """Read the invocation and the answers, and require a decision that a guard can take.

        An enforced decision allows or denies the call; a required approval is a request's entry and
        no authorization. Without a policy's answer, or in the mode observe, an enforced decision is
        a denial. A decision that was not enforced is a policy's answer in the mode observe. Neither
        of these rests on the answers of people.
        """
        _ = self.called, self.answers
        _require_roles(self.copies, "arguments", "input")
        has_no_answers = self.roster_sha256 is None and not self.approvals
        if self.engine is None and self.evaluation is not ABSENT:
            raise _malformed("of a call tells of an evaluation, and of no engine")
        match self.mode, self.enforced:
            case _, True if self.decision == "deny" and has_no_answers:
                return
            case "enforce", True if self.decision != "approval" and self.engine is not None:
                return
            case "observe", False if self.engine is not None and has_no_answers:
                return
        raise _malformed("of a call has a decision or an answer that nobody gives in its mode")

    def check_authority(
        self,
        issued: Credential,
        chain: Chain | None,
        trust: TrustDocument,
        at: int,
        *,
        signatures: bool = True,
    ) -> Chain | None:
        """Check that the instance signed the call, may act for the principal, and its digest.

        ``chain`` is the verified chain that the call names, and ``at`` the time when the call was
        logged. Returns the verified chain of a delegation that was refused. Raises ``DecodeError``
        or ``VerificationError``.
        """
        if signatures and self.must_be_signed:
            self.envelope.verify(issued.key)
        name, predicate = issued.profile.name, self.predicate
        return statements.check_authority(
            predicate, self.call_sha256, name, chain, trust, at, may_run=self.allowed
        )

    def check_answers(
        self, roster: Roster | None, issued: Credential, at: int
    ) -> tuple[Answer, ...]:
        """Return the answers on which the call rests, checked to be valid and enough.

        ``roster`` is the roster that the call names, None without one. Raises ``DecodeError`` or
        ``VerificationError``.
        """
        requirements = self.required
        if roster is None:
            if self.approvals or (requirements and self.enforced):
                raise mismatch("a call with answers or requirements, and no roster for them")
            return ()
        if not self.approvals:
            raise mismatch("a call that names a roster, and rests on no answer")
        digest, answers = requirements_digest(requirements), identified(self.approvals, roster)
        for answer in answers:
            self._check_answer(answer.approval, digest, at)
        if len(answered_requests(answers)) > 1:
            raise mismatch("the answers are to more than one request")
        if self.allowed:
            requesters = requesters_of(self.principal, issued.profile.owner)
            lacking = missing_approvals(requirements, answers, requesters=requesters)
            if lacking is not None or not requirements:
                problem = f"the answers are not enough: {lacking or 'nothing was asked for'}"
                raise mismatch(problem)
        return answers

    def _check_answer(self, answer: Approval, requirement_sha256: str, at: int) -> None:
        if answer.subject_sha256 != self.call_sha256:
            raise mismatch("an answer is to another call")
        answer.check_time(at)
        if self.allowed and answer.verdict != "approve":
            raise mismatch("a call that was allowed, and a rejection")
        if self.allowed and answer.requirement_sha256 != requirement_sha256:
            raise mismatch("an answer is to other requirements")
        if self.code == "approval.rejected" and answer.verdict != "reject":
            raise mismatch("a call that was rejected, and an answer that is no rejection")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check who made the call, under which authority, and on which answers it rests."""
        issued = log.credentials.of_call(self.agent, here.at, allowed=self.allowed)
        chain = None if self.chain_sha256 is None else log.chain(self.chain_sha256)
        signatures = log.is_unchecked(here, issued)
        self.check_authority(issued, chain, log.trust, here.at, signatures=signatures)
        log.require_announced(self.config_sha256, self.policy_sha256, self.mode)
        log.observed_calls += not self.enforced
        sha256 = self.invocation_sha256
        log.require_first(sha256, "the same invocation stands in the log before")
        answers = self.check_answers(log.roster(self.roster_sha256), issued, here.at)
        if self.allowed:
            for request in answered_requests(answers):
                log.use_approval(request, here)
            if chain is not None:
                log.note_latest(chain, here)
            log.open_calls[sha256] = OpenCall(
                here.index,
                str(self.invocation_id),
                sha256,
                issued,
                self.is_replay,
                self.tool,
                self.config_sha256,
                None if chain is None else chain.leaf,
                self.effect == "allow" and not answers and self.call_sha256 in log.asked_calls,
            )
        return Content(self.summary, self.commitments, (here.index, sha256))

    def change(self, state: State) -> None:
        """The call is counted, runs no second time, and uses up the request of its answers.

        A call that gets an earlier result again does none of it, since no tool runs.
        """
        runs = self.allowed and not self.is_replay
        journal = present(self.journal)
        if runs and journal is not None:
            state.begin(journal, str(self.invocation_id), self.invocation_sha256)
        if runs and self.chain_sha256 is not None:
            state.count(self.chain_sha256)
        if not self.approvals:
            return
        for request_id in sorted({one.request_id for one in self.answers}):
            if runs:
                state.close(request_id, "used")
            elif self.code == "approval.rejected":
                with suppress(ApprovalError):  # the denial is on record all the same
                    state.close(request_id, "rejected")


class Ended(Declared, forbid_unknown_fields=False):
    """The members of the statement of an outcome (records.md, "Outcome") that are compared.

    ``invocation_id`` is there where the agent did not know the authorization's place. A call that
    is ``suspended`` continues when the agent makes the call again. ``replay_of`` is the id of the
    earlier call whose result the agent got; this call did not run then.
    """

    status: Status
    authorization: LogPlace | None = None
    invocation_id: Id | None = None
    replay_of: Id | None = None
    suspended: bool = False


_RUN_ONCE: Final[Mapping[Status, Literal["ran", "unknown"]]] = {"ok": "ran", "unknown": "unknown"}
"""What becomes of a call in the journal, by its outcome; after any other one, it may run again."""


class OutcomeEntry(Entry):
    """What became of a call, as the agent instance states it."""

    kind: ClassVar[str] = "outcome"
    statement: dict[str, Any]
    copies: Copies

    @cached_property
    def envelope(self) -> Envelope:
        """The statement that the agent has signed; raises ``DecodeError``."""
        return Envelope.parse(self.statement, may_be_joint=True)

    @cached_property
    def stated(self) -> Statement:
        """The statement, unverified; raises ``DecodeError``."""
        return dsse.parse_statement(self.envelope.payload, self.kind)

    @property
    def invocation_sha256(self) -> str:
        """The digest (hex) of the invocation of the call."""
        return self.stated.subject_sha256

    @property
    def predicate(self) -> Mapping[str, Any]:
        """All that the agent states (records.md, "Outcome")."""
        return self.stated.predicate

    @cached_property
    def ended(self) -> Ended:
        """What is compared of it; raises ``DecodeError``."""
        return declared.read(Ended, self.predicate, "an outcome", code="entry.malformed")

    @property
    def status(self) -> Status:
        """How the call has ended."""
        return self.ended.status

    @property
    def commitments(self) -> Commitments:
        """The commitment to the result, or to its redacted copy."""
        return {"result": self.predicate.get("result"), **self.copies}

    def summary_of(self, invocation_id: str | None, agent: str) -> Summary:
        """Return the columns, of which the call's entry knows two."""
        return Summary(self.kind, self.at, invocation_id, agent, status=self.status)

    def read(self) -> None:
        """Read the statement, and require that a call whose result was handed out did not run."""
        _require_roles(self.copies, "result")
        if self.ended.replay_of is not None and self.status != "not_run":
            raise _malformed("of a call that ran, and of one whose result was handed out again")

    def require_of(self, index: int, invocation_id: str | None, *, is_replay: bool) -> None:
        """Raise ``VerificationError`` for another place, or another call, than the call's own.

        A call that ``is_replay`` has not run.
        """
        if is_replay and self.status != "not_run":
            raise mismatch("a call that repeats an earlier one, and was not counted, has run")
        if self.ended.invocation_id not in (None, invocation_id):
            raise mismatch("an outcome names another call than the one that it is of")
        if self.ended.authorization not in (None, LogPlace(LOG, index)):
            raise mismatch("an outcome names another place for its authorization")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the call was open, and who states its end."""
        call = log.open_calls.pop(self.invocation_sha256, None)
        if call is None:
            return self._check_without_call(log, here)
        self.require_of(call.place, call.invocation_id, is_replay=call.is_replay)
        # the credential of the call's instance may have expired while the tool ran
        if log.is_unchecked(here, call.issued):
            self.envelope.verify(call.issued.key)
        if call.lacks_answer and self.status != "not_run":
            what = "a call that people were asked to approve ran, and rests on no answer"
            log.problems.add(here.index, what)
        about = self.summary_of(call.invocation_id, call.issued.uri)
        return Content(about, self.commitments, (call.place, self.invocation_sha256))

    def _check_without_call(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the outcome of a call that was interrupted before the authorization was durable."""
        if self.ended.authorization is not None or self.status != "not_run":
            raise VerificationError("an outcome without an authorised call that waits for one")
        problem = "an outcome of a call that has an outcome already, or that was denied"
        log.require_first(self.invocation_sha256, problem)
        signer = log.credentials.holder(self.envelope)
        if log.is_unchecked(here, signer):
            self.envelope.verify(signer.key)
        invocation_id = self.ended.invocation_id
        log.unauthorised[invocation_id] = here.index
        return Content(self.summary_of(invocation_id, signer.uri))

    def change(self, state: State) -> None:
        """A call that ran, or of which nobody knows, runs no second time."""
        ended = None if self.ended.suspended else _RUN_ONCE.get(self.status)
        state.settle(self.invocation_sha256, ended)


class UnsignedOutcome(NamedTuple):
    """The outcome of a call before the agent instance signs it, with its own signer.

    ``sha256`` (hex) is the digest of the statement's ``payload``, and ``result`` the commitment
    (hex) in the statement.
    """

    payload: bytes
    sha256: str
    signer: Signer
    summary: Summary
    result: str | None
    attachments: tuple[Attachment, ...] = ()

    @classmethod
    def of(
        cls,
        payload: bytes,
        signer: Signer,
        about: Summary,
        result: str | None,
        *,
        attachments: tuple[Attachment, ...] = (),
    ) -> Self:
        """Return the outcome; ``result`` is the commitment (hex) in the statement.

        Raises ``EncodeError`` where no entry can hold the statement.
        """
        if len(payload) > _MAX_OUTCOME:
            message = (
                f"the statement of an outcome has {len(payload)} bytes, {_MAX_OUTCOME} at most"
            )
            raise EncodeError(message, code="entry.too_large")
        return cls(payload, canonical.sha256_hex(payload), signer, about, result, attachments)

    def signed(self, joint: JointSignature | None = None, *, settles: bool = False) -> Record:
        """Return the entry, signed jointly with other statements, or without ``joint`` alone.

        ``settles`` says that the call is in the journal. Without it the record has no entry, so
        that no commit decodes a statement that changes nothing. Raises what the signer raises.
        """
        if joint is None:
            envelope = dsse.seal(self.payload, self.signer)
        else:
            envelope = Envelope(dsse.PAYLOAD_TYPE, self.payload, joint=joint)
        copies = copies_of(self.attachments, self.result)
        entry = OutcomeEntry(at=self.summary.at, statement=envelope.as_json(), copies=copies)
        record = entry.record(self.attachments, about=self.summary)
        return record if settles else record._replace(entry=None)


def outcome_statement(  # noqa: PLR0913  the members of one statement
    invocation_sha256: str,
    *,
    authorization: LogPlace | str,
    status: Status,
    result: str | None,
    result_type: str | None,
    error_type: str | None,
    started_at: str | None,
    ended_at: str,
    replay_of: str | None = None,
    suspended: bool = False,
) -> bytes:
    """Return the payload of the agent's statement of a call's outcome (records.md, "Outcome").

    ``authorization`` is the place of the call's authorization or, while the place is not known,
    the invocation's id. ``result`` is a commitment (hex), or None where the result has no canonical
    form; ``result_type`` is then the name of the result's type. ``replay_of`` is the invocation
    whose result the agent got again. A ``suspended`` call continues when the agent makes the call
    again.
    """
    predicate: dict[str, object] = {
        "authorization": None,
        "status": status,
        "result": result,
        "result_type": result_type,
        "error_type": error_type,
        "started_at": started_at,
        "ended_at": ended_at,
    }
    if replay_of is not None:
        predicate["replay_of"] = replay_of
    if suspended:
        predicate["suspended"] = True
    if isinstance(authorization, LogPlace):
        predicate["authorization"] = authorization.as_json()
    else:
        predicate["invocation_id"] = authorization
    return dsse.statement("outcome", invocation_sha256, "invocation", predicate)


def copies_of(attachments: tuple[Attachment, ...], *stated: str | None) -> Copies:
    """Return by role the commitments of attachments that the signed statement does not state."""
    return {one.role: one.commitment for one in attachments if one.commitment not in stated}


def _require_roles(copies: Copies, *roles: str) -> None:
    if not copies.keys() <= {*roles}:
        raise _malformed("of a call has copies of something else")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"the entry {problem}", code="entry.malformed")
