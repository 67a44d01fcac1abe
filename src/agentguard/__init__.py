"""agentguard: every tool call of an AI agent has an identity, an authority and a record.

The names here are what an application uses. Seven other modules are public:

- ``agentguard.adapters``: what an adapter of a framework uses
- ``agentguard.errors``: all exceptions
- ``agentguard.paths``: files that a tool opens inside a folder (``Folder``)
- ``agentguard.policy``: the engines, for a program that makes one by itself (policies.md)
- ``agentguard.proof``: a tool's server verifies who calls (tool-servers.md)
- ``agentguard.telemetry``: traces and metrics
- ``agentguard.testing``: a fixture for tests, and the tests that an adapter inherits

All names here but the exceptions are imported when they are first used (PEP 562): a program loads
no part that it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentguard.errors import (
    AgentguardError,
    ApprovalError,
    ConfigError,
    DelegationError,
    PolicyError,
    ProofError,
    SecretError,
    ServerError,
    StorageError,
    UnguardedCallError,
    VerificationError,
)

if TYPE_CHECKING:
    from agentguard.approvals.request import ApprovalPending, ApprovalRequest
    from agentguard.approvals.status import RequestEndedError, RequestStatus
    from agentguard.audit.evidence import Evidence, verify_evidence
    from agentguard.audit.kinds.evaluation import verify_evaluation
    from agentguard.call.decision import Decision, Denied, Requirement
    from agentguard.call.evaluation import Evaluation
    from agentguard.call.tool import AsyncTool, FactsInput, Tool
    from agentguard.delegation.access_token import IssuedToken
    from agentguard.delegation.context import idempotency_key, secret
    from agentguard.delegation.handle import Delegation, current_delegation
    from agentguard.domain.report import Report
    from agentguard.guard.agent import Agent
    from agentguard.guard.guard import Guard
    from agentguard.guard.receiver_log import ReceiverLog
    from agentguard.identity.trust import TrustDocument
    from agentguard.signing.keys import Ed25519Signer

__all__ = [
    "Agent",
    "AgentguardError",
    "ApprovalError",
    "ApprovalPending",
    "ApprovalRequest",
    "AsyncTool",
    "ConfigError",
    "Decision",
    "Delegation",
    "DelegationError",
    "Denied",
    "Ed25519Signer",
    "Evaluation",
    "Evidence",
    "FactsInput",
    "Guard",
    "IssuedToken",
    "PolicyError",
    "ProofError",
    "ReceiverLog",
    "Report",
    "RequestEndedError",
    "RequestStatus",
    "Requirement",
    "SecretError",
    "ServerError",
    "StorageError",
    "Tool",
    "TrustDocument",
    "UnguardedCallError",
    "VerificationError",
    "current_delegation",
    "idempotency_key",
    "secret",
    "verify_evaluation",
    "verify_evidence",
]

_HOMES = {
    "Agent": "agentguard.guard.agent",
    "ApprovalPending": "agentguard.approvals.request",
    "ApprovalRequest": "agentguard.approvals.request",
    "AsyncTool": "agentguard.call.tool",
    "Decision": "agentguard.call.decision",
    "Delegation": "agentguard.delegation.handle",
    "Denied": "agentguard.call.decision",
    "Ed25519Signer": "agentguard.signing.keys",
    "Evaluation": "agentguard.call.evaluation",
    "Evidence": "agentguard.audit.evidence",
    "FactsInput": "agentguard.call.tool",
    "Guard": "agentguard.guard.guard",
    "IssuedToken": "agentguard.delegation.access_token",
    "ReceiverLog": "agentguard.guard.receiver_log",
    "Report": "agentguard.domain.report",
    "RequestEndedError": "agentguard.approvals.status",
    "RequestStatus": "agentguard.approvals.status",
    "Requirement": "agentguard.call.decision",
    "Tool": "agentguard.call.tool",
    "TrustDocument": "agentguard.identity.trust",
    "current_delegation": "agentguard.delegation.handle",
    "idempotency_key": "agentguard.delegation.context",
    "secret": "agentguard.delegation.context",
    "verify_evaluation": "agentguard.audit.kinds.evaluation",
    "verify_evidence": "agentguard.audit.evidence",
}
"""In which module each name stands that is imported at its first use."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and finds a name that is misspelt

    def __getattr__(name: str) -> Any:
        """Import a name of the public API at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(_HOMES[name])
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
