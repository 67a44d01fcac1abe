"""``RequestGuard``: verifies, decides, logs and runs the requests of a server as JSON-RPC values.

The proof of a request says who calls, for whom, and with which scope. The server's own guard then
decides, under a delegation of the caller's principal and scope to the server's agent. ``server.py``
puts the guard in front of a server.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from agentguard import Agent, AgentguardError, ApprovalPending, Decision, Denied, Guard, adapters
from agentguard.adapters import (
    ArgumentsError,
    CallOptions,
    CallSite,
    Invocation,
    ToolSpec,
)
from agentguard.proof import CallReceiver, RequestCaller
from agentguard_mcp import listing, messages
from agentguard_mcp.arguments import decided_arguments, require_checkable
from agentguard_mcp.delegations import CallerDelegations, service_of
from agentguard_mcp.listing import LIST
from agentguard_mcp.messages import GuardedRequest, RefusedRequestError
from agentguard_mcp.params import round_refusal
from agentguard_mcp.threads import in_thread

Run = Callable[[], Awaitable[Any]]
"""Runs the request in the server, and returns the result in the form of the wire."""


class ToolDescription(NamedTuple):
    """What the server says of a tool: the description and the schema of its arguments."""

    description: str
    schema: Mapping[str, Any]


Describe = Callable[[str, Mapping[str, Any] | None], Awaitable[ToolDescription | None]]
"""Returns what a call of the tool with a name has to fit, None for a tool that does not exist.

