"""Reads and writes one line of MCP's stdio transport: one JSON-RPC message, strictly.

Two readers of JSON can see two messages in one line: where a key stands twice, one takes the first
value and the other the last. So the gateway refuses what readers do not agree on, and never passes
a line on: each message is written anew from the value that the gateway has read. This module does
no I/O. MCP, "Transports", stdio; JSON-RPC 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson

from agentguard.adapters import MAX_INTEGER, DecodeError, EncodeError, loads
from agentguard_mcp.params import MEMBERS, STANDARD, protocol_meta, without_own

MAX_LINE: Final = 16 << 20
"""The longest line that the gateway takes from a client or a server, in bytes."""

MAX_LEVELS: Final = 200
"""The deepest nesting of a message: a tool that is nested too deeply hides no other tool."""

MAX_NAME: Final = 1_024
"""The characters of the longest name of a tool; a tool with a longer one does not exist here."""

_MAX_ID: Final = 256
_PARTS: Final = ("id", "method", "params", "result", "error")

Message = dict[str, Any]
RequestId = str | int


class Peer(Protocol):
    """One end of a gateway, the client or the server, to which messages are written."""

    def send(self, message: Message) -> None:
        """Write a message without a wait; raises ``UpstreamLostError`` and ``EncodeError``."""


class Client(Peer, Protocol):
    """The client's end of a gateway, which may have a connection of its own for each request."""

    def sent(self, identifier: RequestId, /) -> None:
        """Take note that a request of the client has gone to the server."""

    def poll(self, identifier: RequestId, /) -> None:
        """Take note that the server wants the client to come again for an answer."""


def read(line: bytes) -> Message:
    """Return the message of one line, with the members that JSON-RPC 2.0 names and no others.

    The message is a request (``id`` and ``method``), a notification (``method``) or a response
    (``id`` with ``result`` or ``error``). Integers keep their digits: ``bound`` refuses those of a
    call that two readers may read in different ways. Raises ``DecodeError`` (``json.*``) for a line
    that is no JSON, or JSON of two meanings (``loads``), and for one that is no message; a batch is
    no message.
    """
    value = loads(line, limit=MAX_LINE, depth=MAX_LEVELS, exact=True)
    if not isinstance(value, dict):
        raise DecodeError("a message is no JSON object", code="json.not_object")
    return _message(value)


def write(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line; raises ``EncodeError`` for a value without a JSON form."""
    return encoded({"jsonrpc": "2.0", **message}) + b"\n"


def encoded(value: object, *, is_sorted: bool = False) -> bytes:
    """Return a value as JSON, by the order of its keys or sorted; raises ``EncodeError``.

    Two values that differ have different texts: 1, 1.0 and true do.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if is_sorted else None)
    except TypeError:
        pass  # of integers of more than 64 bits, for example
    try:
        text = json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=is_sorted, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"a message can't be written: {error}") from error


def is_request(message: Mapping[str, Any]) -> bool:
    """Return whether a message asks for a response (JSON-RPC 2.0, 4)."""
    return "method" in message and "id" in message


def is_response(message: Mapping[str, Any]) -> bool:
    """Return whether a message answers a request (JSON-RPC 2.0, 5)."""
    return "method" not in message


def cancelled(identifier: RequestId, reason: str) -> Message:
    """Return the notice that whoever has sent a request gives it up (MCP, "Cancellation")."""
    params = {"requestId": identifier, "reason": reason}
    return {"method": "notifications/cancelled", "params": params}


def meta_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``_meta`` of a request or a notification, empty where there is none."""
    meta = message.get("params", {}).get("_meta")
    return meta if isinstance(meta, dict) else {}


def is_modern(message: Mapping[str, Any]) -> bool:
    """Return whether a request is one of revision 2026-07-28, which has no ``initialize``."""
    return f"{STANDARD}protocolVersion" in meta_of(message)


def cleaned(message: Message) -> Message:
    """Return a message without agentguard's own keys, at every depth."""
    result: Message = without_own(message)
    return result


def plain(message: Message) -> Message:
    """Return a client's message with what MCP gives its method alone, and no key of ``_meta`` more.

    A server may choose by any other member what it does, as by ``fastmcp.version``, and no decision
    covers such a member.
    """
    if "params" not in message:
        return message
    message, known = cleaned(message), MEMBERS[message["method"]]
    kept = {name: value for name, value in message["params"].items() if name in known}
    if meta := protocol_meta(meta_of(message)):
        kept["_meta"] = meta
    return {**message, "params": kept}


def without_tasks(message: Message, part: str) -> Message:
    """Return an ``initialize`` whose sender has no tasks; ``part`` is ``params`` or ``result``."""
    container = message.get(part, {})
    capabilities = container.get("capabilities")
    if not isinstance(capabilities, dict) or "tasks" not in capabilities:
        return message
    kept = {name: value for name, value in capabilities.items() if name != "tasks"}
    return {**message, part: {**container, "capabilities": kept}}


def _message(value: dict[str, Any]) -> Message:
    message: Message = {name: value[name] for name in _PARTS if name in value}
    if "method" not in message:
        message.pop("params", None)  # no member of a response, so of any type
    identifier, params = message.get("id", 0), message.get("params", {})
    is_id = isinstance(identifier, str) or (
        # a server that reads another number would answer another request
        type(identifier) is int and abs(identifier) <= MAX_INTEGER
    )
    has_shape = (
        ("id" in message and ("result" in message) is not ("error" in message))
        if is_response(message)
        else isinstance(message["method"], str)
        and isinstance(params, dict)
        and not ({"result", "error"} & message.keys())
    )
    if (
        value.get("jsonrpc") != "2.0"
        or not is_id
        or not has_shape
        or len(str(identifier)) > _MAX_ID
        or not isinstance(message.get("error", {}), dict)
        or type(message.get("error", {}).get("code", 0)) is not int
        or not isinstance(message.get("result", {}), dict)
    ):
        raise DecodeError("a line is no message of JSON-RPC 2.0", code="json.malformed")
    return message
