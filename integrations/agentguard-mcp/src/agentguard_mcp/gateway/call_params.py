"""What a guarded request asks for: what goes on to the server, and what the policy decides on.

A member of the params that no decision covers is refused, since a server may choose by it what it
runs. This module does no I/O.
"""

from __future__ import annotations

from typing import Any, Final

from agentguard_mcp.gateway.messages import OWN, Message, meta_of, plain_meta

_MEMBERS: Final = {
    "tools/call": {"name", "arguments", "inputResponses", "requestState"},
    "resources/read": {"uri", "inputResponses", "requestState"},
    "prompts/get": {"name", "arguments", "inputResponses", "requestState"},
}


class InvalidParamsError(Exception):
    """A request does not have the params that MCP asks for."""


def parsed(request: Message) -> tuple[Message, str, dict[str, Any]]:
    """Return the request as it goes on, the name of the tool, and the arguments.

    A request that calls no tool has its method in the place of the name. Raises
    ``InvalidParamsError``.
    """
    method, params = request["method"], request.get("params", {})
    kept = _without_own({name: value for name, value in params.items() if name != "_meta"})
    unknown = sorted(kept.keys() - _MEMBERS[method])
    if unknown:
        raise InvalidParamsError(f"{method}: the gateway passes no {unknown[0]!r} on")
    meta = plain_meta(meta_of(request))
    sent = {
        "id": request["id"],
        "method": method,
        "params": {**kept, "_meta": meta} if meta else kept,
    }
    if method == "resources/read":
        uri = params.get("uri")
        if not isinstance(uri, str):
            raise InvalidParamsError("resources/read: expected a text as uri")
        return sent, method, {"uri": uri}
    name, arguments = params.get("name"), params.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise InvalidParamsError(f"{method}: expected a text as name, and an object as arguments")
    if method == "prompts/get":
        return sent, method, {"name": name, "arguments": arguments}
    return sent, name, arguments


def _without_own(params: dict[str, Any]) -> dict[str, Any]:
    """Return params without the answers to the gateway's own questions, which no server gets."""
    responses = params.get("inputResponses")
    if not isinstance(responses, dict) or not any(key.startswith(OWN) for key in responses):
        return params
    others = {key: value for key, value in responses.items() if not key.startswith(OWN)}
    rest = {name: value for name, value in params.items() if name != "inputResponses"}
    return {**rest, "inputResponses": others} if others else rest
