"""The codes of JSON-RPC errors that the gateway sends or understands.

The first four are those of JSON-RPC 2.0 (5.1), and the others are those of MCP ("Error Codes" of
revision 2026-07-28, "URL Elicitation Required" of 2025-11-25). A refusal of agentguard's own has
the code ``agentguard_mcp.messages.ERROR``.
"""

from __future__ import annotations

from typing import Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

HEADER_MISMATCH: Final = -32020
"""A header does not say what the body says."""

MISSING_CAPABILITY: Final = -32021
"""The server needs a capability that the client has not declared."""

UNSUPPORTED_VERSION: Final = -32022
"""The revision is not served."""

URL_ELICITATION: Final = -32042
"""The user has to open a URL first."""
