"""One tool call: what an adapter hands over, and the statement that the agent instance signs.

``Invocation`` is the call as an adapter has bound it; ``statement`` makes the in-toto Statement,
whose subject is the *call digest*: the name of this call that stays the same across instances,
tokens and processes (records.md, "One call's bytes").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import orjson

from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.tool import ToolSpec
from agentguard.errors import ArgumentsError
from agentguard.signing import canonical, dsse

SALT_SIZE: Final = 32
"""Bytes of the salt of a call's commitments."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where a call stands in a run: ``call_id`` in a turn of a namespace of a thread.

    What a framework does not give stays None.
    """

    call_id: str
    thread: str | None = None
    namespace: str | None = None
    turn: str | None = None

    @property
    def is_stable(self) -> bool:
        """Whether the same call, made again, has the same site: a framework gives it a thread."""
        return self.thread is not None

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
    that the adapter hands over the error in the arguments' place. ``bind`` does so, and keeps the
    ``binding``, with which the line looks again, just before the tool runs, whether the arguments
    were changed since they were decided on.

    ``refusal`` is why the adapter itself refuses the call (a person has rejected it where the
    framework asks, say): it is signed and recorded like any other. Raises ``ValueError`` for one
    that does not deny: the call would run, and no policy would have been asked.
    """

    tool: ToolSpec
    arguments: Arguments | ArgumentsError
    site: CallSite
    task_id: str | None = None
    binding: Callable[[], Arguments] | None = None
    refusal: Decision | None = None

    def __post_init__(self) -> None:
        if self.refusal is not None and self.refusal.outcome != "deny":
            message = f"a refusal denies; one with the outcome {self.refusal.outcome!r} is none"
            raise ValueError(message)

    def is_unchanged(self) -> bool:
        """Tell whether the arguments, bound once more, are still those that were decided on."""
        if self.binding is None or isinstance(self.arguments, ArgumentsError):
            return True
        try:
            return self.binding().encoded == self.arguments.encoded
        except Exception:  # noqa: BLE001  what can't be read any more is not what it was
            return False

    @classmethod
    def bind(
        cls,
        tool: ToolSpec,
        binding: Callable[[], Arguments],
        site: CallSite,
        *,
        shared: bool = True,
    ) -> Invocation:
        """Run ``binding`` and keep what it returns, or the ``ArgumentsError`` that it raises.

        Any other exception counts as arguments that can't be bound (``arguments.invalid``).
        ``shared`` False says that nobody else holds what the values are taken from: then those that
        can't change themselves are not looked at again.
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
        fixed = not shared and isinstance(arguments, Arguments) and arguments.are_immutable
        return cls(tool, arguments, site, binding=None if fixed else binding)


def statement(
    agent_name: str, predicate: Mapping[str, object], actors: Sequence[str] = ()
) -> bytes:
    """The canonical in-toto Statement of an invocation; raises ``EncodeError``.

    ``predicate`` has the members that records.md lists under "Invocation".
    """
    subject = call_digest(agent_name, predicate, actors)
    return dsse.statement("invocation", subject, "call", predicate)


def call_digest(
    agent_name: str, predicate: Mapping[str, object], actors: Sequence[str] = ()
) -> str:
    """SHA-256 (hex) over what makes a call this call; approvals bind to it.

    ``predicate`` is the invocation's, ``actors`` are those of the chain (``Chain.actors``): an
    agent on its own authority has none.
    """
    tool: Any = predicate["tool"]
    return canonical.sha256_hex(
        canonical.dumps_record(
            {
                "agent": agent_name,
                "principal": predicate["principal"],
                "actors": actors,
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
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    if not moment.microsecond:
        return moment.isoformat(timespec="microseconds")[:-6] + "Z"
    return orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()  # the same, faster
