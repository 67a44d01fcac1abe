"""What the attacks stand on: guards whose clock or storage a test holds in its hand.

The doubles wrap the real parts and fail where a test says; nothing here replaces one. The durable
domain is founded once a session and copied.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from embedded_parts import runtime_of

from agentguard import Decision, Guard
from agentguard.audit.entry import Entry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.log import LogReader
from agentguard.domain import config, domain, keystore, verify
from agentguard.domain.config import Config
from agentguard.domain.protocol import Domain
from agentguard.domain.report import Report
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing.canonical import loads_object
from agentguard.signing.dsse import Envelope
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse battery staple"


def allow_all(_document: Mapping[str, Any]) -> Decision:
    """The policy that is in nobody's way."""
    return Decision.allow()


class ManualClock:
    """A wall clock that a test sets; ``error`` makes it fail."""

    def __init__(self) -> None:
        self.now: Any = datetime.now(UTC)
        self.error: BaseException | None = None

    def __call__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


@dataclass
class Faults:
    """A real engine, and where it fails: before a commit, after it, or where the store is read.

    From the next commit on, a reading fails with ``from_commit``. ``gate`` holds a commit back
    until it is set; ``entered`` says that a commit has begun.
    """

    inner: Any
    before: BaseException | None = None
    after: BaseException | None = None
    at_head: BaseException | None = None
    from_commit: BaseException | None = None
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    closes: int = 0

    @property
    def is_shared(self) -> bool:
        outlives: bool = self.inner.is_shared
        return outlives

    def write(self, work: Any) -> Any:
        return self.inner.write(lambda begun: work(FaultyWriting(self, begun)))

    def commit(self, begun: Any) -> None:
        self.entered.set()
        self.at_head = self.from_commit or self.at_head
        if self.gate is not None and not self.gate.wait(60):
            raise AssertionError("the test never opened the gate")
        if self.before is not None:
            raise self.before
        begun.commit()
        if self.after is not None:
            raise self.after

    def read(self, work: Any) -> Any:
        if self.at_head is not None:
            raise self.at_head
        return self.inner.read(work)

    def query(self, statement: str, values: Any) -> Any:
        if self.at_head is not None:
            raise self.at_head
        return self.inner.query(statement, values)

    def pages_at(self, query: Any) -> Any:
        return self.inner.pages_at(query)

    def close(self) -> None:
        self.closes += 1
        self.inner.close()


class FaultyWriting:
    """A transaction of an engine, whose commit fails where ``faults`` says."""

    def __init__(self, faults: Faults, begun: Any) -> None:
        self.query, self.write, self.touch = begun.query, begun.write, begun.touch
        self.write_head, self.write_pages = begun.write_head, begun.write_pages
        self.commit = partial(faults.commit, begun)


@dataclass
class Seen:
    """What a log holds: ``entries`` as read, and the two kinds that calls leave."""

    entries: list[Entry]

    @property
    def authorizations(self) -> list[Mapping[str, Any]]:
        return [entry.members for entry in self.entries if entry.kind == "call"]

    @property
    def outcomes(self) -> list[Mapping[str, Any]]:
        statements = [e.members["statement"] for e in self.entries if e.kind == "outcome"]
        predicates: list[Any] = [
            loads_object(Envelope.parse(statement, may_be_joint=True).payload)["predicate"]
            for statement in statements
        ]
        return predicates

    @property
    def codes(self) -> list[tuple[str, str]]:
        return [(a["decision"], a["code"]) for a in self.authorizations]

    @property
    def statuses(self) -> list[str]:
        return [outcome["status"] for outcome in self.outcomes]


def entries_of(reader: LogReader) -> list[Entry]:
    """Read every entry."""
    return [parse_entry(body) for _index, body in reader.entries()]


@dataclass
class Place:
    """A durable domain in a folder of its own."""

    config: Config

    def open(self, policy: Callable[[Any], Decision] = allow_all) -> Guard:
        return Guard(Embedded(self.config, FunctionEngine(policy), self.take_up()))

    def take_up(self) -> Domain:
        return domain.take_up(self.config, PASSPHRASE)

    def examine(self) -> Report:
        reader = StoredLog.of(self.config.state)
        try:
            trust = keystore.load_trust(self.config.state)
            return verify.examine(reader, trust, anchor=self.config.anchor)
        finally:
            reader.close()

    def seen(self) -> Seen:
        reader = StoredLog.of(self.config.state)
        try:
            return Seen(entries_of(reader))
        finally:
            reader.close()


def tables(folder: Path) -> dict[str, Any]:
    return {
        "trust_domain": "acme.example",
        "state": str(folder / "state"),
        "anchor": str(folder / "anchor"),
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}, "writer": {"authority": "own"}},
    }


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A founded domain that nobody has used yet."""
    folder = tmp_path_factory.mktemp("template")
    settings = config.parse(tables(folder), source="template", base=folder)
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return folder


@pytest.fixture
def place(tmp_path, template) -> Place:
    """A fresh copy of the founded domain."""
    return copied(template, tmp_path)


def copied(source: Path, folder: Path) -> Place:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return Place(config.parse(tables(folder), source="agentguard.toml", base=folder))


@pytest.fixture(scope="session")
def used_template(template, tmp_path_factory) -> Path:
    """The founded domain with a log of ten calls, closed."""
    place = copied(template, tmp_path_factory.mktemp("used"))
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="note")(lambda number: number)
        for number in range(10):
            agent.call(tool, number)
    return place.config.base


@pytest.fixture
def used(place, used_template) -> Place:
    """The place with a log of ten calls, closed."""
    for part in ("state", "anchor"):
        shutil.rmtree(place.config.base / part)
    return copied(used_template, place.config.base)


@pytest.fixture
def clock(monkeypatch) -> ManualClock:
    """The wall clock of every guard that the test makes from here on."""
    manual = ManualClock()
    monkeypatch.setattr("agentguard.guard.process.clock", manual)
    return manual


@pytest.fixture
def guard():
    """A guard in memory that allows everything."""
    with Guard.ephemeral(allow_all) as opened:
        yield opened


@pytest.fixture
def put_faults() -> Callable[[Guard], Faults]:
    """Puts a double in front of the engine of a guard's log, which fails where the test says."""

    def put(guard: Guard) -> Faults:
        log: Any = runtime_of(guard).current_ports().log
        faults = log._store._engine = Faults(log._store._engine)
        return faults

    return put


@pytest.fixture
def faults(guard, put_faults) -> Faults:
    """The engine of ``guard``'s log, which fails where the test says."""
    return put_faults(guard)


@pytest.fixture
def seen() -> Callable[[Guard], Seen]:
    """Reads what a guard's log holds now."""
    return lambda guard: Seen(entries_of(guard.reader()))


@pytest.fixture
def examine() -> Callable[[Guard], Report]:
    """Verifies a guard's log as it stands now."""
    return lambda guard: verify.examine(guard.reader(), guard.trust)


@pytest.fixture
def ran() -> list[Any]:
    """What the tools of a test have done."""
    return []


@pytest.fixture
def note(guard, ran):
    """A guarded tool with an effect that can be seen."""

    @guard.tool
    def note(text=""):
        ran.append(text)
        return text

    return note
