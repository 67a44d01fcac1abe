"""A run that pauses in one process and goes on in another, for the user for whom it was begun.

Three processes share a state and a checkpoint file: one asks, one is bob's, one goes on. Runs
offline; it needs ``langgraph-checkpoint-sqlite`` beside ``langchain``.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.sqlite import SqliteSaver

from agentguard import Ed25519Signer, Guard
from agentguard_langchain import GuardMiddleware

CONFIG = """\
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "rego"
path = "authz.rego"

[agents.bookkeeper]
max_scope = ["payment:send"]

[tools]
unlisted = "deny"                  # a tool without a table is denied

[tools.pay]
requires = ["payment:send"]

[approvers.bob]
principal = "user:bob"
keys = ["{key}"]
"""

POLICY = """\
package agent.authz

default allow = false

approval := {"reason": "a payment", "approvers": ["bob"]} if input.action == "pay"
"""


class ScriptedModel(BaseChatModel):
    """A model that makes one payment, and is done."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:  # noqa: ARG002
        """Take no notice of the tools: it knows them."""
        return self

    def _generate(self, messages: Any, *_args: Any, **_kwargs: Any) -> ChatResult:
        said = AIMessage("Paid.")
        if messages[-1].type == "human":
            args = {"to": "ann", "cents": 4_200}
            call = {"name": "pay", "args": args, "id": "call-1", "type": "tool_call"}
            said = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=said)])


def pay(to: str, cents: int) -> str:
    """Pay somebody."""
    return f"paid {cents / 100:.2f} to {to}"


THREAD: Any = {"configurable": {"thread_id": "invoice-7"}}


def graph(guard: Guard, saver: SqliteSaver) -> Any:
    """Build the agent, as each process does that runs it."""
    guarding = GuardMiddleware(guard.new_agent("bookkeeper"))
    return create_agent(ScriptedModel(), [pay], middleware=[guarding], checkpointer=saver)


def ask() -> None:
    """Begin a run for alice; it pauses."""
    with Guard.open() as guard, SqliteSaver.from_conn_string("graph.db") as saver:
        with guard.delegate("user:alice", scope=["payment:send"], task_id="invoice-7"):
            state = graph(guard, saver).invoke({"messages": [HumanMessage("Pay Ann.")]}, THREAD)
        (pause,) = state["__interrupt__"]
        print(f"it waits: {pause.value['agentguard'][0]['reason']}")


def approve() -> None:
    """Sign as bob, who needs neither the graph nor its checkpoints."""
    signer = Ed25519Signer.from_openssh(Path("bob").read_bytes(), os.environb[b"BOB"])
    with Guard.open() as guard:
        for request in guard.approvals.pending():
            said = guard.approvals.approve(request, signer).approval
            print(f"{said.approver} approves {request.tool} for {request.principal}")


def resume() -> None:
    """Go on with the run: nothing is in force here, and nothing but the thread is known."""
    with Guard.open() as guard, SqliteSaver.from_conn_string("graph.db") as saver:
        state = graph(guard, saver).invoke(None, THREAD)
        print(next(m.text for m in state["messages"] if isinstance(m, ToolMessage)))
        print(f"the log verifies: {guard.verify().ok}")


def main() -> None:
    """Set up a trust domain in a folder, and run the three in it, each in a process of its own."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = Ed25519Signer.from_seed(secrets.token_bytes(32))
        (folder / "bob").write_bytes(key.to_openssh(secret.encode()))
        (folder / "agentguard.toml").write_text(CONFIG.format(key=key.public_key.openssh()))
        (folder / "authz.rego").write_text(POLICY)
        environment = {**os.environ, "BOB": secret, "AGENTGUARD_PASSPHRASE": secrets.token_hex(16)}
        init = [sys.executable, "-m", "agentguard.cli", "init"]
        subprocess.run(init, cwd=folder, env=environment, check=True, capture_output=True)  # noqa: S603
        for step in ("ask", "approve", "resume"):
            command = [sys.executable, str(Path(__file__).resolve()), step]
            subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603


if __name__ == "__main__":
    {"ask": ask, "approve": approve, "resume": resume}.get("".join(sys.argv[1:]), main)()
