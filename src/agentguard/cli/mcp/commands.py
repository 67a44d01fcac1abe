"""The group ``agentguard mcp``: a gateway in front of an MCP server, and the pins of its tools.

The gateway itself is the distribution agentguard-mcp (``gateway.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import typer

from agentguard.cli.lazy import Group


class _Mcp(Group):
    places: ClassVar[Mapping[str, tuple[str, str]]] = {
        "run": ("mcp.run:run", "Serve an MCP client, and guard each call on the server behind."),
        "serve": (
            "mcp.serve:serve",
            "Serve MCP clients over HTTP, and guard each call on the server behind.",
        ),
        "pin": ("mcp.pins:pin", "Pin the tools of an MCP server as they are now."),
        "diff": ("mcp.pins:diff", "Show how the tools of an MCP server differ from the pins."),
        "install": (
            "mcp.install:install",
            "Put a gateway in front of a server that an MCP client has in its configuration.",
        ),
    }


app = typer.Typer(no_args_is_help=True, cls=_Mcp)


@app.callback()
def mcp() -> None:
    """Put a gateway in front of an MCP server, and pin the server's tools."""
