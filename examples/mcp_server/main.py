"""An agent whose calls over MCP are proved, a guarded server, and a program without proofs.

The server is a program of its own, on a pipe. Its tool runs only for a call that the agent's guard
has authorised and that the server's own policy allows.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from agentguard import Decision, Guard
from agentguard_mcp import guard_transport

AUDIENCE = "mcp:payments"
SERVER = Path(__file__).with_name("server.py")


async def main(folder: Path) -> None:
    """Call the server as the agent, and then without a proof."""
    config = {"agents": {"payer": {"max_scope": ["payments:write"]}}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        trust = folder / "trust.json"
        trust.write_bytes(guard.trust.dumps())
        command = [str(SERVER), str(trust), str(folder / "proofs.sqlite")]
        server = StdioServerParameters(command=sys.executable, args=command)
        async with Client(guard_transport(stdio_client(server), AUDIENCE)) as client:
            print("The tools:", [tool.name for tool in (await client.list_tools()).tools])

            @guard.tool
            async def pay(to: str, cents: int) -> str:
                """Pay over MCP; the guard proves what is sent here."""
                result = await client.call_tool("pay", {"to": to, "cents": cents})
                return str(result.content[0].text)

            print("The agent works:")
            agent = guard.new_agent("payer")
            for user, cents in (("user:alice", 4_200), ("user:alice", 42_000), ("user:bob", 1)):
                with guard.delegate(user, scope=["payments:write"], audience=[AUDIENCE]):
                    print(f"  for {user}:", await agent.acall(pay, "rent", cents))
        print("A program without proofs:")
        async with Client(stdio_client(server)) as client:
            refused = await client.call_tool("pay", {"to": "thief", "cents": 1})
            print(" ", refused.content[0].text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(main(Path(name)))
