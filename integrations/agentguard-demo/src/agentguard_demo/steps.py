"""Reads the steps of the demo from the log, and from nothing else.

A step is the entry of a call, with the arguments and the result that the log stores as
attachments, or, for a call that waits for a person, a request entry. No entry is verified here:
``tampering.py`` verifies the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentguard import ApprovalRequest
from agentguard.audit.entry import StoredEntry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.identities import DelegationEntry, tokens_of_chain
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.kinds.running import SecretEntry
from agentguard.audit.log import LogReader
from agentguard.delegation import grant
from agentguard.delegation.grant import Grant
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON


@dataclass(slots=True)
class Step:
    """One call, at ``index`` in the log; ``decision`` is allow, deny or approval.

    ``hops`` are the hops of the call's delegation. ``secrets`` are the names of the secrets that
    the tool got. ``has_answers`` says whether people approved or rejected the call. ``status`` and
    ``result`` come from the outcome entry, and are None without an outcome.
    """

    index: int
    agent: str
    principal: str
    tool: str
    decision: str
    reasons: Sequence[str]
    code: str
    args: dict[str, JSON]
    invocation_id: str | None = None
    hops: Sequence[Grant] = ()
    secrets: tuple[str, ...] = ()
    has_answers: bool = False
    status: str | None = None
    result: JSON = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members that ``agentguard demo --json`` lists."""
        return {
            "tool": self.tool,
            "args": self.args,
            "agent": self.agent,
            "decision": self.decision,
            "reason": "; ".join(self.reasons) or None,
            "invocation_id": self.invocation_id,
        }


def read_steps(reader: LogReader, requests: Mapping[str, ApprovalRequest]) -> list[Step]:
    """Return the calls in a log, in the order of the log.

    ``requests`` are the requests for approvals, by id: the log lacks their arguments. Raises
    ``DecodeError``, ``VerificationError`` or ``StorageError``.
    """
    steps: dict[str, Step] = {}
    chains: dict[str | None, Sequence[Grant]] = {}
    for stored in reader.stored():
        match parse_entry(stored.body):
            case DelegationEntry() as entry:
                tokens, _credentials = tokens_of_chain(entry.chain)
                chains[entry.sha256] = [grant.read(token) for token in tokens]
            case RequestEntry() as entry:
                request = requests.get(entry.request_id)
                steps[entry.request_id] = _request_step(stored.index, entry, request)
            case CallEntry() as entry:
                hops = chains.get(entry.chain_sha256, ())
                steps[entry.invocation_sha256] = _call_step(stored, entry, hops)
            case SecretEntry() as entry:
                if (call := steps.get(entry.invocation_sha256)) is not None:
                    call.secrets = (*call.secrets, entry.name)
            case OutcomeEntry() as entry:
                if (call := steps.get(entry.invocation_sha256)) is not None:
                    call.status = entry.status
                    call.result = _attachment(stored, "result")
    return list(steps.values())


def _request_step(index: int, entry: RequestEntry, request: ApprovalRequest | None) -> Step:
    return Step(
        index=index,
        agent=entry.agent,
        principal=entry.principal,
        tool=entry.tool.name,
        decision="approval",
        reasons=[requirement.reason for requirement in entry.required],
        code="approval.pending",
        args=_object(request.arguments) if request is not None else {},
    )


def _call_step(stored: StoredEntry, call: CallEntry, hops: Sequence[Grant]) -> Step:
    args = _attachment(stored, "arguments")
    return Step(
        index=stored.index,
        agent=call.agent,
        principal=call.principal,
        tool=call.tool,
        decision=call.decision,
        reasons=call.reasons or [f"approved by {answer.approver}" for answer in call.answers],
        code=call.code,
        args=args if isinstance(args, dict) else {},
        invocation_id=call.invocation_id,
        hops=hops,
        has_answers=bool(call.answers),
    )


def _attachment(stored: StoredEntry, role: str) -> JSON:
    for attachment in stored.attachments:
        if attachment.role == role:
            return canonical.loads(attachment.data)
    return None


def _object(data: bytes) -> dict[str, JSON]:
    value = canonical.loads(data)
    return value if isinstance(value, dict) else {}
