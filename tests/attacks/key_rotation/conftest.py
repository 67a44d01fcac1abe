"""A durable domain for each test of key rotation."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rotations import HOUR, PASSPHRASE

from agentguard import Decision
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import KeyEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.domain import config, domain, keystore, rotation
from agentguard.domain.config import Config
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument
from agentguard.policy.function import FunctionEngine
from agentguard.storage import anchor
from agentguard.store.reader import StoredLog


@dataclasses.dataclass
class Scene:
    settings: Config
    clock: Any

    @property
    def trust(self) -> TrustDocument:
        """The trust document that counts: the one outside the state."""
        own = keystore.load_trust(self.settings.state)
        if self.settings.anchor is None:
            return own
        path = anchor.trust_path(self.settings.anchor, own.log)
        return TrustDocument.loads(path.read_bytes())

    @property
    def own(self) -> TrustDocument:
        return keystore.load_trust(self.settings.state)

    def open(self) -> Guard:
        home = domain.take_up(self.settings, PASSPHRASE)
        return Guard(Embedded(self.settings, FunctionEngine(lambda _d: Decision.allow()), home))

    def rotate(self, use: Any, **options: Any) -> TrustDocument:
        done = rotation.rotate(self.settings, PASSPHRASE, use, **{"now": self.clock.now, **options})
        assert done.unfinished is None
        return done.trust

    def revoke(self, key: Any, since: datetime) -> rotation.Revocation:
        done = rotation.revoke(
            self.settings,
            PASSPHRASE,
            key.thumbprint,
            compromised_since=since,
            now=self.clock.now,
        )
        assert done.unfinished is None
        return done

    def call(self, what: str = "x") -> None:
        with self.open() as guard:
            guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), what)

    def examine(self, trust: TrustDocument | None = None) -> Report:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return examine(reader, trust or self.trust, anchor=self.settings.anchor)

    def good(self) -> None:
        """The log verifies under the trust document outside, and both documents agree."""
        report = self.examine()
        assert (report.ok, report.problems) == (True, ())
        assert report.anchored is (self.settings.anchor is not None)
        assert self.own == self.trust

    def calls(self) -> list[str]:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return [
                str(parsed.invocation_id)
                for _index, body in reader.entries()
                if isinstance(parsed := parse_entry(body), CallEntry)
            ]

    def prove(self, invocation_id: str) -> bytes:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return prove_call(reader, self.trust, invocation_id)

    def announced(self) -> list[Any]:
        with closing(StoredLog.of(self.settings.state)) as reader:
            return [
                parsed.stated.predicate
                for _index, body in reader.entries()
                if isinstance(parsed := parse_entry(body), KeyEntry)
            ]

    def key(self, use: Any) -> Any:
        return keystore.load_key(self.settings.state, use, PASSPHRASE).public_key

    def names(self) -> list[str]:
        return [path.name for path in self.settings.state.rglob("*")]

    def left_over(self) -> list[str]:
        return [name for name in self.names() if name.endswith((".next", ".new", ".unannounced"))]


@pytest.fixture(scope="session")
def founded(tmp_path_factory) -> Path:
    """A domain that was founded three hours ago."""
    folder = tmp_path_factory.mktemp("founded")
    domain.found(settings_in(folder), PASSPHRASE, now=datetime.now(UTC) - 3 * HOUR)
    return folder


def settings_in(folder: Path, *, anchored: bool = True) -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor" if anchored else "",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


@pytest.fixture(params=[True], ids=["anchored"])
def scene(request, tmp_path, founded, clock) -> Scene:
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    return Scene(settings_in(tmp_path, anchored=request.param), clock)
