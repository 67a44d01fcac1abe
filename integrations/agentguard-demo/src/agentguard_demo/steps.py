"""Reads the steps of the demo from the log, and from nothing else.

A step is the entry of a call, with the arguments and the result that the log stores as
attachments, or, for a call that waits for a person, a request entry. No entry is verified here:
``tampering.py`` verifies the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentguard import ApprovalRequest
from agentguard.audit import approval_checks
from agentguard.audit.calls import read_authorization, read_outcome
from agentguard.audit.entry import Entry, StoredEntry, parse_entry
from agentguard.audit.log import LogReader
from agentguard.audit.secret_releases import read_release
from agentguard.audit.statements import chain_tokens
from agentguard.delegation import grant
from agentguard.delegation.chain import hops_digest
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
    for shard in reader.shards():
        for stored in reader.stored(shard):
            entry = parse_entry(stored.body)
            if entry.kind == "delegation":
                tokens, _credentials = chain_tokens(entry)
                chains[hops_digest(tokens)] = [grant.read(token) for token in tokens]
            elif entry.kind == "request":
                request_id = str(entry.members["request_id"])
                steps[request_id] = _request_step(stored.index, entry, requests.get(request_id))
            elif entry.kind == "call":
                digest, step = _authorization_step(stored, entry, chains)
                steps[digest] = step
            elif entry.kind == "secret":
                release = read_release(entry)
                if (call := steps.get(release.call.invocation_sha256)) is not None:
                    call.secrets = (*call.secrets, release.name)
            elif entry.kind == "outcome":
                outcome = read_outcome(entry)
                if (call := steps.get(outcome.invocation_sha256)) is not None:
                    call.status = outcome.status
                    call.result = _attachment(stored, "result")
    return list(steps.values())


def _request_step(index: int, entry: Entry, request: ApprovalRequest | None) -> Step:
    members: Mapping[str, Any] = entry.members
    return Step(
        index=index,
        agent=members["agent"],
        principal=members["principal"],
        tool=members["tool"]["name"],
        decision="approval",
        reasons=[requirement["reason"] for requirement in members["requirements"]],
        code="approval.pending",
        args=_object(request.arguments) if request is not None else {},
    )


def _authorization_step(
    stored: StoredEntry, entry: Entry, chains: Mapping[str | None, Sequence[Grant]]
) -> tuple[str, Step]:
    call = read_authorization(entry)
    args = _attachment(stored, "arguments")
    answers = approval_checks.read_answers(entry)
    step = Step(
        index=stored.index,
        agent=call.agent,
        principal=call.principal,
        tool=call.tool,
        decision=call.decision,
        reasons=call.reasons or [f"approved by {answer.approver}" for answer in answers],
        code=call.code,
        args=args if isinstance(args, dict) else {},
        invocation_id=call.invocation_id,
        hops=chains.get(call.chain_sha256, ()),
        has_answers=bool(answers),
    )
    return call.invocation_sha256, step


def _attachment(stored: StoredEntry, role: str) -> JSON:
    for attachment in stored.attachments:
        if attachment.role == role:
            return canonical.loads(attachment.data)
    return None


def _object(data: bytes) -> dict[str, JSON]:
    value = canonical.loads(data)
    return value if isinstance(value, dict) else {}
