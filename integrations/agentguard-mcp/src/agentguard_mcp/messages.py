"""Requests and results of MCP as JSON-RPC values: what is guarded, and what a refusal looks like.

Methods are those of the revisions up to 2026-07-28. A method that nobody knows here is guarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from agentguard import AgentguardError
from agentguard.proof.call_proof import MEMBERS
from agentguard_mcp.params import MODERN, OWN, ROUND, beside, unknown_member, without_own

LISTS: Final = frozenset(
    {"tools/list", "resources/list", "resources/templates/list", "prompts/list"}
)
"""The methods that list what a server has. A proof is welcome, and may be required."""

OPEN: Final = LISTS | {"initialize", "ping", "server/discover", "logging/setLevel"}
"""The methods that run no code of a tool, and need no proof."""

CODE: Final = "dev.agentguard/code"
"""The member of a refused result's ``_meta`` with the reason code."""

REQUEST: Final = "dev.agentguard/request"
"""The member of a refused result's ``_meta`` with the id of the request for an approval."""

ERROR: Final = -32010
"""The code of a refusal as a JSON-RPC error: of the range that servers define."""

METHOD_PREFIX: Final = "mcp:"
"""Before a method, the name under which a policy decides on a request that calls no tool."""

_TASKS: Final = "tasks/"


class RefusedRequestError(AgentguardError):
    """A request is refused; the text is for the caller.

    Its code did not run, unless the text says that the request goes on in the background.

    ``request_id`` is the id of the request for an approval, None where the call waits for none.
    """

    default_code = "proof.refused"

    def __init__(self, message: str, *, code: str, request_id: str | None = None) -> None:
        super().__init__(message, code=code)
        self.request_id = request_id


class GuardedRequest(NamedTuple):
    """What a request asks for: the name that a policy decides on, and the arguments.

    ``beside`` is what the request brings beside its arguments (``Arguments.of``). ``is_tool`` says
    that the name is that of a tool. Another request has the name of its method behind ``mcp:``, as
    in ``mcp:resources/read``.
    """

    name: str
    arguments: Mapping[str, Any]
    is_tool: bool
    beside: Mapping[str, Any] = MappingProxyType({})


def is_open(method: str) -> bool:
    """Whether a method needs no proof."""
    return method in OPEN


def is_proved(params: object) -> bool:
    """Whether the parameters of a request have any member that says who calls."""
    meta = params.get("_meta") if isinstance(params, Mapping) else None
    return isinstance(meta, Mapping) and not MEMBERS.isdisjoint(meta)


def require_no_task(method: str, params: object) -> None:
    """Raise ``RefusedRequestError`` (``tool.unguarded``) for a task.

    A task goes on after its call has ended, where no guard is.
    """
    is_task = isinstance(params, Mapping) and params.get("task") is not None
    if method.startswith(_TASKS) or is_task:
        message = "This server is guarded, and runs no tasks: call the tool without a task."
        raise RefusedRequestError(message, code="tool.unguarded")


def require_known(method: str, params: object) -> None:
    """Raise ``RefusedRequestError`` (``arguments.invalid``) for a member that MCP does not name.

    A method that MCP does not name has any members.
    """
    if isinstance(params, Mapping) and unknown_member(method, params) is not None:
        message = f"The request has a member that {method} does not have in MCP."
        raise RefusedRequestError(message, code="arguments.invalid")


def guarded_request(method: str, params: object) -> GuardedRequest:
    """Return what a request asks for; raises ``RefusedRequestError`` (``arguments.invalid``).

    A key of agentguard's own among the arguments is refused, and is dropped elsewhere.
    """
    given = params if isinstance(params, Mapping) else {}
    brought = beside(without_own(dict(given)))
    if method != "tools/call":
        others = {name: one for name, one in given.items() if name not in ROUND | {"_meta"}}
        _require_none_of_own(others)
        return GuardedRequest(METHOD_PREFIX + method, others, is_tool=False, beside=brought)
    name: object = given.get("name")
    stated: object = given.get("arguments")
    arguments = {} if stated is None else stated
    if not isinstance(name, str) or not name or name.startswith(METHOD_PREFIX):
        message = f"The request names no tool, or a name that begins with {METHOD_PREFIX}."
        raise RefusedRequestError(message, code="arguments.invalid")
    if not isinstance(arguments, Mapping):
        message = "The arguments of the request are no object."
        raise RefusedRequestError(message, code="arguments.invalid")
    _require_none_of_own(arguments)
    return GuardedRequest(name, arguments, is_tool=True, beside=brought)


def _require_none_of_own(arguments: Mapping[str, Any]) -> None:
    if without_own(arguments) is not arguments:
        message = f"No key of the arguments may begin with {OWN}."
        raise RefusedRequestError(message, code="arguments.invalid")


def refused_result(error: RefusedRequestError, protocol_version: str) -> dict[str, Any]:
    """Return the result of ``tools/call`` that says that a call was refused.

    A client that gets a JSON-RPC error may send the call again, up to three times.
    """
    return error_result(str(error), refusal_of(error), is_modern=protocol_version >= MODERN)


def error_result(text: str, meta: dict[str, str], *, is_modern: bool) -> dict[str, Any]:
    """Return a result of ``tools/call`` with ``isError`` and a text, which a model reads.

    ``is_modern`` is for a request of revision 2026-07-28, whose results say that they are complete.
    """
    result = {"content": [{"type": "text", "text": text}], "isError": True, "_meta": meta}
    return {**result, "resultType": "complete"} if is_modern else result


def refusal_of(error: RefusedRequestError) -> dict[str, Any]:
    """Return the reason code, and the id of the request for an approval where there is one."""
    described = {CODE: error.code}
    if error.request_id is not None:
        described[REQUEST] = error.request_id
    return described


def is_unfinished(result: object) -> bool:
    """Whether a result says that the work goes on in the background, as a task.

    A result of revision 2025-11-25 has the member ``task`` then, and one of 2026-07-28 the type
    ``task``. A type that nobody knows here may mean the same.
    """
    if not isinstance(result, Mapping):
        return False
    return "task" in result or result.get("resultType") not in (None, "complete", "input_required")


def is_failure(result: object) -> bool:
    """Whether a result of ``tools/call`` says that the tool failed.

    An ``isError`` that is no boolean counts as a failure: some clients read ``"true"`` and 1 as
    true, and others do not.
    """
    return isinstance(result, Mapping) and result.get("isError", False) is not False
