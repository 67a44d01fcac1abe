"""One call of a tool: the value that an adapter makes, and the statement that the instance signs.

``Invocation`` is the call with its bound arguments. ``statement`` makes the in-toto Statement,
whose subject is the *call digest*. The digest of one call is the same in every instance, token and
process (records.md, "One call's bytes").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.tool import ToolSpec
from agentguard.errors import ArgumentsError
from agentguard.signing import canonical, dsse

SALT_SIZE: Final = 32
"""The length of the salt of a call's commitments, in bytes."""

REFUSED_CHAIN: Final = "refused_chain"
"""The member of a refused call that has the delegation which was refused, None without a proof."""

MAX_TASK_ID: Final = 1024
"""The most bytes of a task's id."""

_ID: Final = re.compile(r"[0-9a-f]{32}")


class CallSite(NamedTuple):
    """The place of a call in a run: ``call_id`` in a turn of a namespace of a thread.

    A part that the framework does not have is None.
    """

    call_id: str
    thread: str | None = None
    namespace: str | None = None
    turn: str | None = None

    @property
    def is_stable(self) -> bool:
        """Whether the framework gives a call that is made again the same site: it has a thread."""
        return self.thread is not None

    def digest(self, agent: str) -> str:
        """Return the SHA-256 (hex) over the agent's name and the site; raises ``EncodeError``."""
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
    """A call of a tool, with the bound arguments or the error of their binding.

    A call whose arguments can't be bound is denied, signed and recorded; so the adapter passes the
    error in place of the arguments, as ``bind`` does. ``binding`` binds the arguments once more,
    just before the tool runs, to detect a change since the decision; None skips that.

    ``inside`` is the id of the guarded call whose tool makes this call (32 hex digits), None for no
    such call.

    ``refusal`` is a denial by the adapter itself, which is signed and recorded too: a person may
    have rejected the call in the framework's own dialogue. Raises ``ValueError`` for a refusal that
    does not deny, because the call would run without a decision of the policy, and for ``inside``
    without the form of an id, because the call's entry would not verify.
    """

    tool: ToolSpec
    arguments: Arguments | ArgumentsError
    site: CallSite
    task_id: str | None = None
    binding: Callable[[], Arguments] | None = None
    refusal: Decision | None = None
    inside: str | None = None

    def __post_init__(self) -> None:
        if self.refusal is not None and self.refusal.outcome != "deny":
            message = f"a refusal denies; one with the outcome {self.refusal.outcome!r} is none"
            raise ValueError(message)
        if self.inside is not None and not _ID.fullmatch(self.inside):
            raise ValueError("inside is the id of a call, which has 32 hex digits, or None")

    def is_unchanged(self) -> bool:
        """Bind the arguments once more; return whether they equal those that were decided on."""
        if self.binding is None or isinstance(self.arguments, ArgumentsError):
            return True
        try:
            return self.binding().encoded == self.arguments.encoded
        except Exception:  # noqa: BLE001  arguments that can't be read any more have changed
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
        """Return an invocation with the result of ``binding``, or with its ``ArgumentsError``.

        Another exception becomes an ``ArgumentsError`` (``arguments.invalid``). ``shared`` is False
        where no other code has the container of the values: immutable values can't change then, and
        are not bound once more before the tool runs.
        """
        arguments: Arguments | ArgumentsError
        try:
            arguments = binding()
        except ArgumentsError as error:
            arguments = error
        except Exception as error:  # noqa: BLE001  the application's class may raise anything
            message = f"the arguments of {tool.name} can't be read: {type(error).__name__}"
            arguments = ArgumentsError(message, code="arguments.invalid")
            arguments.__cause__ = error
        can_change = shared or not isinstance(arguments, Arguments) or not arguments.are_immutable
        return cls(tool, arguments, site, binding=binding if can_change else None)


def statement(
    agent_name: str, predicate: Mapping[str, object], actors: Sequence[str] = ()
) -> bytes:
    """Return the canonical in-toto Statement of an invocation; raises ``EncodeError``.

    ``predicate`` has the members that records.md lists under "Invocation".
    """
    subject = call_digest(agent_name, predicate, actors)
    return dsse.statement("invocation", subject, "call", predicate)


def call_digest(
    agent_name: str, predicate: Mapping[str, object], actors: Sequence[str] = ()
) -> str:
    """Return the SHA-256 (hex) that identifies a call; an approval names the call by the digest.

    ``predicate`` is the invocation's. ``actors`` are those of the chain (``Chain.actors``), none
    for an agent on its own authority.
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


def is_proved(predicate: Mapping[str, object]) -> bool:
    """Whether signatures prove for whom a call is; else its ``principal`` is only claimed."""
    return predicate.get(REFUSED_CHAIN, True) is not None


def commitment(salt: bytes, data: bytes) -> str:
    """Return the SHA-256 (hex) of ``salt || data``, which commits to data without showing it."""
    return sha256(salt + data).hexdigest()


def timestamp(moment: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, to the microsecond."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    if not moment.microsecond:
        return moment.isoformat(timespec="microseconds")[:-6] + "Z"
    return orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()  # the same, faster
