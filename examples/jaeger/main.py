"""A lead agent has a sub-agent publish a report, bob approves that, and Jaeger shows all of it.

    docker compose -f deploy/compose.yaml up jaeger collector    # in another terminal
    # or, without Docker: scripts/services up jaeger
    uv run python examples/jaeger/main.py

Runs without a model: ``ScriptedModel`` stands in for one. Put ``init_chat_model("...")`` in its
place. The addresses are Jaeger's own; the two variables name others.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver

from agentguard import Agent, Decision, Ed25519Signer, Guard, Requirement, telemetry
from agentguard_langchain import GuardMiddleware, guard_subagent

OTLP = os.environ.get("AGENTGUARD_OTLP_ENDPOINT", "http://localhost:4318")
JAEGER = os.environ.get("AGENTGUARD_JAEGER_QUERY_URL", "http://localhost:16686")
SERVICE = "report-team"


class ScriptedModel(BaseChatModel):
    """A model that says what it is told to say."""

    script: Iterator[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:  # noqa: ARG002
        """Take no notice of the tools: the script knows them."""
        return self

    def _generate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next(self.script))])


def calling(*calls: tuple[str, dict[str, str]]) -> ScriptedModel:
    """Return a model that makes these calls, one after the other, and is done."""
    made = [
        AIMessage(
            "", tool_calls=[{"name": name, "args": args, "id": f"call-{n}", "type": "tool_call"}]
        )
        for n, (name, args) in enumerate(calls)
    ]
    return ScriptedModel(script=iter([*made, AIMessage("Done.")]))


def read_note(name: str) -> str:
    """Read a note."""
    return f"what {name} says"


def publish(report: str) -> str:
    """Publish a report."""
    return f"published {report}"


def decide(call: Mapping[str, Any]) -> Decision:
    """Publishing waits for bob, salaries are nobody's business, and all else may run."""
    name = call["args"].get("name", "")  # publish has none
    if not isinstance(name, str) or name == "salaries":
        return Decision.deny("salaries are not read by agents")
    if call["action"] == "publish":
        return Decision.require_approval(Requirement("a report is published", approvers=("bob",)))
    return Decision.allow()


# In an application, bob signs on his own machine: `agentguard approvals approve`.
BOB = Ed25519Signer.from_seed(secrets.token_bytes(32))
SCOPE = ["notes:read", "report:publish"]
CONFIG = {
    "agents": {
        "lead": {"type": "research-agent", "max_scope": SCOPE},
        "writer": {"type": "writing-agent", "max_scope": SCOPE},
    },
    "tools": {
        "unlisted": "deny",  # a tool without a table is denied
        "read_note": {"requires": ["notes:read"]},
        "publish": {"requires": ["report:publish"]},
        "ask_writer": {},
    },
    "approvers": {"bob": {"principal": "user:bob", "keys": [BOB.public_key.openssh()]}},
}


def team(lead: Agent, writer: Agent) -> Any:
    """Return the lead's graph, with the writer's as a tool."""
    writing = calling(("publish", {"report": "q3"}))
    child = create_agent(writing, [publish], middleware=[GuardMiddleware(writer)])
    sub_agent = guard_subagent(child, writer, scope=["report:publish"])

    def ask_writer(task: str) -> str:
        """Ask the writer."""
        return str(sub_agent.invoke({"messages": [HumanMessage(task)]})["messages"][-1].text)

    work: list[tuple[str, dict[str, str]]] = [
        ("read_note", {"name": "sales"}),
        ("read_note", {"name": "salaries"}),
        ("ask_writer", {"task": "Publish the report."}),
    ]
    return create_agent(
        calling(*work),
        [read_note, ask_writer],
        middleware=[GuardMiddleware(lead)],
        checkpointer=InMemorySaver(),
    )


def main() -> None:
    """Let alice's report be written, have bob approve it, and say where to look."""
    telemetry.configure(endpoint=OTLP, service_name=SERVICE)
    with Guard.ephemeral(policy=decide, config=CONFIG) as guard:
        graph = team(guard.new_agent("lead"), guard.new_agent("writer"))
        lent = guard.delegate("user:alice", scope=SCOPE, task_id="report-q3")
        thread: Any = {"configurable": {"thread_id": "report-q3"}}
        with lent:
            graph.invoke({"messages": [HumanMessage("Write the report.")]}, thread)
        (request,) = guard.approvals.pending()
        print(f"{request.agent_name} waits for bob: {request.reason}")
        guard.approvals.approve(request, BOB)
        with lent:
            print(graph.invoke(None, thread)["messages"][-1].text)
    if not telemetry.flush():
        sys.exit(f"the trace was not taken (in time): does an OTLP receiver listen at {OTLP}?")
    _version, trace_id, _span_id, _flags = (request.traceparent or "---").split("-")
    print(f"the trace:   {JAEGER}/trace/{trace_id}")
    print(f"as JSON:     {JAEGER}/api/traces/{trace_id}")
    denied = urlencode({"service": SERVICE, "tags": '{"agentguard.policy.decision":"deny"}'})
    print(f"all denials: {JAEGER}/api/traces?{denied}")
    print("The page needs a Jaeger with its UI; one that scripts/services has built has none.")


main()
