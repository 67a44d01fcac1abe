"""The demo's team: alice's delegation, and the tools by which one agent gives work to another.

Each agent is an instance with a key of its own. No agent handles the token of a delegation: a call
inside an agent's tool runs under that agent's delegation, and agentguard adds a hop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from langchain_core.tools import BaseTool, StructuredTool

from agentguard import Agent, Delegation, Denied, Guard, Tool, adapters, current_delegation
from agentguard_demo.forge import Forge
from agentguard_demo.tools import forge_tools
from agentguard_langchain.tools import guard_tools

TASK_SCOPE: Final = ("ci:trigger", "pr:write", "repo:read")
"""The scope that alice delegates for the task: less than her roles allow."""

FIXER_SCOPE: Final = ("pr:write", "repo:read")
"""The scope that the code agent delegates to the agent that corrects tests."""

_CORRECTION = re.compile(r"In `(tests/[^`]+)`, `([^`]+)` must read `([^`]+)`")


def delegate_task(guard: Guard) -> Delegation:
    """Return alice's delegation for the task: the forge has authenticated her."""
    return guard.delegate(
        "user:alice",
        scope=TASK_SCOPE,
        via="service:forge",
        task_id="issue-17",
        expires_in=timedelta(minutes=30),
        max_depth=4,
    )


def assign_task(guard: Guard, work: Callable[[], str]) -> Tool[[str, str], str]:
    """Return the orchestrator's tool; inside it the code agent does its ``work``."""

    @guard.tool(name="assign_task")
    def assign(task: str, to: str) -> str:  # noqa: ARG001  the log has them
        """Hand a task on to another agent, and wait for what it says in the end."""
        return work()

    return assign


def fix_tests(forge: Forge, fixer: Agent) -> BaseTool:
    """Return the code agent's tool inside which the agent ``fixer`` works, with less scope."""
    tools = {tool.name: tool for tool in guard_tools(forge_tools(forge), fixer)}

    def call_tool(tool: str, **args: str) -> str:
        return str(tools[tool].invoke(args))

    def correct(repo: str, issue: str, branch: str) -> str:
        match = _CORRECTION.search(call_tool("read_file", repo=repo, path=issue))
        if match is None:
            return f"{issue} names no test that is wrong"
        path, wrong, right = match.groups()
        content = call_tool("read_file", repo=repo, path=path, branch=branch).replace(wrong, right)
        message = f"Correct {path}"
        commit = call_tool(
            "commit_file", repo=repo, branch=branch, path=path, content=content, message=message
        )
        try:
            return f"{commit}; CI {call_tool('trigger_ci', repo=repo, branch=branch)}"
        except Denied as denied:
            return f"{commit}; CI is for somebody else to run: {denied.reason}"

    def fix_tests(repo: str, issue: str, branch: str) -> str:
        """Have the tests corrected that an issue says are wrong, by the agent for that."""
        delegation = current_delegation()
        if delegation is None:
            return correct(repo, issue, branch)  # the guard denies each call in it
        scope = [name for name in FIXER_SCOPE if name in delegation.scope]
        with delegation.narrowed(scope=scope), adapters.agent_span(fixer):
            return correct(repo, issue, branch)

    return StructuredTool.from_function(fix_tests, handle_tool_error=True)
