"""Both sides of an HTTP request on disk: an agent's domain, and the domain of a tool's server.

``TwoSides`` proves requests inside guarded calls, and has the receiver verify them without HTTP.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedded_parts import runtime_of
from proof_scene import BODY, URL, Sent, check
from tool_servers import SCOPE, allow, in_call, listed

from agentguard import Guard, ReceiverLog
from agentguard.audit.entry import Entry
from agentguard.audit.kinds import parse_entry
from agentguard.call.releases import RequestProof
from agentguard.domain import config, domain, keystore
from agentguard.domain.config import Config
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.proof import ProofStore, Receiver, prove_request
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse battery staple"
QUERY = "currency=EUR"


@dataclass
class Side:
    """A durable domain in a folder: ``state``, and ``anchor`` beside it."""

    folder: Path
    trust_domain: str

    @property
    def settings(self) -> Config:
        tables = {
            "trust_domain": self.trust_domain,
            "state": str(self.folder / "state"),
            "anchor": str(self.folder / "anchor"),
            "policy": {"engine": "function", "path": "unused:unused"},
            "agents": {name: {"max_scope": SCOPE} for name in ("payer", "other")},
        }
        return config.parse(tables, source="agentguard.toml", base=self.folder)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def found(self) -> None:
        self.folder.mkdir(parents=True)
        domain.found(self.settings, PASSPHRASE, now=datetime.now(UTC))

    def open(self) -> Guard:
        home = domain.take_up(self.settings, PASSPHRASE)
        return Guard(Embedded(self.settings, FunctionEngine(allow), home))

    def entries(self, *kinds: str) -> list[Entry]:
        """The durable entries of some kinds, as another process reads them."""
        with closing(StoredLog.of(self.state)) as reader:
            parsed = [parse_entry(body) for _index, body in reader.entries()]
        return [entry for entry in parsed if entry.kind in kinds]

    def verify(self) -> Report:
        with closing(StoredLog.of(self.state)) as reader:
            trust = keystore.load_trust(self.state)
            return examine(reader, trust, anchor=self.folder / "anchor")


class TwoSides:
    """An agent's domain and a receiver's, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agent = Side(folder / "agent", "acme.example")
        self.server = Side(folder / "server", "tools.example")

    def found(self) -> None:
        for side in (self.agent, self.server):
            side.found()

    def copied(self, folder: Path) -> TwoSides:
        """Return a copy of both domains that nobody has used yet."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return TwoSides(folder)

    @contextmanager
    def open(self, **more: Any) -> Iterator[OpenSides]:
        """Open both domains; ``more`` are options of ``ReceiverLog``."""
        with self.agent.open() as guard, self.server.open() as server:
            log = ReceiverLog(server, **more)
            store = ProofStore(self.folder / "proofs.sqlite")
            yield OpenSides(guard, server, Receiver(URL, guard.trust, store, log=log))


@dataclass
class OpenSides:
    """The guards of both sides, and the receiver with its log."""

    guard: Guard
    server: Guard
    receiver: Receiver

    def prove(self, path: str = "/pay", body: bytes = BODY) -> Sent:
        """Prove a request inside a call of its own, and do not send the request."""
        made: list[RequestProof] = []
        url = f"{URL}{path}?{QUERY}"
        in_call(self.guard, lambda: made.append(prove_request("POST", url, body)), audience=[URL])
        return Sent(listed(made[0]), path=path, body=body)

    def send(self, path: str = "/pay", body: bytes = BODY) -> Sent:
        """Prove a request, and have the receiver accept the request."""
        sent = self.prove(path, body)
        check(self.receiver, sent)
        return sent

    def append(self, side: str, build: Callable[..., Any]) -> None:
        """Append an entry as the holder of the log's key can: ``build`` gets the time ``at``."""
        log = runtime_of(self.guard if side == "agent" else self.server).current_ports().log
        log.append(build(at=log.last_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")))
