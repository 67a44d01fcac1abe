"""How HTTP says that a request is refused: statuses, and what goes with them.

A request is refused before its message goes to a relay (``HttpRefusalError``), or once the answer
to its call is there (``Refusal``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentguard_mcp.gateway import error_codes

STATUS: Final[Mapping[int, int]] = {
    error_codes.PARSE_ERROR: 400,
    error_codes.INVALID_REQUEST: 400,
    error_codes.INVALID_PARAMS: 400,
    error_codes.HEADER_MISMATCH: 400,
    error_codes.MISSING_CAPABILITY: 400,
    error_codes.UNSUPPORTED_VERSION: 400,
    error_codes.METHOD_NOT_FOUND: 404,
}
"""The HTTP status of an answer with a JSON-RPC error, in revision 2026-07-28; 200 for others."""


class HttpRefusalError(Exception):
    """A request is refused with an HTTP status; the message is for the client.

    ``headers`` go with the answer. ``code`` is that of the JSON-RPC error in the answer, and
    ``data`` its data.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: int = error_codes.INVALID_REQUEST,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.data = data
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Refusal:
    """The HTTP status of a call that is refused for what came with it, and the headers."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
