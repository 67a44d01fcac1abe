"""A lead agent works for alice with two sub-agents, each of which may do less than the lead.

Runs offline: ``ScriptedModel`` stands in for a model. Put ``init_chat_model("...")`` in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Agent, Decision, Guard
from agentguard_langchain import guard_subagent, guard_tools


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


def calling(*calls: tuple[str, dict[str, Any]]) -> ScriptedModel:
    """Return a model that makes these calls, one after the other, and is done."""
    made = [
        AIMessage(
            "", tool_calls=[{"name": name, "args": args, "id": f"call-{n}", "type": "tool_call"}]
        )
        for n, (name, args) in enumerate(calls)
    ]
    return ScriptedModel(script=iter([*made, AIMessage("Done.")]))


def read_file(path: str) -> str:
    """Read a file of the repository."""
    return f"the content of {path}"


def push(branch: str) -> str:
    """Push a branch."""
    return f"pushed {branch}"


# Without `authority = "own"` an agent does nothing by itself: somebody must have asked it to.
CONFIG = {
    "agents": {
        "lead": {"max_scope": ["repo:read", "repo:push"]},
        "reviewer": {"max_scope": ["repo:read", "repo:push"]},
        "fixer": {"max_scope": ["repo:read", "repo:push"]},
    },
    "tools": {
        "unlisted": "deny",  # a tool without a table is denied
        "read_file": {"requires": ["repo:read"]},
        "push": {"requires": ["repo:push"]},
        "ask_reviewer": {},
        "ask_fixer": {},
    },
}


def decide(call: Mapping[str, Any]) -> Decision:
    """Allow every call for which the scope suffices, and show through whom it comes."""
    delegation = call["delegation"]
    principal, *members = delegation["chain"]
    agents = [member.split("/")[-2] for member in members if "/agent/" in member]
    print(f"  {' > '.join([principal, *agents])} {delegation['scope']}: {call['tool']['name']}")
    return Decision.allow()


def sub_agent(agent: Agent, model: ScriptedModel, scope: list[str]) -> Callable[[str], str]:
    """Return a function for the lead's model, which runs an agent with no more than ``scope``."""
    tools = guard_tools([read_file, push], agent)
    child = guard_subagent(create_agent(model, tools), agent, scope=scope)

    def ask(task: str) -> str:
        said = child.invoke({"messages": [HumanMessage(task)]})["messages"]
        answers = [message for message in said if isinstance(message, ToolMessage)]
        return ", ".join(f"{answer.name}: {answer.status}" for answer in answers)

    ask.__name__, ask.__doc__ = f"ask_{agent.name}", f"Ask the {agent.name}."
    return ask


def main() -> None:
    """Let the lead have a branch reviewed and pushed, for alice."""
    with Guard.ephemeral(policy=decide, config=CONFIG) as guard:
        lead, reviewer, fixer = map(guard.new_agent, ("lead", "reviewer", "fixer"))
        work: list[tuple[str, dict[str, Any]]] = [
            ("read_file", {"path": "README.md"}),
            ("push", {"branch": "agent/fix"}),
        ]
        reviewing = sub_agent(reviewer, calling(*work), ["repo:read"])
        fixing = sub_agent(fixer, calling(*work), ["repo:read", "repo:push"])
        asks = [("ask_reviewer", {"task": "Review."}), ("ask_fixer", {"task": "Fix."})]
        team = create_agent(calling(*asks), guard_tools([reviewing, fixing], lead))

        with guard.delegate("user:alice", scope=["repo:read", "repo:push"], task_id="bug-7"):
            state = team.invoke({"messages": [HumanMessage("Fix the bug.")]})
        for message in state["messages"]:
            if isinstance(message, ToolMessage):
                print(f"{message.name}: {message.text}")

        (reading,) = guard_tools([read_file], lead)
        call = {"type": "tool_call", "id": "c1", "name": "read_file", "args": {"path": "README.md"}}
        print("nobody asks:", reading.invoke(call).status)


main()
