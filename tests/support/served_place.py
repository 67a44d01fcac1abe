"""A trust domain with a guard server in a process of its own (``agentguard serve``)."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from preloaded import Preloaded, Process

from agentguard import Guard
from agentguard.audit.entry import Entry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.domain import config, domain, keystore
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse battery staple"

SECRET = b"of no use to anybody else"

POLICY = """
package agent.authz

default allow := false

allow if input.action in {"note", "add", "slow", "trusted"}

allow if {
	input.action == "balance"
	input.balance > 100
}

approval := {"reason": "money moves", "roles": ["manager"]} if input.action == "pay"

deny_reasons contains "the client says so itself" if {
	input.action == "trusted"
	input.tool.facts == "client"
}

deny_reasons contains "only from afar" if {
	input.action == "far"
	not input.agent.isolation == "separate-user"
}
"""

CONFIG = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[keys]
passphrase_file = "passphrase"

[policy]
path = "authz.rego"

[agents.clerk]
authority = "own"
max_scope = ["pay", "read"]

[agents.helper]
max_scope = ["read"]

[principals."user:alice"]
roles = ["customer"]

[roles.customer]
scope = ["pay", "read"]

[secrets.TOKEN]
file = "token"
tools = ["note"]

[approvals]
application = true
application_roles = ["manager"]
pending_per_agent = 25

[approvers.bob]
principal = "user:bob"
keys = []
roles = ["manager"]

[server]
url = "unix:s"
reconnect = 2
drain = 1
patience = 0.5
"""


BALANCE = """
[tools.balance]
facts = { gives = ["balance", "more", "k0", "k1", "k2", "k3", "k4"] }
"""
"""The names of the facts that clients look up for the tool ``balance``."""

IMPATIENT = """
import struct
from agentguard.server import connection, serve, tls
from agentguard.wire import stream

serve._SEND = struct.pack("ll", 5, 0)  # seconds for a client that does not read
tls._UNHEARD = 3  # seconds for such a client on another machine
connection.GREETING = stream.REST = 3.0
"""
"""Code for a server that waits a few seconds where it waits up to 30 by default."""

_SERVES = """
import runpy, sys

sys.argv = ["agentguard", "serve"]
runpy.run_module("agentguard.cli", run_name="__main__", alter_sys=True)
"""


@dataclass
class Place:
    """A trust domain with a server, in a folder with a short path.

    ``since`` is the number of entries of the log that count no more.
    """

    folder: Path
    programs: Preloaded
    server: Process | None = None
    guards: list[Guard] = field(default_factory=list)
    since: int = 0

    @property
    def url(self) -> str:
        return f"unix:{self.folder / 's'}"

    @property
    def settings(self) -> config.Config:
        return config.load(self.folder / "agentguard.toml")

    def start(self, before: str = "") -> None:
        """Start the server, and wait until it listens; its process runs ``before`` first."""
        words = ("-c", before + _SERVES) if before else ("-m", "agentguard.cli", "serve")
        self.server = self.programs.begin(*words, cwd=self.folder)
        self.wait_for(lambda: "serving" in self.said())

    def wait_for(
        self, condition: Callable[[], bool], what: str = "the server", seconds: int = 30
    ) -> None:
        for _ in range(seconds * 100):
            if condition():
                return
            time.sleep(0.01)
        pytest.fail(f"{what}: {self.said()}")

    def said(self) -> str:
        """Return what the newest server has printed."""
        output = self.folder / "output"
        return output.read_text(encoding="utf-8") if output.exists() else ""

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server with a signal, and wait for its end."""
        assert self.server is not None
        os.kill(self.server.pid, number)
        self.server.wait()
        self.server = None
        (self.folder / "output").unlink()

    def connect(self, **options: Any) -> Guard:
        guard = Guard.open(self.folder / "agentguard.toml", **options)
        self.guards.append(guard)
        return guard

    def status(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        with self.connect() as guard:
            link = guard._parts._link  # type: ignore[attr-defined]
            return dict(link.request({"op": "status"}).header)

    # --- the log --------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return the entries, in their order."""
        reader = StoredLog.of(self.folder / "state")
        try:
            return [parse_entry(body) for _index, body in reader.entries()][self.since :]
        finally:
            reader.close()

    def calls(self) -> list[CallEntry]:
        return [one for one in self.entries() if isinstance(one, CallEntry)]

    def outcomes(self) -> list[OutcomeEntry]:
        return [one for one in self.entries() if isinstance(one, OutcomeEntry)]

    def verify(self) -> Report:
        reader = StoredLog.of(self.folder / "state")
        try:
            trust = keystore.load_trust(self.folder / "state")
            return examine(reader, trust, anchor=self.folder / "anchor")
        finally:
            reader.close()


@contextmanager
def founded_place(programs: Preloaded, more: str = "") -> Iterator[Place]:
    """Found a trust domain whose server is not started yet; ``more`` is added to its config."""
    config = CONFIG + more if "[tools.balance]" in more else CONFIG + BALANCE + more
    folder = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))  # a socket has a short path
    for name, text in (("agentguard.toml", config), ("authz.rego", POLICY)):
        (folder / name).write_text(text, encoding="utf-8")
    for name, data in (("passphrase", PASSPHRASE), ("token", SECRET)):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    place = Place(folder, programs)
    domain.found(place.settings, PASSPHRASE, now=datetime.now(UTC))
    try:
        yield place
    finally:
        for guard in place.guards:
            guard.close()
        if place.server is not None:
            place.stop(signal.SIGKILL)
        # a server's thread may look at the log still, whose file has others beside it then
        shutil.rmtree(folder, ignore_errors=True)
