"""One tool call: what an adapter hands over, and the statement that the agent instance signs.

``Invocation`` is the call as an adapter has bound it. ``Draft`` adds what the line has found out
on its way to the signature; its ``statement`` is an in-toto Statement whose subject is the *call
digest*, the name of this call that stays the same across instances, tokens and processes
(records.md, "One call's bytes").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from agentguard import canonical, envelope
from agentguard.arguments import Arguments
from agentguard.canonical import JSON
from agentguard.errors import ArgumentsError
from agentguard.tool import ToolSpec


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where a call stands in a run: ``call_id`` in a turn of a namespace of a thread.

    What a framework does not give stays None.
    """

    call_id: str
    thread: str | None = None
    namespace: str | None = None
    turn: str | None = None

    def digest(self, agent: str) -> str:
        """SHA-256 (hex) over the agent's name and the site; raises ``EncodeError``."""
        return canonical.sha256_hex(
            canonical.dumps_record(
                {
                    "agent": agent,
                    "thread": self.thread,
                    "namespace": self.namespace,
                    "turn": self.turn,
                    "call_id": self.call_id,
                }
            )
        )


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call of a tool, with its arguments bound, or the reason why they could not be.

    A call whose arguments can't be bound is refused, and the refusal is signed and recorded; for
    that the adapter hands over the error in the arguments' place. ``bind`` does so.
    """

    tool: ToolSpec
    arguments: Arguments | ArgumentsError
    site: CallSite
    task_id: str | None = None

    @classmethod
    def bind(
        cls,
        tool: ToolSpec,
        binding: Callable[[], Arguments],
        site: CallSite,
        *,
        task_id: str | None = None,
    ) -> Invocation:
        """Run ``binding`` and keep what it returns, or the ``ArgumentsError`` that it raises.

        Any other exception counts as arguments that can't be bound (``arguments.invalid``).
        """
        arguments: Arguments | ArgumentsError
        try:
            arguments = binding()
        except ArgumentsError as error:
            arguments = error
        except Exception as error:  # noqa: BLE001  a user's class may raise anything while it is read
            message = f"the arguments of {tool.name} can't be read: {type(error).__name__}"
            arguments = ArgumentsError(message, code="arguments.invalid")
            arguments.__cause__ = error
        return cls(tool, arguments, site, task_id)


@dataclass(frozen=True, slots=True)
class Draft:
    """An invocation with all that its statement says (records.md, Invocation).

    ``agent`` is the instance's URI, ``agent_name`` its name; ``arguments`` the commitment (hex) or
    None; ``call_site`` a digest (hex) or None; ``log`` the newest checkpoint that the agent has
    seen, as ``{origin, size, root}``; ``traceparent`` as in W3C Trace Context or None.
    """

    invocation_id: str | None
    agent: str
    agent_name: str
    principal: str
    tool: ToolSpec
    resource: str | None
    arguments: str | None
    unbound: tuple[str, ...]
    task_id: str | None
    call_site: str | None
    traceparent: str | None
    issued_at: str
    log: Mapping[str, JSON]

    def statement(self) -> bytes:
        """The canonical in-toto Statement; raises ``EncodeError``."""
        predicate: dict[str, object] = {
            "invocation_id": self.invocation_id,
            "agent": self.agent,
            "principal": self.principal,
            "chain_sha256": None,
            "token_jti": None,
            "tool": {"name": self.tool.name, "digest": self.tool.digest},
            "resource": self.resource,
            "arguments": self.arguments,
            "unbound": self.unbound,
            "task_id": self.task_id,
            "call_site": self.call_site,
            "traceparent": self.traceparent,
            "issued_at": self.issued_at,
            "log": self.log,
        }
        subject = call_digest(self.agent_name, predicate)
        return envelope.statement("invocation", subject, "call", predicate)


def call_digest(agent_name: str, predicate: Mapping[str, object]) -> str:
    """SHA-256 (hex) over what makes a call this call; approvals bind to it.

    ``predicate`` is the invocation's. The list of the chain's actors is empty: an agent on its
    own authority has none.
    """
    tool: Any = predicate["tool"]
    return canonical.sha256_hex(
        canonical.dumps_record(
            {
                "agent": agent_name,
                "principal": predicate["principal"],
                "actors": [],
                "tool": tool["digest"],
                "arguments": predicate["arguments"],
                "resource": predicate["resource"],
                "task_id": predicate["task_id"],
                "call_site": predicate["call_site"],
            }
        )
    )


def commitment(salt: bytes, data: bytes) -> str:
    """SHA-256 (hex) of ``salt || data``: commits to data without giving it away."""
    return sha256(salt + data).hexdigest()


def timestamp(moment: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
