"""The gateway: guards the calls on an MCP server that nobody changes, from any client.

``agentguard mcp run`` starts a gateway, and the gateway starts the server. The client speaks MCP to
the gateway as if the gateway were the server. Each ``tools/call``, ``resources/read`` and
``prompts/get`` becomes one guarded call of the agent that the configuration names.

Read the files in the order of one call. ``settings.py`` says what a gateway does. ``stdio.py`` has
a client at standard input and output, and ``http/`` has clients over HTTP. ``connect.py`` starts
the server (``upstream/``) and puts the relay between the two. ``messages.py`` reads each message,
and ``relay.py`` passes it on if ``methods.py`` names its method. ``executions.py`` runs a call once
that a client makes again. ``calls.py`` makes the guarded call: of what ``call_params.py`` finds in
the request, for the caller whom a ``caller_source.py`` names, and within ``limits.py``.
``tool_list.py`` asks the server for its tools, and ``catalog.py`` holds them against ``pins.py``.
``approval_wait.py`` and ``dialogs.py`` are the wait for an approval, and ``traces.py`` is for
spans. ``results.py`` says how the call ended, and ``answers.py`` what the client hears of the end.
``probe.py`` asks a server for its tools, to pin them. ``error_codes.py`` and ``mcp_headers.py``
have the codes and headers of MCP.
"""

from __future__ import annotations

from agentguard_mcp.gateway.http.settings import EndpointSettings, OAuth
from agentguard_mcp.gateway.pins import Difference, Pins, compare
from agentguard_mcp.gateway.probe import list_tools
from agentguard_mcp.gateway.settings import Proofs, Settings
from agentguard_mcp.gateway.stdio import run, serve
from agentguard_mcp.gateway.upstream.process import environment

__all__ = [
    "Difference",
    "EndpointSettings",
    "OAuth",
    "Pins",
    "Proofs",
    "Settings",
    "compare",
    "environment",
    "list_tools",
    "run",
    "serve",
]
