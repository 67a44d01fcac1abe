"""``ClientParts``: the parts of a guard whose steps run in a server (``guard/parts.py``)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.roster import Roster
from agentguard.audit.log import LogReader
from agentguard.call.plain import require_plain
from agentguard.client.approvals import ClientInbox
from agentguard.client.delegations import ClientDelegations
from agentguard.client.instance import ClientInstance
from agentguard.client.link import Link
from agentguard.client.tools import ClientTools
from agentguard.delegation.context import require_separate_threads
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.policy_place import PolicyPlace
from agentguard.errors import ConfigError
from agentguard.flow.drive import Executors
from agentguard.flow.ports import OnRequest
from agentguard.identity.trust import TrustDocument
from agentguard.telemetry.settings import Settings
from agentguard.wire import values

if TYPE_CHECKING:
    from agentguard.domain.report import Report


class ClientRuns:
    """The ``RunStore`` in a server: adapters' records of runs, this client's own."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def read(self, name: str) -> bytes | None:
        """Return the data under ``name``, or None."""
        answer = self._link.request({"op": "runs.read", "name": name})
        return answer.blobs[0] if answer.blobs else None

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, durably, in place of earlier data."""
        self._link.request({"op": "runs.write", "name": name}, data)

    def add(self, name: str, data: bytes) -> bool:
        """Store ``data`` under ``name``, durably; return False if ``name`` has data already."""
        answer = self._link.request({"op": "runs.write", "name": name, "add": True}, data)
        return answer.header.get("added") is True

    def remove(self, name: str) -> None:
        """Remove the data under ``name``, if any."""
        self._link.request({"op": "runs.remove", "name": name})


class ClientParts:
    """The parts of a guard in a server, as the server's client.

    Raises ``ServerError``, and ``ConfigError`` as ``require_separate_threads``, and for an
    ``on_request`` that is a coroutine function.
    """

    def __init__(self, link: Link, telemetry: Settings, on_request: OnRequest | None) -> None:
        require_separate_threads()
        if on_request is not None:
            require_plain(on_request, "on_request")
        greeting = link.connect()
        self._link = link
        self._on_request = on_request
        self._roster = Roster.from_json(greeting.roster)
        self.telemetry = telemetry
        self.trust = TrustDocument.loads(greeting.trust)
        self.policy_place = PolicyPlace(*greeting.policy, log="server")
        self.isolation = greeting.isolation
        self.tools = ClientTools(link)
        self.delegations = ClientDelegations(link, self.trust)
        self.runs = ClientRuns(link)
        self._start_threads()

    def _start_threads(self) -> None:
        self.executors = Executors(
            ThreadPoolExecutor(32, thread_name_prefix="agentguard"),
            ThreadPoolExecutor(32, thread_name_prefix="agentguard-facts"),
            ThreadPoolExecutor(1, thread_name_prefix="agentguard-engine"),
        )

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._link.is_closed

    def require_agent(self, name: str) -> None:
        """Raise ``ConfigError`` unless the server has the agent and this client may be it."""
        self.agent(name)

    def agent(self, name: str) -> AgentConfig:
        """Return an agent's configuration; raises ``ConfigError`` (``agent.unknown``)."""
        answer = self._link.request({"op": "agent", "name": str(name)})
        return values.read_agent(answer.header.get("agent"))

    def instance(self, config: AgentConfig) -> ClientInstance:
        """Have the server make an instance of an agent."""
        return ClientInstance(config, self._link, self.tools, self.delegations, self._on_request)

    def inbox(self) -> ApprovalInbox:
        """Return the inbox in which people answer requests for approvals."""
        return ClientInbox(self._link, self._roster, _clock)

    def reader(self) -> LogReader:
        """Raise ``ConfigError`` (``server.remote``): the log is out of this process's reach."""
        raise _remote("read")

    def verify(self) -> Report:
        """Raise ``ConfigError`` (``server.remote``): the log is out of this process's reach."""
        raise _remote("verified")

    def flush(self) -> None:
        """Have the server make the outcomes so far durable; raises ``ServerError``."""
        self._link.flush()
        self._link.request({"op": "flush"})

    def forked(self) -> None:
        """Begin a session of its own, in a forked process."""
        self._link.forked()
        self.tools.forked()
        self._start_threads()

    def close(self) -> None:
        """Wait until the server has all outcomes, and end the connections."""
        self._link.close()
        self.executors.shutdown()


def _remote(done: str) -> ConfigError:
    message = (
        f"the log is in the guard server, and is {done} there: run agentguard audit where the "
        "server runs"
    )
    return ConfigError(message, code="server.remote")


def _clock() -> datetime:
    return datetime.now(UTC)
