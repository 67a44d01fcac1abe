"""``CallParams``: what of a guarded request goes on to the server, and what the policy decides on.

A member of the params that no decision covers is refused, since a server may choose by it what it
runs. This module does no I/O.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from agentguard_mcp.gateway.messages import MAX_NAME, Message, meta_of, plain_meta, without_own

_MEMBERS: Final = {
    "tools/call": {"name", "arguments", "inputResponses", "requestState"},
    "resources/read": {"uri", "inputResponses", "requestState"},
    "prompts/get": {"name", "arguments", "inputResponses", "requestState"},
}


class InvalidParamsError(Exception):
    """A request does not have the params that MCP asks for."""


class CallParams(NamedTuple):
    """A guarded request as it goes on (``sent``), and the name and arguments to decide on.

    The name is that of the tool, or the method of a request that calls no tool.
    """

    sent: Message
    name: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, request: Message) -> CallParams:
        """Return what a request asks for; raises ``InvalidParamsError``."""
        method, params = request["method"], request.get("params", {})
        members = {name: value for name, value in params.items() if name != "_meta"}
        # no server gets the answers to the gateway's own questions
        kept = without_own(members, "inputResponses")
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
            return cls(sent, method, {"uri": uri})
        name, arguments = params.get("name"), params.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise InvalidParamsError(
                f"{method}: expected a text as name, and an object as arguments"
            )
        if len(name) > MAX_NAME:  # the log has the whole name, also of a call that is refused
            raise InvalidParamsError(f"{method}: the name is longer than {MAX_NAME} characters")
        if method == "prompts/get":
            return cls(sent, method, {"name": name, "arguments": arguments})
        return cls(sent, name, arguments)
