"""``Dialogs``: tells the user of a client that a call waits for an approval, by an elicitation.

The user learns which request waits and where people answer, and can end the wait. The answer comes
from the agent's own client and proves no person. So the answer is never an approval: whatever a
client answers, the call runs only once the approvers' signed answers are there.

A client with ``initialize`` gets the request ``elicitation/create`` (MCP 2025-06-18,
"Elicitation"). A client of revision 2026-07-28 gets a result that asks for input, and sends the
call again ("Multi Round-Trip Requests").
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from agentguard import AgentguardError, ApprovalRequest
from agentguard.adapters import shortened_text, visible_text
from agentguard_mcp.gateway.messages import (
    Message,
    Peer,
    RequestId,
    cancelled,
    is_modern,
    meta_of,
)
from agentguard_mcp.gateway.upstream import UpstreamLostError
from agentguard_mcp.params import OWN, RESPONSES, STANDARD, STATE

KEY: Final = f"{OWN}approval"
"""The key of the gateway's own question in ``inputRequests``, and of the answer to it."""

_LONGEST: Final = 128
"""The characters of a tool's name beyond which a dialog shows the name in part."""

_ENDS: Final = frozenset({"decline", "cancel"})
_SCHEMA: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}


class Dialogs:
    """The dialogs of one client about calls that wait; ``is_on`` False opens none.

    The ids of the gateway's requests begin with ``own``.
    """

    def __init__(self, client: Peer, own: str, *, is_on: bool) -> None:
        self._client = client
        self._own = own
        self._is_on = is_on
        self._capabilities: object = None
        self._has_session = False
        self._open: dict[RequestId, asyncio.Future[Message]] = {}
        self._last = 0

    def send(self, message: Message) -> None:
        """Write a message to the client; raises as the client does."""
        self._client.send(message)

    def greeted(self, hello: Message) -> None:
        """Note what a client can do, by its ``initialize``."""
        self._has_session = True
        self._capabilities = hello.get("params", {}).get("capabilities")

    def revision(self, request: Message) -> object:
        """Return the revision that a request names, None for a client that has a session."""
        named = meta_of(request).get(f"{STANDARD}protocolVersion")
        return None if self._has_session else named

    def take(self, response: Message) -> bool:
        """Take a response of the client; return False for one that answers no open dialog."""
        future = self._open.pop(response["id"], None)
        if future is not None and not future.done():
            future.set_result(response)
        return future is not None

    def can_show(self, request: Message) -> bool:
        """Whether the client gets a dialog beside the wait for an answer to ``request``."""
        return self._is_on and not is_modern(request) and _has_forms(self._capabilities)

    def asks_first(self, request: Message) -> bool:
        """Whether the client gets a dialog in a result, before the call waits at all.

        A call that already brings input for the server gets none: the result would lose the input.
        """
        capabilities = meta_of(request).get(f"{STANDARD}clientCapabilities")
        params = request.get("params", {})
        is_first = not params.get(RESPONSES) and STATE not in params
        return self._is_on and is_modern(request) and is_first and _has_forms(capabilities)

    def gives_up(self, request: Message) -> bool:
        """Whether a call brings the answer of a user who does not wait any longer."""
        responses = request.get("params", {}).get(RESPONSES)
        answer = responses.get(KEY) if isinstance(responses, dict) else None
        return self._is_on and isinstance(answer, dict) and _ends(answer)

    async def show(self, tool: str, waiting: ApprovalRequest, ended: asyncio.Event) -> None:
        """Open a dialog at the client, and set ``ended`` if the user ends the wait.

        Cancel this to close the dialog. A client that answers with an error shows nothing.
        """
        self._last += 1
        identifier = f"{self._own}approval/{self._last}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._open[identifier] = future
        self._client.send({"id": identifier, **_question(tool, waiting)})
        try:
            response = await future
        finally:
            if self._open.pop(identifier, None) is not None:
                self._close(identifier)
        if _ends(response.get("result", {})):
            ended.set()

    def _close(self, identifier: RequestId) -> None:
        with suppress(AgentguardError, UpstreamLostError):
            self._client.send(cancelled(identifier, "the call waits no longer"))


def question_first(request: Message, tool: str, waiting: ApprovalRequest) -> Message:
    """Return the result that has a client of revision 2026-07-28 open a dialog."""
    result = {"resultType": "input_required", "inputRequests": {KEY: _question(tool, waiting)}}
    return {"id": request["id"], "result": result}


def _question(tool: str, waiting: ApprovalRequest) -> Message:
    identifier = waiting.request_id
    shown = shortened_text(visible_text(tool), _LONGEST)  # the server has chosen the name
    message = (
        f"The call of {shown} waits for a person to approve it (request {identifier}). Whoever may "
        f"approve answers with: agentguard approvals approve {identifier}. Your answer here "
        "approves nothing. Accept to wait for the approval. Decline to wait no longer."
    )
    params = {"message": message, "requestedSchema": dict(_SCHEMA)}
    return {"method": "elicitation/create", "params": params}


def _ends(answer: Mapping[str, Any]) -> bool:
    """Return whether the answer to a dialog ends the wait."""
    action = answer.get("action")
    return isinstance(action, str) and action in _ENDS


def _has_forms(capabilities: object) -> bool:
    """Whether capabilities have elicitation by a form; without ``form`` and ``url`` they do."""
    elicitation = capabilities.get("elicitation") if isinstance(capabilities, dict) else None
    return isinstance(elicitation, dict) and (not elicitation or "form" in elicitation)
