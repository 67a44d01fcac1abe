"""A LangChain agent and a crew, gateways, and two servers of the MCP project that nobody changes.

Run it in a clone with ``scripts/_uv run python examples/mcp_gateway/agents.py``. The script fetches
``mcp-server-git`` with uv and, where npm is there, ``@modelcontextprotocol/server-filesystem``
into a temporary folder, which is removed. ``--git`` leaves the second server out. Both clients have
scripted models, and know nothing of agentguard: they start a gateway in the place of a server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")

from crewai import Agent, Crew, Task
from crewai.mcp import MCPServerStdio
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.sessions import StdioConnection
from langchain_mcp_adapters.tools import load_mcp_tools

from agentguard_crewai.testing import scripted_model

ROOT = Path(__file__).resolve().parents[2]
AGENTGUARD = [sys.executable, "-m", "agentguard.cli"]
GIT = "mcp-server-git==2026.10.19"
FILESYSTEM = "@modelcontextprotocol/server-filesystem@2026.8.31"

POLICY = """
package agent.authz

default allow := false

allow if input.action in {"git_log", "read_text_file"}

allow if {
    input.agent.name == "crew"
    input.action == "git_status"
}
"""

AGENTS = """
[agents.langchain]
authority = "own"

[agents.crew]
authority = "own"
"""

Calls = list[tuple[str, dict[str, Any]]]


class Server(NamedTuple):
    """A server's name, the command that starts it, and the calls that each client makes."""

    name: str
    command: list[str]
    calls: Calls


def ran(*command: str | Path, home: Path | None = None) -> str:
    """Run a command, and return what it prints; ``home`` is where agentguard keeps keys."""
    environment = {**os.environ, "HOME": str(home)} if home else None
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{Path(command[0]).name} failed:\n{done.stderr.strip()}")
    return done.stdout


def git(folder: Path) -> Server:
    """Fetch ``mcp-server-git``, and return the server on a new repository."""
    uv = shutil.which("uv") or ROOT / "scripts" / "_uv"
    ran(uv, "venv", "--quiet", folder / "python")
    ran(uv, "pip", "install", "--quiet", "--python", folder / "python" / "bin" / "python", GIT)
    repository = folder / "repository"
    author = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
    ran("git", "init", "--quiet", repository)
    ran("git", "-C", repository, *author, "commit", "--quiet", "--allow-empty", "-m", "first")
    where = {"repo_path": str(repository)}
    calls: Calls = [
        ("git_log", {**where, "max_count": 1}),
        ("git_status", where),
    ]
    return Server("git", [str(folder / "python" / "bin" / "mcp-server-git")], calls)


def filesystem(folder: Path) -> Server | None:
    """Fetch ``server-filesystem``, and return the server on a new folder; None without npm."""
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not on PATH: the part with", FILESYSTEM, "is left out")
        return None
    place = folder / "node"
    ran(npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", place, FILESYSTEM)
    notes = folder / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("water the plants\n", encoding="utf-8")
    path = {"path": str(notes / "todo.txt")}
    calls: Calls = [("read_text_file", path), ("write_file", {**path, "content": "gone"})]
    program = place / "node_modules" / ".bin" / "mcp-server-filesystem"
    return Server("filesystem", [str(program), str(notes)], calls)


def gateway(home: Path, server: Server, agent: str) -> str:
    """Write a program that starts the server behind a gateway; return the program's name."""
    config = home / "domain" / "agentguard.toml"
    words = ["mcp", "run", "--agent", agent, "--name", server.name, "--config", str(config), "--"]
    command = shlex.join([*AGENTGUARD, *words, *server.command])
    program = home / "bin" / f"{server.name}-for-{agent}"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f"#!/bin/sh\nHOME={shlex.quote(str(home))} exec {command} 2>/dev/null\n", encoding="utf-8"
    )
    program.chmod(0o700)
    return program.name


class Script(BaseChatModel):
    """A model that makes the calls of a script, one after the other."""

    said: Iterator[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Script:  # noqa: ARG002
        """Take no notice of the tools: the script knows them."""
        return self

    def _generate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next(self.said))])


async def langchain(command: str, server: Server) -> None:
    """Let a LangChain agent call the tools of a server."""
    connection: StdioConnection = {"transport": "stdio", "command": command, "args": []}
    calls = [
        AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"c{number}"}])
        for number, (name, arguments) in enumerate(server.calls)
    ]
    async with MultiServerMCPClient({server.name: connection}).session(server.name) as session:
        tools = await load_mcp_tools(session)
        agent = create_agent(Script(said=iter([*calls, AIMessage("Done.")])), tools)
        state = await agent.ainvoke({"messages": [HumanMessage("Look around.")]})
    for message in state["messages"]:
        if message.type == "tool":
            said("LangChain", str(message.name), message.text)


def crew(command: str, server: Server) -> None:
    """Let a crew call the tools of a server."""
    prefix = command.replace("-", "_")
    steps = [(f"{prefix}_{name}", arguments) for name, arguments in server.calls]
    scout = Agent(
        role="Scout",
        goal="Look around.",
        backstory="Curious.",
        llm=scripted_model(*steps, "Done."),
        mcps=[MCPServerStdio(command=command)],
    )
    task = Task(description="Look around.", expected_output="A line.", agent=scout)
    output: Any = Crew(agents=[scout], tasks=[task]).kickoff()
    for message in output.tasks_output[0].messages:
        if message["role"] == "tool":
            name = str(message["name"]).removeprefix(f"{prefix}_")
            said("the crew", name, str(message["content"]))


def said(client: str, tool: str, text: str) -> None:
    """Print the first line of an answer."""
    print(f"{client}, {tool}: {text.strip().splitlines()[0].partition('. ')[0]}")


def main() -> None:
    """Found a trust domain, pin the tools of the servers, and let the clients call them."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        config = home / "domain" / "agentguard.toml"
        ran(*AGENTGUARD, "init", config.parent, home=home)
        (config.parent / "policies" / "authz.rego").write_text(POLICY, encoding="utf-8")
        with config.open("a", encoding="utf-8") as file:
            file.write(AGENTS)
        os.environ["PATH"] = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        servers = [git(home)] if sys.argv[1:] == ["--git"] else [git(home), filesystem(home)]
        for server in filter(None, servers):
            pin = ["mcp", "pin", "--name", server.name, "--config", str(config), "--"]
            pinned = ran(*AGENTGUARD, *pin, *server.command, home=home)
            print(pinned.splitlines()[-1].partition(" in ")[0])
            asyncio.run(langchain(gateway(home, server, "langchain"), server))
            crew(gateway(home, server, "crew"), server)
        listing = ("audit", "list", "--kind", "call", "--last", "0", "--json", "--config")
        calls = map(json.loads, ran(*AGENTGUARD, *listing, config, home=home).splitlines())
        counts = Counter((one["agent"].split("/")[-2], one["decision"]) for one in calls)
        for (agent, decision), count in sorted(counts.items()):
            print(f"in the log: {agent}, {decision}: {count}")
        verified = ran(*AGENTGUARD, "audit", "verify", "--config", config, home=home)
        print("the log verifies:", "consistent" in verified)


if __name__ == "__main__":
    main()
