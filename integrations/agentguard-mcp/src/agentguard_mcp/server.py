"""``guard_server``: puts a guard in front of an MCP server of the SDK 2, or of fastmcp 4.

The guard is the outermost middleware of the SDK's own list, on which fastmcp 4 builds, too. There
the parameters of a request are as they came over the wire, before ``requestState`` is opened and
before any middleware of the application's.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from agentguard import ConfigError, Guard
from agentguard.proof import CallReceiver
from agentguard_mcp import messages
from agentguard_mcp.messages import RefusedRequestError
from agentguard_mcp.params import protocol_meta, without_own
from agentguard_mcp.request_guard import RequestGuard, ToolDescription, caller_name

AGENT: Final = "mcp-server"
"""The name of the server's agent, unless ``guard_server`` is told another one."""


_FASTMCP: Final = ("fastmcp.server.dependencies", "fastmcp.utilities.versions")
"""The modules of fastmcp that say which version of a tool a request asks for."""


def guard_server(
    server: Any,
    guard: Guard,
    receiver: CallReceiver,
    *,
    agent: str = AGENT,
    lists_for_all: bool = True,
    filter_list: bool = False,
    rounds: Iterable[str] = (),
) -> None:
    """Have ``guard`` verify, decide and log each request of an MCP server before it runs.

    ``server`` is an ``MCPServer`` or a low-level ``Server`` of the SDK 2, or a ``FastMCP`` of
    fastmcp 4. ``receiver`` says how callers name the server, whom it trusts, and where used proofs
    are kept. ``agent`` is the server's agent in the configuration of ``guard``. With
    ``lists_for_all`` False, also a list of tools, resources or prompts needs a proof. With
    ``filter_list``, a list of tools with a proof has only the tools for which the policy allows the
    call ``mcp:tools/list``, whose arguments ``server`` and ``tool`` name one tool. ``rounds`` are
    the patterns (``book_*``) of the tools whose calls may go on in further rounds, with
    ``requestState`` and ``inputResponses``, on which the policy then decides
    (``input.args["$mcp"]``); for a prompt or a resource, a pattern matches the method behind
    ``mcp:``.

    A tool or another request runs only with a proof, and if the policy of ``guard`` allows the
    call to ``agent`` under the caller's principal and scope. A list of tools with a proof has the
    tools whose scope the caller has. A guarded server runs no tasks.

    Raises ``ConfigError`` for another kind of server, and for a server that is guarded already;
    and as ``Guard.new_agent`` does.
    """
    low = _low_level(server)
    if any(isinstance(one, GuardMiddleware) for one in low.middleware):
        raise ConfigError("the server is guarded already: call guard_server once")
    name = str(getattr(server, "name", ""))
    requests = RequestGuard(
        guard,
        receiver,
        agent=agent,
        server=name,
        lists_for_all=lists_for_all,
        filter_list=filter_list,
        rounds=rounds,
    )
    is_fastmcp = hasattr(server, "_mcp_server")
    describe = partial(_of_fastmcp, server) if is_fastmcp else partial(_of_sdk, low)
    low.middleware.insert(0, GuardMiddleware(requests, describe))
    for one in low.middleware:
        _bind_state(getattr(one, "_security", None))


def _low_level(server: Any) -> Any:
    """Return the server of the SDK that reads the requests; raises ``ConfigError``."""
    low = getattr(server, "_mcp_server", None) or getattr(server, "_lowlevel_server", server)
    middleware = getattr(low, "middleware", None)
    if not isinstance(middleware, list) or not hasattr(low, "get_request_handler"):
        message = (
            f"{type(server).__name__} is no server that can be guarded: give an MCPServer or a "
            "Server of mcp 2, or a FastMCP of fastmcp 4"
        )
        raise ConfigError(message)
    return low


