"""What an interrupt shows, and what answers it: the schema of LangChain's human in the loop.

Agent Chat UI and LangSmith Studio read ``action_requests`` and ``review_configs``; the key
``agentguard`` says beside each action which request it is, for programs that sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

from langchain_core.messages import ToolCall
from pydantic import ConfigDict, Discriminator, Field, TypeAdapter
from typing_extensions import TypedDict

from agentguard import ApprovalRequest
from agentguard.visible import shortened, shown, shown_json

Allowed = Literal["approve", "edit", "reject"]

WITH_EDITS: Final[tuple[Allowed, ...]] = ("approve", "edit", "reject")
WITHOUT_EDITS: Final[tuple[Allowed, ...]] = ("approve", "reject")

_OPEN: Final = ConfigDict(extra="allow")  # applications say more, such as who answers


class Action(TypedDict):
    """What a person wants to run in the place of a call."""

    name: str
    args: dict[str, Any]


class ApproveDecision(TypedDict):
    """The call may run. ``approval`` is a signed answer, a DSSE envelope."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]  # how pydantic configures such a class
    type: Literal["approve"]
    approval: NotRequired[dict[str, Any]]


class EditDecision(TypedDict):
    """Another call may run in its place."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["edit"]
    edited_action: Action
    approval: NotRequired[dict[str, Any]]


class RejectDecision(TypedDict):
    """The call may not run; the model is told the ``message``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["reject"]
    message: NotRequired[str | None]
    approval: NotRequired[dict[str, Any]]


HumanDecision = Mapping[str, Any]
"""One of ``ApproveDecision``, ``EditDecision`` and ``RejectDecision``, as it came."""


class Item(NamedTuple):
    """One position of what is shown. ``problem`` is why the last answer to it did not count.

    ``request`` is None for one that does not wait any more: its position stays.
    """

    call: ToolCall
    request: ApprovalRequest | None
    problem: str | None = None


def payload(items: Sequence[Item], allowed: Sequence[Allowed]) -> dict[str, Any]:
    """Return the value of an interrupt."""
    return {
        "action_requests": [
            {"name": item.call["name"], "args": item.call["args"], "description": _described(item)}
            for item in items
        ],
        "review_configs": [
            {"action_name": name, "allowed_decisions": list(allowed)}
            for name in dict.fromkeys(item.call["name"] for item in items)
        ],
        "agentguard": [_named(item) for item in items],
    }


def in_doubt(tool: str, call_id: str, reason: str) -> dict[str, Any]:
    """Return the value of the interrupt of a call that may have run: no answer settles it."""
    return {
        "action_requests": [{"name": tool, "args": {}, "description": reason}],
        "review_configs": [{"action_name": tool, "allowed_decisions": ["approve"]}],
        "agentguard": [{"tool_call_id": call_id, "reason": reason, "code": "journal.in_doubt"}],
    }


def decisions_type(count: int, allowed: Sequence[Allowed]) -> Any:
    """Return the type of an answer to ``count`` positions: LangGraph refuses any other unsaved."""
    decision: Any = (
        Annotated[ApproveDecision | EditDecision | RejectDecision, Discriminator("type")]
        if "edit" in allowed
        else Annotated[ApproveDecision | RejectDecision, Discriminator("type")]
    )
    exactly: Any = Annotated[list[decision], Field(min_length=count, max_length=count)]
    return TypedDict("Decisions", {"decisions": exactly})  # type: ignore[operator]  # made at run time


def decisions_schema(count: int, allowed: Sequence[Allowed]) -> dict[str, Any]:
    """Return the same as a JSON schema, which is shown and not checked."""
    return TypeAdapter(decisions_type(count, allowed)).json_schema()


def _described(item: Item) -> str:
    """Describe a position. Text of a model is written out in it (``agentguard.visible``).

    It ends no line, so that no line of it looks like one of ours.

    What is signed is the call as it is bound, which may differ from what the model wrote.
    """
    request = item.request
    if request is None:
        return "This call does not wait for an answer any more."
    size = len(request.arguments.decode())
    arguments = shortened(shown_json(json.loads(request.arguments)))
    lines = [
        f"Approval required: {shown(request.reason)}",
        f"Tool: {shown(request.tool)}",
        f"Arguments, as they would be signed ({size} characters): {arguments}",
    ]
    if request.resource is not None:
        lines.append(f"Resource: {shown(request.resource)}")
    lines.append(f"For: {shown(request.principal)}, by the agent {shown(request.agent_name)}")
    lines.append(f"Request: agentguard approvals show {request.request_id[:8]}")
    if item.problem is not None:
        lines.append(f"The last answer did not count: {shown(item.problem)}")
    return "\n".join(lines)


def _named(item: Item) -> dict[str, Any]:
    request = item.request
    named: dict[str, Any] = {"tool_call_id": item.call["id"]}
    if request is not None:
        named |= {
            "request_id": request.request_id,
            "call_digest": request.call_digest,
            "requirement_sha256": request.requirement_sha256,
            "displayed_sha256": request.displayed_sha256,
            "reason": request.reason,
            "policy_sha256": request.policy_sha256,
        }
    if item.problem is not None:
        named["problem"] = item.problem
    return named
