"""agentguard: every tool call of an AI agent has an identity, an authority and a record.

The names here are the public API, and so is what a docstring below marks ``For adapters``.
"""

from __future__ import annotations

from agentguard.agent import Agent
from agentguard.ambient import idempotency_key
from agentguard.approval import ApprovalPending, ApprovalRequest
from agentguard.arguments import Arguments
from agentguard.audit.evidence import Evidence
from agentguard.audit.evidence import verify as verify_evidence
from agentguard.decision import Decision, Denied, Requirement
from agentguard.delegated import Delegation, current_delegation
from agentguard.desk import Desk
from agentguard.errors import (
    AgentguardError,
    ApprovalError,
    ArgumentsError,
    CallError,
    ConfigError,
    DecodeError,
    DelegationError,
    EncodeError,
    FactsError,
    KeyMaterialError,
    PolicyError,
    StorageError,
    UnguardedCallError,
    VerificationError,
)
from agentguard.examination import Report
from agentguard.guard import Guard
from agentguard.identity.trust import TrustDocument
from agentguard.invocation import CallSite, Invocation
from agentguard.keys import Ed25519Signer
from agentguard.tool import AsyncTool, FactsInput, Tool, ToolSpec

__all__ = [
    "Agent",
    "AgentguardError",
    "ApprovalError",
    "ApprovalPending",
    "ApprovalRequest",
    "Arguments",
    "ArgumentsError",
    "AsyncTool",
    "CallError",
    "CallSite",
    "ConfigError",
    "Decision",
    "DecodeError",
    "Delegation",
    "DelegationError",
    "Denied",
    "Desk",
    "Ed25519Signer",
    "EncodeError",
    "Evidence",
    "FactsError",
    "FactsInput",
    "Guard",
    "Invocation",
    "KeyMaterialError",
    "PolicyError",
    "Report",
    "Requirement",
    "StorageError",
    "Tool",
    "ToolSpec",
    "TrustDocument",
    "UnguardedCallError",
    "VerificationError",
    "current_delegation",
    "idempotency_key",
    "verify_evidence",
]