The second value is the tool as the server's list has it, None for a call. A middleware may have
changed the list, so the list alone does not say what a call has to fit.
"""

_LOGGER: Final = logging.getLogger("agentguard")
_CALLER: ContextVar[RequestCaller | None] = ContextVar("agentguard_mcp_caller", default=None)
_NOTHING: Final = ToolDescription("", MappingProxyType({}))
_LONGEST: Final = 200


def current_caller() -> RequestCaller | None:
    """Return who has sent the request that this code serves, None outside of a guarded request."""
    return _CALLER.get()


def caller_name() -> str | None:
    """Return the agent and the principal of the current caller as one text, None for no caller."""
    caller = _CALLER.get()
    return None if caller is None else f"{service_of(caller)} {caller.principal}"


class RequestGuard:
    """The guard of one server.

    ``agent`` is the name of the server's agent in the configuration of ``guard``, and ``server``
    the name of the server, from which its tools have their origin (``mcp:<server>``). With
    ``lists_for_all`` False, a list needs a proof. With ``filter_list``, a list with a proof has
    the tools for which the policy allows ``mcp:tools/list``. ``rounds`` are the patterns of the
    tools whose calls may go on in further rounds. Raises as ``Guard.new_agent`` does.
    """

    def __init__(
        self,
        guard: Guard,
        receiver: CallReceiver,
        *,
        agent: str,
        server: str,
        lists_for_all: bool,
        filter_list: bool = False,
        rounds: Iterable[str] = (),
    ) -> None:
        self._receiver = receiver
        self._server = server
        self._agent = guard.new_agent(agent)
        self._delegations = CallerDelegations(guard)
        self._origin = f"mcp:{server}"
        self._lists_for_all = lists_for_all
        self._filter_list = filter_list
        self._rounds = tuple(rounds)

    async def answer(
        self, method: str, params: Any, describe: Describe, run: Run, *, revision: str
    ) -> Any:
        """Return the result of a request, which ``run`` runs if the caller may.

        ``params`` are the parameters as they came over the wire, and ``revision`` is that of the
        client. Raises ``RefusedRequestError``, and what ``run`` raises.
        """
        messages.require_no_task(method, params)
        messages.require_known(method, params)
        if method in messages.LISTS:
            return await self._list(method, params, describe, run)
        if messages.is_open(method):
            return await run()
        caller = await self._verified(method, params)
        request = messages.guarded_request(method, params)
        where = "rounds of guard_server"
        refused = round_refusal(request.name, params or {}, revision, self._rounds, where)
        return await self._call(caller, request, refused, describe, run)

    async def _verified(self, method: str, params: Any) -> RequestCaller:
        try:
            return await in_thread(partial(self._receiver.verify, method, params))
        except AgentguardError as error:
            shown = _shown(str(error)), error.code, _shown(method)
            _LOGGER.warning("a request was refused: %s (%s, %s)", *shown)
            message = f"Denied: the server could not verify the caller [{error.code}]."
            raise RefusedRequestError(message, code=error.code) from error
        except Exception as error:
            # a store or a file of revocations of the application's own may raise anything
            _LOGGER.exception("a request was refused, because its verification failed")
            message = "Denied: the server could not verify the caller [proof.unavailable]."
            raise RefusedRequestError(message, code="proof.unavailable") from error

    async def _list(self, method: str, params: Any, describe: Describe, run: Run) -> Any:
        """Return a list: of tools, those that can be called, and with a proof the caller's."""
        is_for_all = not messages.is_proved(params) and self._lists_for_all
        caller = None if is_for_all else await self._verified(method, params)
        result = await run()
        if method != LIST or not isinstance(result, Mapping):
            return result
        tools = listing.tools_of(result)
        listed = [(tool, await _listed(tool, describe)) for tool in tools]
        if caller is None:
            kept = [tool for tool, found in listed if found is not None]
            return result if len(kept) == len(tools) else listing.with_tools(result, kept)
        specs = [(tool, self._spec(*found)) for tool, found in listed if found is not None]
        shown = [(tool, spec) for tool, spec in specs if _is_for(caller, spec)]
        if self._filter_list:
            permitted = await self._permitted(caller, [spec.name for _tool, spec in shown])
            shown = [(tool, spec) for tool, spec in shown if spec.name in permitted]
        return listing.with_tools(result, [tool for tool, _spec in shown])

    async def _permitted(self, caller: RequestCaller, names: list[str]) -> frozenset[str]:
        """Return the tools that the policy lets the caller list; none where nothing decides."""
        described = ToolDescription(listing.DESCRIPTION, listing.SCHEMA)
        try:
            spec = self._spec(f"{messages.METHOD_PREFIX}{LIST}", described, is_tool=False)
            delegation = await in_thread(partial(self._delegations.of, caller))
        except AgentguardError as error:
            _LOGGER.warning("a list shows no tools: %s (%s)", error, error.code)
            return frozenset()
        spec = replace(spec, caller=caller_member(caller))
        return await listing.permitted(self._agent.under(delegation), spec, self._server, names)

    def _spec(self, name: str, described: ToolDescription, *, is_tool: bool = True) -> ToolSpec:
        spec = ToolSpec(name, described.description, described.schema, self._origin)
        return adapters.configure_tool(self._agent, spec, listed=not is_tool)

    async def _call(
        self,
        caller: RequestCaller,
        request: GuardedRequest,
        refused: Decision | None,
        describe: Describe,
        run: Run,
    ) -> Any:
        described = await describe(request.name, None) if request.is_tool else _NOTHING
        if described is None:
            message = f"Denied: the server has no tool {request.name!r}."
            raise RefusedRequestError(message, code="tool.invalid")
        try:
            spec = self._spec(request.name, described, is_tool=request.is_tool)
            delegation = await in_thread(partial(self._delegations.of, caller))
        except AgentguardError as error:
            message = f"Denied: {request.name} was not run [{error.code}]."
            shown = _shown(request.name), _shown(str(error)), error.code
            _LOGGER.warning("%s was not run: %s (%s)", *shown)
            raise RefusedRequestError(message, code=error.code) from error
        invocation = replace(self._invocation(spec, request, caller), refusal=refused)
        return await self._run(
            partial(_arun, self._agent.under(delegation), invocation),
            request,
            _Running(caller, run),
        )

    def _invocation(
        self, spec: ToolSpec, request: GuardedRequest, caller: RequestCaller
    ) -> Invocation:
        return Invocation.bind(
            replace(spec, caller=caller_member(caller)),
            partial(decided_arguments, spec, request.arguments, request.beside),
            CallSite(adapters.next_call_id(self._agent, spec.name)),
        )

    async def _run(
        self,
        arun: Callable[[_Running], Awaitable[Any]],
        request: GuardedRequest,
        running: _Running,
    ) -> Any:
        try:
            return await arun(running)
        except _FailedToolError as failed:
            return failed.result
        except _UnseenWorkError as error:
            message = (
                f"{request.name} goes on in the background, where no guard is [tool.unguarded]."
            )
            raise RefusedRequestError(message, code="tool.unguarded") from error
        except (Denied, ApprovalPending) as error:
            if running.has_begun:  # of a guarded call within the tool
                raise
            raise _refusal(request.name, error) from error
        except AgentguardError as error:
            if running.has_begun:
                raise
            message = f"Denied: {request.name} was not run [{error.code}]."
            raise RefusedRequestError(message, code=error.code) from error


