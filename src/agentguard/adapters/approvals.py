"""Answers of people that come through a framework, and the calls that wait for them.

The inbox that keeps the answers is ``Agent.approvals``.
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
    """Keep a signed answer, in its JSON form, with its request if it counts.

    Raises ``ApprovalError``, ``VerificationError``, ``DecodeError`` or ``StorageError``.
    """
    agent.approvals.accept(request, Envelope.parse(signed))


def verdict_of(signed: JSON) -> Verdict:
    """Return what a signed answer says, unverified; raises ``DecodeError``."""
    return read_answer(Envelope.parse(signed)).verdict


def note_waiting(request: ApprovalRequest) -> None:
    """Tell the guarded call that runs here, if any, that a call within it waits for ``request``.

    Only an adapter that asks people before the call is made needs this: ``run`` and ``evaluate``
    note what they leave waiting.
    """
    NestedCalls(context.nested_calls()).asks(request.call_site, request)
