"""What a process of ``worker_processes.py`` runs: tasks on stdin, and their answers on stdout.

A message is a name, the length of a value in four bytes, and the value. The answer to a task has
the task's name. ``entry_worker.py`` and the command line say what the values are.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Final

NAME_SIZE: Final = 16
"""The size of a task's name, in bytes."""

HEAD_SIZE: Final = NAME_SIZE + 4
"""The size of a message before its value, in bytes."""


def message(name: bytes, value: bytes) -> bytes:
    """Return the message with a task or with the answer to a task."""
    return name + len(value).to_bytes(4) + value


def size_of_value(head: bytes | bytearray) -> int:
    """Return the length of the value of a message that begins with ``head``, in bytes."""
    return int.from_bytes(head[NAME_SIZE:HEAD_SIZE])


def work(answer: Callable[[bytes], bytes]) -> None:
    """Answer tasks until stdin ends."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints from now on is in no answer
    gc.freeze()  # the modules stay: nobody has to look whether they do
    while head := source.read(HEAD_SIZE):
        value = answer(source.read(size_of_value(head)))
        target.write(message(head[:NAME_SIZE], value))
        target.flush()
