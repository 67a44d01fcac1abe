"""A LangChain agent whose tools are guarded: one call is allowed, one is refused, both are signed.

Runs offline: ``ScriptedModel`` stands in for a model. Put ``init_chat_model("...")`` in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Decision, Guard
from agentguard_langchain import guard_tools


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


def call(name: str, **args: str) -> AIMessage:
    """Return what a model says to call a tool."""
    tool_call = {"name": name, "args": args, "id": f"call-{name}", "type": "tool_call"}
    return AIMessage("", tool_calls=[tool_call])


# The policy: a function here; agentguard.toml can name a Rego file instead.
def decide(call: Mapping[str, Any]) -> Decision:
    """Allow everything but a merge to main."""
    branch = call["args"].get("branch")
    if call["action"] == "merge_pr" and not (isinstance(branch, str) and branch != "main"):
        return Decision.deny("direct merges to main require human approval")
    return Decision.allow()


# The tools, as they would be without agentguard.
def open_pr(repo: str, branch: str) -> str:
    """Open a pull request."""
    return f"opened a pull request for {branch} in {repo}"


def merge_pr(repo: str, branch: str) -> str:
    """Merge into a branch."""
    return f"merged into {branch} in {repo}"


with Guard.ephemeral(policy=decide) as guard:
    reviewer = guard.new_agent("code-reviewer")
    tools = guard_tools([open_pr, merge_pr], reviewer)  # the one line

    model = ScriptedModel(
        script=iter(
            [
                call("open_pr", repo="payments-api", branch="agent/fix"),
                call("merge_pr", repo="payments-api", branch="main"),
                AIMessage("The pull request is open; merging it is up to a person."),
            ]
        )
    )
    state = create_agent(model, tools).invoke({"messages": [HumanMessage("Fix the null check.")]})

    print(reviewer.id)
    for message in state["messages"]:
        if isinstance(message, ToolMessage):
            print(f"{message.name}: {message.status}: {message.content}")
    print(state["messages"][-1].content)
