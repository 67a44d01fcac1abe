"""A process that checks signatures: a task is a batch, and the answer names the signers.

The messages are MessagePack of texts, bytes and numbers. The process that asks reads the entries
itself: an answer spares work alone. ``worker.py`` reads tasks and writes answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import msgpack

from agentguard.audit.ahead import Batch, InOneThread
from agentguard.domain import worker
from agentguard.signing.keys import PublicKey


def dumps(batch: Batch) -> bytes:
    """Return a batch as the bytes of a task."""
    return msgpack.encode((batch.bodies, [key.raw for key in batch.keys], batch.since))


def signers_of(answer: bytes) -> Sequence[str | None]:
    """Return the thumbprints of the signers in an answer; raises ``msgspec.MsgspecError``."""
    return msgpack.decode(answer, type=list[str | None])


def _answer(task: bytes, reader: InOneThread) -> bytes:
    bodies, keys, since = msgpack.decode(task, type=tuple[list[bytes], list[bytes], int])
    readings = reader.start(Batch(bodies, [PublicKey(key) for key in keys], since))()
    signers = [one.signer for one in readings]
    return msgpack.encode([None if one is None else one.thumbprint for one in signers])


def main() -> None:
    """Answer batches until stdin ends."""
    reader = InOneThread()
    worker.work(lambda task: _answer(task, reader))


if __name__ == "__main__":
    main()
