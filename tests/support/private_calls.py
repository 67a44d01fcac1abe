"""A guard whose calls carry a secret, and the search for the secret in the state's files."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from embedded_parts import runtime_of

from agentguard import Decision
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.domain import administration, config, domain, keystore
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine
from agentguard.policy.rego import RegoEngine
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in

PASSPHRASE = b"correct horse battery staple"
SECRET = "hunter2-4711-\u20ac"
CLEAR = "nothing-to-hide"


def allow(_document: Any) -> Decision:
    return Decision.allow()


@dataclasses.dataclass
class Scene:
    """A durable domain in a folder, with or without a ``[redact]`` table."""

    settings: config.Config
    entropy: list[bytes] = dataclasses.field(default_factory=list)

    def redacting(self, **redact: list[str]) -> Scene:
        """The same domain, whose configuration redacts; ``every`` stands for ``*``."""
        tables = {
            "trust_domain": "acme.example",
            "state": str(self.settings.state),
            "anchor": str(self.settings.anchor),
            "policy": {"engine": "function", "path": "unused:unused"},
            "agents": {"reader": {"authority": "own", "max_scope": []}},
            "redact": {"*" if name == "every" else name: told for name, told in redact.items()},
        }
        base = self.settings.base
        return Scene(config.parse(tables, source="agentguard.toml", base=base), self.entropy)

    def open(self, policy: Any = allow) -> Guard:
        engine = FunctionEngine(policy) if callable(policy) else RegoEngine.from_source(policy)
        guard = Guard(Embedded(self.settings, engine, domain.take_up(self.settings, PASSPHRASE)))
        assert runtime_of(guard)._ports is not None

        def draw(size: int) -> bytes:
            self.entropy.append(os.urandom(size))
            return self.entropy[-1]

        runtime_of(guard)._ports = dataclasses.replace(runtime_of(guard)._ports, entropy=draw)
        return guard

    @property
    def salts(self) -> list[bytes]:
        """The salt of each call: the first 32 of the 48 bytes that it draws."""
        return [drawn[:32] for drawn in self.entropy if len(drawn) == 48]

    def holds(self, *needles: str | bytes) -> list[str]:
        """The files, under the whole folder, in which any of the needles stands as bytes."""
        spelled = [
            form
            for needle in needles
            for form in spellings(needle.encode() if isinstance(needle, str) else needle)
        ]
        files = [path for path in self.settings.base.rglob("*") if path.is_file()]
        assert {"log.sqlite"} <= {path.name for path in files}
        return [path.name for path in files if any(form in path.read_bytes() for form in spelled)]

    def verify(self) -> Any:
        with closing(StoredLog.of(self.settings.state)) as reader:
            trust = keystore.load_trust(self.settings.state)
            return examine(reader, trust, anchor=self.settings.anchor)

    def calls(self) -> list[tuple[int, CallEntry]]:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return [
                (index, parsed)
                for index, body in reader.entries()
                if isinstance(parsed := parse_entry(body), CallEntry)
            ]

    def newest(self) -> str:
        invocation_id = self.calls()[-1][1].invocation_id
        assert invocation_id is not None
        return invocation_id

    def rows(self, statement: str, *parameters: Any) -> list[Any]:
        with closing(sqlite3.connect(path_in(self.settings.state))) as connection:
            found = connection.execute(statement, parameters).fetchall()
            connection.commit()
            return found

    def copies(self) -> dict[str, Any]:
        """What is kept of all calls, by role; the newest call wins."""
        kept = self.rows("SELECT role, data FROM attachment ORDER BY idx")
        return {role: json.loads(data) for role, data in kept}


def spellings(needle: bytes) -> list[bytes]:
    """How bytes may lie in a file: as they are, in hex, in base64 (at any offset), escaped."""
    inner = [base64.b64encode(b"\0" * pad + needle)[4 if pad else 0 : -4] for pad in range(3)]
    escaped = json.dumps(needle.decode("utf-8", "replace")).strip('"').encode()
    return [needle, needle.hex().encode(), needle.hex().upper().encode(), *inner, escaped]


def login(guard: Guard, **options: Any) -> Any:
    def login(user: str, password: Any) -> dict[str, Any]:
        return {"user": user, "token": password}

    return guard.tool(**options)(login)


def call(guard: Guard, tool: Any, *args: Any) -> Any:
    with guard:
        return guard.new_agent("reader").call(tool, *args)


def erase(scene: Scene, invocation_id: str | None = None) -> administration.Erased:
    return administration.erase(
        scene.settings,
        PASSPHRASE,
        invocation_id or scene.newest(),
        note="asked for by the data subject",
        now=datetime.now(UTC),
    )
