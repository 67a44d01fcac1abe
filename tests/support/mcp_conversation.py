"""One conversation with ``@modelcontextprotocol/server-everything``, a topic of MCP after another.

``Conversation`` is the client: it speaks the protocol by hand, so that a test can compare each
answer as it came, with and without something between the client and the server.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Message = dict[str, Any]

_HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {"form": {}, "url": {}}, "roots": {}, "sampling": {}},
    "clientInfo": {"name": "test", "version": "1"},
}
_SAMPLING: Final = "sampling/createMessage"
_REPLIES: Final = {
    "roots/list": {"roots": [{"uri": "file:///srv/work", "name": "work"}]},
    _SAMPLING: {
        "role": "assistant",
        "model": "none",
        "content": {"type": "text", "text": "a sampled answer"},
    },
    "elicitation/create": {"action": "accept", "content": {"name": "Ada", "integer": 7}},
}
"""What the client answers the requests of the server."""

_DOCUMENT: Final = "demo://resource/static/document/features.md"
_PAGE: Final = {"url": "https://pay.example/form", "message": "Pay", "elicitationId": "e1"}


class Conversation:
    """A client of the server that ``command`` starts, or of a gateway in front of the server."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._process = subprocess.Popen(
            [*command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self._answered: list[int] = []
        self.asked: list[Message] = []
        self.notices: list[Message] = []

    def end(self) -> int:
        """Go away, and return the exit code of the other side."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()
        self._process.stdout.close()
        return self._process.wait(30)

    def send(self, message: Message) -> None:
        """Write a message."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._process.stdin.flush()

    def next(self, held: str = "") -> Message:
        """Read a message; answer a request of the server but for ``held``, and note a notice."""
        assert self._process.stdout is not None
        message: Message = json.loads(self._process.stdout.readline())
        if "method" not in message:
            self._answered.append(message["id"])
        elif "id" not in message:
            self.notices.append(message)
        elif message["method"] != held:
            self.reply(message)
        return message

    def reply(self, request: Message) -> None:
        """Answer a request of the server, and note the request."""
        self.asked.append({"method": request["method"], "params": request.get("params")})
        self.send({"id": request["id"], "result": _REPLIES[request["method"]]})

    def begin(self, method: str, params: Message) -> int:
        """Send a request without a wait for its answer; return its id."""
        self._number += 1
        self.send({"id": self._number, "method": method, "params": params})
        return self._number

    def ask(self, method: str, params: Message | None = None) -> Message:
        """Send a request; return its ``result`` or its ``error``."""
        number = self.begin(method, params or {})
        while True:
            message = self.next()
            if message.get("id") == number and "method" not in message:
                answer: Message = message["result"] if "result" in message else message["error"]
                return answer

    def call(self, tool: str, **arguments: object) -> Message:
        """Call a tool."""
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def noticed(self, method: str) -> list[Message]:
        """Return the params of all notices of a method."""
        return [one["params"] for one in self.notices if one["method"] == method]

    # --- the topics -------------------------------------------------------------------------------

    def handshake(self) -> Message:
        """Begin, and return what the server says of itself."""
        answer = self.ask("initialize", _HELLO)
        self.send({"method": "notifications/initialized"})
        return answer

    def tools(self) -> list[Any]:
        """List the tools, and call those whose result has a form of its own, or is an error."""
        return [
            self.ask("tools/list"),
            self.call("echo", message="hé"),
            self.call("get-sum", a=1, b=2.5),
            self.call("get-sum", a=1),
            self.call("get-structured-content", location="Chicago"),
            self.call("get-annotated-message", messageType="error", includeImage=True),
            self.call("get-resource-links", count=2),
            self.call("get-tiny-image"),
        ]

    def progress(self) -> list[Any]:
        """Make a call that reports progress."""
        params = {
            "name": "trigger-long-running-operation",
            "arguments": {"duration": 0.03, "steps": 3},
            "_meta": {"progressToken": "p1"},
        }
        return [self.ask("tools/call", params), *self.noticed("notifications/progress")]

    def cancellation(self) -> bool:
        """Cancel a call that waits for the client, and return whether the call was answered."""
        params = {"name": "trigger-sampling-request", "arguments": {"prompt": "bye"}}
        number = self.begin("tools/call", params)
        message = self.next(held=_SAMPLING)
        while message.get("method") != _SAMPLING:
            message = self.next(held=_SAMPLING)
        self.send({"method": "notifications/cancelled", "params": {"requestId": number}})
        self.reply(message)  # the call could go on now
        self.ask("ping")
        return number in self._answered

    def requests_of_the_server(self) -> list[Any]:
        """Call tools that ask the client: for its roots, a sample, a form and a visit of a page."""
        before = len(self.asked)
        return [
            self.call("get-roots-list"),
            self.call("trigger-sampling-request", prompt="hi", maxTokens=5),
            self.call("trigger-elicitation-request"),
            self.call("trigger-url-elicitation", **_PAGE),
            *(one for one in self.asked[before:] if one["method"] != "roots/list"),
        ]

    def url_elicitation_by_error(self) -> int:
        """Call a tool that wants a visit of a page first, and says so by an error."""
        code: int = self.call("trigger-url-elicitation", **_PAGE, errorPath=True)["code"]
        return code

    def resources(self) -> list[Any]:
        """List the resources and templates, and read one that is there and one that is not."""
        return [
            self.ask("resources/list"),
            self.ask("resources/templates/list"),
            self.ask("resources/read", {"uri": _DOCUMENT}),
            self.ask("resources/read", {"uri": "demo://resource/none"}),
        ]

    def subscriptions(self) -> list[Any]:
        """Subscribe to a resource, hear of a change, and leave."""
        answers = [self.ask("resources/subscribe", {"uri": _DOCUMENT})]
        answers.append(self.call("toggle-subscriber-updates"))
        while not self.noticed("notifications/resources/updated"):
            self.next()
        answers.append(self.call("toggle-subscriber-updates"))
        answers.append(self.ask("resources/unsubscribe", {"uri": _DOCUMENT}))
        return [*answers, *self.noticed("notifications/resources/updated")]

    def prompts(self) -> list[Any]:
        """List the prompts, get two, and complete an argument."""
        completed = {
            "ref": {"type": "ref/prompt", "name": "completable-prompt"},
            "argument": {"name": "name", "value": "A"},
            "context": {"arguments": {"department": "Engineering"}},
        }
        return [
            self.ask("prompts/list"),
            self.ask("prompts/get", {"name": "simple-prompt"}),
            self.ask("prompts/get", {"name": "args-prompt", "arguments": {"city": "Bath"}}),
            self.ask("prompts/get", {"name": "args-prompt"}),
            self.ask("completion/complete", completed),
            self.ask("logging/setLevel", {"level": "error"}),
        ]
