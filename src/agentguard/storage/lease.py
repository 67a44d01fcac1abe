"""Which shard a process writes: it leases a free one, or adds one to the log.

So no writer waits for another. A lease is a lock that ends with its process; what a lease adds to
the log (who opened the shard, how far the others are) stands in ``records.shard``.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from agentguard.audit import records
from agentguard.audit.records import Record
from agentguard.audit.registry import seal_registry
from agentguard.call.invocation import timestamp
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage import registry_file, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.ledger import Ledger
from agentguard.storage.log import ShardLog
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

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:
        """Return a shard to write, its opening entry durable.

        Nothing is leased where another shard is missing, can't be read, or does not hold what its
        newest checkpoint vouches for: somebody has to look into it first. The opening entry embeds
        the heads of the other shards, as the ``ledger`` (or one of its own) has just verified them,
        and is not older than what they hold. Raises ``StorageError`` or ``VerificationError``.
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
            ledger = ledger or Ledger(self.state, self.anchors, lambda: self.trust, self.log_key)
            log.continue_from(ledger.read_on(own=number).newest)
            at = timestamp(max(now, log.last_at))
            log.append(self.opening(number, ledger.heads, at=at))
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

    def opening(self, number: int, heads: Mapping[int, bytes], *, at: str) -> Record:
        """Return the entry with which a shard is opened, or taken up again.

        ``heads`` are the newest checkpoints of all shards that have begun: one that is left out
        could be cut unseen from then on.
        """
        return records.shard(
            self.issuer,
            self.log_key.public_key,
            trust_domain=self.trust.trust_domain,
            origin=self.trust.origin(number),
            number=number,
            heads=[note for other, note in sorted(heads.items()) if other != number],
            at=at,
        )

    def registered(self) -> frozenset[int]:
        """Return the shards of the registry; raises as ``registry_file.present`` does."""
        return registry_file.present(self.state, self.anchors, self.trust)[0]

    def _listed(self) -> frozenset[int]:
        return registry_file.shards(self.state, self.trust)

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
        with registry_file.locked(self.state):
            # never one that was used: its anchor vouches for it
            used = {
                *registered,
                *registry_file.anchored(self.anchors, self.trust),
                *sqlite.numbers(self.state),
            }
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
        with registry_file.locked(self.state):
            shards = {*self._listed(), number}
            registry_file.write(
                self.state, seal_registry(self.issuer, self.trust, shards, at=timestamp(now))
            )
