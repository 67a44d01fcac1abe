"""``CallerSource``: who sends each request, where the settings do not name one caller for all.

A proof of a call names its caller (``agentguard_mcp.proved_callers``), and so does the token of an
HTTP request (``http/bearer.py``).
"""

from __future__ import annotations

from typing import Protocol

from agentguard import Decision, Delegation
from agentguard.adapters import ToolSpec
from agentguard_mcp.gateway.messages import Message


class Caller(Protocol):
    """Who sends one request."""

    @property
    def delegation(self) -> Delegation:
        """The delegation under which the gateway decides on the request."""

    @property
    def most(self) -> frozenset[str]:
        """The largest scope that a request of the caller can have: a list shows no other tool."""

    def told(self, spec: ToolSpec, /) -> ToolSpec:
        """Return a specification whose policy input has what is known of the caller."""

    async def revoked(self) -> Decision | None:
        """Return why the caller may not act any more, None for a caller who still may."""


class CallerSource(Protocol):
    """Finds the caller of each request."""

    async def of(self, request: Message, /) -> Caller | Decision | None:
        """Return the caller, a refusal, or None for a request whose caller the settings name."""

    def contradiction(self, request: Message, spec: ToolSpec, /) -> Decision | None:
        """Return the refusal of a request that came with what contradicts its arguments.

        ``spec`` is the specification of the tool that the request calls.
        """
