"""The gateway: guards the calls on an MCP server that nobody changes, from any client.

``agentguard mcp run`` starts a gateway, and the gateway starts the server. The client speaks MCP to
the gateway as if the gateway were the server. Each ``tools/call``, ``resources/read`` and
``prompts/get`` becomes one guarded call of the agent that the configuration names.
"""

from __future__ import annotations

from agentguard_mcp.gateway.front_settings import FrontSettings, OAuth
from agentguard_mcp.gateway.pins import Difference, Pins, compare
from agentguard_mcp.gateway.probe import list_tools
from agentguard_mcp.gateway.settings import Proofs, Settings
from agentguard_mcp.gateway.stdio import run, serve
from agentguard_mcp.gateway.upstream import environment

__all__ = [
    "Difference",
    "FrontSettings",
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
