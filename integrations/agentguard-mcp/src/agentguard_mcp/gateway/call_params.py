"""``CallParams``: what of a guarded request goes on to the server, and what the policy decides on.

A member of the params that no decision covers is refused, since a server may choose by it what it
runs. This module does no I/O.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from agentguard_mcp.gateway.messages import MAX_NAME, Message, plain
from agentguard_mcp.params import OWN, RESPONSES, STATE, beside, unknown_member, without_own


class InvalidParamsError(Exception):
    """A request does not have the params that MCP asks for."""


class CallParams(NamedTuple):
    """A guarded request as it goes on (``sent``), and the name and arguments to decide on.

    The name is that of the tool, or the method of a request that calls no tool. ``beside`` is what
    the request brings beside its arguments, of which the policy decides, too.
    """

    sent: Message
    name: str
    arguments: dict[str, Any]
    beside: dict[str, Any]

    @classmethod
    def of(cls, request: Message) -> CallParams:
        """Return what a request asks for; raises ``InvalidParamsError``."""
        method, params = request["method"], request.get("params", {})
        unknown = unknown_member(method, params)
        if unknown is not None:
            raise InvalidParamsError(f"{method}: the gateway passes no {unknown[:64]!r} on")
        sent = plain({"id": request["id"], "method": method, "params": params})
        kept = sent["params"]
        if params.get(RESPONSES) and not kept[RESPONSES]:
            del kept[RESPONSES]  # the answer to the gateway's own question, which no server gets
        _require_types(method, kept)
        if method == "resources/read":
            uri = params.get("uri")
            if not isinstance(uri, str):
                raise InvalidParamsError("resources/read: expected a text as uri")
            return cls(sent, method, {"uri": uri}, beside(kept))
        name, arguments = params.get("name"), params.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise InvalidParamsError(
                f"{method}: expected a text as name, and an object as arguments"
            )
        if len(name) > MAX_NAME:  # the log has the whole name, also of a call that is refused
            raise InvalidParamsError(f"{method}: the name is longer than {MAX_NAME} characters")
        if without_own(arguments) is not arguments:
            raise InvalidParamsError(f"{method}: no key of the arguments may begin with {OWN}")
        if method == "prompts/get":
            return cls(sent, method, {"name": name, "arguments": arguments}, beside(kept))
        return cls(sent, name, arguments, beside(kept))


def _require_types(method: str, params: dict[str, Any]) -> None:
    if not isinstance(params.get(STATE, ""), str):
        raise InvalidParamsError(f"{method}: expected a text as {STATE}")
    if not isinstance(params.get(RESPONSES, {}), dict):
        raise InvalidParamsError(f"{method}: expected an object as {RESPONSES}")
