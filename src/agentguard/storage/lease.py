"""Which shard a process writes: it leases a free one, or adds one to the log.

So no writer waits for another. A lease is a lock that ends with its process; what a lease adds to
the log (who opened the shard, how far the others are) stands in ``entry.shard``.
"""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from agentguard.audit import entry, statements
from agentguard.audit import registry as listed
from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.invocation import timestamp
from agentguard.keys import Signer
from agentguard.storage import anchor, registry, shard_file, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader
from agentguard.storage.shard_file import ShardFile

_LOGGER = logging.getLogger("agentguard")

_ATTEMPTS: Final = 5
_PAUSE: Final = 0.1
"""Seconds that each attempt to take a new shard waits longer than the one before."""


@dataclass(frozen=True, slots=True)
class Lessor:
    """Gives out the shards of the log in a state directory.

    ``anchors`` is the directory of the anchors, None for nowhere.
    """

    state: Path
    anchors: Path | None
    trust: TrustDocument
    issuer: Signer
    log_key: Signer

    def lease(self, now: datetime) -> ShardLog:
        """Return a shard to write, its opening entry durable.

        Nothing is leased where another shard is missing, can't be read, or does not end in a
        checkpoint that verifies: somebody has to look into it first. Raises ``StorageError`` or
        ``VerificationError``.
        """
        registered, number, file = self._take_one()
        try:
            log = ShardLog(file, self.log_key, shard=number)
        except BaseException:
            file.close()
            raise
        # only the first entry of a shard is ever written before the issuer lists it: where somebody
        # died in between, it is listed before there is a second one
        begun = log.head.size > 0
        try:
            if begun and number not in registered:
                self._register(number, now)
            log.append(self.opening(number, at=timestamp(max(now, log.last_at))))
            if not begun and number not in registered:
                self._register(number, now)
        except BaseException:
            log.close()
            raise
        return log

    def _take_one(self) -> tuple[frozenset[int], int, ShardFile]:
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt * _PAUSE)
            registered = self.registered()
            taken = self._free(registered) or self._new(registered)
            if taken is not None:
                return registered, *taken
        message = f"somebody locks each new shard of {self.state}, and makes none: find out who"
        raise StorageError(message, code="storage.locked")

    def opening(self, number: int, *, at: str) -> entry.Record:
        """Return the entry with which a shard is opened, or taken up again."""
        return entry.shard(
            self.issuer,
            self.log_key.public_key,
            trust_domain=self.trust.trust_domain,
            origin=self.trust.origin(number),
            number=number,
            heads=self._heads(number),
            at=at,
        )

    def registered(self) -> frozenset[int]:
        """Return the shards of the registry; these, and all that have an anchor, must be there.

        Raises ``StorageError`` (``storage.rolled_back``) or ``VerificationError``.
        """
        registered = self._listed()
        known = registered | self._anchored()
        present = sqlite.numbers(self.state)  # read last: a shard's file comes before its anchor
        missing = sorted(known.difference(present))
        if missing and missing[0] not in registered:
            lost = f"the shard {sqlite.shard_path(self.state, missing[0])}"
            message = f"{lost} is missing, of which there is an anchor: {anchor.ROLLED_BACK}"
            raise StorageError(message, code="storage.rolled_back")
        if missing:
            lost = f"the shard {sqlite.shard_path(self.state, missing[0])}"
        elif present and not registered:
            # a new one would leave out the shards that somebody has removed together with it
            lost = f"the registry of the shards in {self.state}"
        else:
            return registered
        message = f"{lost} is missing: restore the state; nothing is written until then"
        raise StorageError(message, code="storage.rolled_back")

    def _listed(self) -> frozenset[int]:
        return registry.shards(self.state, self.trust)

    def _anchored(self) -> frozenset[int]:
        if self.anchors is None:
            return frozenset()
        return frozenset(anchor.kept_shards(self.anchors, self.trust.log))

    def _free(self, registered: frozenset[int]) -> tuple[int, ShardFile] | None:
        numbers = sqlite.numbers(self.state)
        # one that is not registered yet is somebody's who died opening it, or is opening it
        for number in sorted(numbers, key=lambda number: (number not in registered, number)):
            try:
                file = self._take(number)
            except StorageError as error:
                if error.code != "storage.unvouched":
                    raise
                _LOGGER.warning("%s", error)  # it stays as it is, and another is written
                continue
            if file is not None:
                return number, file
        return None

    def _new(self, registered: frozenset[int]) -> tuple[int, ShardFile] | None:
        with registry.locked(self.state):
            # never one that was used: its anchor vouches for it
            used = {*registered, *self._anchored(), *sqlite.numbers(self.state)}
            # the lowest: a file with a high number, which anybody can lay there, must not lead to
            # one beyond those that a shard can have
            number = next(number for number in itertools.count() if number not in used)
            file = self._take(number)
        return (number, file) if file is not None else None

    def _take(self, number: int) -> ShardFile | None:
        path = sqlite.shard_path(self.state, number)
        if sqlite.was_inherited(path):
            return None
        origin = self.trust.origin(number)
        keys = [trusted.key for trusted in self.trust.keys_for("log")]
        return ShardFile.take(path, origin, Anchor(self.anchors, origin, keys), self.trust)

    def _register(self, number: int, now: datetime) -> None:
        with registry.locked(self.state):
            shards = {*self._listed(), number}
            registry.write(
                self.state, listed.seal(self.issuer, self.trust, shards, at=timestamp(now))
            )

    def _heads(self, number: int) -> list[bytes]:
        """Return the newest checkpoints of the other shards, all of them that have begun.

        One that is left out could be cut unseen from then on.
        """
        registered = self._listed()
        others = [other for other in sqlite.numbers(self.state) if other != number]
        if not others:
            return []
        with closing(StateReader(self.state)) as reader:
            heads = [self._head(reader, other, begun=other in registered) for other in others]
        return [note for note in heads if note is not None]

    def _head(self, reader: StateReader, shard: int, *, begun: bool) -> bytes | None:
        """Return a shard's newest checkpoint; None if nobody has come to its first entry yet."""
        path = sqlite.shard_path(self.state, shard)
        note = shard_file.inherited_note(path) or reader.checkpoint(shard)
        if note is None and not begun:
            return None
        try:
            statements.check_checkpoint(note or b"", self.trust, self.trust.origin(shard))
        except AgentguardError as error:
            message = (
                f"the newest checkpoint of {path} does not verify ({error}): find out who changed "
                "it, and restore the state; nothing is written until then"
            )
            raise VerificationError(message, code=error.code) from error
        return note
