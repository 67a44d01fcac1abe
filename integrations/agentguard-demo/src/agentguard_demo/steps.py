"""The steps of the demo, as the log tells them: nothing here knows what the demo believes it did.

A step is an authorization entry, with the arguments and the result that stand beside the log; or
the entry of a request, for a call that waits for a person. Whether the log deserves belief is
``agentguard.domain.verify.examine``'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentguard import ApprovalRequest
from agentguard.audit import approvals
from agentguard.audit.calls import read_authorization, read_outcome
from agentguard.audit.entry import Entry, StoredEntry, parse_entry
from agentguard.audit.log import LogReader
from agentguard.audit.statements import chain_tokens
from agentguard.delegation import grant
from agentguard.delegation.chain import hops_digest
from agentguard.delegation.grant import Grant
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON


@dataclass(slots=True)
class Step:
    """One call as recorded, at ``index`` in the log; ``decision`` is allow, deny or approval.

    ``hops`` are those of the delegation under which it was made; ``answered`` says whether it rests
    on the answers of people. ``status`` and ``result`` come from its outcome entry, None where
    there is none (yet).
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
    answered: bool = False
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


def read(reader: LogReader, asked: Mapping[str, ApprovalRequest]) -> list[Step]:
    """Return the calls in a log, in its order.

    ``asked`` are the requests for approvals, by id: their arguments are not in the log. Raises
    ``DecodeError``, ``VerificationError`` or ``StorageError``.
    """
    steps: dict[str, Step] = {}
    chains: dict[str | None, Sequence[Grant]] = {}
    for shard in reader.shards():
        for stored in reader.stored(shard):
            parsed = parse_entry(stored.body)
            if parsed.kind == "delegation":
                tokens, _credentials = chain_tokens(parsed)
                chains[hops_digest(tokens)] = [grant.read(token) for token in tokens]
            elif parsed.kind == "request":
                request_id = str(parsed.members["request_id"])
                steps[request_id] = _waiting(stored.index, parsed, asked.get(request_id))
            elif parsed.kind == "authorization":
                digest, step = _decided(stored, parsed, chains)
                steps[digest] = step
            elif parsed.kind == "outcome":
                outcome = read_outcome(parsed)
                if (ran := steps.get(outcome.invocation_sha256)) is not None:
                    ran.status = outcome.status
                    ran.result = _beside(stored, "result")
    return list(steps.values())


def _waiting(index: int, parsed: Entry, request: ApprovalRequest | None) -> Step:
    members: Mapping[str, Any] = parsed.members
    return Step(
        index=index,
        agent=members["agent"],
        principal=members["principal"],
        tool=members["tool"]["name"],
        decision="approval",
        reasons=[needed["reason"] for needed in members["requirements"]],
        code="approval.pending",
        args=_object(request.arguments) if request is not None else {},
    )


def _decided(
    stored: StoredEntry, parsed: Entry, chains: Mapping[str | None, Sequence[Grant]]
) -> tuple[str, Step]:
    call = read_authorization(parsed)
    args = _beside(stored, "arguments")
    answers = approvals.read_answers(parsed)
    step = Step(
        index=stored.index,
        agent=call.agent,
        principal=call.principal,
        tool=call.tool,
        decision=call.decision,
        reasons=call.reasons or [f"approved by {said.approver}" for said in answers],
        code=call.code,
        args=args if isinstance(args, dict) else {},
        invocation_id=call.invocation_id,
        hops=chains.get(call.chain_sha256, ()),
        answered=bool(answers),
    )
    return call.invocation_sha256, step


def _beside(stored: StoredEntry, role: str) -> JSON:
    for kept in stored.attachments:
        if kept.role == role:
            return canonical.loads(kept.data)
    return None


def _object(data: bytes) -> dict[str, JSON]:
    read = canonical.loads(data)
    return read if isinstance(read, dict) else {}
