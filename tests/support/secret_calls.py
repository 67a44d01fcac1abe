"""A durable domain whose configuration releases secrets, and the search for a value in files."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from private_calls import PASSPHRASE, allow, spellings

from agentguard.audit.entry import Entry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.domain import config, domain, keystore
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine
from agentguard.store.reader import StoredLog

VALUE = "hunter2-4711-\u20ac"
OTHER = "another value: 0815"
NAME = "TOKEN"


def basic(value: str) -> str:
    """Return a secret as the credentials of basic authentication."""
    return base64.b64encode(f"user:{value}".encode()).decode()


WAYS: dict[str, Callable[[str], object]] = {
    "as it is": lambda value: value,
    "within a text": lambda value: f"pushed to https://x:{value}@forge.example",
    "in a field": lambda value: {"header": {"Authorization": f"Bearer {value}"}, "clear": 1},
    "as a key": lambda value: {value: 1},
    "in a list": lambda value: [1, value, None],
    "as bytes": lambda value: value.encode(),
    "in base64, as basic authentication": basic,
    "in url-safe base64": lambda value: base64.urlsafe_b64encode(b"?" + value.encode()).decode(),
    "in hex": lambda value: value.encode().hex(),
    "in upper hex": lambda value: value.encode().hex().upper(),
    "with percents": quote,
    "with percents and plus": quote_plus,
    "as JSON in a text": lambda value: json.dumps({"token": value}),
    "as JSON with its letters": lambda value: json.dumps({"token": value}, ensure_ascii=False),
    "in a tuple in a set": lambda value: {(value, 2)},
}
"""How a tool spells a secret in its result, by the way."""


@dataclasses.dataclass
class SecretScene:
    """A domain in a folder; the file ``token`` in the folder has the secret ``TOKEN``."""

    base: Path
    tools: tuple[str, ...] = ("deploy",)
    scope: tuple[str, ...] | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.base / "token"

    @property
    def settings(self) -> config.Config:
        secret: dict[str, Any] = {"file": "token", "tools": [*self.tools]}
        if self.scope is not None:
            secret["scope"] = [*self.scope]
        tables = {
            "trust_domain": "acme.example",
            "state": str(self.base / "state"),
            "anchor": str(self.base / "anchor"),
            "policy": {"engine": "function", "path": "unused:unused"},
            "agents": {
                "reader": {"authority": "own", "max_scope": ["deploy:write", "docs:read"]},
                "writer": {"max_scope": ["deploy:write", "docs:read"]},
            },
            "secrets": {NAME: secret},
            **self.more,
        }
        return config.parse(tables, source="agentguard.toml", base=self.base)

    def put(self, value: str | bytes = VALUE, mode: int = 0o600) -> None:
        """Write the secret's file."""
        self.file.unlink(missing_ok=True)
        self.file.write_bytes(value if isinstance(value, bytes) else value.encode())
        self.file.chmod(mode)

    def open(self, policy: Any = allow) -> Guard:
        settings = self.settings
        home = domain.take_up(settings, PASSPHRASE)
        return Guard(Embedded(settings, FunctionEngine(policy), home))

    def entries(self, kind: str = "secret") -> list[Entry]:
        """The durable entries of a kind, as another process reads them."""
        with closing(StoredLog.of(self.base / "state")) as reader:
            parsed = [parse_entry(body) for _index, body in reader.entries()]
        return [entry for entry in parsed if entry.kind == kind]

    def newest(self) -> tuple[int, CallEntry]:
        """The newest call in the files, and the index of its authorization."""
        with closing(StoredLog.of(self.base / "state")) as reader:
            parsed = [(index, parse_entry(body)) for index, body in reader.entries()]
        calls = [(index, one) for index, one in parsed if isinstance(one, CallEntry)]
        return calls[-1]

    def holds(self, *needles: str) -> list[str]:
        """The files of the domain, but for the secret's own, in which a needle stands."""
        spelled = [form for needle in needles for form in spellings(needle.encode())]
        files = [path for path in self.base.rglob("*") if path.is_file() and path != self.file]
        assert "log.sqlite" in {path.name for path in files}
        return [path.name for path in files if any(form in path.read_bytes() for form in spelled)]

    def verify(self) -> Report:
        with closing(StoredLog.of(self.base / "state")) as reader:
            trust = keystore.load_trust(self.base / "state")
            return examine(reader, trust, anchor=self.base / "anchor")
