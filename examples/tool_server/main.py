"""A LangChain agent pays through a service that verifies each request; a thief tries the same.

Run it with ``python examples/tool_server/main.py``. The service (``server.py``) is a process of its
own. The agent is revoked, and the service refuses what the agent has proved before. The agent's
guard and the service each keep a log, and the logs are compared at the end.
Everything runs offline: ``ScriptedModel`` stands in for a model.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Guard
from agentguard.proof import proof_headers, prove_request
from agentguard.proof.httpx import CallerTransport
from agentguard_langchain import guard_tools

SERVER = Path(__file__).resolve().parent / "server.py"
AGENTGUARD = [sys.executable, "-m", "agentguard.cli"]  # the command agentguard
SCOPE = ["payments:write"]
CONFIG = """
trust_domain = "{domain}"
anchor = "anchors"

[keys]
passphrase_file = "passphrase"

[policy]
path = "policy.rego"

[agents.payer]
max_scope = ["payments:write"]
"""
BODY = b'{"to": "rent", "cents": 1}'
POLICY = "package agent.authz\n\ndefault allow := true\n"


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


def says(tool: str, **args: object) -> AIMessage:
    """Return what a model says to call a tool."""
    call = {"name": tool, "args": args, "id": f"call-{tool}", "type": "tool_call"}
    return AIMessage("", tool_calls=[call])


class Wiretap(httpx.HTTPTransport):
    """Sends requests, and keeps what somebody on the way could see.

    The transport also stands in for a server elsewhere, to which the service redirects.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and keep it."""
        self.seen.append(request)
        if request.url.host == "elsewhere.example":
            return httpx.Response(200)
        return super().handle_request(request)


def work(guard: Guard, url: str, wiretap: Wiretap) -> None:
    """Let the agent pay for alice, and try a refund, for which alice has lent nothing."""
    client = httpx.Client(transport=CallerTransport(url, transport=wiretap))  # the one line

    def pay(to: str, cents: int) -> str:
        """Pay somebody."""
        answer = client.post(f"{url}/payments", json={"to": to, "cents": cents}).json()
        print("  the service names the call of the log:", answer["call"] in calls_of(guard))
        return str(answer["paid"])

    def refund(to: str) -> str:
        """Give money back."""
        return f"status {client.post(f'{url}/refunds', json={'to': to}).status_code}"

    def find_receipts() -> str:
        """Look for receipts: the service redirects the request to another server."""
        client.get(f"{url}/receipts", follow_redirects=True)
        redirected = wiretap.seen[-1]
        return f"{redirected.url.host} has a proof: {'dpop' in redirected.headers}"

    tools = guard_tools([pay, refund, find_receipts], guard.new_agent("payer"))
    calls = says("pay", to="rent", cents=42000), says("refund", to="rent"), says("find_receipts")
    script = [*calls, AIMessage("Paid.")]
    with client, guard.delegate("user:alice", scope=SCOPE, audience=[url]):
        agent = create_agent(ScriptedModel(script=iter(script)), tools)
        state = agent.invoke({"messages": [HumanMessage("Pay the rent.")]})
    for message in state["messages"]:
        if isinstance(message, ToolMessage):
            print(f"  {message.name}: {message.content}")


def calls_of(guard: Guard) -> set[str]:
    """Return the digests of the invocations in the agent's log."""
    entries = [json.loads(body) for _index, body in guard.reader().entries()]
    calls = [entry["invocation"] for entry in entries if entry["kind"] == "call"]
    return {hashlib.sha256(b64decode(call["payload"])).hexdigest() for call in calls}


def proved(guard: Guard, server: str) -> dict[str, str]:
    """Have the agent prove a request to a server, and return its headers in place of sending it."""

    @guard.tool
    def prepare() -> dict[str, str]:
        return proof_headers(prove_request("POST", f"{server}/payments", BODY))

    with guard.delegate("user:alice", scope=SCOPE, audience=[server]):
        return guard.new_agent("payer").call(prepare)


