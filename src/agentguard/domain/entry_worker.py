"""A process that reads entries: a task is a batch, and the answer the readings of its entries.

Both are pickled, and no class but those of batches and readings is unpickled. ``worker.py`` reads
tasks and writes answers.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, Final

from agentguard.audit.ahead import Batch, InOneThread, Reading
from agentguard.audit.calls import Authorization, EvaluationReport, Outcome
from agentguard.audit.entry import Entry
from agentguard.call.client import Client
from agentguard.domain import worker
from agentguard.signing.dsse import Envelope, JointSignature
from agentguard.signing.keys import PublicKey

_CLASSES: Final = {
    (each.__module__, each.__qualname__): each
    for each in (
        Authorization,
        Batch,
        Client,
        Entry,
        Envelope,
        EvaluationReport,
        JointSignature,
        Outcome,
        PublicKey,
        Reading,
    )
}


def dumps(value: Batch | Sequence[Reading]) -> bytes:
    """Return a batch, or the answer to a batch, as bytes."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def batch_of(value: bytes) -> Batch:
    """Return the batch in a task; raises ``pickle.UnpicklingError``."""
    batch: Batch = _Unpickler(io.BytesIO(value)).load()
    return batch


def readings_of(value: bytes) -> Sequence[Reading]:
    """Return the readings in an answer; raises ``pickle.UnpicklingError``."""
    readings: Sequence[Reading] = _Unpickler(io.BytesIO(value)).load()
    return readings


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CLASSES:
            what = f"{module}.{name} has no place in a message"
            raise pickle.UnpicklingError(what)
        return _CLASSES[module, name]


def main() -> None:
    """Answer batches until stdin ends."""
    reader = InOneThread()
    worker.work(lambda task: dumps(reader.start(batch_of(task))()))


if __name__ == "__main__":
    main()
