"""The value of an interrupt, and the type of its answer: LangChain's human-in-the-loop schema.

Agent Chat UI and LangSmith Studio read ``action_requests`` and ``review_configs``. The key
``agentguard`` names the request behind each action, for programs that sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

from langchain_core.messages import ToolCall
from pydantic import ConfigDict, Discriminator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from agentguard import ApprovalRequest
from agentguard.adapters import DecodeError, shortened_text, visible_json, visible_text

Allowed = Literal["approve", "edit", "reject"]

WITH_EDITS: Final[tuple[Allowed, ...]] = ("approve", "edit", "reject")
WITHOUT_EDITS: Final[tuple[Allowed, ...]] = ("approve", "reject")

_OPEN: Final = ConfigDict(extra="allow")  # applications add fields, such as who answers


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


class Problem(NamedTuple):
    """Why an answer did not count: the reason in words, and the reason code."""

    reason: str
    code: str


class Item(NamedTuple):
    """One position of a batch. ``problem`` is why the last answer to the position did not count.

    ``request`` is None for a call that does not wait any more: its position stays. ``missing`` says
    in words which approvals the request lacks.
    """

    call: ToolCall
    request: ApprovalRequest | None
    problem: Problem | None = None
    missing: str | None = None


def payload(items: Sequence[Item], allowed: Sequence[Allowed]) -> dict[str, Any]:
    """Return the value of an interrupt."""
    return {
        "action_requests": [
            {
                "name": item.call["name"],
                "args": item.call["args"],
                "description": _describe(item),
            }
            for item in items
        ],
        "review_configs": [
            {"action_name": name, "allowed_decisions": list(allowed)}
            for name in dict.fromkeys(item.call["name"] for item in items)
        ],
        "agentguard": [_request_names(item) for item in items],
    }


def in_doubt_payload(tool: str, call_id: str, reason: str) -> dict[str, Any]:
    """Return the value of an interrupt for a call that may have run; no answer decides the call."""
    return {
        "action_requests": [{"name": tool, "args": {}, "description": reason}],
        "review_configs": [{"action_name": tool, "allowed_decisions": ["approve"]}],
        "agentguard": [{"tool_call_id": call_id, "reason": reason, "code": "journal.in_doubt"}],
    }


def decisions_type(count: int, allowed: Sequence[Allowed]) -> Any:
    """Return the type of an answer to ``count`` positions."""
    decision: Any = (
        Annotated[ApproveDecision | EditDecision | RejectDecision, Discriminator("type")]
        if "edit" in allowed
        else Annotated[ApproveDecision | RejectDecision, Discriminator("type")]
    )
    exactly: Any = Annotated[list[decision], Field(min_length=count, max_length=count)]
    return TypedDict("Decisions", {"decisions": exactly})  # type: ignore[operator]  # made at run time


def decisions_schema(count: int, allowed: Sequence[Allowed]) -> dict[str, Any]:
    """Return ``decisions_type`` as a JSON schema, which is shown and not checked."""
    return TypeAdapter(decisions_type(count, allowed)).json_schema()


def read_decisions(
    answer: object, count: int, allowed: Sequence[Allowed]
) -> Sequence[HumanDecision]:
    """Return the decisions of an answer, one for each of ``count`` positions.

    Raises ``DecodeError`` (``approval.malformed``) for an answer of another form.
    """
    try:
        answered: Mapping[str, Any] = TypeAdapter(decisions_type(count, allowed)).validate_python(
            answer
        )
    except ValidationError as error:
        many = "1 decision" if count == 1 else f"{count} decisions"
        message = (
            f'the answer has another form than {{"decisions": [...]}} with {many}, each of the '
            f"type {', '.join(allowed)}"
        )
        raise DecodeError(message, code="approval.malformed") from error
    decisions: Sequence[HumanDecision] = answered["decisions"]
    return decisions


def _describe(item: Item) -> str:
    """Describe a position: the call as it is bound, which may differ from what the model wrote.

    Text of a model is escaped (``agentguard.visible``) and so contains no end of a line. No line of
    the model can pass for one of agentguard's.
    """
    request = item.request
    if request is None:
        return "This call does not wait for an answer any more."
    size = len(request.arguments.decode())
    arguments = shortened_text(visible_json(json.loads(request.arguments)))
    lines = [
        f"Approval required: {visible_text(request.reason)}",
        f"Tool: {visible_text(request.tool)}",
        f"Arguments, as they would be signed ({size} characters): {arguments}",
    ]
    if request.resource is not None:
        lines.append(f"Resource: {visible_text(request.resource)}")
    lines.append(
        f"For: {visible_text(request.principal)}, by the agent {visible_text(request.agent_name)}"
    )
    lines.append(f"Request: agentguard approvals show {request.request_id[:8]}")
    if item.problem is not None:
        lines.append(f"The last answer did not count: {visible_text(item.problem.reason)}")
    return "\n".join(lines)


def _request_names(item: Item) -> dict[str, Any]:
    request = item.request
    names: dict[str, Any] = {"tool_call_id": item.call["id"]}
    if request is not None:
        names |= {
            "request_id": request.request_id,
            "call_digest": request.call_digest,
            "requirement_sha256": request.requirement_sha256,
            "displayed_sha256": request.displayed_sha256,
            "reason": request.reason,
            "policy_sha256": request.policy_sha256,
            "requirements": [one.as_json() for one in request.requirements],
            "requesters": list(request.requesters),
            "missing": item.missing,
        }
    if item.problem is not None:
        names |= {"problem": item.problem.reason, "problem_code": item.problem.code}
    return names
