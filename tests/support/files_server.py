"""An MCP server with two tools, for a test's own process and as a program."""

from __future__ import annotations

from pathlib import Path

from mcp.server.fastmcp import FastMCP


def files_server(folder: Path) -> FastMCP:
    """Make a server that writes to the file ``written`` there."""
    server = FastMCP("files", log_level="ERROR")

    @server.tool()
    def write_file(path: str, text: str) -> str:
        """Write a file."""
        with (folder / "written").open("a") as file:
            file.write(f"{path}={text};")
        return f"wrote {path}"

    @server.tool()
    def count_lines(path: str) -> dict[str, int]:
        """Count."""
        return {"lines": len(path)}

    return server


if __name__ == "__main__":
    files_server(Path.cwd()).run()