def _bind_state(security: Any) -> None:
    """Have the SDK bind the ``requestState`` that the server hands out to the caller it is for.

    The state of a call that asks for input comes back from the client. The SDK seals the state for
    one tool and its arguments, and, without OAuth, for nobody in particular.
    """
    if not hasattr(security, "bind_principal"):
        return
    before = security.bind_principal

    def bind(ctx: Any) -> str:
        return json.dumps([before(ctx) if before is not None else None, caller_name()])

    security.bind_principal = bind


class GuardMiddleware:
    """The middleware of one server; ``guard_server`` makes it."""

    def __init__(
        self,
        requests: RequestGuard,
        describe: Callable[[Any, str, Mapping[str, Any] | None], Awaitable[ToolDescription | None]],
    ) -> None:
        self._requests = requests
        self._describe = describe

    async def __call__(self, ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Answer a request, or hand a notification on."""
        inner = _plain(ctx)
        if ctx.request_id is None:
            return await call_next(inner)

        async def run() -> Any:
            result = await call_next(inner)
            if hasattr(result, "model_dump"):  # a middleware may answer with a model of the SDK
                return result.model_dump(by_alias=True, mode="json", exclude_none=True)
            return result

        try:
            return await self._requests.answer(
                ctx.method,
                ctx.params,
                partial(self._describe, inner),
                run,
                revision=ctx.protocol_version,
            )
        except RefusedRequestError as error:
            if ctx.method == "tools/call":
                return messages.refused_result(error, ctx.protocol_version)
            raise _rpc_error(error) from error


def _plain(ctx: Any) -> Any:
    """Return the context of a message without agentguard's own keys: no tool needs the tokens.

    A method of which nobody decides has those keys of ``_meta`` alone that MCP itself reads.
    """
    params, meta = without_own(ctx.params), without_own(ctx.meta)
    sent = (params or {}).get("_meta")
    if messages.is_open(ctx.method) and isinstance(sent, dict):
        kept = protocol_meta(sent)
        params = {**params, "_meta": kept}
        # the SDK has names of its own for some keys of the protocol
        meta = {key: one for key, one in (meta or {}).items() if key in kept or key not in sent}
    return replace(ctx, params=params, meta=meta)


async def _of_sdk(
    low: Any, ctx: Any, name: str, listed: Mapping[str, Any] | None
) -> ToolDescription | None:
    """Return what a server of the SDK says of a tool, by its own list of now."""
    if listed is not None:
        return ToolDescription(str(listed.get("description") or ""), listed.get("inputSchema", {}))
    entry = low.get_request_handler("tools/list")
    cursor: str | None = None
    while entry is not None:
        params = entry.params_type.model_validate({"cursor": cursor} if cursor else {})
        page = await entry.handler(ctx, params)
        for tool in page.tools:
            if tool.name == name:
                return ToolDescription(tool.description or "", tool.input_schema)
        cursor = page.next_cursor
        if not cursor:
            break
    return None


async def _of_fastmcp(
    server: Any, ctx: Any, name: str, _listed: Mapping[str, Any] | None
) -> ToolDescription | None:
    """Return what fastmcp says of a tool, of the version that the request asks for.

    fastmcp puts the definitions of a schema in the place of each ``$ref``, in its list alone.
    """
    modules: tuple[Any, ...] = tuple(map(importlib.import_module, _FASTMCP))
    dependencies, versions = modules
    with dependencies.bind_request_context(ctx) as bound:
        asked = dependencies.extract_version_spec(bound.meta)
        version = None if asked is None else versions.VersionSpec(eq=asked)
        tool = await server.get_tool(name, version)
    if tool is not None and tool.task_config.supports_tasks():
        message = f"Denied: {name} can run in the background, where no guard is [tool.unguarded]."
        raise RefusedRequestError(message, code="tool.unguarded")
    return None if tool is None else ToolDescription(tool.description or "", tool.parameters)


def _rpc_error(error: RefusedRequestError) -> Exception:
    """Return a refusal as the JSON-RPC error of the SDK."""
    kind: Any = importlib.import_module("mcp").MCPError  # the SDK 1 has no such name
    made: Exception = kind(messages.ERROR, str(error), messages.refusal_of(error))
    return made
