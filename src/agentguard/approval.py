"""The exception that a call which waits for a person carries out of the line.

What a policy asks for is a ``Requirement`` (``decision.py``). Without an approval mechanism set
up, such a call is refused (``approval.unavailable``) and nothing waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentguard.decision import Requirement
from agentguard.errors import AgentguardError


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a person is asked to approve: one exact call.

    ``call_digest`` (SHA-256, hex) is what an approval binds to (records.md, "One call's bytes").
    """

    tool: str
    call_digest: str
    requirements: tuple[Requirement, ...]


class ApprovalPending(AgentguardError):
    """The call waits for a person; its tool did not run.

    Nothing raises it in this release, which denies such a call (``approval.unavailable``). It is
    no ``Denied``: the same call, made again with the same ``call_id`` once the approval is there,
    runs. ``request`` says what is to be approved.
    """

    default_code: ClassVar[str] = "approval.pending"

    def __init__(self, request: ApprovalRequest) -> None:
        reasons = "; ".join(requirement.reason for requirement in request.requirements)
        super().__init__(f"{request.tool} waits for approval: {reasons}")
        self.request = request

    def __reduce__(self) -> tuple[type[ApprovalPending], tuple[ApprovalRequest]]:
        return type(self), (self.request,)
