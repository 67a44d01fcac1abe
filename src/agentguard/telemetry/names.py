"""The names of spans, attributes, events and metrics (telemetry.md lists them for users).

The names of the GenAI semantic conventions are constants here: the conventions are in development,
and OpenTelemetry's package no longer has them. The names are those of version 1.41.0 of
OpenTelemetry's conventions, the last version with GenAI: release 0.1.0 of
open-telemetry/semantic-conventions-genai goes on from there. One name is of that release: a
workflow has ``gen_ai.agent.name``, which took the place of ``gen_ai.workflow.name``. No span has
``gen_ai.agent.id``: the conventions took the id of an instance in memory off spans of the kind
INTERNAL, and all spans here are of that kind.
"""

from __future__ import annotations

from functools import cache
from typing import Final

SCOPE: Final = "agentguard"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"
"""The instrumentation scope of every span and metric here, and the version of the conventions."""


@cache
def scope() -> tuple[str, str, str]:
    """Return the instrumentation scope, its version, and the URL of the conventions' version."""
    from importlib.metadata import version  # noqa: PLC0415  slow; only an SDK needs it

    return SCOPE, version("agentguard"), SCHEMA_URL


EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"
AUTHORIZE: Final = "agentguard.authorize"
"""The spans. The name of the tool, agent or workflow follows the first three."""

OPERATION: Final = "gen_ai.operation.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
CONVERSATION: Final = "gen_ai.conversation.id"
ERROR_TYPE: Final = "error.type"
USER: Final = "user.id"

ACTOR: Final = "agentguard.actor"
"""The agent instance's short name. The attribute sorts first, and so leads Jaeger's one line."""
AGENT_ID: Final = "agentguard.agent.id"
AGENT_TYPE: Final = "agentguard.agent.type"
PRINCIPAL: Final = "agentguard.principal.id"
CHAIN: Final = "agentguard.delegation.chain"
DEPTH: Final = "agentguard.delegation.depth"
TASK: Final = "agentguard.task.id"
INVOCATION: Final = "agentguard.invocation.id"
INVOCATION_SHA256: Final = "agentguard.invocation.sha256"
DECISION: Final = "agentguard.policy.decision"
DECISION_CODE: Final = "agentguard.policy.code"
REASON: Final = "agentguard.policy.reason"
ENFORCED: Final = "agentguard.policy.enforced"
"""False in observe mode: the call ran whatever the decision was."""
POLICY: Final = "agentguard.policy.digest"
APPROVAL: Final = "agentguard.approval.id"
APPROVAL_STATUS: Final = "agentguard.approval.status"
APPROVER: Final = "agentguard.approval.approver"
DECIDED_AT: Final = "agentguard.approval.decided_at"
APPROVAL_METHOD: Final = "agentguard.approval.method"
APPROVAL_ANSWER: Final = "agentguard.approval.answer.id"
APPROVAL_EXPIRES: Final = "agentguard.approval.expires_at"
INDEX: Final = "agentguard.audit.index"
CHECKPOINT: Final = "agentguard.audit.checkpoint"
FAILURE: Final = "agentguard.failure"
"""What made a call an error: ``denied``, ``rejected`` (by a person) or ``tool_error``."""
OUTCOME: Final = "agentguard.outcome.status"
REPLAY_OF: Final = "agentguard.outcome.replay_of"
TRUST_DOMAIN: Final = "agentguard.trust_domain"
LINK: Final = "agentguard.link"
"""What a link leads to: ``paused`` is the span that requested the approval, ``caller`` the span
that resumed a run which belongs to another trace."""

POLICY_DECISION: Final = "policy.decision"
APPROVAL_REQUESTED: Final = "approval.requested"
APPROVAL_DECIDED: Final = "approval.decided"
"""The events."""

CALLS: Final = "agentguard.calls"
DECISION_DURATION: Final = "agentguard.decision.duration"
APPROVAL_DURATION: Final = "agentguard.approval.duration"
APPROVALS_PENDING: Final = "agentguard.approvals.pending"
"""The metrics."""
