"""The guarded calls of a gateway: each request that runs code becomes one call of the agent.

``Calls.answer`` has the policy decide about a request, lets the relay forward it only once the
authorization is in the log, and records how the call ended. The tools are held against their pins
before each call, by a list that the server gives then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from agentguard import (
    Agent,
    AgentguardError,
    ApprovalPending,
    Decision,
    Delegation,
    DelegationError,
    Guard,
    secret,
)
from agentguard.adapters import (
    Arguments,
    CallOptions,
    CallSite,
    Invocation,
    ToolSpec,
    agent_scope,
    arun,
    attached,
    next_call_id,
    refusing_agent,
)
from agentguard_mcp.arguments import decided_arguments, is_exact
from agentguard_mcp.gateway import answers, error_codes, traces
from agentguard_mcp.gateway.answers import failure, result_of
from agentguard_mcp.gateway.approval_wait import approved, approved_for_client, unless
from agentguard_mcp.gateway.call_params import CallParams, InvalidParamsError
from agentguard_mcp.gateway.caller_source import Caller, CallerSource
from agentguard_mcp.gateway.catalog import START, Catalog
from agentguard_mcp.gateway.dialogs import Dialogs, question_first
from agentguard_mcp.gateway.limits import Limits
from agentguard_mcp.gateway.messages import Message
from agentguard_mcp.gateway.pins import Definition
from agentguard_mcp.gateway.settings import BEARER, Settings
from agentguard_mcp.gateway.tool_list import Ask, ToolList
from agentguard_mcp.gateway.upstream import NotSentError, UpstreamLostError
from agentguard_mcp.listing import LIST, permitted
from agentguard_mcp.messages import METHOD_PREFIX
from agentguard_mcp.params import round_refusal

_OPTIONS: Final = CallOptions(outcome_unknown=(UpstreamLostError,))
_LOGGER = logging.getLogger("agentguard.mcp")
_HOUR: Final = timedelta(hours=1)
_MARGIN: Final = timedelta(minutes=5)


class Calls:
    """Makes the guarded calls of one agent on one server, for ``callers`` or the settings' user.

    ``limits`` counts the calls, None for a count of its own. ``first`` is as for ``Catalog``.
    """

    def __init__(
        self,
        guard: Guard,
        agent: Agent,
        settings: Settings,
        ask: Ask,
        callers: CallerSource | None = None,
        limits: Limits | None = None,
        first: dict[str, str] | None = None,
    ) -> None:
        self.catalog = Catalog(settings, agent, first)
        self._guard = guard
        self._agent = agent
        self._settings = settings
        self._tools = ToolList(settings, self.catalog, ask)
        self._delegation: Delegation | None = None
        self._delegating = asyncio.Lock()
        self._lost = asyncio.Event()
        self._why_lost = ""
        self._callers = callers
        self._limits = limits or Limits(settings)

    def forget_list(self) -> None:
        """Note that the server's tools have changed: the next call asks for the list anew."""
        self._tools.forget()

    def learn(self, request: Message, definitions: list[object]) -> list[Definition]:
        """Take what the server has answered a client's list; return what the client may see."""
        self._tools.hear(request)
        return self.catalog.learn(definitions)

    def lose_server(self, error: UpstreamLostError) -> None:
        """Note that the server is lost: no call waits for an approval any longer."""
        self._why_lost = str(error)
        self._lost.set()

    async def start(self) -> dict[str, str]:
        """Return the secrets for the server by variable, by a guarded call of their own.

        The token for a server over HTTP stands under ``BEARER``. The policy decides on the call
        ``mcp:start``, and each release is on record. Raises ``Denied``, ``ApprovalPending`` once
        the wait for an answer is over, and ``SecretError``.
        """
        settings = self._settings
        wanted = dict(settings.secrets)
        if settings.bearer is not None:
            wanted[BEARER] = settings.bearer
        if not wanted:
            return {}
        spec, refused = self.catalog.method(START)
        agent = await self._under_delegation()
        arguments = _start_arguments(settings)
        released: dict[str, str] = {}

        async def run() -> None:
            for variable, name in wanted.items():
                released[variable] = await asyncio.to_thread(secret, name)

        for last in (False, True):
            site = CallSite(next_call_id(agent, spec.name))
            bind = partial(Arguments.of, arguments, declared=arguments)
            invocation = Invocation.bind(spec, bind, site, shared=False)
            if refused:
                invocation = replace(invocation, refusal=refused)
            try:
                await arun(agent, invocation, run, _OPTIONS)
            except ApprovalPending as waiting:
                if last or not await approved(self._agent, waiting, settings.wait):
                    raise
            else:
                return released
        raise AssertionError  # pragma: no cover  the second round returns or raises

    async def answer(
        self,
        request: Message,
        forward: Callable[[Message], Awaitable[Message]],
        dialogs: Dialogs,
    ) -> Message:
        """Return the response to a guarded request.

        ``forward`` sends a request to the server and returns the response; it is awaited once the
        call is authorised and on record, and never otherwise. ``forward`` raises ``NotSentError``,
        ``TimeoutError``, ``UpstreamLostError`` or ``RefusedError``. ``dialogs`` reach the
        client while the call waits for an approval.
        """
        try:
            content = CallParams.of(request)
            _require_exact(content)
        except InvalidParamsError as error:
            return answers.error(request["id"], error_codes.INVALID_PARAMS, str(error))
        if dialogs.gives_up(request):
            return answers.given_up(request, content.name)
        caller = None if self._callers is None else await self._callers.of(request)
        if isinstance(caller, Decision):  # whoever is nobody takes no call away from the others
            return await self._answered(request, content, caller, caller, forward, dialogs)
        with self._limits.counted() as limited:
            return await self._answered(request, content, limited, caller, forward, dialogs)

    async def _answered(
        self,
        request: Message,
        content: CallParams,
        refused: Decision | None,
        caller: Caller | Decision | None,
        forward: Callable[[Message], Awaitable[Message]],
        dialogs: Dialogs,
    ) -> Message:
        """Return the response to a guarded request, which ``refused`` refuses if there is one.

        ``caller`` is as ``CallerSource.of`` says, and None where the settings name the caller.
        """
        sent, name, arguments, beside = content
        refused = refused or await self._refusal(name, request)
        refused = refused or self._round_refusal(content, dialogs)
        agent, spec, failed = await self._for_caller(request, self._spec(name, request), caller)
        refused = refused or failed
        bind = partial(decided_arguments, spec, arguments, beside)

        async def run() -> Any:
            return result_of(await forward(traces.within_span(sent, self._settings.transport)))

        for last in (False, True):
            site = CallSite(next_call_id(agent, spec.name))
            invocation = Invocation.bind(spec, bind, site, shared=False)
            if refused is not None:
                invocation = replace(invocation, refusal=refused)
            try:
                with attached(traces.context_of(request)):
                    result = await arun(agent, invocation, run, _OPTIONS)
                return {"id": request["id"], "result": result}
            except ApprovalPending as waiting:
                if not last and self._settings.wait > 0 and dialogs.asks_first(request):
                    return question_first(request, name, waiting.request)
                is_approved = not last and await unless(
                    self._lost,
                    approved_for_client(
                        self._agent, waiting, self._settings.wait, request, dialogs
                    ),
                )
                if self._lost.is_set():
                    return failure(request, name, NotSentError(self._why_lost), self._settings)
                if not is_approved:
                    return answers.pending(request, name, waiting.request)
                # the tool may have changed meanwhile, and the caller's agent may be revoked
                refused = refused or await self._refusal(name, request)
                if refused is None and caller is not None and not isinstance(caller, Decision):
                    refused = await caller.revoked()
            except Exception as error:  # noqa: BLE001  each error has an answer of its own
                return failure(request, name, error, self._settings)
        raise AssertionError  # pragma: no cover  the second round returns

    def shows_all(self, tools: list[Definition]) -> bool:
        """Whether a list shows ``tools`` to whoever asks: ``listed`` need not look at them."""
        return not (self._settings.filter_list or any(self._requires(one["name"]) for one in tools))

    async def listed(self, request: Message, tools: list[Definition]) -> list[Definition]:
        """Return those of ``tools`` whose scope the caller can have.

        With ``filter_list``, these are the ones for which the policy allows ``mcp:tools/list``, and
        none without a caller. ``request`` is the client's ``tools/list``.
        """
        try:
            caller = None if self._callers is None else await self._callers.of(request)
            most = await self._most(caller)
            kept = [
                one for one in tools if most is None or most.issuperset(self._requires(one["name"]))
            ]
            if self._settings.filter_list:
                kept = await self._permitted(request, caller, kept)
        except Exception:
            _LOGGER.exception("a list shows no tools")
            return []
        return kept

    def _requires(self, name: str) -> tuple[str, ...]:
        return self.catalog.spec(name).requires

    async def _most(self, caller: Caller | Decision | None) -> frozenset[str] | None:
        """Return the largest scope that a call of ``caller`` can have, None for every scope.

        Whoever is nobody sees what the agent may do; each call is refused.
        """
        own = agent_scope(self._agent)
        lent: frozenset[str] | None = None
        if caller is None and self._settings.principal is not None:
            delegation = (await self._under_delegation()).delegation
            lent = frozenset(() if delegation is None else delegation.scope)
        elif caller is not None and not isinstance(caller, Decision):
            lent = caller.most
        return own if lent is None else lent if own is None else own & lent

    async def _permitted(
        self, request: Message, caller: Caller | Decision | None, tools: list[Definition]
    ) -> list[Definition]:
        """Return those of ``tools`` for which the policy allows ``mcp:tools/list``."""
        spec, refused = self.catalog.method(LIST)
        agent, spec, failed = await self._for_caller(request, spec, caller)
        if refused := refused or failed:
            _LOGGER.warning("a list shows no tools: %s [%s]", refused.reasons, refused.code)
            return []
        names = {one["name"]: self.catalog.spec(one["name"]).name for one in tools}
        shown = await permitted(agent, spec, self._settings.server, names.values())
        if not shown:
            _LOGGER.warning("a list shows no tools: the policy allows %s for none", spec.name)
        return [one for one in tools if names[one["name"]] in shown]

    def _spec(self, name: str, request: Message) -> ToolSpec:
        if request["method"] == "tools/call":
            return self.catalog.spec(name)
        return self.catalog.method(request["method"])[0]

    async def _refusal(self, name: str, request: Message) -> Decision | None:
        """Return why a request is refused: a tool by the list that the server gives now."""
        if request["method"] != "tools/call":
            return self.catalog.method(request["method"])[1]
        try:
            await self._tools.refresh(request)
        except Exception as error:  # noqa: BLE001  a list that can't be had refuses the call
            what = f"the MCP server {self._settings.server} does not say which tools it has"
            why = str(error) or type(error).__name__
            return Decision.refusal(f"{what}: {why}", code="tool.unlisted")
        return self.catalog.refusal(name)

    def _round_refusal(self, content: CallParams, dialogs: Dialogs) -> Decision | None:
        """Return why a request may not go on in a further round (``round_refusal``)."""
        sent = content.sent
        is_tool = sent["method"] == "tools/call"
        name = content.name if is_tool else f"{METHOD_PREFIX}{sent['method']}"
        settings = self._settings
        where = f"rounds of [mcp.{settings.server}]"
        return round_refusal(name, sent["params"], dialogs.revision(sent), settings.rounds, where)

    async def _for_caller(
        self, request: Message, spec: ToolSpec, caller: Caller | Decision | None
    ) -> tuple[Agent, ToolSpec, Decision | None]:
        """Return the agent and the specification for a request, and why the caller may not act."""
        if isinstance(caller, Decision):
            return self._agent, spec, caller
        if caller is None:
            agent = await self._under_delegation()
        else:
            agent = self._agent.under(caller.delegation)
        callers = self._callers
        failed = None if callers is None else callers.contradiction(request, spec)
        return agent, spec if caller is None else caller.told(spec), failed

    async def _under_delegation(self) -> Agent:
        """Return the agent under a delegation of the principal; it refuses calls without one."""
        principal = self._settings.principal
        if principal is None:
            return self._agent
        async with self._delegating:
            delegation = self._delegation
            if delegation is None or delegation.expires_at - datetime.now(UTC) < _MARGIN:
                try:
                    delegation = await asyncio.to_thread(
                        self._guard.delegate,
                        principal,
                        scope=self._settings.delegated,
                        task_id=self._settings.task_id,
                        expires_in=_HOUR,
                    )
                except AgentguardError as error:
                    refused = DelegationError(str(error), code=error.code, delegation=principal)
                    return refusing_agent(self._agent, refused)
                self._delegation = delegation
        return self._agent.under(delegation)


def _require_exact(content: CallParams) -> None:
    """Raise ``InvalidParamsError`` for a number beside the arguments that servers read differently.

    ``bound`` looks at those of the arguments.
    """
    for member, value in content.sent["params"].items():
        if member != "arguments" and not is_exact(value):
            message = f"{content.sent['method']}: {member} has an integer beyond 2^53-1"
            raise InvalidParamsError(message)


def _start_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the call that starts a server, or connects to one."""
    if settings.url is None:
        return {"server": settings.server, "command": list(settings.command)}
    return {"server": settings.server, "url": settings.url}
