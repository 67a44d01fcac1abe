"""``CallName``: how an entry names the running call that the entry belongs to.

A released secret, the proof of a request and the receipt of an answer stand in the log between the
authorization and the outcome of one call, and name the call in the same members.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry
from agentguard.audit.summary import Summary
from agentguard.call.releases import ReleaseSubject
from agentguard.errors import DecodeError
from agentguard.signing.canonical import JSON, is_integer


class CallName(NamedTuple):
    """A running call, as an entry names the call; ``invocation_sha256`` is in hex.

    ``shard`` and ``place`` (the index) say where the authorization stands in the log. ``agent`` is
    the instance's URI.
    """

    invocation_id: str
    invocation_sha256: str
    shard: int
    place: int
    agent: str
    tool: str

    @classmethod
    def of(cls, subject: ReleaseSubject) -> Self:
        """Return the name of a call that asks for a secret or a proof."""
        return cls(
            subject.invocation_id,
            subject.invocation_sha256,
            subject.shard,
            subject.place,
            subject.agent,
            subject.tool,
        )

    @classmethod
    def of_authorization(cls, call: Authorization, shard: int, place: int) -> Self:
        """Return the name of a call whose authorization stands at a place of the log."""
        invocation_id = str(call.invocation_id)
        return cls(invocation_id, call.invocation_sha256, shard, place, call.agent, call.tool)

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """Read which call an entry names, unverified.

        Raises ``DecodeError`` (``entry.malformed``).
        """
        match entry.members:
            case {
                "invocation_id": str(invocation_id),
                "invocation_sha256": str(digest),
                "authorization": {"shard": shard, "index": place, **others},
                "agent": str(agent),
                "tool": str(tool),
            } if not others and is_integer(shard) and is_integer(place):
                return cls(invocation_id, digest, shard, place, agent, tool)
        raise DecodeError("the entry names no running call", code="entry.malformed")

    def members(self) -> dict[str, JSON]:
        """Return the members of an entry that name the call."""
        return {
            "invocation_id": self.invocation_id,
            "invocation_sha256": self.invocation_sha256,
            "authorization": {"shard": self.shard, "index": self.place},
            "agent": self.agent,
            "tool": self.tool,
        }

    def summary(self, kind: str, at: str) -> Summary:
        """Return the summary of an entry of the call."""
        return Summary(kind, at, self.invocation_id, self.agent, tool=self.tool)
