"""``Agent``: an agent instance as an application holds it.

``Guard.new_agent`` makes one. How a call is made stands in ``caller.py``, what all handles of an
agent share in ``agent_runtime.py``. Adapters use the functions of ``agentguard.adapters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.call.arguments import Arguments
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import CallSite, Invocation
from agentguard.call.options import CallOptions
from agentguard.call.tool import GuardedFunction, Tool
from agentguard.delegation.access_token import IssuedToken
from agentguard.delegation.handle import Delegation
from agentguard.errors import ConfigError
from agentguard.guard.caller import Caller, unless_changed
from agentguard.identity import credential

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS: Final = CallOptions()
"""An agent's own calls have no options: no framework makes them again."""


_NO_SITE: Final = CallSite("authorize")
"""The site of a call that nobody makes; an evaluation does not state a site."""


class Agent:
    """An agent instance: the application makes guarded calls through this handle.

    The instance has a name from the configuration, and its own key and credential. In a forked
    process the handle stands for another instance, which gets a new key at its first call.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def under(self, delegation: Delegation) -> Agent:
        """Return a handle of this instance, which makes each call under ``delegation``.

        A ``with`` block over a delegation does not reach callbacks, threads of other libraries, and
        generators (for which there is ``Delegation.iterate``, too); this handle does. Raises
        ``ConfigError`` if ``delegation`` is no ``Delegation``. None is refused as well: otherwise
        an agent with its own authority would use that authority where a delegation got lost.
        """
        given: object = delegation
        if not isinstance(given, Delegation):
            raise ConfigError(f"delegation: expected what guard.delegate returns, got {given!r}")
        return Agent(self._caller.under(given))

    @property
    def delegation(self) -> Delegation | None:
        """The delegation of each call (``under``); None: the one in force where a call is made."""
        delegation = self._caller.delegation
        return delegation if isinstance(delegation, Delegation) else None

    @property
    def name(self) -> str:
        """The agent's name in the configuration, which all instances of the agent share."""
        return self._caller.runtime.name

    @property
    def id(self) -> str:
        """The instance's identifier, a ``spiffe://`` URI that ends in its key's thumbprint."""
        return self._caller.runtime.instance().actor.uri

    @property
    def alias(self) -> str:
        """A short name for display, such as ``agent:code-reviewer:7f3a``; it identifies nothing."""
        return credential.agent_alias(self.id)

    def call(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function if this agent may; return its result or raise its exception.

        Raises ``Denied`` if the agent may not call ``tool``, and ``ApprovalPending`` while the call
        waits for people. In both cases the function did not run.
        """
        _require_guarded(tool)
        if tool.is_async:
            message = f"{tool.spec.name} is a coroutine function: await agent.acall(...) instead"
            raise ConfigError(message, code="tool.async")
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        result: R = self._caller.run(self._invocation(tool, args, kwargs), bound, _OPTIONS)
        return result

    async def acall(self, tool: GuardedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function, async or sync (in a worker thread), if this agent may.

        Raises ``Denied`` or ``ApprovalPending`` as ``call`` does; then the function did not run.
        A ``StopIteration`` of the function is raised as a ``RuntimeError`` (PEP 479).
        """
        from agentguard.flow.drive_async import in_thread  # noqa: PLC0415  it imports asyncio

        _require_guarded(tool)
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        invocation = self._invocation(tool, args, kwargs)
        # checked in the thread: the arguments may change while the call waits for a thread
        run = bound if tool.is_async else partial(in_thread, unless_changed(invocation, bound))
        result: R = await self._caller.arun(invocation, run, _OPTIONS)
        return result

    def authorize(
        self, tool: GuardedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Evaluation:
        """Return the policy's decision about a call, signed and recorded; the call is not made.

        The log gets an entry of the kind ``evaluation``, without the arguments. The evaluation lets
        no tool run: ``call`` asks anew. No approval and no counted call is used up, and nobody is
        asked for an approval. Every failure is a refusal (``Evaluation.decision``). Raises
        ``ConfigError`` (``tool.invalid``) for what is no guarded tool.
        """
        _require_guarded(tool)
        return self._caller.authorize(_bind(tool, args, kwargs, _NO_SITE))

    async def aauthorize(
        self, tool: GuardedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Evaluation:
        """Return the policy's decision about a call; the async twin of ``authorize``."""
        _require_guarded(tool)
        return await self._caller.aauthorize(_bind(tool, args, kwargs, _NO_SITE))

    def _invocation(
        self, tool: GuardedFunction[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Invocation:
        site = CallSite(self._caller.runtime.next_call_id(tool.spec.name))
        return _bind(tool, args, kwargs, site)

    def access_token(self) -> IssuedToken:
        """Return an access token (``at+jwt``, RFC 8693 and 9068) for the delegation in force.

        The token is valid for at most five minutes, is bound to this instance's key, and names its
        chain, which comes beside the token (docs/how-to/delegation.md). Raises ``Denied`` without a
        delegation (``delegation.missing``), and wherever a call would be denied.
        """
        return self._caller.access_token()

    @property
    def approvals(self) -> ApprovalInbox:
        """The inbox where requests for approvals are answered, as ``Guard.approvals``."""
        return self._caller.runtime.parts.inbox()

    def take_up(self, stored: bytes) -> Delegation:
        """For adapters: return the delegation that ``Delegation.dumps`` wrote, revoked or not.

        After a revocation or during a freeze, each call under the delegation is denied, and is on
        record for the principal who delegated. Raises the other errors of ``Guard.resume``.
        """
        return self._caller.runtime.parts.delegations.take_up(stored)

    def __repr__(self) -> str:
        runtime = self._caller.runtime
        return f"<Agent {self.id if runtime.has_instance else runtime.name}>"


def caller_of(agent: Agent) -> Caller:
    """Return what makes the calls of ``agent``, for ``agentguard.adapters``."""
    return agent._caller  # noqa: SLF001  an agent and this file are one unit


def _bind(
    tool: GuardedFunction[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    site: CallSite,
) -> Invocation:
    bind, declared = tool.bind.bind, tool.bind.declared
    return Invocation.bind(
        tool.spec,
        lambda: Arguments.of(bind(args, kwargs), declared=declared),
        site,
        shared=False,  # the tuple and the dictionary were made for this call
    )


def _require_guarded(tool: object) -> None:
    if not isinstance(tool, GuardedFunction):
        name = getattr(tool, "__name__", repr(tool))
        message = (
            f"{name} is no guarded tool, and did not run: put @guard.tool above its definition"
        )
        raise ConfigError(message, code="tool.invalid")
