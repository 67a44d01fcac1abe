"""Lends each process one shard to write: a free shard, or a new one.

So no writer waits for another. A lease is a lock that ends with its process. The shard's opening
entry (``ShardEntry``) says who opened the shard, and how far the other shards are.
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

from agentguard.audit.entry import Record
from agentguard.audit.kinds.announcements import ShardEntry
from agentguard.audit.registry import seal_registry
from agentguard.call.invocation import timestamp
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Signer
from agentguard.storage import registry_file, reserve, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.ledger import Ledger
from agentguard.storage.log import ShardLog
from agentguard.storage.shard_file import ShardFile

_LOGGER = logging.getLogger("agentguard")

_ATTEMPTS: Final = 5
_PAUSE: Final = 0.1
"""Each attempt to take a new shard waits this many seconds longer than the attempt before."""


@dataclass(frozen=True, slots=True)
class Lessor:
    """Gives out the shards of the log in a state directory.

    ``anchors`` is the directory of the anchors, None where no anchors are kept.
    """

    state: Path
    anchors: Path | None
    trust: TrustDocument
    issuer: Signer
    log_key: Signer

    def lease(self, now: datetime, ledger: Ledger | None = None) -> ShardLog:
        """Return a shard to write, its opening entry durable.

        No shard is leased where another shard is missing, can't be read, or does not hold the
        entries of its newest checkpoint: a person has to look into that first. The opening entry
        embeds the heads of the other shards, which ``ledger`` has just verified; None makes a new
        ledger. The time of the opening entry is not before theirs. Raises ``StorageError`` or
        ``VerificationError``.
        """
        reserve.fill(self.state)
        registered, number, file = self._take_one()
        try:
            log = ShardLog(file, self.log_key, shard=number)
        except BaseException:
            file.close()
            raise
        # A shard gets its first entry, and is then registered. If a process died in between,
        # register the shard now, before its second entry.
        has_entries = log.head.size > 0
        try:
            if has_entries and number not in registered:
                self._register(number, now)
            ledger = ledger or Ledger(self.state, self.anchors, lambda: self.trust, self.log_key)
            log.continue_from(ledger.read_on(own=number).newest)
            at = timestamp(max(now, log.last_at))
            log.append(self.opening(number, ledger.heads, at=at))
            if not has_entries and number not in registered:
                self._register(number, now)
        except BaseException:
            log.close()
            raise
        return log

    def _take_one(self) -> tuple[frozenset[int], int, ShardFile]:
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt * _PAUSE)
            registered = self.registered()
            lease = self._free(registered) or self._new(registered)
            if lease is not None:
                return registered, *lease
        message = (
            f"another process locks each new shard of {self.state}: find that process, and end it"
        )
        raise StorageError(message, code="storage.locked")

    def opening(self, number: int, heads: Mapping[int, bytes], *, at: str) -> Record:
        """Return the entry with which a shard is opened, or taken up again.

        ``heads`` are the newest checkpoints of all shards with an entry. A shard that is left out
        could be cut without a trace from then on.
        """
        return ShardEntry.new(
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
        # unregistered shards last: a process may be opening one
        for number in sorted(numbers, key=lambda number: (number not in registered, number)):
            try:
                file = self._take(number)
            except StorageError as error:
                if error.code != "storage.unvouched":
                    raise
                _LOGGER.warning("%s", error)  # the shard stays as it is, and another is written
                continue
            if file is not None:
                return number, file
        return None

    def _new(self, registered: frozenset[int]) -> tuple[int, ShardFile] | None:
        with registry_file.locked(self.state):
            # never the number of an earlier shard: its anchor vouches for the earlier shard
            used = {
                *registered,
                *registry_file.anchored(self.anchors, self.trust),
                *sqlite.numbers(self.state),
            }
            # the lowest free number, not the highest plus one: whoever writes the state can put a
            # file with the highest possible number there
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
