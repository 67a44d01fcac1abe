"""A process that reads entries: batches on stdin, and their readings on stdout.

A message is a name, the length of a value in four bytes, and the value. The answer to a batch has
the batch's name. A value is pickled, and no class but those of batches and readings is unpickled.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any, Final

from agentguard.audit.ahead import Batch, InOneThread, Reading
from agentguard.audit.calls import Authorization, Evaluation, Outcome
from agentguard.audit.entry import Entry
from agentguard.call.client import Client
from agentguard.signing.dsse import Envelope, JointSignature
from agentguard.signing.keys import PublicKey

NAME_SIZE: Final = 16
"""The size of a batch's name, in bytes."""

HEAD_SIZE: Final = NAME_SIZE + 4
"""The size of a message before its value, in bytes."""

_CLASSES: Final = {
    (each.__module__, each.__qualname__): each
    for each in (
        Authorization,
        Batch,
        Client,
        Entry,
        Envelope,
        Evaluation,
        JointSignature,
        Outcome,
        PublicKey,
        Reading,
    )
}


def message(name: bytes, value: Batch | Sequence[Reading]) -> bytes:
    """Return the message with a batch or with the answer to a batch."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return name + len(data).to_bytes(4) + data


def size_of_value(head: bytes | bytearray) -> int:
    """Return the length of the value of a message that begins with ``head``, in bytes."""
    return int.from_bytes(head[NAME_SIZE:HEAD_SIZE])


def batch_of(value: bytes) -> Batch:
    """Return the batch in a message's value; raises ``pickle.UnpicklingError``."""
    batch: Batch = _Unpickler(io.BytesIO(value)).load()
    return batch


def readings_of(value: bytes) -> Sequence[Reading]:
    """Return the answer in a message's value; raises ``pickle.UnpicklingError``."""
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
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints from now on is in no answer
    reader = InOneThread()
    gc.freeze()  # the modules stay: nobody has to look whether they do
    while head := source.read(HEAD_SIZE):
        batch = batch_of(source.read(size_of_value(head)))
        target.write(message(head[:NAME_SIZE], reader.start(batch)()))
        target.flush()


if __name__ == "__main__":
    main()
