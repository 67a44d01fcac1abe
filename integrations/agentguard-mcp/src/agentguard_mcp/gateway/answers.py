"""What the gateway itself answers a client: refusals, calls that wait, calls in doubt, errors.

A refused ``tools/call`` gets a result with ``isError`` and no JSON-RPC error: a model reads the
first, while some clients take the second for a fault of the connection and make the call again.
``resources/read`` and ``prompts/get`` have no such result, and get an error. The reason code stands
in the result's ``_meta``, or in the error's ``data``, as a guarded server has it there
(``agentguard_mcp.messages``).
"""

from __future__ import annotations

from typing import Any, Final

from agentguard import ApprovalRequest, Decision, Denied
from agentguard.adapters import denial_text
from agentguard_mcp.gateway import error_codes
from agentguard_mcp.gateway.messages import Message, RequestId, is_modern
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.gateway.upstream import NotSentError, RefusedError, UpstreamLostError
from agentguard_mcp.messages import CODE, ERROR, REQUEST, error_result, is_failure, is_unfinished

_IN_DOUBT: Final = frozenset({"tool.timeout", "tool.lost"})
_FOR_CLIENT: Final = frozenset(
    {
        error_codes.INVALID_PARAMS,
        error_codes.METHOD_NOT_FOUND,
        error_codes.MISSING_CAPABILITY,
        error_codes.URL_ELICITATION,
    }
)


def error(
    identifier: RequestId | None,
    code: int,
    text: str,
    data: dict[str, str] | None = None,
) -> Message:
    """Return a JSON-RPC error; ``identifier`` None is for a request whose id can't be read."""
    body: dict[str, Any] = {"code": code, "message": text}
    if data is not None:
        body["data"] = data
    return {"id": identifier, "error": body}


def refusal(request: Message, tool: str, decision: Decision) -> Message:
    """Return the answer to a guarded request that was denied, and did not run."""
    return _answer(request, denial_text(tool, decision), {CODE: decision.code})


def pending(request: Message, tool: str, waiting: ApprovalRequest) -> Message:
    """Return the answer to a guarded request that waits for an approval, and did not run yet."""
    identifier = waiting.request_id
    text = (
        f"Not now: {tool} was not run. A person has to approve this call first (request "
        f"{identifier}). Once somebody has approved the request (agentguard approvals approve "
        f"{identifier}), make the same call with the same arguments again: the call then runs once."
    )
    return _answer(request, text, {CODE: "approval.pending", REQUEST: identifier})


def given_up(request: Message, tool: str) -> Message:
    """Return the answer to a call whose user waits no longer for an approval; it did not run."""
    text = (
        f"Not now: {tool} was not run. The user does not wait for the approval of this call any "
        "longer. Once somebody has approved the call, make the same call with the same arguments "
        "again: the call then runs once."
    )
    return _answer(request, text, {CODE: "approval.pending"})


def of_server(request: Message, tool: str, response: Message) -> Message:
    """Return a server's own answer to a call that failed there.

    A JSON-RPC error of ``tools/call`` becomes a result with ``isError``, since the call may have
    run. Four errors stay what they are, as the client has to act on them: an unknown method,
    invalid params, a capability that the client has not declared (MCP 2026-07-28,
    ``MissingRequiredClientCapabilityError``), and the elicitation of a URL (MCP 2025-11-25, "URL
    Elicitation Required"). By these four the server says that nothing has run; nothing proves so.
    A result gets ``isError`` true, whatever stands there for true: all clients then read what the
    log says.
    """
    result = response.get("result")
    if result is not None:
        return {"id": request["id"], "result": {**result, "isError": True}}
    failure = response.get("error")
    if failure is None or request["method"] != "tools/call" or failure.get("code") in _FOR_CLIENT:
        return {**response, "id": request["id"]}
    text = f"The MCP server reports an error for {tool}: {failure.get('message', '')}"
    return _answer(request, text, {CODE: "tool.error"})


def refused_by_server(request: Message, tool: str, why: str) -> Message:
    """Return the answer to a call that the server has refused without an answer of MCP."""
    text = (
        f"The MCP server has refused {tool}: {why}. By this answer the tool did not run; nothing "
        "but the server's own records can prove so."
    )
    return _answer(request, text, {CODE: "tool.error"})


def in_doubt(request: Message, tool: str, code: str, what: str) -> Message:
    """Return the answer to a call that went to the server and whose outcome nobody knows."""
    text = (
        f"Unknown: {what}, and {tool} may have run. Find out whether the tool ran before you "
        "make the call again."
    )
    return _answer(request, text, {CODE: code})


def failed(request: Message, tool: str, code: str, what: str) -> Message:
    """Return the answer to a call that was allowed and never reached the server."""
    return _answer(request, f"Failed: {what}, and {tool} did not run.", {CODE: code})


def still_in_doubt(request: Message) -> Message:
    """Return the answer to a call like one that has just ended without a known outcome."""
    tool = request.get("params", {}).get("name", request["method"])
    text = (
        f"Unknown: the same call has just ended, and nobody knows whether {tool} ran. The gateway "
        "has not made the call again. Find out whether the tool ran before you make the call again."
    )
    return _answer(request, text, {CODE: "tool.in_doubt"})


def code_of(answer: Message) -> object:
    """Return the reason code of the gateway's own answer, None for an answer of the server."""
    meta = answer.get("result", {}).get("_meta", answer.get("error", {}).get("data"))
    return meta.get(CODE) if isinstance(meta, dict) else None


def outline(answer: Message) -> Message:
    """Return what HTTP looks at of an answer, without the content: a client may read slowly."""
    meta = {CODE: code_of(answer)}
    if "result" in answer:
        return {"id": answer["id"], "result": {"_meta": meta}}
    return {"id": answer["id"], "error": {"code": answer["error"].get("code", 0), "data": meta}}


def is_in_doubt(answer: Message) -> bool:
    """Whether an answer of the gateway says that nobody knows whether the tool ran."""
    return code_of(answer) in _IN_DOUBT


def is_result(answer: Message) -> bool:
    """Whether an answer is the result of a tool: content, which a model reads."""
    return isinstance(answer.get("result", {}).get("content"), list)


def repeated(answer: Message, seconds: float) -> Message:
    """Return the result of a tool for a call that did not run, as the same call has just run.

    ``seconds`` later, the call runs again.
    """
    note = {
        "type": "text",
        "text": (
            "(This is the answer of the same call a moment ago. The tool did not run again: make "
            f"the call once more, {seconds:g} seconds later, if it has to run again.)"
        ),
    }
    result = answer["result"]
    return {**answer, "result": {**result, "content": [*result["content"], note]}}


def _answer(request: Message, text: str, data: dict[str, str]) -> Message:
    if request["method"] != "tools/call":
        return error(request["id"], ERROR, text, data)
    result = error_result(text, data, is_modern=is_modern(request))
    return {"id": request["id"], "result": result}


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
            return refusal(request, name, error.decision)
        case FailedError():
            return of_server(request, name, error.response)
        case RefusedError():
            return refused_by_server(request, name, str(error))
        case TimeoutError():
            what = f"{server} did not answer in {settings.timeout:g} seconds"
            return in_doubt(request, name, "tool.timeout", what)
        case UpstreamLostError():
            return in_doubt(request, name, "tool.lost", f"{server} is lost: {error}")
    code, what = "tool.unreachable", f"{server} can't be reached: {error}"
    if not isinstance(error, NotSentError):
        what = "the gateway has met an error"
        code = Decision.of_exception(error, "tool.failed", "the call failed in the gateway").code
    return failed(request, name, code, what)
