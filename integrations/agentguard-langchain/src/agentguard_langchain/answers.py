"""The answers that come back through an interrupt, and what each answer changes.

The core keeps an answer that lets a call run with the request, and verifies the answer there: an
approver has signed the answer, or the application vouches for the answer where the configuration
allows that. A rejection lets nothing run, so nobody has to be believed for a rejection; where the
application says who answers, the rejection of somebody who may not answer counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_core.messages import ToolCall
from langgraph.errors import GraphBubbleUp

from agentguard import Agent, AgentguardError, ApprovalError, ApprovalRequest
from agentguard.adapters import MAX_NOTE, Verdict, require_plain, take_answer, verdict_of
from agentguard_langchain.payload import HumanDecision, Problem
from agentguard_langchain.pending_turn import PendingTurn, ShownCall, json_arguments

AnsweredBy = Callable[[HumanDecision, Any], str | None]
"""Returns who has given an answer: a principal whom the application has authenticated, or None.

The arguments are the decision as it came, and the graph's ``Runtime``. A client can write anything
into a decision: read the person from the run's context instead.
"""

_NOBODY: Final = (
    "the answer is not signed, and the application does not say who has given the answer: sign "
    "with agentguard approvals approve, or see answered_by"
)


def require_answered_by(answered_by: object) -> None:
    """Raise ``ConfigError`` unless ``answered_by`` is a function, or None."""
    if answered_by is not None:
        require_plain(answered_by, "answered_by")


class Answers(NamedTuple):
    """Applies people's answers to the calls of ``agent``.

    ``answered_by`` says who has given an answer; ``runtime`` is the graph's ``Runtime``.
    """

    agent: Agent
    answered_by: AnsweredBy | None = None
    runtime: Any = None

    def apply(
        self,
        pending_turn: PendingTurn,
        batch: Sequence[ShownCall],
        calls: Mapping[str, ToolCall],
        decisions: Sequence[HumanDecision],
    ) -> None:
        """Apply the answers to a batch, by position.

        A decision that came elsewhere meanwhile stands, and the answer is ignored.
        """
        inbox = self.agent.approvals
        for one, decision in zip(batch, decisions, strict=True):
            request = inbox.request_at(one.call_site)
            if (
                request is None
                or request.request_id != one.request_id
                or not inbox.is_waiting(request)
            ):
                continue
            pending_turn.problems.pop(one.call_id, None)
            try:
                self._answer(pending_turn, calls[one.call_id], request, decision)
            except AgentguardError as error:
                pending_turn.problems[one.call_id] = Problem(str(error), error.code)

    def _answer(
        self,
        pending_turn: PendingTurn,
        call: ToolCall,
        request: ApprovalRequest,
        decision: HumanDecision,
    ) -> None:
        signed = decision.get("approval")
        if decision["type"] == "reject":
            self._reject(pending_turn, call, request, decision)
            return
        if signed is not None:
            take_answer(self.agent, request, signed)
        match decision["type"]:
            case "approve" if signed is None:
                self._vouch(request, "approve", decision)
            case "edit":
                self._edit(pending_turn, call, request, decision)

    def _vouch(self, request: ApprovalRequest, verdict: Verdict, decision: HumanDecision) -> None:
        principal = self._require_principal(decision)
        note = str(decision.get("message") or "")[:MAX_NOTE]
        self.agent.approvals.vouch(request, verdict, principal=principal, note=note)

    def _require_principal(self, decision: HumanDecision) -> str:
        """Return who has given an answer, by the application's word."""
        if self.answered_by is None:
            raise AgentguardError(_NOBODY, code="approval.unsigned")
        try:
            principal = self.answered_by(decision, self.runtime)
        except GraphBubbleUp:
            raise
        except Exception as error:
            message = f"who has given it can't be found out ({type(error).__name__})"
            raise AgentguardError(message, code="approval.unknown") from error
        if principal is None:
            message = "the application does not know who has given it"
            raise AgentguardError(message, code="approval.unknown")
        return principal

    def _reject(
        self,
        pending_turn: PendingTurn,
        call: ToolCall,
        request: ApprovalRequest,
        decision: HumanDecision,
    ) -> None:
        signed = decision.get("approval")
        try:
            if signed is None or verdict_of(signed) != "reject":  # no approval comes that way
                self._vouch(request, "reject", decision)
            else:
                take_answer(self.agent, request, signed)
        except AgentguardError as error:
            if self._must_be_believed(error):
                raise
            message = decision.get("message")
            reason = f"a person has rejected this call{f': {message}' if message else ''}"
            self._refuse(pending_turn, call, request, reason)

    def _edit(
        self,
        pending_turn: PendingTurn,
        call: ToolCall,
        request: ApprovalRequest,
        decision: HumanDecision,
    ) -> None:
        self._require_editor(request, decision)
        action = decision["edited_action"]
        if action["name"] != call["name"]:
            reason = (
                f"a person wants {action['name']} instead, and an edit can't change the tool: "
                f"{call['name']} was rejected"
            )
            self._refuse(pending_turn, call, request, reason)
            return
        try:
            args = json_arguments(action["args"])
        except (TypeError, ValueError):
            reason = "a person has edited this call, to arguments that are no JSON"
            self._refuse(pending_turn, call, request, reason)
            return
        self._withdraw(request)
        pending_turn.edit(call["id"] or "", args)

    def _require_editor(self, request: ApprovalRequest, decision: HumanDecision) -> None:
        """Raise for an edit by somebody whose rejection of the call would not count."""
        if self.answered_by is None:
            return
        try:
            principal = self._require_principal(decision)
            self.agent.approvals.check(request, "reject", principal=principal)
        except AgentguardError as error:
            if self._must_be_believed(error):
                raise

    def _must_be_believed(self, error: AgentguardError) -> bool:
        """Whether an error of a rejection leaves the call waiting.

        The application says who answers, and its word counts at all.
        """
        return self.answered_by is not None and error.code != "approval.unsigned"

    def _refuse(
        self, pending_turn: PendingTurn, call: ToolCall, request: ApprovalRequest, reason: str
    ) -> None:
        self._withdraw(request)
        pending_turn.refuse(call["id"] or "", reason)

    def _withdraw(self, request: ApprovalRequest) -> None:
        """Withdraw a request; raises ``ApprovalError`` where a call has used its approval.

        Otherwise the model would be told that the call was not run, or an edited one would run too.
        """
        if not self.agent.approvals.withdraw(request):
            message = (
                "this answer comes too late: a call has used the approval of the request "
                f"{request.request_id}"
            )
            raise ApprovalError(message, code="request.ended")
