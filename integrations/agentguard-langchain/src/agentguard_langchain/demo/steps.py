"""The steps of the demo, as the log tells them: nothing here knows what the demo believes it did.

A step is an authorization entry, with the arguments and the result that stand beside the log.
Whether the log deserves belief is ``agentguard.examination.examine``'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentguard import canonical
from agentguard.audit import entry
from agentguard.audit.entry import Stored
from agentguard.audit.statements import (
    Authorization,
    chain_tokens,
    read_authorization,
    read_outcome,
)
from agentguard.canonical import JSON
from agentguard.delegation import chain, grant
from agentguard.delegation.grant import Grant
from agentguard.ports import LogReader


@dataclass(slots=True)
class Step:
    """One call as recorded, at ``index`` in the log.

    ``hops`` are those of the delegation under which it was made; ``status`` and ``result`` come
    from its outcome entry, None where there is none (yet).
    """

    index: int
    call: Authorization
    args: dict[str, JSON]
    hops: Sequence[Grant] = ()
    status: str | None = None
    result: JSON = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members that ``agentguard demo --json`` lists."""
        return {
            "tool": self.call.tool,
            "args": self.args,
            "agent": self.call.agent,
            "decision": self.call.decision,
            "reason": "; ".join(self.call.reasons) or None,
            "invocation_id": self.call.invocation_id,
        }


def read(reader: LogReader) -> list[Step]:
    """Return the calls in a log, in its order.

    Raises ``DecodeError``, ``VerificationError`` or ``StorageError``.
    """
    steps: dict[str, Step] = {}
    chains: dict[str | None, Sequence[Grant]] = {}
    for shard in reader.shards():
        for stored in reader.stored(shard):
            parsed = entry.parse(stored.body)
            if parsed.kind == "delegation":
                tokens, _credentials = chain_tokens(parsed)
                chains[chain.digest(tokens)] = [grant.read(token) for token in tokens]
            elif parsed.kind == "authorization":
                call = read_authorization(parsed)
                args = _beside(stored, "arguments")
                steps[call.invocation_sha256] = Step(
                    stored.index,
                    call,
                    args if isinstance(args, dict) else {},
                    chains.get(call.chain_sha256, ()),
                )
            elif parsed.kind == "outcome":
                outcome = read_outcome(parsed)
                if (step := steps.get(outcome.invocation_sha256)) is not None:
                    step.status = outcome.status
                    step.result = _beside(stored, "result")
    return list(steps.values())


def _beside(stored: Stored, role: str) -> JSON:
    for kept in stored.attachments:
        if kept.role == role:
            return canonical.loads(kept.data)
    return None