def send(url: str, what: str, headers: dict[str, str], body: bytes = BODY) -> None:
    """Send a request, and print what the service answers."""
    answer = httpx.post(url, headers=headers, content=body)
    print(f"  {what}: {answer.status_code} {answer.json()['title']}")


def steal(url: str, request: httpx.Request, other: dict[str, str]) -> None:
    """Send what was seen on the way once more, as it is, and altered; no key is at hand.

    ``other`` are the headers of a request to another server.
    """
    stolen, body = dict(request.headers), request.read()
    altered = {**stolen, "content-length": str(len(body) + 1)}
    token = {"authorization": stolen["authorization"]}
    send(f"{url}/payments", "the same request again", stolen, body)
    send(f"{url}/payments", "another amount", altered, body.replace(b"42000", b"420000"))
    send(f"{url}/refunds", "another path", stolen, body)
    send(f"{url}/payments", "the token alone", token, body)
    send(f"{url}/payments", "a request to another server", other)


def revoke(configuration: Path, agent: str) -> None:
    """Revoke an agent: agentguard revoke AGENT."""
    command = [*AGENTGUARD, "revoke", agent, "--note", "lost", "--config", str(configuration)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  its words are here


def found(folder: Path, domain: str) -> Path:
    """Make the keys and the log of one side; return the path of its configuration."""
    folder.mkdir()
    file = folder / "agentguard.toml"
    file.write_text(CONFIG.format(domain=domain))
    (folder / "policy.rego").write_text(POLICY)
    command = [*AGENTGUARD, "init", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  its words are here
    return file


def publish(agent: Path, receiver: Path) -> None:
    """Give the service the signed file with the revocations of the agents' domain."""
    file = receiver.parent / "revocations"
    command = [*AGENTGUARD, "revocations", "-o", str(file), "--force", "--config", str(agent)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  its words are here


def compare(agent: Path, receiver: Path) -> None:
    """Compare the logs of both sides: agentguard audit match AGENT RECEIVER --all."""
    command = [*AGENTGUARD, "audit", "match", str(agent), str(receiver), "--all", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    *requests, last = map(json.loads, done.stdout.splitlines())
    for request in requests:
        print(f"  {request['state']}: {request['method']} {urlsplit(request['url']).path}")
    print("  the logs agree:", last["summary"]["ok"])


@contextmanager
def service(guard: Guard, folder: Path) -> Iterator[str]:
    """Run the service, whose files are in ``folder``, in a process of its own; yield its URL."""
    (folder / "trust.json").write_bytes(guard.trust.dumps())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"  # in production an https URL
        names = "trust.json", "revocations", "proofs.sqlite", "agentguard.toml"
        words = (url, *(folder / name for name in names), listener.fileno())
        process = subprocess.Popen(  # noqa: S603  the words stand here
            [sys.executable, SERVER, *map(str, words)], pass_fds=[listener.fileno()]
        )
    try:
        httpx.get(f"{url}/healthz", timeout=60).raise_for_status()  # it waits in the listener
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        agent = found(Path(temporary) / "agent", "agents.example")
        receiver = found(Path(temporary) / "service", "payments.example")
        publish(agent, receiver)
        with Guard.open(agent) as guard, service(guard, receiver.parent) as url:
            wiretap = Wiretap()
            print("The agent works:", flush=True)  # before the service prints
            work(guard, url, wiretap)
            print("A thief sends what was seen on the way:")
            steal(url, wiretap.seen[0], proved(guard, "https://other.example"))
            print("The agent is revoked:")
            before = proved(guard, url)
            revoke(agent, "agent:payer")
            publish(agent, receiver)
            send(f"{url}/payments", "a request that was proved before", before)
        print("The logs of the agent and of the service are compared:")
        compare(agent, receiver)
