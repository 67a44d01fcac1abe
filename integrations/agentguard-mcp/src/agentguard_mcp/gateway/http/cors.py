"""Lets the pages of configured origins read a gateway's answers in a browser.

A browser asks before it sends what only a program could send otherwise, and hands an answer to a
page only if the answer names the page's origin (WHATWG Fetch, "CORS protocol"). No answer allows
credentials of the browser, such as cookies. This module works on values, and does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentguard_mcp.gateway.http.refusal import HttpRefusalError

_METHODS: Final = ("GET", "POST", "DELETE")
_HEADER: Final = re.compile(r"accept|authorization|content-type|last-event-id|mcp-[a-z0-9-]+")
_SECONDS: Final = "600"


def answer_headers(origin: str) -> dict[str, str]:
    """Return the headers of each answer to a page of an origin that may ask."""
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "Mcp-Session-Id, WWW-Authenticate",
        "vary": "Origin",
    }


def preflight(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what a browser may send, as the answer to its question before a request.

    Raises ``HttpRefusalError`` (403) for a method or a header that the gateway does not take.
    """
    asked = headers.get("access-control-request-headers", "").lower().replace(" ", "")
    names = [name for name in asked.split(",") if name]
    method = headers.get("access-control-request-method")
    if method not in _METHODS or not all(map(_HEADER.fullmatch, names)):
        raise HttpRefusalError(403, "the gateway takes no such request of a page")
    return {
        "access-control-allow-methods": ", ".join(_METHODS),
        "access-control-allow-headers": ", ".join(names),
        "access-control-max-age": _SECONDS,
    }
