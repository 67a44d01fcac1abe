"""An MCP client, a gateway, and an MCP server that nobody changes.

Run it with ``python examples/mcp_gateway/main.py``: it makes a trust domain in a temporary folder,
pins the server's tools, and calls some through the gateway. ``--git`` and ``--filesystem`` put two
servers of the MCP project behind the gateway, which uvx and npx fetch.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

HERE = Path(__file__).resolve().parent
AGENTGUARD = [sys.executable, "-m", "agentguard.cli"]

POLICY = """
package agent.authz

default allow := false

allow if input.action in {"read_note", "git_log", "read_text_file"}

approval := {"reason": "a person deletes notes"} if input.action == "delete_note"
"""

APPROVERS = """
[approvals]
application = true    # in an example; elsewhere, name people with keys of their own in [approvers]
"""


class Server(NamedTuple):
    """A server's name, the command that starts it, and the calls to make."""

    name: str
    command: list[str]
    calls: list[tuple[str, dict[str, Any]]]


def notes(folder: Path) -> Server:
    """Return the server of this example."""
    (folder / "todo.txt").write_text("water the plants\n", encoding="utf-8")
    command = [sys.executable, str(HERE / "notes.py"), str(folder)]
    calls = [("read_note", {"name": "todo.txt"}), ("delete_note", {"name": "todo.txt"})]
    return Server("notes", command, calls)


def git(folder: Path) -> Server:
    """Return ``mcp-server-git``, on a new repository."""
    author = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q"), (*author, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)  # noqa: S603, S607
    where = {"repo_path": str(folder)}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("git_log", {**where, "max_count": 1}),
        ("git_commit", {**where, "message": "not mine"}),
    ]
    return Server("git", ["uvx", "mcp-server-git"], calls)


def filesystem(folder: Path) -> Server:
    """Return ``@modelcontextprotocol/server-filesystem``, on a new folder."""
    (folder / "todo.txt").write_text("water the plants\n", encoding="utf-8")
    command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", str(folder)]
    path = {"path": str(folder / "todo.txt")}
    calls = [("read_text_file", path), ("write_file", {**path, "content": "gone"})]
    return Server("filesystem", command, calls)


SERVERS = {"--notes": notes, "--git": git, "--filesystem": filesystem}


def run(*words: str, home: Path) -> str:
    """Run a command of agentguard, and return what it prints; an error ends the program."""
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(  # noqa: S603
        [*AGENTGUARD, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"agentguard {words[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def found(home: Path, server: Server) -> str:
    """Make a trust domain with a policy and the server's pins; return its configuration."""
    domain = home / "domain"
    config = str(domain / "agentguard.toml")
    run("init", str(domain), home=home)
    (domain / "policies" / "authz.rego").write_text(POLICY, encoding="utf-8")
    with Path(config).open("a", encoding="utf-8") as file:
        file.write(APPROVERS)
    pin = ("mcp", "pin", "--name", server.name, "--config", config, "--", *server.command)
    print(run(*pin, home=home).splitlines()[-1].partition(" in ")[0])
    return config


async def use(
    home: Path, config: str, server: Server, nowhere: TextIO, *, hostile: bool = False
) -> None:
    """Call the server's tools through the gateway, as any MCP client would."""
    gateway = ["mcp", "run", "--agent", "assistant", "--name", server.name, "--config", config]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    command = server.command
    if hostile:
        command = ["env", "NOTES_ARE_HOSTILE=1", *command]
    parameters = StdioServerParameters(
        command=AGENTGUARD[0],
        args=[*AGENTGUARD[1:], *gateway, "--", *command],
        env=environment,
    )
    async with (
        stdio_client(parameters, errlog=nowhere) as (reader, writer),
        ClientSession(reader, writer) as session,
    ):
        await session.initialize()
        shown = [tool.name for tool in (await session.list_tools()).tools]
        print("the client sees:", ", ".join(shown[:6]))
        for tool, arguments in server.calls:
            result = await session.call_tool(tool, arguments)
            text = str(getattr(result.content[0], "text", "")).strip()
            print(f"{tool}: {text.splitlines()[0].partition(' (request')[0]}")


def main() -> None:
    """Show a server behind the gateway."""
    (option,) = sys.argv[1:] or ["--notes"]
    with (
        tempfile.TemporaryDirectory() as name,
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
    ):
        home = Path(name).resolve()
        (home / "work").mkdir()
        server = SERVERS[option](home / "work")
        config = found(home, server)
        asyncio.run(use(home, config, server, nowhere))
        if option == "--notes":
            print("the server describes read_note in another way:")
            asyncio.run(use(home, config, server, nowhere, hostile=True))
        verified = run("audit", "verify", "--config", config, home=home)
        print("the log verifies:", "consistent" in verified)


if __name__ == "__main__":
    main()
