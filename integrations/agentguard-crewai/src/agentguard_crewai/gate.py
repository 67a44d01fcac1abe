"""The gate in front of a crew's tool: binds, decides and records a call, and then runs the tool.

The gate is the last step before the tool's own code, after hooks and validation. The gated
functions of a tool stand in ``tools.py``, the bound arguments in ``binding.py``, the ends of a call
in ``call.py``, and handovers of work in ``coworkers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from crewai.tools import BaseTool

from agentguard import (
    AgentguardError,
    ApprovalPending,
    Decision,
    DelegationError,
    Denied,
    adapters,
    current_delegation,
)
from agentguard.adapters import (
    Arguments,
    CallSite,
    Invocation,
    ToolSpec,
    digest,
)
from agentguard_crewai import rejection, runs
from agentguard_crewai.binding import arguments_of, by_name, require_repeatable, spec_of
from agentguard_crewai.call import ACTION, Body, Call
from agentguard_crewai.coworkers import coworker_of, is_handover
from agentguard_crewai.identity import Identity
from agentguard_crewai.runs import Key
from agentguard_crewai.sealing import require_name


class Gate:
    """The gate of one agent in front of one tool.

    ``entry_points`` caches, by name, a function of the tool and its gated twin, since making the
    twin takes 19 microseconds.
    """

    __slots__ = ("_configured", "_identity", "_incomplete", "_name", "entry_points", "tool")

    def __init__(self, identity: Identity, tool: BaseTool, name: str) -> None:
        self.tool = tool
        self._name = name
        self._identity = identity
        self._configured: tuple[ToolSpec, ToolSpec] | None = None
        self._incomplete: list[object] = []
        self.entry_points: dict[str, tuple[object, Callable[..., Any]]] = {}
        self.spec()  # raises for a wrong specification before any call

    def is_of(self, identity: Identity) -> bool:
        """Return whether this is a gate of ``identity``'s calls."""
        return self._identity.agent is identity.agent

    def spec(self) -> ToolSpec:
        """Return the tool's configured specification; raises ``ConfigError``."""
        plain = spec_of(self.tool, self._name)
        if self._configured is None or self._configured[0] is not plain:
            self._configured = plain, adapters.configure_tool(self._identity.agent, plain)
        return self._configured[1]

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run ``function`` if the policy allows; return the result, or a ``ToolFailure``.

        Raises what ``function`` raises, and ``Paused`` where the call stops the crew.
        """
        agent, call = self._identity.agent, self._bind(Body(self.tool, function, args, kwargs))
        try:
            while True:
                try:
                    result = adapters.run(agent, call.invocation, call.run, call.options)
                    return self._complete(call, result)
                except Denied as refused:
                    if not call.asks_again(refused):
                        raise
                except ApprovalPending as pending:
                    left = call.seconds_left(pending)
                    if not agent.approvals.wait(pending.request, timeout=left):
                        return call.give_up(pending)
        except Exception as error:  # noqa: BLE001  fail() raises the tool's own errors again
            return call.fail(error)

    async def arun(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run ``function``, which may be a coroutine function; the async twin of ``run``."""
        agent, call = self._identity.agent, self._bind(Body(self.tool, function, args, kwargs))
        try:
            while True:
                try:
                    result = await adapters.arun(agent, call.invocation, call.arun, call.options)
                    return self._complete(call, result)
                except Denied as refused:
                    if not call.asks_again(refused):
                        raise
                except ApprovalPending as pending:
                    left = call.seconds_left(pending)
                    if not await agent.approvals.await_(pending.request, timeout=left):
                        return call.give_up(pending)
        except Exception as error:  # noqa: BLE001  fail() raises the tool's own errors again
            return call.fail(error)

    def _complete(self, call: Call, result: Any) -> Any:
        if call.waits:
            self._incomplete.append(result)
        return call.complete(result)

    def is_complete(self, result: object) -> bool:
        """Return whether no nested call of the result's call waits, so that CrewAI may cache it."""
        return all(one is not result for one in self._incomplete)

    def _bind(self, body: Body) -> Call:
        """Bind a call; raises the error of an earlier try of the same step, and ``Paused``."""
        action = ACTION.get()
        if action is not None:
            action.raise_again(body.tool)
        run = runs.current_run()
        run.require_running()
        spec, agent = self.spec(), self._identity.agent
        declared = self.tool.args_schema.model_fields
        invocation = Invocation.bind(
            spec,
            lambda: arguments_of(body.function, body.args, body.kwargs, declared),
            CallSite(adapters.next_call_id(agent, spec.name)),
        )
        bound, place = invocation.arguments, None
        if run.name is not None and isinstance(bound, Arguments):
            place = run.claim(
                Key(agent.name, _authority_digest(), spec.name, sha256(bound.encoded).hexdigest())
            )
            invocation = replace(invocation, site=place.site, refusal=rejection.load(agent, place))
        coworker = None
        try:
            require_name(self.tool)
            if run.name is not None:
                require_repeatable(self.tool)
            if is_handover(self.tool):
                arguments = by_name(body.function, body.args, body.kwargs)
                coworker = coworker_of(self.tool, arguments)
            if coworker is not None:
                adapters.require_delegator(coworker.agent, agent)
        except AgentguardError as error:
            invocation = replace(invocation, refusal=Decision.of_error(error))
        return Call(body, invocation, run, place, self._identity, coworker)


def _authority_digest() -> str | None:
    """Return the digest of principal, chain and task; None on the agent's own authority."""
    try:
        delegation = current_delegation()
    except DelegationError:
        return None  # the delegation has ended: the call is refused
    if delegation is None:
        return None
    authority = [delegation.principal, delegation.chain.actors, delegation.task_id]
    return digest(authority)
