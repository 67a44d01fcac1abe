"""How a call on a server ends: what counts as its result, and what the client hears of a failure.

An exception here is what the guard sees of the call, so the exceptions decide on the outcome in the
log: ``UpstreamLostError`` is ``unknown``, as a time-out is, and each other one is ``error``. An
``error`` is the server's own word, which nothing proves.
"""

from __future__ import annotations

from typing import Any

from agentguard import Decision, Denied
from agentguard_mcp.gateway import answers
from agentguard_mcp.gateway.messages import Message
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.upstream import NotSentError, RefusedError, UpstreamLostError
from agentguard_mcp.messages import is_failure, is_unfinished


class FailedError(Exception):
    """The server has answered with an error; ``response`` is the answer."""

    def __init__(self, response: Message) -> None:
        super().__init__("the MCP server reports an error")
        self.response = response


class TaskError(UpstreamLostError):
    """The server has answered with a task, which goes on after the call."""

    def __init__(self) -> None:
        super().__init__("the server goes on with the call as a task, unseen")


def result_of(response: Message) -> Any:
    """Return the result of a call; raises ``FailedError`` or ``TaskError`` for another answer.

    A result that names a task is none of a failed call, whatever else the result says: the work
    goes on.
    """
    result = response.get("result", {})
    if is_unfinished(result):
        raise TaskError
    if "error" in response or is_failure(result):
        raise FailedError(response)
    return result


def failure(request: Message, name: str, error: Exception, settings: Settings) -> Message:
    """Return the answer to a request for the tool ``name`` whose call ended with ``error``."""
    server = f"the MCP server {settings.server}"
    match error:
        case Denied():
            return answers.refusal(request, name, error.decision)
        case FailedError():
            return answers.of_server(request, name, error.response)
        case RefusedError():
            return answers.refused_by_server(request, name, str(error))
        case TimeoutError():
            what = f"{server} did not answer in {settings.timeout:g} seconds"
            return answers.in_doubt(request, name, "tool.timeout", what)
        case UpstreamLostError():
            return answers.in_doubt(request, name, "tool.lost", f"{server} is lost: {error}")
    code, what = "tool.unreachable", f"{server} can't be reached: {error}"
    if not isinstance(error, NotSentError):
        what = "the gateway has met an error"
        code = Decision.of_exception(error, "tool.failed", "the call failed in the gateway").code
    return answers.failed(request, name, code, what)
