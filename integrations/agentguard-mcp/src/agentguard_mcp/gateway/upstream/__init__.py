"""The server behind a gateway: a process, or a server over HTTP.

``protocol.py`` says what the gateway asks of either, and how either fails. ``process.py`` starts a
process. ``http.py`` is a client of streamable HTTP: ``send_order.py`` keeps its notices in order,
``server_sent_events.py`` reads the streams of the server, and ``resumption.py`` says how far.
``concealed.py`` takes the gateway's own secrets out of what a server says.
"""

from __future__ import annotations

from agentguard_mcp.gateway.upstream.protocol import (
    NotSentError,
    OnLost,
    OnPoll,
    RefusedError,
    Upstream,
    UpstreamLostError,
)

__all__ = ["NotSentError", "OnLost", "OnPoll", "RefusedError", "Upstream", "UpstreamLostError"]
