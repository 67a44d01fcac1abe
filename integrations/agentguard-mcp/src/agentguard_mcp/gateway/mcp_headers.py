"""The headers of MCP that repeat what a body says (MCP 2026-07-28, "Standard request headers").

A client repeats in ``Mcp-Name`` what a request names in its body. A text that a header can't hold
is written in base64. ``upstream/http.py`` writes such headers, and ``http/headers.py`` reads them.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Final

NAMED_BY: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
}
"""The member of the params that ``Mcp-Name`` repeats, by the method of the request."""

PLAIN: Final = re.compile(r"[\x21-\x7E](?:[\x20-\x7E]*[\x21-\x7E])?\Z")
"""A text that a header can hold as it is: printable ASCII without a space at an end."""

_ENCODED: Final = re.compile(r"=\?base64\?(.*)\?=")


def encoded(text: str) -> str:
    """Return a text as the value of a header."""
    if PLAIN.match(text) and not text.startswith("=?base64?"):
        return text
    return f"=?base64?{b64encode(text.encode()).decode()}?="


def decoded(value: str) -> str | None:
    """Return the text of a header, None for a base64 form that is not canonical."""
    match = _ENCODED.fullmatch(value)
    if match is None:
        return value
    try:
        data = b64decode(match[1], validate=True)
        text = data.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text if b64encode(data).decode() == match[1] else None