async def _listed(tool: Any, describe: Describe) -> tuple[str, ToolDescription] | None:
    """Return the name and the description of a listed tool, None where no call of it can run."""
    name = tool.get("name") if isinstance(tool, Mapping) else None
    if not isinstance(name, str):
        return None
    try:
        described = await describe(name, tool)
        if described is not None:
            require_checkable(described.schema)
            return name, described
    except (ArgumentsError, RefusedRequestError) as error:
        _LOGGER.warning(
            "the tool %s is left out of a list: %s [%s]", _shown(name), error, error.code
        )
    return None


def _shown(text: str) -> str:
    """Return a text for the program's log: whoever sends a request has chosen some of its words."""
    return adapters.shortened_text(adapters.visible_text(text), _LONGEST)


def _is_for(caller: RequestCaller, spec: ToolSpec) -> bool:
    """Whether a caller's scope has a tool, and the configuration lists it and pins no other one."""
    is_refused = spec.pin_mismatch is not None or spec.unlisted is not None
    return caller.scope.issuperset(spec.requires) and not is_refused


class _Running:
    """The run of one request: notes that it has begun, and who calls."""

    def __init__(self, caller: RequestCaller, run: Run) -> None:
        self._caller = caller
        self._run = run
        self.has_begun = False

    async def __call__(self) -> Any:
        self.has_begun = True
        with adapters.assigned(_CALLER, self._caller):
            result = await self._run()
        if messages.is_unfinished(result):
            raise _UnseenWorkError
        if messages.is_failure(result):
            raise _FailedToolError(result)
        return result


class _FailedToolError(Exception):
    """The tool has failed, and says so in its result: the log has the outcome ``error``."""

    def __init__(self, result: Any) -> None:
        super().__init__("the result of the tool says that the tool failed")
        self.result = result


class _UnseenWorkError(Exception):
    """The tool goes on in the background: the log has the outcome ``unknown``."""


_OPTIONS: Final = CallOptions(outcome_unknown=(_UnseenWorkError,), conceals=True)


def _refusal(name: str, error: Denied | ApprovalPending) -> RefusedRequestError:
    if isinstance(error, ApprovalPending):
        request_id = error.request.request_id
        message = (
            f"Not now: {name} was not run. The call waits for an approval, request {request_id}. "
            "Call again with the same arguments once people have answered."
        )
        return RefusedRequestError(message, code=error.code, request_id=request_id)
    text = adapters.denial_text(name, error.decision)
    return RefusedRequestError(text, code=error.decision.code)


async def _arun(agent: Agent, invocation: Invocation, running: _Running) -> Any:
    return await adapters.arun(agent, invocation, running, _OPTIONS)


def caller_member(caller: RequestCaller) -> dict[str, Any]:
    """Return the caller as the policy reads it (``input.caller``), and as the log keeps it."""
    return {
        "agent": caller.agent,
        "principal": caller.principal,
        "actors": list(caller.actors),
        "scope": sorted(caller.scope),
        "task_id": caller.task_id,
        "isolation": caller.isolation,
        "assurance": caller.assurance,
        "invocation_sha256": caller.invocation_sha256,
        "token": caller.token_jti,
        "chain_sha256": caller.chain.sha256,
    }
