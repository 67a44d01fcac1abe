"""How an adapter passes on people's signed answers, and reports calls that wait for an approval.

The inbox that stores the answers is ``Agent.approvals``.
"""

from __future__ import annotations

from agentguard.approvals.answer import Verdict, read_answer
from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalRequest
from agentguard.delegation import context
from agentguard.guard.agent import Agent
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope


def take_answer(agent: Agent, request: ApprovalRequest, signed: JSON) -> None:
    """Verify a signed answer, in its JSON form, and store the answer with its request.

    Raises ``ApprovalError``, ``VerificationError``, ``DecodeError`` or ``StorageError``.
    """
    agent.approvals.accept(request, Envelope.parse(signed))


def verdict_of(signed: JSON) -> Verdict:
    """Return the verdict of a signed answer without verification; raises ``DecodeError``."""
    return read_answer(Envelope.parse(signed)).verdict


def note_waiting(request: ApprovalRequest) -> None:
    """Record in the surrounding guarded call, if any, that a nested call waits for ``request``.

    Only an adapter that asks people before the call itself needs this function. ``run`` and
    ``evaluate`` record their waiting calls by themselves.
    """
    NestedCalls(context.nested_calls()).asks(request.call_site, request)
