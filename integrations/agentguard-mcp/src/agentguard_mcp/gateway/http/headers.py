"""What the headers of an HTTP request have to say, before its message goes to a relay.

The host and the origin have to be the gateway's own: a page in a browser can have the name of its
own host lead to this machine (DNS rebinding). The headers that repeat what the body says have to
agree with the body: whoever routes by a header, and whoever reads the body, see one request (MCP
2026-07-28, "Streamable HTTP"). This module works on values, and does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from agentguard_mcp.gateway import error_codes, mcp_headers
from agentguard_mcp.gateway.http.refusal import HttpRefusalError
from agentguard_mcp.gateway.mcp_headers import decoded
from agentguard_mcp.gateway.messages import Message, is_modern, meta_of
from agentguard_mcp.gateway.methods import LEGACY, REMOVED
from agentguard_mcp.params import MODERN, STANDARD

MAX_HEADERS: Final = 32 * 1024
"""The most bytes of all headers."""

_ONCE: Final = frozenset(
    {
        "access-control-request-headers",
        "access-control-request-method",
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "origin",
        "transfer-encoding",
    }
)
_PARAM: Final = "mcp-param-"
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.0+)?")
_MAX_DIGITS: Final = 400


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers by their names in lower case; raises ``HttpRefusalError``.

    A header that is read here comes once at most: of two copies, one reader takes the first and
    another the last. A proxy may turn ``_`` into ``-``, so a header with ``_`` that would count is
    refused. So is a request with the length of its body and chunks as well.
    """
    found: dict[str, str] = {}
    size = 0
    for written, value in raw:
        size += len(written) + len(value)
        if size > MAX_HEADERS:
            raise HttpRefusalError(431, f"the headers take more than {MAX_HEADERS} bytes")
        name, text = written.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        plain = name.replace("_", "-")
        if plain == "accept":  # a list, which may come in parts
            found[plain] = f"{found[plain]},{text}" if plain in found else text
        elif plain in _ONCE or plain.startswith(_PARAM):
            if plain in found or plain != name:
                message = f"the header {plain} comes twice, or is written with an underscore"
                raise HttpRefusalError(400, message, code=error_codes.HEADER_MISMATCH)
            found[plain] = text
    if "content-length" in found and "transfer-encoding" in found:
        # a proxy that reads the one, and the gateway the other, see two requests (RFC 9112, 6.3)
        close = {"connection": "close"}
        raise HttpRefusalError(400, "the body has two lengths", headers=close)
    return found


def require_own(
    headers: Mapping[str, str], hosts: frozenset[str] | None, origins: frozenset[str]
) -> None:
    """Raise ``HttpRefusalError`` (403) unless host and origin are the gateway's own.

    A request without an ``Origin`` comes from no page in a browser. ``hosts`` None takes any host.
    """
    if hosts is not None and headers.get("host", "").lower() not in hosts:
        raise HttpRefusalError(403, "the header Host names no host of this gateway")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in origins:
        raise HttpRefusalError(403, "the header Origin names no origin that may ask here")


