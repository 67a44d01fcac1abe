"""Payments, policies and tasks that the tests ``test_crewai_attacks_*.py`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crewai import Task
from crewai.tools import BaseTool, tool

from agentguard import Decision, current_delegation

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {})
MAIL = ("read_mail", {"box": "inbox"})


def own(*names: str) -> dict[str, Any]:
    """Agents that act on their own authority."""
    return {name: {"authority": "own"} for name in names}


def lent(*names: str) -> dict[str, Any]:
    """Agents that are lent what they may do."""
    return {name: {"max_scope": ["pay"]} for name in names}


def work(member: Any, **options: Any) -> Task:
    """A task of this agent."""
    return Task(**{"description": "a task", "expected_output": "words", "agent": member, **options})


def paying(paid: list[str]) -> Any:
    """A tool that pays, and keeps whom."""

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        paid.append(to)
        return f"paid {to}, receipt {len(paid)}"

    return pay


def failures(output: Any) -> list[str | None]:
    """The codes of what was refused in a crew's tasks."""
    return [
        failed.failure.code for one in output.tasks_output for failed in one.tool_failures or []
    ]


def only_alice(document: Mapping[str, Any]) -> Decision:
    """A policy: nobody else may."""
    alice = document["delegation"]["subject"] == "user:alice"
    return Decision.allow() if alice else Decision.deny("it is not yours")


def asks_for_pay(document: Mapping[str, Any]) -> Decision:
    """A policy: each payment needs an approval."""
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Mail(BaseTool):
    """Whose mail it is, which is the answer of a task as it stands."""

    name: str = "Read Mail"
    description: str = "Read the mailbox."
    result_as_answer: bool = True

    def _run(self, box: str) -> str:
        lent_here = current_delegation()
        assert lent_here is not None
        return f"the {box} of {lent_here.principal}"
