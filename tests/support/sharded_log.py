"""A log of five shards, older copies of its state, and keys that an attacker may have stolen."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentguard import Decision
from agentguard.audit import checkpoint, merkle, summary
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.kinds import parse_entry
from agentguard.audit.merkle import CompactRange
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.domain import config, domain
from agentguard.domain.config import Config
from agentguard.domain.protocol import Domain
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument
from agentguard.policy.function import FunctionEngine
from agentguard.signing.keys import Signer
from agentguard.storage import anchor
from agentguard.storage.reader import StateReader

PASSPHRASE = b"correct horse battery staple"

Where = tuple[int, int | None]
"""The shard and the index at which a finding is due; None for a shard as a whole."""


@dataclass
class Log:
    """A log of five shards in a folder, with all that an attacker may have come by.

    ``old`` holds copies of the state: with ``one`` shard (as founded), with ``three``, the same
    once each of them had ``seen`` the others, ``later`` with four, and ``fork``, another end of
    ``later``. Shard 4 was added last, and no other shard has seen anything of it. ``other`` is the
    state of somebody else's log.
    """

    config: Config
    trust: TrustDocument
    issuer: Signer
    log_key: Signer
    stranger: Signer
    old: Path
    other: Path

    @property
    def state(self) -> Path:
        return self.config.state

    def path(self, shard: int) -> Path:
        return self.state / "shards" / f"{shard}.sqlite"

    def change(self, shard: int, *statements: Any) -> None:
        """Run SQL statements on a shard, as somebody with write access can."""
        with closing(sqlite3.connect(self.path(shard))) as connection:
            for statement in statements:
                connection.execute(*statement if isinstance(statement, tuple) else (statement,))
            connection.commit()

    def ask(self, shard: int, statement: str, *parameters: Any) -> list[Any]:
        with closing(sqlite3.connect(self.path(shard))) as connection:
            return connection.execute(statement, parameters).fetchall()

    def bodies(self, shard: int) -> list[bytes]:
        return [body for (body,) in self.ask(shard, "SELECT body FROM entries ORDER BY idx")]

    def sizes(self, shard: int) -> list[int]:
        """The sizes of the stored checkpoints."""
        return [size for (size,) in self.ask(shard, "SELECT size FROM checkpoints ORDER BY size")]

    def at(self, shard: int, kind: str, number: int = 0) -> int:
        """The index of an entry of a kind; ``number`` counts from 0, or from the end."""
        parsed = [parse_entry(body).kind for body in self.bodies(shard)]
        return [index for index, found in enumerate(parsed) if found == kind][number]

    def rewrite(self, shard: int, bodies: Sequence[bytes], beside: Log | None = None) -> None:
        """Put these entries in the place of all, with what stands beside each, numbered anew.

        ``beside``: the log of which an entry that is not in this one was taken.
        """
        about: dict[bytes, tuple[Any, ...]] = {}
        kept: dict[bytes, list[tuple[Any, ...]]] = {}
        for log in (*([beside] if beside is not None else []), self):
            for number in map(int, (path.stem for path in log.state.glob("shards/*.sqlite"))):
                by_index = dict(enumerate(log.bodies(number)))
                for index, *row in log.ask(number, "SELECT * FROM summaries"):
                    about[by_index[index]] = tuple(row)
                for index, *row in log.ask(number, "SELECT * FROM attachments"):
                    kept.setdefault(by_index[index], []).append(tuple(row))
        with closing(sqlite3.connect(self.path(shard))) as connection:
            many = connection.executemany
            for table in ("entries", "summaries", "attachments"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608  of these three
            many("INSERT INTO entries VALUES (?, ?)", enumerate(bodies))
            for index, body in enumerate(bodies):
                parsed = parse_entry(body)
                row = about.get(body) or summary.Summary(parsed.kind, parsed.at)
                marks = ", ?" * len(row)
                connection.execute(f"INSERT INTO summaries VALUES (?{marks})", (index, *row))  # noqa: S608
                # what was copied along once already is not there twice
                for role, *rest in {row[0]: row for row in kept.get(body, [])}.values():
                    connection.execute(
                        "INSERT INTO attachments VALUES (?, ?, ?, ?, ?)", (index, role, *rest)
                    )
            connection.commit()

    def vouch(self, shard: int, signer: Signer) -> None:
        """Sign the checkpoints of a shard anew, for what stands in it now, with its head."""
        bodies = self.bodies(shard)
        sizes = {*(size for size in self.sizes(shard) if size < len(bodies)), len(bodies)}
        tree = CompactRange()
        notes = []
        for body in bodies:
            tree.append(merkle.leaf_hash(body))
            if tree.size in sizes:
                point = Checkpoint(self.trust.origin(shard), tree.size, tree.root())
                notes.append((tree.size, checkpoint.sign(point, signer)))
        with closing(sqlite3.connect(self.path(shard))) as connection:
            connection.execute("DELETE FROM checkpoints")
            connection.executemany("INSERT INTO checkpoints VALUES (?, ?)", notes)
            connection.execute("UPDATE shard SET size = ?, range = ?", (tree.size, tree.encode()))
            connection.commit()

    def cut(self, shard: int, size: int) -> None:
        """Go back to an older stored checkpoint, consistently, with all that stands beside."""
        assert size in self.sizes(shard)
        tree = CompactRange()
        for body in self.bodies(shard)[:size]:
            tree.append(merkle.leaf_hash(body))
        self.change(
            shard,
            ("DELETE FROM entries WHERE idx >= ?", (size,)),
            ("DELETE FROM attachments WHERE idx >= ?", (size,)),
            ("DELETE FROM summaries WHERE idx >= ?", (size,)),
            ("DELETE FROM checkpoints WHERE size > ?", (size,)),
            ("UPDATE shard SET size = ?, range = ?", (size, tree.encode())),
        )

    def anchor(self, shard: int) -> Path:
        assert self.config.anchor is not None
        return anchor.anchor_path(self.config.anchor, self.trust.origin(shard))

    def write_registry(self, shards: Sequence[int], signer: Signer) -> None:
        at = verify_registry((self.state / "registry.json").read_bytes(), self.trust).at
        data = seal_registry(signer, self.trust, shards, at=at)
        (self.state / "registry.json").write_bytes(data)

    def bring_back(self, name: str, *parts: str) -> None:
        """Put parts of an older copy of the state into the place of what is there."""
        for part in parts:
            for old in sorted((self.old / name / "state").glob(part)):
                target = self.state / old.relative_to(self.old / name / "state")
                if target.is_dir():
                    shutil.rmtree(target)
                copy = shutil.copytree if old.is_dir() else shutil.copy
                copy(old, target)

    def examine(self, *, anchored: bool = True, trust: TrustDocument | None = None) -> Report:
        reader = StateReader(self.state)
        try:
            where = self.config.anchor if anchored else None
            return examine(reader, trust or self.trust, anchor=where)
        finally:
            reader.close()

    def open(self) -> Guard:
        """Open a guard on what lies there now."""
        home = domain.take_up(self.config, PASSPHRASE)
        return Guard(Embedded(self.config, FunctionEngine(_allow), home))


def _allow(_document: Any) -> Decision:
    return Decision.allow()


def settings_for(folder: Path) -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": str(folder / "state"),
        "anchor": str(folder / "anchor"),
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


def work(folder: Path, home: Domain, guards: int, calls: int) -> None:
    """Open guards at the same time on the state, each with a shard, and make calls with each."""
    settings = settings_for(folder)
    opened = [Guard(Embedded(settings, FunctionEngine(_allow), home)) for _ in range(guards)]
    try:
        for number, guard in enumerate(opened):
            agent = guard.new_agent("reader")
            tool = guard.tool(note)
            for call in range(calls):
                agent.call(tool, text=f"{number}-{call}")
    finally:
        for guard in opened:
            guard.close()


def note(text: str) -> str:
    return text


@dataclass
class History:
    """The copies from which each test starts, made once."""

    folder: Path
    home: Domain
