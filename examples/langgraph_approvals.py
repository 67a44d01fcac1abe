"""A LangChain agent that waits for a person: bob approves one deployment, and rejects another.

Runs offline: ``ScriptedModel`` stands in for a model. Put ``init_chat_model("...")`` in its place.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from agentguard import Decision, Ed25519Signer, Guard, Requirement
from agentguard_langchain import GuardMiddleware


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


def calling(*calls: tuple[str, dict[str, str]]) -> AIMessage:
    """Return what a model says to make these calls at once."""
    made = [
        {"name": name, "args": args, "id": secrets.token_hex(4), "type": "tool_call"}
        for name, args in calls
    ]
    return AIMessage("", tool_calls=made)


def decide(call: Mapping[str, Any]) -> Decision:
    """Deploy to production only with bob's approval; everything else may run."""
    target = call["args"].get("target")
    if call["action"] == "deploy" and not isinstance(target, str):
        return Decision.deny("the target must be a text")
    if call["action"] == "deploy" and target == "production":
        return Decision.require_approval(Requirement("production", approvers=("bob",)))
    return Decision.allow()


def deploy(service: str, target: str) -> str:
    """Deploy a service."""
    return f"deployed {service} to {target}"


# In an application, bob signs on his own machine: `agentguard approvals approve`.
BOB = Ed25519Signer.from_seed(secrets.token_bytes(32))
CONFIG = {"approvers": {"bob": {"principal": "user:bob", "keys": [BOB.public_key.openssh()]}}}


def answers(state: Mapping[str, Any]) -> list[str]:
    """Return what the calls of the last turn were answered."""
    messages = state["messages"]
    last = max(n for n, message in enumerate(messages) if message.type == "human")
    return [f"{m.status}: {m.text}" for m in messages[last:] if isinstance(m, ToolMessage)]


def main() -> None:
    """Ask for three deployments, two of which pause."""
    with Guard.ephemeral(policy=decide, config=CONFIG) as guard:
        agent = guard.new_agent("deployer")
        script = [
            calling(
                ("deploy", {"service": "api", "target": "staging"}),
                ("deploy", {"service": "api", "target": "production"}),
            ),
            AIMessage("Done."),
            calling(("deploy", {"service": "billing", "target": "production"})),
            AIMessage("Then not."),
        ]
        graph = create_agent(
            ScriptedModel(script=iter(script)),
            [deploy],
            middleware=[GuardMiddleware(agent)],  # last in the list
            checkpointer=InMemorySaver(),
        )
        thread: Any = {"configurable": {"thread_id": "release-7"}}

        state = graph.invoke({"messages": [HumanMessage("Deploy the API.")]}, thread)
        (pause,) = state["__interrupt__"]
        for action in pause.value["action_requests"]:
            print(f"waits: {action['name']} {action['args']}")

        # Signed by bob, in the store; the graph is resumed without an answer.
        for request in guard.approvals.pending():
            guard.approvals.approve(request, BOB)
        print("\n".join(answers(graph.invoke(None, thread))))

        # A user interface answers the interrupt. Anybody may say no.
        state = graph.invoke({"messages": [HumanMessage("And billing.")]}, thread)
        reject = {"type": "reject", "message": "not on a Friday"}
        state = graph.invoke(Command(resume={"decisions": [reject]}), thread)
        print("\n".join(answers(state)))
        print(f"the log verifies: {guard.verify().ok}")


main()
