"""Who works in the demo, and how alice's task goes from one to the next.

Each of them is an agent instance with a key of its own. Nobody passes authority along: what is
called inside somebody's tool is called under what that one was lent, with a hop of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from langchain_core.tools import BaseTool, StructuredTool

from agentguard import Agent, Delegation, Denied, Guard, Tool, adapters, current_delegation
from agentguard_demo.forge import Forge
from agentguard_demo.tools import tools_of
from agentguard_langchain.tools import guard_tools

TASK_SCOPE: Final = ("ci:trigger", "pr:write", "repo:read")
"""What alice lends for the task: less than her roles allow."""

FIXER_SCOPE: Final = ("pr:write", "repo:read")
"""What of it the code agent hands on to have tests corrected."""

_CORRECTION = re.compile(r"In `(tests/[^`]+)`, `([^`]+)` must read `([^`]+)`")


def lend(guard: Guard) -> Delegation:
    """Let alice, whom the forge has authenticated, lend what the task needs."""
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
    def assign(task: str, to: str) -> str:  # noqa: ARG001  they are on record
        """Hand a task on to another agent, and wait for what it says in the end."""
        return work()

    return assign


def fix_tests(forge: Forge, fixer: Agent) -> BaseTool:
    """Return the code agent's tool that another agent, ``fixer``, works in: with less."""
    tools = {tool.name: tool for tool in guard_tools(tools_of(forge), fixer)}

    def use(tool: str, **args: str) -> str:
        return str(tools[tool].invoke(args))

    def correct(repo: str, issue: str, branch: str) -> str:
        found = _CORRECTION.search(use("read_file", repo=repo, path=issue))
        if found is None:
            return f"{issue} names no test that is wrong"
        path, wrong, right = found.groups()
        content = use("read_file", repo=repo, path=path, branch=branch).replace(wrong, right)
        message = f"Correct {path}"
        said = use(
            "commit_file", repo=repo, branch=branch, path=path, content=content, message=message
        )
        try:
            return f"{said}; CI {use('trigger_ci', repo=repo, branch=branch)}"
        except Denied as denied:
            return f"{said}; CI is for somebody else to run: {denied.reason}"

    def fix_tests(repo: str, issue: str, branch: str) -> str:
        """Have the tests corrected that an issue says are wrong, by the agent for that."""
        lent = current_delegation()
        if lent is None:
            return correct(repo, issue, branch)  # and each of its calls is refused
        less = lent.narrowed(scope=[one for one in FIXER_SCOPE if one in lent.scope])
        with less, adapters.agent_span(fixer):
            return correct(repo, issue, branch)

    return StructuredTool.from_function(fix_tests, handle_tool_error=True)
