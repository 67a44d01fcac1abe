"""What the benchmarks of MCP measure, in the environment of ``scripts/mcp-environment``.

    python benchmarks/mcp_subjects.py bare NOTES
    python benchmarks/mcp_subjects.py guarded NOTES CONFIG TRUST STORE
    python benchmarks/mcp_subjects.py proxy NOTES

Each speaks MCP on stdio: a server of the SDK 2 with one tool, the same server behind
``guard_server``, and the proxy of fastmcp in front of the same server. ``bare`` and ``proxy`` with
``--port PORT`` at the end speak streamable HTTP, and log errors alone.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

AUDIENCE: Final = "mcp:notes"
"""The name of the guarded server in delegations."""


def main(kind: str, notes: str, *more: str) -> None:
    """Serve until the client is gone, or over HTTP without an end."""
    port = int(more[1]) if more[:1] == ("--port",) else None
    if kind == "proxy":
        proxy(notes, port)
    elif port is not None:
        made_server(notes).run("streamable-http", port=port)
    else:
        server(notes, *more)


def made_server(notes: str) -> Any:
    """Return a server of the SDK 2 whose one tool reads a note."""
    made: Any = import_module("mcp.server.mcpserver").MCPServer("notes", log_level="ERROR")

    def read_note(name: str) -> str:
        """Read a note."""
        return (Path(notes) / name).read_text(encoding="utf-8")

    made.tool()(read_note)
    return made


def server(notes: str, *guarded: str) -> None:
    """Serve the notes of a folder, behind a guard where there are three more words."""
    made = made_server(notes)
    if not guarded:
        made.run("stdio")
        return
    # the bare server is a process without agentguard
    from agentguard import Guard, TrustDocument  # noqa: PLC0415
    from agentguard.proof import CallReceiver, ProofStore  # noqa: PLC0415
    from agentguard_mcp import guard_server  # noqa: PLC0415

    config, trust, store = map(Path, guarded)
    document = TrustDocument.loads(trust.read_bytes())
    with Guard.open(config) as guard:
        guard_server(made, guard, CallReceiver(AUDIENCE, document, ProofStore(store)))
        made.run("stdio")


def proxy(notes: str, port: int | None) -> None:
    """Serve fastmcp's proxy with its defaults, on stdio for the port None."""
    transports: Any = import_module("fastmcp.client.transports")
    transport = transports.StdioTransport(sys.executable, [__file__, "bare", notes])
    made = import_module("fastmcp.server").create_proxy(transport)
    if port is None:
        made.run("stdio", show_banner=False)
    else:
        made.run("http", show_banner=False, port=port, log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