def require_json(headers: Mapping[str, str]) -> None:
    """Raise ``HttpRefusalError`` (415, 406) unless JSON comes, and JSON and events are taken."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or headers.get("content-encoding", "identity") != "identity":
        message = "the body has to be application/json, without a Content-Encoding"
        raise HttpRefusalError(415, message)
    if not accepts(headers, "application/json") or not accepts(headers, "text/event-stream"):
        message = "Accept has to name application/json and text/event-stream"
        raise HttpRefusalError(406, message)


def accepts(headers: Mapping[str, str], kind: str) -> bool:
    """Return whether a client takes an answer of a media type (RFC 9110, 12.5.1)."""
    given = headers.get("accept", "*/*").lower().split(",")
    ranges = {one.partition(";")[0].strip() for one in given}
    return not ranges.isdisjoint({"*/*", f"{kind.partition('/')[0]}/*", kind})


def is_single(message: Message, headers: Mapping[str, str]) -> bool:
    """Return whether a message is one of a revision without sessions, or of an unknown one."""
    named = headers.get("mcp-protocol-version")
    return is_modern(message) or (named is not None and named not in LEGACY)


def require_agreement(message: Message, headers: Mapping[str, str]) -> None:
    """Raise ``HttpRefusalError`` (400) unless a request without a session is whole.

    ``_meta`` names the revision and the client's capabilities, and the headers say the same as the
    body. MCP 2026-07-28, "Streamable HTTP", "Standard request headers". A request that the revision
    does not have any more is refused with 404.
    """
    meta, params = meta_of(message), message.get("params", {})
    for key in ("protocolVersion", "clientCapabilities"):
        if f"{STANDARD}{key}" not in meta:
            text = f"params._meta has no {STANDARD}{key}"
            raise HttpRefusalError(400, text, code=error_codes.INVALID_PARAMS)
    revision, method = meta[f"{STANDARD}protocolVersion"], message["method"]
    expected: list[tuple[str, object]] = [
        ("mcp-protocol-version", revision),
        ("mcp-method", method),
    ]
    key = mcp_headers.NAMED_BY.get(method, "")
    if key in params:
        expected.append(("mcp-name", params[key]))
    for name, value in expected:
        given = headers.get(name)
        if given is None or decoded(given) != value:
            text = f"the header {name} is missing, or says something else than the body"
            raise HttpRefusalError(400, text, code=error_codes.HEADER_MISMATCH)
    require_served(revision)
    if method in REMOVED:
        text = f"revision {revision} has no {method}"
        raise HttpRefusalError(404, text, code=error_codes.METHOD_NOT_FOUND)


def require_no_contradiction(message: Message, headers: Mapping[str, str]) -> None:
    """Raise ``HttpRefusalError`` (400) where headers name another method or name than the body.

    The revisions with sessions do not have these headers, and need none. A proxy may go by the
    headers of any request.
    """
    method = message.get("method", "")
    said = {
        "mcp-method": method,
        "mcp-name": message.get("params", {}).get(mcp_headers.NAMED_BY.get(method, "")),
    }
    for name, value in said.items():
        if name in headers and decoded(headers[name]) != value:
            text = f"the header {name} says something else than the body"
            raise HttpRefusalError(400, text, code=error_codes.HEADER_MISMATCH)


def require_served(revision: str) -> None:
    """Raise ``HttpRefusalError`` (400) for a revision without sessions that is not served."""
    if revision != MODERN:
        data = {"supported": [MODERN], "requested": revision}
        raise HttpRefusalError(
            400, "Unsupported protocol version", code=error_codes.UNSUPPORTED_VERSION, data=data
        )


def params_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers ``Mcp-Param-*`` by the rest of their names, in lower case."""
    return {
        name.removeprefix(_PARAM): value
        for name, value in headers.items()
        if name.startswith(_PARAM)
    }


def param_mismatch(
    schema: Mapping[str, Any], arguments: Mapping[str, Any], given: Mapping[str, str]
) -> str | None:
    """Return what is wrong with the headers ``Mcp-Param-*`` of a call, None for nothing.

    A property of the tool's ``schema`` may name a header (``x-mcp-header``). The header and the
    argument then agree, or both are missing. MCP 2026-07-28, "Custom Headers".
    """
    for path, name, kind in _annotated(schema):
        value: Any = arguments
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        header = given.get(name.lower())
        shown = f"the header Mcp-Param-{name}"
        if value is None or not isinstance(value, str | int | float):
            if header is not None:
                return f"{shown} stands for an argument that the body does not have"
        elif header is None:
            return f"{shown} is missing, and the body has its argument"
        elif not _agrees(decoded(header), value, kind):
            return f"{shown} says something else than the body"
    return None


def _annotated(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, object]]:
    """Yield the path, the header's name and the type of each property that names a header."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while waiting:
        path, node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        name = node.get("x-mcp-header")
        if path and isinstance(name, str):
            yield path, name, node.get("type")
        properties = node.get("properties")
        if isinstance(properties, Mapping):
            waiting.extend(((*path, key), one) for key, one in properties.items())


def _agrees(text: str | None, value: str | float, kind: object) -> bool:
    if text is None:
        return False
    if isinstance(value, bool):
        return text == ("true" if value else "false")
    if kind == "integer" and not isinstance(value, str) and _DECIMAL.fullmatch(text):
        return len(text) <= _MAX_DIGITS and int(text.partition(".")[0]) == value
    return text == str(value)
