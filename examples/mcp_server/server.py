"""A server of fastmcp over a pipe, guarded by one line: it verifies each call, decides, and logs.

``main.py`` starts this program with the public keys of the agents' trust domain and with the file
of the used proofs. The server has a guard, a policy and a log of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastmcp import FastMCP

from agentguard import Decision, Guard, TrustDocument
from agentguard.proof import CallReceiver, ProofStore
from agentguard_mcp import current_caller, guard_server

server = FastMCP("payments")


@server.tool
def pay(to: str, cents: int) -> str:
    """Pay an amount."""
    caller = current_caller()
    who = "nobody" if caller is None else f"{caller.actors[-1]} for {caller.principal}"
    print(f"  [server] {cents} cents to {to}, by {who}", file=sys.stderr, flush=True)
    return f"paid {cents} cents to {to}"


def policy(given: Any) -> Decision:
    """Decide on the arguments, and on who calls: this is the server's own word."""
    if given["caller"]["principal"] != "user:alice":
        return Decision.deny("only alice pays")
    cents, limit = given["args"]["cents"], 10_000
    if type(cents) is not int or not 0 < cents <= limit:
        return Decision.deny("a payment is at most 100.00")
    return Decision.allow()


if __name__ == "__main__":
    trust, store = map(Path, sys.argv[1:])
    receiver = CallReceiver(
        "mcp:payments", TrustDocument.loads(trust.read_bytes()), ProofStore(store)
    )
    with Guard.ephemeral(policy) as guard:
        guard_server(server, guard, receiver)
        server.run(show_banner=False)
