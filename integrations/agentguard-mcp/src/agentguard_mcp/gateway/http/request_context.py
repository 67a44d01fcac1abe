"""``RequestContext``: what came with an HTTP request beside its message: the user, and headers.

A relay knows requests by their ids. So the endpoint notes the context of a request under the id of
the request, and the relay's calls look the context up: they learn who sends the request, and
whether its headers agree with the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentguard import Decision, Delegation
from agentguard.adapters import ToolSpec
from agentguard_mcp.gateway.caller_source import Caller, CallerSource
from agentguard_mcp.gateway.http.headers import param_mismatch
from agentguard_mcp.gateway.messages import Message, RequestId

MAX_KNOWN: Final = 2_000
"""The most contexts that are known at once: a client may be gone before its call has begun."""


@dataclass(frozen=True, slots=True)
class User:
    """A user who came with a token, and the delegation that the user's token begins.

    ``most`` is the scope of a call with a token that has all scopes. ``granted`` has the scopes
    that the token says, None where tokens say nothing of scopes.
    """

    delegation: Delegation
    most: frozenset[str] = frozenset()
    granted: frozenset[str] | None = None

    def told(self, spec: ToolSpec) -> ToolSpec:
        """Return the specification: the delegation has all that is known of the user."""
        return spec

    async def revoked(self) -> Decision | None:
        """Return None: the guard itself looks at the user's log-outs, for each call."""
        return None


@dataclass(slots=True)
class RequestContext:
    """What came with a request over HTTP, and what its call has found.

    ``user`` is None where the settings name the caller, or a proof does. ``params`` are the headers
    ``Mcp-Param-*``, None for a revision without them. ``mismatch`` says how a header contradicts
    the arguments. ``requires`` is the scope that the tool requires, and ``size`` the length of the
    body in bytes.
    """

    user: User | None = None
    params: Mapping[str, str] | None = None
    mismatch: str | None = None
    requires: tuple[str, ...] = ()
    size: int = 0

    @property
    def is_single(self) -> bool:
        """Whether the request stands by itself, without a session (revision 2026-07-28)."""
        return self.params is not None


class RequestContexts:
    """The contexts of the requests of one relay (``CallerSource``).

    ``proofs`` verifies the proofs of calls, None for calls without proofs.
    """

    def __init__(self, proofs: CallerSource | None) -> None:
        self._proofs = proofs
        self._known: dict[RequestId, RequestContext] = {}

    def note(self, identifier: RequestId, context: RequestContext) -> None:
        """Note the context of a request, until ``forget``; the oldest of too many is forgotten."""
        self._known[identifier] = context
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def forget(self, identifier: RequestId) -> None:
        """Forget a request that has its answer."""
        self._known.pop(identifier, None)

    async def of(self, request: Message) -> Caller | Decision | None:
        """Return who sends a request, or why the request is refused (``CallerSource``)."""
        context = self._known.get(request["id"])
        if context is None:
            return _unknown()
        return context.user if self._proofs is None else await self._proofs.of(request)

    def contradiction(self, request: Message, spec: ToolSpec) -> Decision | None:
        """Return the refusal of a call whose headers contradict its arguments (``CallerSource``).

        The code is ``arguments.headers``.
        """
        context = self._known.get(request["id"])
        if context is None:
            return _unknown()
        context.requires = tuple(spec.requires)
        if request["method"] != "tools/call" or context.params is None:
            return None
        arguments = request["params"].get("arguments", {})
        context.mismatch = param_mismatch(spec.schema, arguments, context.params)
        if context.mismatch is None:
            return None
        return Decision.refusal(context.mismatch, code="arguments.headers")


def _unknown() -> Decision:
    return Decision.refusal("nobody says who sends the request", code="proof.missing")
