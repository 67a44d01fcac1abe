"""What the gateway itself answers a client: refusals, calls that wait, calls in doubt, errors.

A refused ``tools/call`` gets a result with ``isError`` and no JSON-RPC error: a model reads the
first, while some clients take the second for a fault of the connection and make the call again.
``resources/read`` and ``prompts/get`` have no such result, and get an error. The reason code stands
in ``_meta["dev.agentguard/decision"]`` of a result, or in the error's ``data`` under the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard import ApprovalRequest, Decision
from agentguard.adapters import denial_text
from agentguard_mcp.gateway.messages import OWN, Message, RequestId, is_modern

DECISION: Final = f"{OWN}decision"

REFUSED: Final = -32010
"""The code of agentguard's errors, of those that JSON-RPC 2.0 leaves to servers.

MCP keeps -32020 to -32099 for itself.
"""

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
PARSE_ERROR: Final = -32700
_URL_ELICITATION: Final = -32042
_NOT_RUN: Final = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND, _URL_ELICITATION})


def error(
    identifier: RequestId | None, code: int, text: str, decision: Mapping[str, Any] | None = None
) -> Message:
    """Return a JSON-RPC error; ``identifier`` None is for a request whose id can't be read."""
    body: dict[str, Any] = {"code": code, "message": text}
    if decision is not None:
        body["data"] = {DECISION: dict(decision)}
    return {"id": identifier, "error": body}


def refusal(request: Message, tool: str, decision: Decision) -> Message:
    """Return the answer to a guarded request that was denied, and did not run."""
    text = denial_text(tool, decision, shows_code=True)
    return _answer(request, text, {"outcome": "deny", "code": decision.code})


def pending(request: Message, tool: str, waiting: ApprovalRequest) -> Message:
    """Return the answer to a guarded request that waits for an approval, and did not run yet."""
    identifier = waiting.request_id
    text = (
        f"Not now: {tool} was not run. A person has to approve this call first (request "
        f"{identifier}). Once somebody has approved the request (agentguard approvals approve "
        f"{identifier}), make the same call with the same arguments again: the call then runs once."
    )
    decision = {"outcome": "approval", "code": "approval.required", "request": identifier}
    return _answer(request, text, decision)


def of_server(request: Message, tool: str, response: Message) -> Message:
    """Return a server's own answer to a call that failed there.

    A JSON-RPC error of ``tools/call`` becomes a result with ``isError``, since the call may have
    run. Two errors stay what they are, as the client has to act on them and nothing has run:
    invalid params, and the elicitation of a URL (MCP 2025-11-25, "URL Elicitation Required").
    """
    failure = response.get("error")
    if failure is None or request["method"] != "tools/call" or failure.get("code") in _NOT_RUN:
        return {**response, "id": request["id"]}
    text = f"The MCP server reports an error for {tool}: {failure.get('message', '')}"
    return _answer(request, text, {"outcome": "error", "code": "tool.error"})


def in_doubt(request: Message, tool: str, code: str, what: str) -> Message:
    """Return the answer to a call that went to the server and whose outcome nobody knows."""
    text = (
        f"Unknown: {what}, and {tool} may have run. Find out whether the tool ran before you "
        "make the call again."
    )
    return _answer(request, text, {"outcome": "unknown", "code": code})


def failed(request: Message, tool: str, code: str, what: str) -> Message:
    """Return the answer to a call that was allowed and never reached the server."""
    text = f"Failed: {what}, and {tool} did not run."
    return _answer(request, text, {"outcome": "error", "code": code})


def _answer(request: Message, text: str, decision: Mapping[str, Any]) -> Message:
    if request["method"] != "tools/call":
        return error(request["id"], REFUSED, text, decision)
    result: dict[str, Any] = {
        "content": [{"type": "text", "text": text}],
        "isError": True,
        "_meta": {DECISION: dict(decision)},
    }
    if is_modern(request):
        result["resultType"] = "complete"
    return {"id": request["id"], "result": result}
