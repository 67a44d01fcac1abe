"""The steps of the demo, as the log tells them: nothing here knows what the demo believes it did.

A step is an authorization entry, with the arguments and the result that stand beside it. Whether
the log deserves belief is ``agentguard.domain.examine``'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentguard import canonical, envelope
from agentguard.audit import entry
from agentguard.audit.entry import Entry
from agentguard.canonical import JSON
from agentguard.envelope import Envelope, Statement
from agentguard.ports import LogReader

Arguments = dict[str, JSON]


@dataclass(slots=True)
class Step:
    """One call as recorded: ``index`` is its place in the log, ``agent`` the instance's URI.

    ``status`` and ``result`` come from the outcome entry; None where there is none (yet).
    """

    index: int
    agent: str
    tool: str
    args: Arguments
    decision: str
    code: str
    reasons: tuple[str, ...]
    invocation_id: str
    status: str | None = field(default=None)
    result: JSON = field(default=None)

    @property
    def alias(self) -> str:
        """The agent's short name, as ``Agent.alias`` gives it."""
        _domain, name, instance = self.agent.rsplit("/", 2)
        return f"agent:{name}:{instance[:4]}"

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


def read(reader: LogReader) -> list[Step]:
    """Return the calls in a log, in its order. Raises ``DecodeError`` or ``StorageError``."""
    steps: dict[str, Step] = {}
    for shard in reader.shards():
        for index, body in reader.entries(shard):
            parsed = entry.parse(body)
            kept = {kept.role: canonical.loads(kept.data) for kept in reader.attachments(shard, index)}
            if parsed.kind == "authorization":
                sealed, statement = _statement(parsed, "invocation", "invocation")
                arguments = kept.get("arguments")
                steps[canonical.sha256_hex(sealed.payload)] = _step(
                    index, parsed, statement, arguments if isinstance(arguments, dict) else {}
                )
            elif parsed.kind == "outcome":
                _sealed, statement = _statement(parsed, "statement", "outcome")
                if (step := steps.get(statement.subject_sha256)) is not None:
                    step.status = str(statement.predicate["status"])
                    step.result = kept.get("result")
    return list(steps.values())


def _statement(parsed: Entry, member: str, kind: str) -> tuple[Envelope, Statement]:
    sealed = Envelope.parse(parsed.members[member])
    return sealed, envelope.parse_statement(sealed.payload, kind)


def _step(index: int, parsed: Entry, statement: Statement, args: Arguments) -> Step:
    said = statement.predicate
    tool, reasons = said["tool"], parsed.members["reasons"]
    return Step(
        index=index,
        agent=str(said["agent"]),
        tool=str(tool["name"]) if isinstance(tool, dict) else "",
        args=args,
        decision=str(parsed.members["decision"]),
        code=str(parsed.members["code"]),
        reasons=tuple(map(str, reasons)) if isinstance(reasons, list) else (),
        invocation_id=str(said["invocation_id"]),
    )
